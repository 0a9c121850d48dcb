"""One call template -> one kernel library, through torch.export and AOTInductor.

Runs in the compile worker only, where no op is registered: whatever the compiler itself calls
reaches the original kernels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from . import _inductor_compat as inductor
from ._compat import OpOverload
from ._schema import Kind
from ._template import CallTemplate, slot_dtype
from .errors import CompileError


@dataclass(frozen=True, slots=True)
class Lowered:
    """A compiled library and what the caller must know to run it.

    Attributes:
        library: The shared object's file.
        outputs: Where each result of the op comes from; see ``Entry.outputs``.
        calls_aten: Whether the library calls ATen for a part of its work.
        parallel: Whether its code has parallel regions, so that it depends on the thread count.
        compiler: The C++ compiler's name and version.
    """

    library: Path
    outputs: list[dict[str, Any]]
    calls_aten: bool
    parallel: bool
    compiler: str


def lower(op: OpOverload, template: CallTemplate, work: Path, options: dict[str, Any]) -> Lowered:
    """Compile the call of ``template`` and return its library, inside ``work``.

    Args:
        op: The overload.
        template: The call; its tensors are faked, no data exists.
        work: An empty directory for everything that is generated.
        options: Inductor settings by dotted name.

    Raises:
        CompileError: No usable library, with the decline reason.
    """
    mode = inductor.FakeTensorMode()
    with mode, torch.no_grad():
        outputs = _trace_outputs(op, template, _fake_inputs(template))
        inputs = tuple(_fake_inputs(template))
        program = _export(op, template, outputs, inputs)
    facts = _GeneratedCode()
    restore = inductor.inspect_generated_code(facts.inspect)
    try:
        library = inductor.aot_compile(
            program, inputs, options={**options, "aot_inductor.output_path": str(work)}
        )
    except CompileError:
        raise
    except Exception as error:
        raise _compile_error(error) from error
    finally:
        restore()
    return Lowered(
        library=Path(str(library)),
        outputs=outputs,
        calls_aten=facts.calls_aten,
        parallel=facts.parallel,
        compiler=inductor.compiler_description(),
    )


def _fake_inputs(template: CallTemplate) -> list[Tensor]:
    fakes = []
    for slot in template.slots:
        if slot.number_kind:
            fakes.append(torch.empty((), dtype=slot_dtype(slot)))
        else:
            fakes.append(
                torch.empty_strided(
                    slot.component["sizes"],
                    slot.component["strides"],
                    dtype=slot_dtype(slot),
                    device=slot.component["device"],
                )
            )
    return fakes


def _trace_outputs(
    op: OpOverload, template: CallTemplate, inputs: list[Tensor]
) -> list[dict[str, Any]]:
    """Run the op on fakes and return where each of its results will come from.

    Numbers take a made-up value: metadata of a result cannot depend on it in any op that has one
    in a Tensor slot, and if it did the check on live arguments would say so.
    """
    before = [(t.shape, t.stride(), t.dtype) for t in inputs]
    try:
        result = template.call(op, inputs, as_number=_made_up_number)
    except (
        inductor.DataDependentOutputException,
        inductor.DynamicOutputShapeException,
    ) as error:
        raise CompileError("data_dependent_output", str(error)) from error
    except Exception as error:
        raise CompileError("does_not_trace", _text(error)) from error
    if before != [(t.shape, t.stride(), t.dtype) for t in inputs]:
        raise CompileError("changes_metadata", "the op changes the sizes or strides of an argument")
    schema = template.schema
    results = [result] if len(schema.returns) == 1 else list(result or ())
    outputs: list[dict[str, Any]] = []
    taken = {_storage(t) for t in inputs}
    count = 0
    for returned, value in zip(schema.returns, results, strict=True):
        if returned.argument is not None:
            outputs.append({"argument": returned.argument})
            continue
        if value is None:
            outputs.append({"none": True})
            continue
        if returned.kind not in (Kind.TENSOR, Kind.TENSORS):
            raise CompileError("non_tensor_result", f"the op returns {returned.type_name}")
        tensors = [value] if returned.kind is Kind.TENSOR else list(value)
        for tensor in tensors:
            if tensor.layout is not torch.strided:
                raise CompileError("unsupported_tensor", f"a result is {tensor.layout}")
            if _storage(tensor) in taken:
                raise CompileError(
                    "result_shares_storage", "a result shares storage with an argument or a result"
                )
            taken.add(_storage(tensor))
        numbers = list(range(count, count + len(tensors)))
        count += len(tensors)
        outputs.append(
            {"output": numbers[0]} if returned.kind is Kind.TENSOR else {"outputs": numbers}
        )
    return outputs


def _storage(tensor: Tensor) -> int:
    # Fakes have no address; a storage's identity is all there is.
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)  # type: ignore[no-untyped-call]


def _made_up_number(value: Tensor) -> Any:
    return {torch.bool: True, torch.int64: 2, torch.float64: 1.5, torch.complex128: 1.5 + 0.5j}[
        value.dtype
    ]


def _export(
    op: OpOverload,
    template: CallTemplate,
    outputs: list[dict[str, Any]],
    inputs: tuple[Tensor, ...],
) -> Any:
    returns_one = len(template.schema.returns) == 1

    class Call(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            result = template.call(op, tensors, as_number=lambda number: number.item())
            results = [result] if returns_one else list(result or ())
            fresh: list[Tensor] = []
            for output, value in zip(outputs, results, strict=True):
                if "output" in output:
                    fresh.append(value)
                elif "outputs" in output:
                    fresh += value
            return tuple(fresh)

    try:
        program = torch.export.export(Call(), inputs, strict=False)
        return program.module(check_guards=False)
    except Exception as error:
        raise CompileError("does_not_trace", _text(error)) from error


class _GeneratedCode:
    """What the generated C++ says about itself; raises where it must not be used at all."""

    calls_aten = False
    parallel = False

    def inspect(self, wrapper: str, kernels: str, proxy_executor: bool) -> None:
        body = _run_body(wrapper)
        if proxy_executor or "aoti_torch_call_dispatcher" in body:
            raise CompileError(
                "needs_proxy_executor", "a part of the graph has no C shim to be called through"
            )
        if not re.search(r'extern "C"\s+void\s+\w+\s*\(', kernels):
            raise CompileError(
                "no_kernel_of_its_own", "Inductor has no kernel for this op, only calls to ATen"
            )
        if "TORCH_CHECK(" in kernels:
            raise CompileError(
                "error_depends_on_data",
                "the generated code checks data, and a failed check would end the process",
            )
        self.calls_aten = bool(re.search(r"aoti_torch_(cpu|cuda|xpu|item)_\w+\(", body))
        self.parallel = "#pragma omp parallel" in kernels


def _run_body(wrapper: str) -> str:
    """Return the part of the wrapper that runs in a call; the rest is the same in every library."""
    start = wrapper.rfind("::run_impl(")
    return wrapper[start:] if start >= 0 else wrapper


def _compile_error(error: Exception) -> CompileError:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        if isinstance(cause, CompileError):
            return cause
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = _text(error)
    names = {type(one).__name__ for one in chain}
    if "InvalidCxxCompiler" in names:
        return CompileError("no_compiler", text, remember=False)
    if "No space left on device" in text or any(
        isinstance(one, OSError) and one.errno == 28 for one in chain
    ):
        return CompileError("store_unwritable", text, remember=False)
    if any(isinstance(one, MemoryError) for one in chain) or "Killed signal" in text:
        return CompileError("compile_failed", text, remember=False)
    # A compiler that fails may be repaired, and it is no part of the environment; what Inductor
    # itself cannot do stays so.
    return CompileError("compile_failed", text, log=text, remember="CppCompileError" not in names)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
