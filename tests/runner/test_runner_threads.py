"""Runners under threads, nested runs, interrupts, forks, and for long."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager._native import runner as native_runner
from aoti_eager._runner.runner import ModelContainerRunner
from aoti_eager.errors import LibraryRunError, RunnerError

from ..support import runner_libraries
from ..support.runner_libraries import (
    HERE,
    HOOKED_WEIGHT,
    NAN,
    TIMEOUT_S,
    Libraries,
    Load,
    X,
    constants_of,
    equal,
    eventually,
    loaded_thin,
    running,
    scale,
    served,
    thin_constants,
    thin_failing_inputs,
    thin_inputs,
    waiting,
)

pytestmark = pytest.mark.both_paths

# -- instances --


def test_two_threads_run_at_the_same_time(
    thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    """And so the GIL is free in a run: the second begins before the first has ended."""

    def overlap() -> bool:
        futures = [threads.submit(thin.run, thin_inputs(milliseconds=100)) for _ in range(2)]
        spans = sorted(future.result(TIMEOUT_S)[2].tolist() for future in futures)
        return bool(spans[1][0] < spans[0][1])

    # A busy machine may start the second thread late; with the GIL held it would never overlap.
    assert any(overlap() for _ in range(10))


def test_two_first_runs_of_two_thin_libraries_do_not_wait_for_each_other(
    libraries: Libraries, load: Load, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "x.so"
    shutil.copy(libraries.so("thin"), path)
    with ModelContainerRunner(path) as other:
        other.update_constant_buffer(thin_constants(3))
        gate, run = running(threads, other)
        assert scale(loaded_thin(load, 1)) == 2
        gate.open()
        run.result(TIMEOUT_S)


def test_a_run_past_the_last_instance_waits(load: Load, threads: ThreadPoolExecutor) -> None:
    runner = loaded_thin(load, 2)
    runs = [running(threads, runner) for _ in range(2)]
    third = threads.submit(runner.run, thin_inputs())
    eventually(lambda: waiting(runner) == 1)
    assert not third.done()
    runs[0][0].open()
    assert torch.equal(third.result(TIMEOUT_S)[0], X * 2)
    runs[1][0].open()
    for _, run in runs:
        run.result(TIMEOUT_S)


def test_instances_take_turns(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_runner, "can_run", lambda: False)  # C++ calls no ``container.run``.
    runner = loaded_thin(load, 3)
    container = runner._container
    assert container is not None
    run, turns = container.run, list[int]()

    def watched(instance: int, *arguments: Any) -> list[Tensor]:
        turns.append(instance)
        return run(instance, *arguments)

    monkeypatch.setattr(container, "run", watched)
    for _ in range(7):
        runner.run(thin_inputs())
    # All were in use for the update before; their order is then that of their numbers.
    assert turns == [0, 1, 2, 0, 1, 2, 0]


def test_a_run_that_raises_gives_its_instance_back(load: Load) -> None:
    runner = loaded_thin(load, 1)
    for _ in range(3):
        with pytest.raises(LibraryRunError):
            runner.run(thin_failing_inputs())
        assert runner._pool.available == 1


def test_a_run_inside_of_a_run_takes_another_instance(load: Load) -> None:
    runner = load("proxy", 2)
    runner.run([X])
    inner: list[list[Tensor]] = []

    def hook(x: Tensor) -> None:
        if not inner:
            inner.append([])
            inner[0] = runner.run([X])

    runner_libraries.hooks.append(hook)
    for outputs in (runner.run([X]), inner[0]):
        assert equal(outputs, (X * HOOKED_WEIGHT, X + HOOKED_WEIGHT))


def test_a_run_inside_of_a_run_raises_instead_of_waiting_for_itself(load: Load) -> None:
    runner = load("proxy", 1)
    runner.run([X])
    runner_libraries.hooks.append(lambda x: runner.run([X]))
    with pytest.raises(LibraryRunError, match="load the library with a larger num_models"):
        runner.run([X])
    runner_libraries.hooks.clear()
    assert equal(runner.run([X]), (X * HOOKED_WEIGHT, X + HOOKED_WEIGHT))


@pytest.mark.parametrize(
    "change",
    [
        lambda runner: runner.update_constant_buffer({"weight": HOOKED_WEIGHT}),
        lambda runner: runner.update_inactive_constant_buffer({"weight": HOOKED_WEIGHT}),
        lambda runner: runner.extract_constants_map(),
        lambda runner: runner.swap_constant_buffer(),
        lambda runner: runner.run_const_fold(),
        lambda runner: runner.free_inactive_constant_buffer(),
        lambda runner: runner.close(),
    ],
    ids=["update", "update inactive", "extract", "swap", "fold", "free", "close"],
)
def test_inside_of_a_run_its_thread_cannot_change_the_runner(
    load: Load, threads: ThreadPoolExecutor, change: Callable[[ModelContainerRunner], object]
) -> None:
    """Another thread may be changing it, which waits for the run."""
    runner = load("proxy", 2)
    runner.run([X])
    inside, may_go_on = threading.Event(), threading.Event()

    def hook(x: Tensor) -> None:
        if x.dim() == 2:
            inside.set()
            assert may_go_on.wait(TIMEOUT_S)
            change(runner)

    runner_libraries.hooks.append(hook)
    run = threads.submit(runner.run, [X])
    assert inside.wait(TIMEOUT_S)
    update = threads.submit(runner.update_constant_buffer, {"weight": HOOKED_WEIGHT})
    eventually(lambda: waiting(runner) == 1)
    may_go_on.set()
    with pytest.raises(LibraryRunError, match="inside of a run its thread can neither read nor"):
        run.result(TIMEOUT_S)
    update.result(TIMEOUT_S)
    runner_libraries.hooks.clear()
    assert equal(runner.run([X]), (X * HOOKED_WEIGHT, X + HOOKED_WEIGHT))


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


def interrupted_at(step: int, call: Callable[[], object]) -> bool:
    """Interrupt ``call`` at one of its steps; return whether there were so many.

    A signal handler runs after a call or at the beginning of a function, as a profiler does.
    """
    package = str(Path(aoti_eager.__file__).parent)
    steps = itertools.count()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        ours = frame.f_code.co_filename.startswith(package)
        if ours and event != "c_call" and next(steps) == step:
            raise Interrupted

    sys.setprofile(profile)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("given", [list, tuple])
@pytest.mark.parametrize("name", ["dynamic", "thin"])
def test_an_interrupt_at_any_step_of_a_run_loses_no_instance(
    load: Load, name: str, given: type[list[Tensor] | tuple[Tensor, ...]], hit_path: str
) -> None:
    """Before, 1 Ctrl-C in 20 did in a loop of runs, and the next one waited for ever."""
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    inputs = given(thin_inputs() if name == "thin" else [X])
    for _ in range(3):
        runner.run(inputs)
    for step in itertools.count():
        if not interrupted_at(step, lambda: runner.run(inputs)):
            break
        assert runner._pool.available == 1, f"lost at step {step}"
        assert waiting(runner) == 0
        runner.run(inputs)
    # C++ runs lists in one step, and leaves tuples to Python.
    assert step > (3 if hit_path == "native" and given is list else 30)


def test_an_interrupt_while_waiting_for_an_instance_loses_nothing(
    load: Load, threads: ThreadPoolExecutor
) -> None:
    runner = loaded_thin(load, 1)
    gate, run = running(threads, runner)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def send() -> None:
        eventually(lambda: waiting(runner) == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sender = threads.submit(send)
        with pytest.raises(Interrupted):
            runner.run(thin_inputs())
        sender.result(TIMEOUT_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    gate.open()
    run.result(TIMEOUT_S)
    assert runner._pool.available == 1
    assert scale(runner) == 2


# -- forks --


def in_fork(check: Callable[[], None]) -> int:
    """Return the exit status of ``check`` in a forked child, which has a minute for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Later Pythons warn of a fork in a threaded process.
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            check()
            status = 0
        except BaseException:  # noqa: BLE001 - nothing may leave the child
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("name", ["dynamic", "thin", "proxy"])
def test_a_forked_child_runs_and_changes_the_runner(load: Load, name: str) -> None:
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    inputs = thin_inputs() if name == "thin" else [X]
    before = runner.run(inputs)

    def check() -> None:
        runner.update_constant_buffer(runner.extract_constants_map())
        assert torch.equal(runner.run(inputs)[0], before[0])
        runner.close()

    assert in_fork(check) == 0
    assert torch.equal(runner.run(inputs)[0], before[0])


