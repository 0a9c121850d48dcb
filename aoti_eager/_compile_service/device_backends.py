"""Devices that AOTInductor does not know: their compile backends and their runners.

An out-of-tree device (PrivateUse1) registers two functions. Then its ops are cached as all other
ops are: keyed, stored, loaded, checked against the original, counted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .._base.torch_compat import dispatcher
from ..errors import BackendRegistrationError
from .compile_request import CompileFunction, LoadFunction

if TYPE_CHECKING:
    from .device_compile import DeviceBackend


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


class BackendRegistration:
    """A device's runner or compile backend until ``unregister``; also a context manager."""

    def __init__(self, table: dict[str, Any], device_type: str, value: object) -> None:
        self._table = table
        self.device_type = device_type
        self._value = value

    def unregister(self) -> None:
        """Remove the registration; loaded kernels stay in use. A second call does nothing."""
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
        BackendRegistrationError: The type is none of torch's, or already has a factory.
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
            An exception from it declines the key in this process; a ``CompileError`` with
            ``remember`` declines the key in the store, too, if its reason is one that is remembered
            (docs/declines.md).
        load_fn: Takes the stored file and the device of the call; returns a function from the
            inputs to the outputs. By default the runner of ``register_runner``.
        version: What affects the code besides the call: a compiler's version, a target. It is in
            the key, with the name of ``compile_fn``.

    Raises:
        BackendRegistrationError: The type is none of torch's, or already has a backend.
    """
    if not callable(compile_fn):
        raise BackendRegistrationError(
            f"compile_fn is {type(compile_fn).__name__}; a function of a CompileRequest is wanted"
        )
    # Imported here, as below: a process without such a device is not to wait for the import.
    from .device_compile import DeviceBackend

    name = getattr(compile_fn, "__qualname__", type(compile_fn).__qualname__)
    module = getattr(compile_fn, "__module__", type(compile_fn).__module__)
    identity = f"{module}.{name} {version}".strip()
    load = _load_registered if load_fn is None else load_fn
    backend = DeviceBackend(device_type, identity, compile_fn, load)
    callables = (compile_fn,) if load_fn is None else (compile_fn, load_fn)
    return _register(_backends, device_type, backend, "compile backend", callables=callables)


def load_runner(
    library: str | os.PathLike[str],
    num_models: int = 1,
    device: str | torch.device = "cpu",
    cubin_dir: str | os.PathLike[str] | None = None,
) -> Runner:
    """Return a runner for a library on any device: ``ModelContainerRunner``, or a registered one.

    Args:
        library: As for ``ModelContainerRunner``.
        num_models: How many runs there may be at a time, at least 1.
        device: A device of any type; if its type has a factory (``register_runner``), the factory
            makes the runner.
        cubin_dir: Where a GPU library's kernels lie, if not beside it.

    Raises:
        LibraryLoadError: The file is no kernel library for this machine and device.
        MissingSymbolError: It is a shared object of another kind.
        ValueError: ``num_models`` is less than 1.
        RuntimeError: ``device`` is no device of torch's.
        Exception: Whatever the device's own factory raises.
    """
    where = torch.device(device)
    factory = _runners.get(where.type)
    if factory is None:
        from .._runner.runner import ModelContainerRunner

        return ModelContainerRunner(library, num_models, device, cubin_dir)
    return factory(Path(library), num_models, where, None if cubin_dir is None else Path(cubin_dir))


def _load_registered(
    library: Path, device: torch.device
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    return load_runner(library, device=device).run


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
            f"{device_type!r} is no device type of torch's; a PrivateUse1 device is called "
            f"{dispatcher.privateuse1_device_type()!r} here, as "
            "torch.utils.rename_privateuse1_backend says"
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


_lock = threading.Lock()
_runners: dict[str, RunnerFactory] = {}
_backends: dict[str, DeviceBackend] = {}
_callbacks: list[Callable[[], None]] = []
