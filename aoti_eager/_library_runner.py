"""One kernel of the cache, loaded: a single instance, without constants, whose inputs are known.

The key has already settled what a ``ModelContainerRunner`` checks on each run.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ._abi import CONTAINER, KernelLibrary, number_of
from ._compat import AOTIModelContainerRunnerCpu
from ._container import run_library
from ._passthrough import passthrough
from .errors import LibraryRunError, RunnerError

Run = Callable[[list[Tensor]], list[Tensor]]


class LibraryRunner:
    """A loaded kernel library with one model instance.

    Args:
        library: A shared object of AOTInductor's for CPU.
        calls_aten: Whether the library calls registered ops; they reach originals then.
        release_gil: Whether a run lets other Python threads go on. It costs a few microseconds, so
            it is for kernels that take much longer than that.

    Attributes:
        run: Takes the inputs in slot order, returns the fresh outputs. Inputs must have exactly the
            metadata the library was compiled for: it does not check them.
        lock: To be held around ``run``. A run that holds the GIL borrows the container's instance,
            and a second thread would wait for it inside C++ with the GIL held; if the first one
            then needs the GIL (an op with a Python kernel, called from the library), neither goes
            on. Re-entrant, for signal handlers that call the same key. A run that releases the GIL
            needs none: two threads run one kernel at the same time.

    Raises:
        RunnerError: The file is no library of AOTInductor's, or cannot be loaded.
    """

    __slots__ = ("lock", "run")

    def __init__(self, library: Path, *, calls_aten: bool, release_gil: bool = False) -> None:
        self.lock: AbstractContextManager[Any]
        if release_gil:
            self.lock = nullcontext()
            run: Run = _UnlockedRun(library)
        else:
            self.lock = threading.RLock()
            try:
                run = AOTIModelContainerRunnerCpu(str(library), 1).run
            except Exception as error:
                raise RunnerError(f"{library}: cannot be loaded: {error}") from error
        self.run: Run = _passing(run) if calls_aten else run


class _UnlockedRun:
    """Runs without the GIL and without the container's locks.

    That is safe from several threads at a time after the first run: on CPU the function that a
    library generates for a graph without constants reads its arguments and writes to memory it
    allocates, and the container only looks whether its (absent) constants are folded.
    """

    def __init__(self, path: Path) -> None:
        self._library = KernelLibrary(path, inspect=False)
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
            raise RunnerError(f"{path}: cannot be loaded: {error}") from error
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

    def _call(self, handles: Any, outputs: Any) -> int:
        return int(
            self._run(self._handle, handles, len(handles), outputs, len(outputs), None, None)
        )

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        # While Python ends there is nothing to win, and modules are being taken apart.
        if handle is not None and not sys.is_finalizing():
            self._library.call(f"{CONTAINER}Delete", "deleting a model", handle)
            self._library.close()


def _passing(run: Run) -> Run:
    """Return ``run`` with every registered op that the library itself calls reaching originals."""

    def run_passing(inputs: list[Tensor]) -> list[Tensor]:
        with passthrough():
            return run(inputs)

    return run_passing


# How many elements a kernel's inputs must have for its runs to release the GIL: with fewer, the
# release costs more than a tenth of the run.
RELEASE_GIL_NUMEL = 1 << 16
