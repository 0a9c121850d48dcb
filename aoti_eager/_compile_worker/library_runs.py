"""A library's first run and its times, each taken in a child that may die of it."""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Sequence

from .._base.data_class import dataclass
from .._base.printable import shortened
from .._compile_service.requested import BuiltLibrary, RequestedCall
from .._store.new_entries import LONGEST_MESSAGE
from .._store.verdict import PathTime, path_times
from ..errors import CompileError
from .fork_server import ForkServer

# By hit path.
Times = dict[str, PathTime]


def trial_server() -> ForkServer:
    """Return the server of first runs: with glibc's checking allocator where glibc has one."""
    # OpenMP's waiting threads sleep. By default, each spins on a core that the script wants.
    variables = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    checker = ctypes.util.find_library("c_malloc_debug")
    if checker is None:
        return ForkServer("trial", variables)
    # The allocator fills memory, and checks the bytes behind a block when the block is freed.
    tunables = "glibc.malloc.check=3:glibc.malloc.perturb=165"
    return ForkServer("trial", {**variables, "LD_PRELOAD": checker, "GLIBC_TUNABLES": tunables})


@dataclass(frozen=True, slots=True)
class Tried:
    """What a trial has shown: whether anything was compared, and how many zeros lost their sign."""

    compared: bool
    lost_signs: int


class LibraryRuns:
    """Runs libraries in children of two servers: one for first runs, one for times."""

    def __init__(self) -> None:
        self._trial = trial_server()
        self._measurer = ForkServer("measure")

    def fork_measuring(self) -> None:
        """Fork the server of measurements from this process; see ``ForkServer.fork``."""
        self._measurer.fork()

    def start_trials(self) -> None:
        """Start the server of first runs, which imports torch while this process does."""
        self._trial.start()

    def start_measuring(self) -> None:
        """Start the server of measurements, which imports torch while this process works."""
        self._measurer.start()

    def tried(self, call: RequestedCall, library: BuiltLibrary, numbers: Sequence[str]) -> Tried:
        """Run a library for the first time; return the trial's findings.

        Args:
            call: The call to make up arguments for.
            library: The library.
            numbers: The number arguments that are inputs of the kernel.

        Raises:
            CompileError: The library must not be used; the error has the reason.
        """
        answer = self._trial.run(
            {
                "key": call.key.to_json(),
                "library": str(library.path),
                "sha256": library.sha256,
                "outputs": list(library.outputs),
                "check": call.check,
                "timeout_s": call.trial_timeout_s,
                "function": call.function,
                "schema": call.schema,
                "numbers": list(numbers),
            }
        )
        if "reason" in answer:
            raise CompileError(
                answer["reason"],
                answer["message"],
                log=answer.get("log", ""),
                remember=answer.get("remember", False),
            )
        return Tried(bool(answer["compared"]), answer.get("lost_signs", 0))

    def measured(
        self, call: RequestedCall, libraries: Sequence[BuiltLibrary], numbers: Sequence[str]
    ) -> tuple[list[Times], str]:
        """Return the times of each library, and why none could be taken, in words.

        The times are empty where none could be taken. Args as for ``tried``.
        """
        native = call.native
        answer = self._measurer.run(
            {
                "key": call.key.to_json(),
                "function": call.function,
                "schema": call.schema,
                "toolchain": str(call.toolchain),
                "native": None if native is None else [str(native[0]), native[1]],
                "is_native": call.is_native,
                "threads": call.threads,
                "libraries": [one.to_json() for one in libraries],
                "numbers": list(numbers),
                "timeout_s": call.trial_timeout_s,
            }
        )
        if "times" in answer:
            return [path_times(one) for one in answer["times"]], ""
        problem = f"{answer['reason']}: {answer['message']}"
        return [{} for _ in libraries], shortened(problem, LONGEST_MESSAGE)
