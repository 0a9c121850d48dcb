"""One call -> its compiled kernel, through the package's own compile worker.

The worker is asked as the package asks it, so what is certified is what serves: the same
decompositions, flags and wrapper. Nothing is registered with the dispatcher: the library is run
directly on tensors, and the overload itself is eager. The worker's own comparison is off, because
the laboratory is the comparison. The gate and the size specialisations say nothing about values.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aoti_eager._base.cpp_compiler import compiler_identity, compiler_on_path
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._base.digest import json_digest
from aoti_eager._base.op_names import find_overload
from aoti_eager._base.sealed_library import sealed_file
from aoti_eager._base.torch_compat.dispatcher import OpOverload
from aoti_eager._compile_service.requested import RequestedCall, RequestedCode
from aoti_eager._compile_service.requests import LibraryRequest
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._keys.call_template import CallTemplate, call_template, fresh_results, slot_dtype
from aoti_eager._keys.declines import call_decline, op_decline
from aoti_eager._keys.dynamic_plan import Plan, plan_of
from aoti_eager._keys.kernel_key import KernelKey, kernel_key
from aoti_eager._keys.pattern import family_of
from aoti_eager._keys.schema import OpSchema, op_schema
from aoti_eager._runner.kernel_runner import LibraryRunner
from aoti_eager._store.environment import CODE_VERSION, current_environment
from aoti_eager._store.store import Store
from aoti_eager.errors import CompileError, UnsupportedArgumentError

COMPILE_TIMEOUT_S = 300.0


_DOUBLE = (torch.float64, torch.complex128)


class DeclinedError(Exception):
    """The package keeps the original kernel for the call; ``reason`` is one of its reasons."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Versions:
    """What results depend on besides the call: they are made anew when one of these changes."""

    code: int
    torch: str
    compiler: str

    def to_json(self) -> dict[str, Any]:
        """Return the versions as JSON values."""
        return {"code": self.code, "torch": self.torch, "compiler": self.compiler}


def versions() -> Versions:
    """Return the versions of this process."""
    return Versions(CODE_VERSION, str(torch.__version__), str(compiler_identity()))


