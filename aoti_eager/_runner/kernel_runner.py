"""Run one loaded kernel of the cache: a single instance without constants, its inputs unchecked.

The key has already settled what a ``ModelContainerRunner`` checks on each run.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from .._base.sealed_library import SealedLibrary
from .._base.torch_compat.aotinductor import AOTIModelContainerRunnerCpu
from .._native.passthrough import passthrough
from .._native.table import NativeRun
from ..errors import LibraryRunError, RunnerError
from .abi import (
    BORROWING_RUN,
    CONTAINER,
    LAST_ERROR,
    KernelLibrary,
    number_of,
)
from .container import run_library

Run = Callable[[list[Tensor]], list[Tensor]]


class LibraryRunner:
    """A loaded kernel library with one model instance.

    Args:
        library: A copy of a shared object of AOTInductor's for CPU; the copy may be closed once
            this object is made.
        calls_aten: Whether the library calls registered ops; then these ops reach their originals.
        release_gil: Whether a run lets other Python threads go on. Releasing the GIL costs a few
            microseconds, so it is for kernels that take much longer than that.
        native: Whether the C++ hit path is to run the library, too.

    Attributes:
        run: Takes the inputs in slot order, returns the fresh outputs. ``run`` does not check the
            inputs: they must have exactly the metadata the library was compiled for.
        lock: To be held around ``run``. A run that holds the GIL borrows the container's only
            instance, and a second thread would wait for that instance inside C++ with the GIL held.
            If the first thread then needs the GIL (the library calls an op with a Python kernel),
            both threads hang. Re-entrant, for signal handlers that call the same key. A run that
            releases the GIL needs no lock: two threads run one kernel at the same time.

    Raises:
        RunnerError: The file is no library of AOTInductor's, or cannot be loaded.
    """

    __slots__ = ("_native", "lock", "run")

    def __init__(
        self,
        library: SealedLibrary,
        *,
        calls_aten: bool,
        release_gil: bool = False,
        native: bool = False,
    ) -> None:
        self.lock: AbstractContextManager[Any]
        self._native: Callable[[], NativeRun | None] = lambda: None
        thin = _ThinRun(library, calls_aten) if native else None
        if thin is not None and thin.is_thin:
            self._native = thin.native
        run: Run
        if release_gil or (thin is not None and not thin.is_thin):
            self.lock = nullcontext()
            run = unlocked = _UnlockedRun(library)
            if thin is not None and not thin.is_thin:
                self._native = functools.partial(unlocked.native, calls_aten)
        else:
            self.lock = threading.RLock()
            try:
                run = AOTIModelContainerRunnerCpu(library.name, 1).run
            except Exception as error:
                said = str(error).replace(library.name, str(library.path))
                raise RunnerError(f"{library.path}: cannot be loaded: {said}") from error
        self.run: Run = _passing(run) if calls_aten else run

    def native(self) -> NativeRun | None:
        """Return what the C++ hit path calls; ``None`` if it must not serve, or not yet."""
        return self._native()


class _ThinRun:
    """A thin library's own entry point: it has no state, so any number of threads may run it."""

    def __init__(self, library: SealedLibrary, calls_aten: bool) -> None:
        self._library = KernelLibrary(library.path, inspect=False, sealed=library)
        self.is_thin = self._library.has(BORROWING_RUN)
        self._calls_aten = calls_aten

    def native(self) -> NativeRun:
        """Return what the C++ hit path calls."""
        return NativeRun(
            borrowing_run=self._library.address(BORROWING_RUN),
            container_run=0,
            last_error=self._library.address(LAST_ERROR),
            handle=0,
            outputs=number_of(self._library, f"{CONTAINER}GetNumOutputs", ctypes.c_size_t, None),
            calls_aten=self._calls_aten,
            owner=self,
        )

    def __del__(self) -> None:
        library = getattr(self, "_library", None)
        if library is not None and not sys.is_finalizing():
            library.close()


class _UnlockedRun:
    """Runs without the GIL and without the container's locks.

    That is safe from several threads at a time after the first run: on CPU the function that a
    library generates for a graph without constants reads its arguments and writes to memory it
    allocates, and the container only looks whether its (absent) constants are folded.
    """

    def __init__(self, library: SealedLibrary) -> None:
        self._library = KernelLibrary(library.path, inspect=False, sealed=library)
        handle = ctypes.c_void_p()
        try:
            self._library.call(
                f"{CONTAINER}CreateWithDevice",
                "creating a model",
                ctypes.byref(handle),
                1,
                b"cpu",
                None,
            )
            self._handle = handle.value
            self._num_outputs = number_of(
                self._library, f"{CONTAINER}GetNumOutputs", ctypes.c_size_t, self._handle
            )
        except LibraryRunError as error:
            raise RunnerError(f"{library.path}: cannot be loaded: {error}") from error
        self._run = self._library.function(f"{CONTAINER}RunSingleThreaded")
        # Re-entrant, for a signal handler that calls the same key.
        self._first = threading.RLock()
        self._ready = False
        self._pid = os.getpid()

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        if self._ready:
            return run_library(self._call, self._library.check, inputs, self._num_outputs, False)
        if self._pid != os.getpid():
            self._first, self._pid = threading.RLock(), os.getpid()  # its holder was not forked
        with self._first:
            outputs = run_library(self._call, self._library.check, inputs, self._num_outputs, False)
            self._ready = True
            return outputs

    def native(self, calls_aten: bool) -> NativeRun | None:
        """Return what the C++ hit path calls, after a first run has folded the constants."""
        if not self._ready:
            return None
        return NativeRun(
            borrowing_run=0,
            container_run=self._library.address(f"{CONTAINER}RunSingleThreaded"),
            last_error=self._library.address(LAST_ERROR),
            handle=int(self._handle or 0),
            outputs=self._num_outputs,
            calls_aten=calls_aten,
            owner=self,
        )

    def _call(self, handles: Any, outputs: Any) -> int:
        return int(
            self._run(self._handle, handles, len(handles), outputs, len(outputs), None, None)
        )

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        # While Python ends, deleting the model gains nothing, and modules are being torn down.
        if handle is not None and not sys.is_finalizing():
            self._library.call(f"{CONTAINER}Delete", "deleting a model", handle)
            self._library.close()


def _passing(run: Run) -> Run:
    """Return ``run``, changed so that registered ops that the library calls reach originals."""

    def run_passing(inputs: list[Tensor]) -> list[Tensor]:
        with passthrough():
            return run(inputs)

    return run_passing


# How many elements a kernel's inputs must have for its runs to release the GIL: with fewer, the
# release costs more than a tenth of the run.
RELEASE_GIL_NUMEL = 1 << 16