def test_a_child_that_was_forked_during_a_run_is_refused_instead_of_waiting(
    libraries: Libraries, thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    """The thread of that run is not in it, and locks inside of a library may stay held."""
    thin.update_inactive_constant_buffer(thin_constants(3))
    gate, run = running(threads, thin)

    def check() -> None:
        for use in (lambda: thin.run(thin_inputs()), lambda: thin.swap_constant_buffer()):
            with pytest.raises(RunnerError, match="forked while another thread ran"):
                use()
        with ModelContainerRunner(libraries.so("thin")) as again:
            again.update_constant_buffer(thin_constants(3))
            assert scale(again) == 3

    assert in_fork(check) == 0
    gate.open()
    run.result(TIMEOUT_S)
    assert scale(thin) == 2


def test_a_child_that_was_forked_during_a_change_of_constants_can_still_run(
    thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    has_lock, may_end = threading.Event(), threading.Event()

    def change() -> None:
        with thin._buffers.changing():
            has_lock.set()
            assert may_end.wait(TIMEOUT_S)

    changing = threads.submit(change)
    assert has_lock.wait(TIMEOUT_S)

    def check() -> None:
        assert scale(thin) == 2
        thin.update_constant_buffer(thin_constants(3))
        assert scale(thin) == 3

    assert in_fork(check) == 0
    may_end.set()
    changing.result(TIMEOUT_S)


# -- all at once --


@pytest.mark.parametrize("name", ["folded", "thin"])
def test_runs_swaps_and_errors_of_many_threads_mix_and_lose_nothing(
    load: Load, threads: ThreadPoolExecutor, name: str
) -> None:
    """8 threads on 3 models, 10,000 runs, a swap each 50 ms, each tenth run fails."""
    runner = load(name, 3)
    stop = threading.Event()
    done = itertools.count()
    values = (1, 2)
    xs = [X + n for n in range(4)]

    def constants(value: int) -> dict[str, Tensor]:
        return thin_constants(value) if name == "thin" else constants_of(name, value)

    def results(x: Tensor, value: int) -> tuple[Tensor, ...]:
        return (x * value, x + value) if name == "thin" else served(x, constants(value))

    wanted = [[results(x, value) for value in values] for x in xs]
    failing = thin_failing_inputs() if name == "thin" else [NAN]

    def run(thread: int) -> list[int]:
        counts = [0, 0, 0]  # runs by set of constants, failures
        for turn in itertools.count():
            if stop.is_set():
                return counts
            next(done)
            if turn % 10 == thread % 10:
                try:
                    runner.run(failing)
                except LibraryRunError:
                    counts[2] += 1
                    continue
                raise AssertionError("it did not fail")
            index = (turn + thread) % len(xs)
            x = xs[index].clone()
            inputs = thin_inputs(x) if name == "thin" else [x]
            got = runner.boxed_run(inputs) if turn % 2 else runner.run(inputs)
            got = got[:2] if name == "thin" else got
            found = [n for n, one in enumerate(wanted[index]) if equal(got, one)]
            assert len(found) == 1, "the outputs are of neither set of constants"
            counts[found[0]] += 1
        raise AssertionError

    runner.update_constant_buffer(constants(values[0]))
    runs = [threads.submit(run, thread) for thread in range(8)]
    swaps = 0
    try:
        while swaps < 10 or int(repr(done)[6:-1]) < 10_000:
            assert not any(future.done() for future in runs), "a thread has ended"
            stop.wait(0.05)
            swaps += 1
            runner.update_inactive_constant_buffer(constants(values[swaps % 2]))
            runner.swap_constant_buffer()
    finally:
        stop.set()
    counts = [future.result(TIMEOUT_S) for future in runs]
    ones, twos, failures = (sum(column) for column in zip(*counts, strict=True))
    assert ones + twos + failures >= 10_000
    assert min(ones, twos, failures) > 0
    assert runner._pool.available == 3
    assert waiting(runner) == 0


@pytest.mark.full
def test_memory_stays_flat(libraries: Libraries, tmp_path: Path, hit_path: str) -> None:
    """A hundredth of ``python -m tests.benchmarks.runner_leaks``, in a process of its own."""
    report = tmp_path / "leaks.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.runner_leaks", "--share", "0.01"),
            *("--libraries", libraries.directory, "--json", report),
            *(["--native"] if hit_path == "native" else []),
        ],
        cwd=HERE.parents[1],
        check=True,
        capture_output=True,
        timeout=300,
    )
    phases = json.loads(report.read_text())["phases"]
    assert len(phases) >= 8
    grown = {phase["name"]: phase["grown_mb"] for phase in phases if phase["grown_mb"] > 3}
    assert grown == {}
    assert all(phase["files_opened"] == 0 for phase in phases)