def compiler_version() -> str:
    """Return the C++ compiler's name and version, as it says them."""
    done = subprocess.run(
        [str(compiler_on_path()), "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout.partition("\n")[0]


class Kernel:
    """A compiled kernel of one call, and the original beside it.

    Args:
        op: The overload.
        template: The call without its tensors.
        runner: The loaded library.
        outputs: Where each result of the op comes from; see ``Entry.outputs``.
    """

    def __init__(
        self,
        op: OpOverload,
        template: CallTemplate,
        runner: LibraryRunner,
        outputs: Sequence[Mapping[str, Any]],
    ) -> None:
        self._op = op
        self._template = template
        self._runner = runner
        self._outputs = outputs

    def compiled(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Return the fresh results of the compiled code.

        Args:
            inputs: Tensors and numbers in slot order, with the metadata the kernel was made for.
        """
        tensors = [
            value if isinstance(value, Tensor) else torch.tensor(value, dtype=slot_dtype(slot))
            for value, slot in zip(inputs, self._template.slots, strict=True)
        ]
        return self._runner.run(tensors)

    def eager(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Return the fresh results of the original kernel."""
        return self.with_op(self._op, inputs)

    def with_op(self, op: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
        """Return the fresh results of ``op``, called as the overload would be."""
        result = self._template.call(op, inputs)
        return fresh_results(self._outputs, result, len(self._template.schema.returns))

    def exact(self, inputs: Sequence[Any], dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Return eager's results with every floating-point and integer input in ``dtype``.

        Numbers beside tensors below double precision are rounded to float32 first: that is what
        eager computes with, and a number's rounding is no error of its code.
        """
        tensors = [one for one in inputs if isinstance(one, Tensor) and one.dim()]
        is_narrow = not any(one.dtype in _DOUBLE for one in tensors)

        def widened(value: Any) -> Any:
            if isinstance(value, Tensor):
                if value.dtype is torch.bool:
                    return value
                if is_narrow and value.dim() == 0 and value.is_floating_point():
                    value = value.to(torch.float32)
                return value.to(dtype)
            return rounded(value)

        def rounded(value: Any) -> Any:
            is_float = isinstance(value, float) and is_narrow
            return torch.tensor(value, dtype=torch.float32).item() if is_float else value

        def op(*args: Any, **kwargs: Any) -> Any:
            return self._op(*map(rounded, args), **{k: rounded(v) for k, v in kwargs.items()})

        return self.with_op(op, [widened(value) for value in inputs])


class Kernels:
    """Compiles kernels, keeps them in a directory, and loads them.

    Args:
        directory: Where libraries, failures and the worker's files are kept.
        target: ``x86-64-v4`` or another setting of ``cpu_target``.
    """

    def __init__(self, directory: Path, target: str) -> None:
        # Single words of the wrapper's code, nothing that is computed; a fifth of every compile.
        os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
        self.target = target
        self._target = cpu_target(cpu_features(), target)
        self._kernels = directory / "kernels"
        self._kernels.mkdir(parents=True, exist_ok=True)
        root = directory / "store"
        root.mkdir(mode=0o700, exist_ok=True)
        self._store = Store(root, lock_timeout_s=60.0)
        self._store.create()
        self._service = CompileService(self._target, workers=1)

    def close(self) -> None:
        """End the compile worker."""
        self._service.close()

    def kernel(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, numbers: bool = False
    ) -> Kernel:
        """Return the kernel that would serve calls like this one.

        Args:
            name: The overload, ``aten::mul.Tensor``.
            args: Positional arguments; of tensors only the metadata matters, numbers in Tensor
                slots are Python numbers.
            kwargs: Keyword arguments, likewise.
            numbers: Whether the kernel is to be the one that takes numbers as inputs, which the
                package makes when only a number has changed.

        Raises:
            DeclinedError: The package would keep the original.
        """
        op = find_overload(name)
        schema = op_schema(op)
        reason = op_decline(op, schema)
        if reason is not None:
            raise DeclinedError(reason)
        try:
            key = kernel_key(schema, "CPU", schema.bind(args, kwargs))
        except UnsupportedArgumentError as error:
            raise DeclinedError("unsupported_argument_type", str(error)) from error
        plan = _number_plan(schema, key) if numbers else None
        template = call_template(schema, key, plan.numbers if plan is not None else ())
        reason = call_decline(template)
        if reason is not None:
            raise DeclinedError(reason)
        identity = [
            None if plan is None else _open_parts(plan),
            key.to_json(),
            current_environment().digest,
            compiler_identity(),
            self._target.name,
        ]
        place = self._kernels / json_digest(identity)[:32]
        if not place.exists():
            self._compile(place, key, plan)
        document = json.loads((place / "kernel.json").read_text())
        if "reason" in document:
            raise DeclinedError(document["reason"], document["message"])
        with sealed_file(place / "library.so", document["sha256"]) as library:
            runner = LibraryRunner(library, calls_aten=False)
        return Kernel(op, template, runner, document["outputs"])

    def _compile(self, place: Path, key: KernelKey, plan: Plan | None) -> None:
        staged = place.with_name(f"{place.name}.{os.getpid()}")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        with self._store.workspace() as work:
            try:
                call = RequestedCall(
                    key, self._store.root, check=False, timeout_s=COMPILE_TIMEOUT_S
                )
                code = RequestedCode(call, plan=plan)
                made = self._service.compile(LibraryRequest(code, work))
            except CompileError as error:
                if not error.remember:
                    shutil.rmtree(staged)
                    raise DeclinedError(error.reason, str(error)) from error
                document: dict[str, Any] = {"reason": error.reason, "message": str(error)}
            else:
                shutil.copyfile(made.library, staged / "library.so")
                document = {"sha256": made.sha256, "outputs": list(made.outputs)}
        (staged / "kernel.json").write_text(json.dumps(document))
        with contextlib.suppress(OSError):  # Another process was faster.
            staged.rename(place)
        shutil.rmtree(staged, ignore_errors=True)


def _open_parts(plan: Plan) -> dict[str, Any]:
    """Return what of a plan affects the code."""
    return {name: value for name, value in plan.to_json().items() if name != "family"}


def _number_plan(schema: OpSchema, key: KernelKey) -> Plan:
    """Return the plan of the kernel that takes all numbers of a call as inputs."""
    family = family_of(schema, key)
    names = {name for name in family.values if name.startswith("v")}
    if not names:
        raise DeclinedError("not_dynamic", "no number of the call may be an input")
    return plan_of(family.pattern.digest, family, names)


def eager_refuses(error: BaseException) -> str:
    """Return why eager itself does not take a call, in one line."""
    return " ".join(traceback.format_exception_only(error)[-1].split())[:200]
