"""How a key's library is made and loaded: by AOTInductor in a worker, or by a device's backend."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._base.digest import Component
from .._base.handover import let_others_run
from .._base.sealed_library import SealedLibrary, copy_for_good, library_digest
from .._base.torch_compat.dispatcher import OpOverload, raw_schema
from .._keys.call_template import CallTemplate
from .._keys.pattern import number_arguments
from .._native.table import NativeRun
from .._runner.kernel_runner import RELEASE_GIL_NUMEL, LibraryRunner
from .._store.entry import Entry
from ..config import config
from ..errors import CompileError
from .cache_context import CacheContext

if TYPE_CHECKING:
    from .._functions.description import Description
    from .._keys.dynamic_plan import Plan
    from .device_compile import DeviceBackend
    from .replies import Compiled, Measured, Published
    from .requested import RequestedCall, RequestedCode


class DeviceRunner:
    """A library of a device's backend; ``run`` and ``lock`` as in ``LibraryRunner``."""

    __slots__ = ("lock", "run")

    def native(self) -> NativeRun | None:
        """Return ``None``: C++ cannot call the backend's runner, which is a Python function."""
        return None

    def __init__(self, run: Callable[[list[Tensor]], list[Tensor]]) -> None:
        self.run = run
        # A backend's runner may not be thread-safe.
        self.lock = threading.RLock()


class KernelCompiler:
    """Makes and loads the libraries of one op.

    Args:
        op: The overload.
        device_backend: The compile backend of the op's device; ``None`` for AOTInductor.
        is_native: Whether the C++ hit path serves the op; a library is timed with the hit path that
            serves.
    """

    def __init__(
        self, op: OpOverload, device_backend: DeviceBackend | None, *, is_native: bool = False
    ) -> None:
        self._op = op
        self._device_backend = device_backend
        self._is_native = is_native

    @property
    def context(self) -> tuple[tuple[str, Component], ...]:
        """Return what the compiler adds to the key."""
        if self._device_backend is None:
            return ()
        return (("backend", self._device_backend.identity),)

    @property
    def is_portable(self) -> bool:
        """Return whether the code depends neither on this CPU nor on its thread count."""
        return self._device_backend is not None

    def target(self, context: CacheContext) -> tuple[str, frozenset[str]]:
        """Return the name of the target that the code is for, and the CPU features it needs."""
        if self._device_backend is not None:
            return self._device_backend.device_type, frozenset()
        return context.target.name, context.target.requires

    @property
    def works_in_background(self) -> bool:
        """Return whether our worker processes try and measure a compiled library."""
        return self._device_backend is None

    def compile_on_device(self, template: CallTemplate, work: Path) -> Compiled:
        """Return a new library of the device's compile backend, made on this thread.

        Args:
            template: The call.
            work: An empty directory of the store; the library is somewhere in it.

        Raises:
            CompileError: No usable library, with the decline reason.
        """
        from .replies import Compiled

        backend = self._device_backend
        assert backend is not None
        made = backend.compile(self._op, template, work, timeout_s=config.compile_timeout_s)
        try:
            sha256 = library_digest(Path(os.path.realpath(made.library)))
        except OSError as error:
            message = f"{self._op}: the library of its backend cannot be used: {error}"
            raise CompileError("library_unloadable", message) from error
        return Compiled(
            library=made.library,
            sha256=sha256,
            outputs=made.outputs,
            calls_aten=False,
            parallel=False,
            compiler=backend.identity,
        )

    def publish(
        self,
        template: CallTemplate,
        function: Description | None,
        context: CacheContext,
        plan: Plan | None = None,
        *,
        background: bool = True,
    ) -> Published | None:
        """Have a worker put the call's entry into the store, and wait for the worker.

        Args:
            template: The call.
            function: The user's function behind the op; ``None`` for an op that a worker has.
            context: The store and the workers.
            plan: For a dynamic specialisation.
            background: Whether the worker has a low priority; else it has the script's own.

        Returns:
            What the worker did; ``None`` if it would have to wait for another process.

        Raises:
            CompileError: No usable library, with the decline reason; the store remembers it.
        """
        service = context.background_service if background else context.service
        from .._store.limits import current_limits
        from .requested import EntryOrigin
        from .requests import EntryRequest

        target, requires = self.target(context)
        origin = EntryOrigin(context.environment, target, requires)
        code = self._code(template, function, context, plan)
        request = EntryRequest(code, origin, current_limits())
        let_others_run()
        return service.publish(request)

    def measure(
        self,
        template: CallTemplate,
        function: Description | None,
        context: CacheContext,
        library: Path,
        entry: Entry,
        *,
        background: bool,
        compared: bool,
        size: int | None,
    ) -> Measured:
        """Return the times of a stored library, tried and timed in a worker.

        Args:
            template: The call.
            function: As for ``publish``.
            context: As for ``publish``.
            library: The library's file.
            entry: The library's entry.
            background: Whether the worker has a low priority.
            compared: Whether the library was tried on this model of processor: then it is only
                timed.
            size: The call's size class, for a dynamic specialisation.

        Raises:
            CompileError: The library must not be used, or there is no worker.
        """
        service = context.background_service if background else context.service
        from .requested import BuiltLibrary
        from .requests import TimesRequest

        request = TimesRequest(
            self._call(template, function, context),
            BuiltLibrary(
                path=library,
                sha256="" if entry.library is None else entry.library.sha256,
                outputs=tuple(dict(output) for output in entry.outputs),
                calls_aten=entry.calls_aten,
            ),
            compared=compared,
            numbers=number_arguments(entry.key),
            digest=entry.digest,
            size=size,
        )
        let_others_run()
        return service.measure(request)

    def _code(
        self,
        template: CallTemplate,
        function: Description | None,
        context: CacheContext,
        plan: Plan | None,
    ) -> RequestedCode:
        from .requested import RequestedCode

        call = self._call(template, function, context)
        return RequestedCode(call, gate=config.gate, plan=plan)

    def _call(
        self, template: CallTemplate, function: Description | None, context: CacheContext
    ) -> RequestedCall:
        from .requested import RequestedCall

        return RequestedCall(
            key=template.key,
            root=context.store.root,
            check=config.check,
            timeout_s=config.compile_timeout_s,
            function=None if function is None else function.document,
            schema=str(raw_schema(self._op)),
            is_native=self._is_native,
        )

    def load(
        self, library: SealedLibrary, entry: Entry, *, numel: int, device: torch.device | None
    ) -> LibraryRunner | DeviceRunner:
        """Return a loaded library.

        Args:
            library: A copy of the library; the copy may be closed afterwards.
            entry: The library's entry.
            numel: How many elements all inputs have together.
            device: The device of the first input that is not on the CPU, if there is one.

        Raises:
            RunnerError: The library cannot be loaded.
            OSError: There is no place for a copy that the device's backend may open.
        """
        if self._device_backend is not None:
            device = device or torch.device(self._device_backend.device_type)
            return DeviceRunner(self._device_backend.load(copy_for_good(library.content), device))
        return LibraryRunner(
            library,
            calls_aten=entry.calls_aten,
            release_gil=numel >= RELEASE_GIL_NUMEL,
            native=config.native != "0",
        )
