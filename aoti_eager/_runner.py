"""Load a kernel library and run it.

This is as much of AOTInductor's runner as the kernel cache needs: one device (CPU), no constants.
``ModelContainerRunner`` with all of its methods is to take this module over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ._compat import AOTIModelContainerRunnerCpu
from ._passthrough import passthrough
from .errors import RunnerError

Run = Callable[[list[Tensor]], list[Tensor]]


class LibraryRunner:
    """A loaded kernel library with one model instance.

    Attributes:
        run: Takes the inputs in slot order, returns the fresh outputs. Inputs must have exactly the
            metadata the library was compiled for: it does not check them.
        lock: To be held around ``run``; re-entrant, for signal handlers that call the same key. The
            instance is borrowed for the length of a run, and a second thread would wait for it
            inside C++ with the GIL held; if the first one then needs the GIL (an op with a Python
            kernel, called from the library), neither goes on.

    Raises:
        RunnerError: The file is no library of AOTInductor's, or cannot be loaded.
    """

    __slots__ = ("lock", "run")

    def __init__(self, library: Path, *, calls_aten: bool) -> None:
        try:
            runner = AOTIModelContainerRunnerCpu(str(library), 1)
        except Exception as error:
            raise RunnerError(f"{library}: cannot be loaded: {error}") from error
        self.lock = threading.RLock()
        self.run: Run = runner.run if not calls_aten else _passing(runner.run)


def _passing(run: Run) -> Run:
    """Return ``run`` with every registered op that the library itself calls reaching originals."""

    def run_passing(inputs: list[Tensor]) -> list[Tensor]:
        with passthrough():
            return run(inputs)

    return run_passing


# Device types whose kernels can be compiled and run. Other devices come with the runner registries.
DEVICE_TYPES = frozenset({"cpu"})
