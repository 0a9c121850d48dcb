"""Devices that AOTInductor does not know: who compiles for them, and who runs what was compiled.

A device of somebody's own (PrivateUse1) brings two functions, and its ops are cached as all others
are: keyed, stored, loaded, checked against the original, counted.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _compat
from ._compat import OpOverload, fake_mode
from ._passthrough import passthrough
from ._runner import ModelContainerRunner
from ._template import CallTemplate
from ._tracing import call_module, error_text, fake_inputs, trace_outputs
from .errors import BackendRegistrationError, CompileError, RunnerError


class Runner(Protocol):
    """What runs a kernel library: ``ModelContainerRunner``, or what a factory makes."""

    def run(self, inputs: list[Tensor], stream: Any = None) -> list[Tensor]:
        """Return the outputs of a run."""


class RunnerFactory(Protocol):
    """Makes a runner; takes what ``ModelContainerRunner`` takes."""

    def __call__(
        self, library: Path, num_models: int, device: torch.device, cubin_dir: Path | None
    ) -> Runner:
        """Return a runner for the library."""


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """One call for a compile backend to compile.

    Attributes:
        op: Qualified name of the op with its overload, ``aten::mul.Tensor``.
        module: The call as a module of its tensors alone: it takes ``inputs`` and returns a tuple
            of the fresh results, and writes to the inputs that the op writes to. To be traced, by
            ``torch.export`` or otherwise.
        inputs: Fake tensors on the device: dtypes, sizes and strides without data. They belong to
            ``fake_mode``.
        fake_mode: The mode to trace in.
        directory: An empty directory for the result and everything temporary; it is removed.
    """

    op: str
    module: torch.nn.Module
    inputs: tuple[Tensor, ...]
    fake_mode: Any
    directory: Path


CompileFunction = Callable[[CompileRequest], "str | os.PathLike[str]"]
LoadFunction = Callable[[Path, torch.device], Callable[[list[Tensor]], Sequence[Tensor]]]


@dataclass(frozen=True, slots=True)
class DeviceBackend:
    """The compile backend of one device type.

    Attributes:
        identity: What shapes its code, for the key: a name and a version.
    """

    device_type: str
    identity: str
    compile_fn: CompileFunction
    load_fn: LoadFunction | None

    def compile(
        self, op: OpOverload, template: CallTemplate, work: Path, *, timeout_s: float
    ) -> BackendLibrary:
        """Return the library for a call, made on a thread without the caller's state.

        Autocast, inference mode, dispatch modes and the current stream belong to a thread.

        Args:
            op: The overload.
            template: The call.
            work: An empty directory of the store.
            timeout_s: Seconds to wait; a thread cannot be ended, so it goes on for nobody.

        Raises:
            CompileError: No library came out, with the decline reason.
        """
        answer: list[BackendLibrary | BaseException] = []

        def compile_() -> None:
            try:
                with passthrough():
                    answer.append(self._compile(op, template, work))
            except BaseException as error:  # noqa: BLE001 - raised below, on the caller's thread
                answer.append(error)

        thread = threading.Thread(target=compile_, name="aoti_eager compile", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if not answer:
            raise CompileError(
                "compile_timeout",
                f"{template.schema.op}: no library after {timeout_s:g} s",
                remember=False,
            )
        result = answer[0]
        if isinstance(result, CompileError):
            raise result
        if isinstance(result, BaseException):
            # Not remembered: whoever writes the backend mends it under the same version.
            raise CompileError(
                "compile_failed",
                f"{template.schema.op}: the compile backend of {self.device_type} raised "
                f"{error_text(result)}",
                log="".join(traceback.format_exception(result)),
                remember=False,
            ) from result
        return result

    def load(self, library: Path, device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
        """Return a function that runs a stored library.

        Raises:
            RunnerError: It cannot be loaded.
        """
        try:
            if self.load_fn is not None:
                run: Any = self.load_fn(library, device)
            else:
                run = load_runner(library, device=device).run
        except RunnerError:
            raise
        except Exception as error:
            raise RunnerError(f"{library}: cannot be loaded: {error_text(error)}") from error
        return _as_library(run, self.device_type)

    def _compile(self, op: OpOverload, template: CallTemplate, work: Path) -> BackendLibrary:
        mode = fake_mode()
        with mode, torch.no_grad():
            outputs = trace_outputs(op, template, fake_inputs(template))
            inputs = tuple(fake_inputs(template))
        module = call_module(op, template, outputs)
        request = CompileRequest(template.schema.op, module, inputs, mode, work)
        library = Path(self.compile_fn(request))
        if not library.is_file():
            raise CompileError(
                "compile_failed",
                f"the compile backend of {self.device_type} returned {library}, which is no file",
            )
        if not library.resolve().is_relative_to(work.resolve()):
            raise CompileError(
                "compile_failed",
                f"the compile backend of {self.device_type} returned {library}, which is not in "
                f"{work}",
            )
        return BackendLibrary(library, tuple(outputs))


@dataclass(frozen=True, slots=True)
class BackendLibrary:
    """A library from a compile backend; ``outputs`` as in ``Entry.outputs``."""

    library: Path
    outputs: tuple[dict[str, Any], ...]


class BackendRegistration:
    """A device's runner or compile backend until ``unregister``; also a context manager."""

    def __init__(self, table: dict[str, Any], device_type: str, value: object) -> None:
        self._table = table
        self.device_type = device_type
        self._value = value

    def unregister(self) -> None:
        """Forget it; kernels that are loaded stay in use. A second call does nothing."""
        with _lock:
            if self._table.get(self.device_type) is self._value:
                del self._table[self.device_type]
        _changed()

    def __enter__(self) -> BackendRegistration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unregister()


