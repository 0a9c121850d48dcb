"""Whether runners leak: ``python -m tests.benchmarks.runner_leaks [--json FILE]``.

Each phase does one thing often, after a tenth as many times to warm up, and says by how much the
process's resident memory grew, in MB and in bytes each time, and how many files stayed open. With
``--native``, runs go through the C++ path.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import aoti_eager
from aoti_eager._compile_service import native_path
from aoti_eager._native import runner as native_runner
from aoti_eager._runner.runner import ModelContainerRunner
from aoti_eager.errors import InputError, LibraryRunError

from ..support import runner_libraries
from ..support.runner_libraries import (
    NAN,
    Libraries,
    X,
    constants_of,
    thin_constants,
    thin_failing_inputs,
    thin_inputs,
)

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase did to the process."""

    name: str
    times: int
    grown_mb: float
    grown_halves_mb: tuple[float, float]
    files_opened: int

    @property
    def bytes_each(self) -> float:
        """Return by how much the process grew each time."""
        return self.grown_mb * 1e6 / self.times


def resident_mb() -> float:
    """Return this process's resident memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 1e6


def open_files() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def watch(name: str, times: int, once: Callable[[], object]) -> Phase:
    """Return what ``times`` calls of ``once`` left behind, after some to warm up."""
    times = max(times, 10)
    for _ in range(max(times // 10, 5)):
        once()
    gc.collect()
    gc.freeze()  # or each look at the memory would walk all that torch has made
    files, sizes = open_files(), [resident_mb()]
    for half in (times // 2, times - times // 2):
        for _ in range(half):
            once()
        sizes.append(resident_mb())
    halves = (sizes[1] - sizes[0], sizes[2] - sizes[1])
    return Phase(name, times, sizes[2] - sizes[0], halves, open_files() - files)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """AOTInductor's libraries print each error."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def fails(runner: ModelContainerRunner, inputs: list[Tensor]) -> None:
    """Run on inputs that are refused, or that the library fails on."""
    try:
        runner.run(inputs)
    except (LibraryRunError, InputError):
        return
    raise AssertionError("it did not fail")


def two_sets(name: str) -> Iterator[dict[str, Tensor]]:
    """Return two full sets of a library's constants, in turns, for ever."""
    if name == "proxy":
        return itertools.cycle({"weight": torch.full((16,), value)} for value in (1.0, 2.0))
    if name == "thin":
        return itertools.cycle(thin_constants(value) for value in (1, 2))
    return itertools.cycle(constants_of(name, value) for value in (1, 2))


def run_phases(libraries: Libraries, name: str, share: float) -> Iterator[Phase]:
    """Do the phases of one library, with one runner."""
    runs, failures, updates = int(100_000 * share), int(10_000 * share), int(2_000 * share)
    inputs = thin_inputs() if name == "thin" else [X]
    wrong = [X.double(), *inputs[1:]]
    failing = thin_failing_inputs() if name == "thin" else [NAN]
    sets = two_sets(name)
    with ModelContainerRunner(libraries.so(name), 2) as runner, silent_stderr():

        def update_and_swap() -> None:
            runner.update_inactive_constant_buffer(next(sets))
            runner.swap_constant_buffer()
            runner.run(inputs)

        def user_managed() -> None:
            runner.update_constant_buffer(next(sets), user_managed=True)

        runner.update_constant_buffer(next(sets))
        yield watch(f"{name}: run", runs, lambda: runner.run(inputs))
        yield watch(f"{name}: boxed_run", runs, lambda: runner.boxed_run(list(inputs)))
        yield watch(f"{name}: refused", failures, lambda: fails(runner, wrong))
        if name != "proxy":  # There is no input that it fails on.
            yield watch(f"{name}: failed", failures, lambda: fails(runner, failing))
        yield watch(f"{name}: update, swap, run", updates, update_and_swap)
        yield watch(f"{name}: user-managed", updates, user_managed)


def load_phases(libraries: Libraries, share: float) -> Iterator[Phase]:
    """Load and delete runners."""

    def load_and_delete(path: Path) -> None:
        runner = ModelContainerRunner(path, 2)
        if path.name == "thin.so":
            runner.update_constant_buffer(thin_constants(1))
        runner.run(thin_inputs() if path.name == "thin.so" else [X])

    for name in ("folded", "blob", "proxy"):
        path = libraries.package(name)
        yield watch(f"load {name}.pt2", int(200 * share), partial(load_and_delete, path))
    for name in ("folded", "dynamic", "thin"):
        path = libraries.so(name)
        yield watch(f"load {name}.so", int(200 * share), partial(load_and_delete, path))


def phases(libraries: Libraries, share: float) -> Iterator[Phase]:
    """Do all phases, each ``share`` of its full length."""
    runner_libraries.define_hooked_op()
    torch.set_num_threads(1)  # Threads that wait for each other on a busy machine take most of it.
    for name in ("folded", "bare", "thin", "proxy"):
        yield from run_phases(libraries, name, share)
    yield from load_phases(libraries, share)


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--libraries", type=Path, help="where the tests have compiled them")
    parser.add_argument("--share", type=float, default=1.0, help="how much of it to do")
    parser.add_argument("--native", action="store_true", help="run in C++ where it can")
    namespace = parser.parse_args()
    if namespace.native:
        aoti_eager.config.native = "1"
        native_path.prepare()
        assert native_runner.can_run(), "the C++ path cannot run libraries here"
    with tempfile.TemporaryDirectory() as directory:
        if namespace.libraries is not None:
            libraries = Libraries(namespace.libraries)
        else:
            (Path(directory) / "shared-cache").mkdir()
            libraries = runner_libraries.build(Path(directory), Path(directory, "kept"))
        print(f"{'phase':<26}{'times':>8}{'MB':>8}{'bytes each':>12}{'files':>7}   halves, MB")
        done = []
        for phase in phases(libraries, namespace.share):
            done.append(phase)
            halves = " ".join(f"{half:.2f}" for half in phase.grown_halves_mb)
            print(
                f"{phase.name:<26}{phase.times:>8}{phase.grown_mb:>8.2f}{phase.bytes_each:>12.1f}"
                f"{phase.files_opened:>7}   {halves}",
                flush=True,
            )
        if namespace.json is not None:
            figures = {"share": namespace.share, "native": namespace.native}
            figures["phases"] = [asdict(phase) for phase in done]
            namespace.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