def register_runner(device_type: str, factory: RunnerFactory) -> BackendRegistration:
    """Have ``load_runner`` load libraries for ``device_type`` through ``factory``.

    Args:
        device_type: A device type that PyTorch knows, also a renamed PrivateUse1.
        factory: Takes a library's path, ``num_models``, the device and ``cubin_dir``; returns an
            object with ``run(inputs, stream=None)``.

    Raises:
        BackendRegistrationError: The type is none of torch's, or has a factory.
    """
    return _register(_runners, device_type, factory, "runner", callables=(factory,))


def register_compile_backend(
    device_type: str,
    compile_fn: CompileFunction,
    load_fn: LoadFunction | None = None,
    *,
    version: str = "",
) -> BackendRegistration:
    """Have ops on ``device_type`` compiled by ``compile_fn`` and run by what ``load_fn`` returns.

    Args:
        device_type: A device type that PyTorch knows, also a renamed PrivateUse1.
        compile_fn: Takes a ``CompileRequest``, returns the path of one file in its directory. It
            runs in this process, on a thread of its own where registered ops reach originals.
            What it raises declines the key in this process; a ``CompileError`` also in the store,
            with its reason, unless its ``remember`` is False.
        load_fn: Takes the stored file and the device of the call; returns a function from the
            inputs to the outputs. By default the runner of ``register_runner``.
        version: What shapes the code besides the call: a compiler's version, a target. It is in
            the key, with the name of ``compile_fn``.

    Raises:
        BackendRegistrationError: The type is none of torch's, or has a backend.
    """
    if not callable(compile_fn):
        raise BackendRegistrationError(
            f"compile_fn is {type(compile_fn).__name__}; a function of a CompileRequest is wanted"
        )
    name = getattr(compile_fn, "__qualname__", type(compile_fn).__qualname__)
    module = getattr(compile_fn, "__module__", type(compile_fn).__module__)
    identity = f"{module}.{name} {version}".strip()
    backend = DeviceBackend(device_type, identity, compile_fn, load_fn)
    callables = (compile_fn,) if load_fn is None else (compile_fn, load_fn)
    return _register(_backends, device_type, backend, "compile backend", callables=callables)


def load_runner(
    library: str | os.PathLike[str],
    num_models: int = 1,
    device: str | torch.device = "cpu",
    cubin_dir: str | os.PathLike[str] | None = None,
) -> Runner:
    """Return a runner for a library on any device: a ``ModelContainerRunner``, or the registered.

    Raises: as ``ModelContainerRunner``, and what the device's factory raises.
    """
    where = torch.device(device)
    factory = _runners.get(where.type)
    if factory is None:
        return ModelContainerRunner(library, num_models, device, cubin_dir)
    return factory(Path(library), num_models, where, None if cubin_dir is None else Path(cubin_dir))


def device_backend(device_type: str) -> DeviceBackend | None:
    """Return the compile backend of a device type, or ``None``."""
    return _backends.get(device_type)


def on_change(callback: Callable[[], None]) -> None:
    """Have ``callback`` called after each change of the compile backends."""
    _callbacks.append(callback)


def _register(
    table: dict[str, Any],
    device_type: str,
    value: object,
    what: str,
    *,
    callables: Sequence[object],
) -> BackendRegistration:
    for one in callables:
        if not callable(one):
            raise BackendRegistrationError(
                f"{what} of {device_type!r}: {one!r} is {type(one).__name__}; a function is wanted"
            )
    try:
        known = torch.device(device_type).type
    except (RuntimeError, TypeError) as error:
        raise BackendRegistrationError(
            f"{device_type!r} is no device type of torch's; a PrivateUse1 device is "
            f"{_compat.privateuse1_device_type()!r} here (torch.utils.rename_privateuse1_backend)"
        ) from error
    if known != device_type:
        raise BackendRegistrationError(
            f"{device_type!r} names one device; a device type is wanted: {known!r}"
        )
    with _lock:
        if device_type in table:
            raise BackendRegistrationError(
                f"{device_type!r} has a {what} already; unregister that one first"
            )
        table[device_type] = value
    _changed()
    return BackendRegistration(table, device_type, value)


def _changed() -> None:
    for callback in _callbacks:
        callback()


def _as_library(run: Any, device_type: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return ``run`` with what else it may return or raise brought into a library's form."""

    def run_as_library(inputs: list[Tensor]) -> list[Tensor]:
        try:
            with passthrough(), torch.no_grad():
                return list(run(inputs))
        except RuntimeError:
            raise
        except Exception as error:
            raise RunnerError(f"the runner of {device_type} raised {error_text(error)}") from error

    return run_as_library


_lock = threading.Lock()
_runners: dict[str, RunnerFactory] = {}
_backends: dict[str, DeviceBackend] = {}
_callbacks: list[Callable[[], None]] = []
