"""Runs in C++: the same as in Python, and left to Python where anything is out of the ordinary."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._base.torch_compat.python_tensors import tensor_objects
from aoti_eager._native import runner as native_runner
from aoti_eager._native.runner import FREE
from aoti_eager._runner.instance_pool import InstancePool, Lease
from aoti_eager._runner.native_runs import NativeRuns
from aoti_eager._runner.runner import ModelContainerRunner
from aoti_eager.errors import (
    InputError,
    InputTypeError,
    LibraryRunError,
    MissingConstantsError,
    RunnerError,
)

from ..support.runner_libraries import (
    HERE,
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
    thin_constants,
    thin_failing_inputs,
    thin_inputs,
    waiting,
    want,
    watched_tensor,
)

pytestmark = pytest.mark.native

KINDS = ["folded", "bare", "dynamic", "thin"]
Served = list[bool]  # for each run: whether C++ ran


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Which of the runs that C++ was asked for it did."""
    run, found = NativeRuns.run, Served()

    def watched(self: NativeRuns, inputs: list[Tensor], boxed: bool = False) -> Any:
        outputs = run(self, inputs, boxed)
        found.append(outputs is not None)
        return outputs

    monkeypatch.setattr(NativeRuns, "run", watched)
    return found


def ready(load: Load, name: str, num_models: int = 1) -> ModelContainerRunner:
    """Return a runner whose next run is C++'s."""
    runner = loaded_thin(load, num_models) if name == "thin" else load(name, num_models)
    if name == "bare":
        runner.update_constant_buffer(constants_of(name))
    for _ in range(2):  # The first run of a library in a process switches its checks on.
        runner.run(inputs_of(name))
    assert runner._pool.is_lending
    return runner


def inputs_of(name: str, x: Tensor = X) -> list[Tensor]:
    return thin_inputs(x) if name == "thin" else [x]


def in_python(runner: ModelContainerRunner, inputs: list[Tensor]) -> list[Tensor]:
    """Return what the same run gives in Python."""
    return runner._run(inputs, None, boxed=False)


def numbers(outputs: list[Tensor], name: str) -> list[Tensor]:
    """Return the outputs without the time that the thin library gives."""
    return outputs[:2] if name == "thin" else outputs


def raised_by(run: Callable[[], object]) -> tuple[type[BaseException], str]:
    with pytest.raises(RunnerError) as caught:
        run()
    return caught.type, str(caught.value)


def test_this_python_keeps_its_tensors_where_they_are_looked_for() -> None:
    """Else all runs are Python's, and right, and nobody sees why they are slow."""
    assert tensor_objects() is not None
    assert native_runner.can_run()


@pytest.mark.parametrize("boxed", [False, True], ids=["run", "boxed_run"])
@pytest.mark.parametrize("name", KINDS)
def test_runs_give_what_they_give_in_python(
    load: Load, served: Served, name: str, boxed: bool
) -> None:
    runner = ready(load, name)
    served.clear()
    for x in (X, X + 1, X[:4] if name == "dynamic" else X * 2):
        inputs = inputs_of(name, x)
        want_of_python = numbers(in_python(runner, list(inputs)), name)
        got = runner.boxed_run(inputs) if boxed else runner.run(inputs)
        assert equal(numbers(got, name), want_of_python)
        assert all(type(one) is Tensor for one in got)
        assert len(inputs) == (0 if boxed else runner.num_inputs)
    assert served == [True] * 3


def test_a_library_that_calls_ops_by_name_is_torchs_runners(load: Load) -> None:
    runner = load("proxy")
    for _ in range(3):
        runner.run([X])
    assert runner._native_runs is None


class Subclass(Tensor):
    """A class of tensors that does nothing of its own."""


@pytest.mark.parametrize(
    ("x", "is_served"),
    [
        (X.clone().requires_grad_(), True),
        (torch.nn.Parameter(X.clone()), True),
        (X.as_subclass(Subclass), False),
        (torch.arange(256.0).reshape(16, 16)[8:], True),
    ],
    ids=["requires grad", "parameter", "subclass", "with an offset"],
)
def test_tensors_of_all_kinds_are_run(
    load: Load, served: Served, x: Tensor, is_served: bool
) -> None:
    runner = ready(load, "dynamic")
    served.clear()
    assert torch.equal(runner.run([x])[0], x.detach().as_subclass(Tensor) * 2)
    assert served == [is_served]


def test_other_sequences_and_streams_are_pythons(load: Load, served: Served) -> None:
    runner = ready(load, "dynamic")
    served.clear()
    assert torch.equal(runner.run((X,))[0], X * 2)
    assert served == []


WRONG: list[Callable[[Tensor], list[Any]]] = [
    lambda x: [],
    lambda x: [x, x, x, x, x],
    lambda x: [None],
    lambda x: [1.0],
    lambda x: [x.double()],
    lambda x: [x[:, :8].contiguous()],
    lambda x: [x.t().contiguous().t()],
    lambda x: [x.reshape(8, 16, 1)],
    lambda x: [x.to_sparse()],
    lambda x: [x.to(torch.complex64).conj()],
    lambda x: [x.to("meta")],
    lambda x: [torch._neg_view(x)],
    lambda x: [torch._efficientzerotensor((8, 16))],
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["folded", "thin"])
def test_wrong_inputs_are_refused_in_the_same_words(
    load: Load, name: str, wrong: Callable[[Tensor], list[Any]]
) -> None:
    runner = ready(load, name)
    given = wrong(X)
    inputs = given + inputs_of(name)[1:] if len(given) == 1 else given
    left_by_python = list(inputs)
    said = raised_by(lambda: runner._run(left_by_python, None, boxed=True))
    assert issubclass(said[0], (InputError, InputTypeError))
    assert raised_by(lambda: in_python(runner, inputs)) == said
    assert raised_by(lambda: runner.run(inputs)) == said
    assert raised_by(lambda: runner.boxed_run(inputs)) == said
    assert len(inputs) == len(left_by_python)
    assert runner._pool.available == 1
    runner.run(inputs_of(name))


@pytest.mark.parametrize("name", ["dynamic", "thin"])
def test_a_failed_run_raises_the_same_error_and_the_next_one_works(
    load: Load, served: Served, name: str
) -> None:
    runner = ready(load, name)
    failing = thin_failing_inputs() if name == "thin" else [NAN]
    said = raised_by(lambda: in_python(runner, failing))
    assert said[0] is LibraryRunError
    for _ in range(3):
        assert raised_by(lambda: runner.run(failing)) == said
    boxed = list(failing)
    assert raised_by(lambda: runner.boxed_run(boxed)) == said
    assert boxed == []
    served.clear()
    runner.run(inputs_of(name))
    assert served == [True]


def test_a_boxed_run_frees_its_inputs(load: Load) -> None:
    runner = ready(load, "dynamic")
    x, is_held = watched_tensor(X)
    inputs = [x]
    del x
    assert is_held()
    runner.boxed_run(inputs)
    assert not is_held()


def test_no_tensor_is_kept_by_a_run(load: Load) -> None:
    runner = ready(load, "folded")
    x, is_held = watched_tensor(X)
    outputs = runner.run([x])
    del x
    assert not is_held()
    assert equal(outputs, want())


def test_unchecked_thin_libraries_take_what_they_get(libraries: Libraries) -> None:
    with ModelContainerRunner(libraries.so("thin"), check_inputs=False) as runner:
        runner.update_constant_buffer(thin_constants(2))
        for _ in range(2):
            runner.run(thin_inputs())
        with pytest.raises(InputError, match="got 1 inputs; 3 are wanted"):
            runner.run([X])


# -- instances --


def test_instances_take_turns(load: Load, threads: ThreadPoolExecutor) -> None:
    runner = ready(load, "thin", 3)
    turns = []
    for _ in range(7):
        gate, run = running(threads, runner)
        turns.extend(i for i in range(3) if runner._pool.cells[i] > 0)
        assert runner._pool.available == 2
        gate.open()
        run.result(TIMEOUT_S)
    first = turns[0]
    assert turns == [(first + i) % 3 for i in range(7)]


def test_a_run_that_finds_no_instance_waits_for_one_that_cpp_has(
    load: Load, threads: ThreadPoolExecutor, served: Served
) -> None:
    runner = ready(load, "thin")
    gate, run = running(threads, runner)
    later = [threads.submit(runner.run, thin_inputs(X + i)) for i in range(3)]
    eventually(lambda: waiting(runner) == 3)
    assert not runner._pool.is_lending
    gate.open()
    run.result(TIMEOUT_S)
    for i, one in enumerate(later):
        assert torch.equal(one.result(TIMEOUT_S)[0], (X + i) * 2)
    served.clear()
    runner.run(thin_inputs())
    assert served == [True]


def test_an_update_of_the_constants_waits_for_runs_in_cpp(
    load: Load, threads: ThreadPoolExecutor
) -> None:
    runner = ready(load, "thin", 2)
    gate, run = running(threads, runner)
    update = threads.submit(runner.update_constant_buffer, thin_constants(3))
    eventually(lambda: waiting(runner) == 1)
    assert not update.done()
    gate.open()
    update.result(TIMEOUT_S)
    assert torch.equal(run.result(TIMEOUT_S)[0], X * 2)
    assert scale(runner) == 3


def test_no_run_in_cpp_begins_with_constants_that_are_not_ready(load: Load, served: Served) -> None:
    runner = ready(load, "folded")
    runner.update_constant_buffer(constants_of("folded", 2))
    assert not runner._pool.is_lending
    served.clear()
    assert equal(runner.run([X]), want(2))
    assert equal(runner.run([X]), want(2))
    assert served == [False, True]


def test_without_constants_python_says_which_are_missing(load: Load) -> None:
    runner = load("bare")
    for _ in range(2):
        with pytest.raises(MissingConstantsError):
            runner.run([X])


def test_eight_threads_share_two_instances_while_constants_change(
    load: Load, threads: ThreadPoolExecutor, served: Served
) -> None:
    runner = ready(load, "thin", 2)
    values, is_over = itertools.cycle((1.0, 2.0, 3.0)), False

    def run_on() -> set[float]:
        seen = set()
        while not is_over:
            seen.add(scale(runner))
        return seen

    readers = [threads.submit(run_on) for _ in range(8)]
    for _ in range(60):
        runner.update_constant_buffer(thin_constants(next(values)))
        runner.update_inactive_constant_buffer(thin_constants(next(values)))
        runner.swap_constant_buffer()
    is_over = True
    for reader in readers:
        assert reader.result(TIMEOUT_S) <= {1.0, 2.0, 3.0}
    assert runner._pool.available == 2
    assert any(served)
    runner.run(thin_inputs())
    assert list(runner._pool.cells) == [FREE, FREE, 1]


@pytest.mark.parametrize("wants_all", [False, True], ids=["one", "all"])
def test_a_thread_gets_what_a_signal_handler_lends_while_it_begins_to_wait(
    monkeypatch: pytest.MonkeyPatch, wants_all: bool
) -> None:
    pool = InstancePool(1, "x")
    pool.lend_to_native(lambda: True)
    pool.collect()
    assert pool.is_lending
    pool.cells[0] = threading.get_ident() + 1  # Another thread runs it in C++.
    enqueue = pool._enqueue

    def interrupted(lease: Lease) -> Any:
        pool.cells[0] = FREE  # The run ends, and a handler's run gives the instance back.
        pool._lend()
        return enqueue(lease)

    monkeypatch.setattr(pool, "_enqueue", interrupted)
    if wants_all:
        with pool.all_instances():
            assert list(pool.cells) == [0, 0]
    else:
        lease = Lease()
        assert pool.borrow(lease) == 0
        assert list(pool.cells) == [0, 0]
        pool.give_back(lease)
    assert list(pool.cells) == [FREE, 1]


@pytest.mark.parametrize("when", ["after the run", "while the instance is collected"])
def test_ctrl_c_loses_no_instance(
    load: Load, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor, when: str
) -> None:
    runner = ready(load, "thin")
    pool = runner._pool
    gate, run = running(threads, runner)
    later = threads.submit(runner.run, thin_inputs())
    eventually(lambda: waiting(runner) == 1)  # So the run's end is to be collected.
    collect, calls = pool.collect, itertools.count()

    def interrupted() -> None:
        if next(calls) == 0:
            if when.startswith("while"):
                with pool._lock:
                    pool._recall()
            raise KeyboardInterrupt
        collect()

    monkeypatch.setattr(pool, "collect", interrupted)
    gate.open()
    with pytest.raises(KeyboardInterrupt):
        run.result(TIMEOUT_S)
    assert torch.equal(later.result(TIMEOUT_S)[0], X * 2)
    assert pool.available == 1


def test_a_run_inside_of_a_run_in_cpp_does_not_wait_for_itself(load: Load) -> None:
    runner = ready(load, "thin")
    pool = runner._pool
    # As in a signal handler, while this thread has the instance.
    pool.cells[0] = threading.get_ident()
    try:
        with pytest.raises(RunnerError, match="a run inside of a run of this thread"):
            runner.run(thin_inputs())
        with pytest.raises(RunnerError, match="inside of a run its thread can neither"):
            runner.update_constant_buffer(thin_constants(1))
    finally:
        pool.cells[0] = FREE
        pool.collect()
    runner.run(thin_inputs())


def test_a_fork_during_a_run_in_cpp_refuses_in_the_child(
    load: Load, threads: ThreadPoolExecutor
) -> None:
    runner = ready(load, "thin", 2)
    gate, run = running(threads, runner)
    pid = os.fork()
    if pid == 0:
        try:
            runner.run(thin_inputs())
        except RunnerError as error:
            os._exit(0 if "this process was forked while" in str(error) else 2)
        finally:
            os._exit(1)
    gate.open()
    run.result(TIMEOUT_S)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_fork_between_runs_is_fine(load: Load) -> None:
    runner = ready(load, "thin", 2)
    pid = os.fork()
    if pid == 0:
        try:
            good = all(torch.equal(runner.run(thin_inputs())[0], X * 2) for _ in range(3))
            os._exit(0 if good and runner._pool.is_lending else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_after_close_nothing_is_cpps(load: Load) -> None:
    runner = ready(load, "thin", 2)
    native = runner._native_runs
    assert native is not None
    runner.close()
    assert native.run(thin_inputs()) is None  # A thread had got hold of it.
    with pytest.raises(RunnerError, match="the runner is closed"):
        runner.run(thin_inputs())


def test_cpp_frees_a_runner_that_nobody_holds(libraries: Libraries) -> None:
    gc.collect()
    before = native_runner.alive()
    runner = ModelContainerRunner(libraries.so("dynamic"))
    for _ in range(3):
        runner.run([X])
    assert native_runner.alive() == before + 1
    del runner
    gc.collect()
    assert native_runner.alive() == before


@pytest.mark.full
def test_a_run_costs_no_more_than_torchs(machine: Any, tmp_path: Path) -> None:
    """By ``python -m tests.benchmarks.runner_run``; without checks, which are the library's own."""
    command = [sys.executable, "-m", "tests.benchmarks.runner_run", "--rounds", "40"]
    report = tmp_path / "run.json"
    with machine.alone():
        subprocess.run(
            [*command, "--json", report],
            cwd=HERE.parents[1],
            check=True,
            capture_output=True,
            timeout=400,
        )
    rows = [row for row in json.loads(report.read_text())["rows"] if not row["checked"]]
    assert len(rows) == 2
    # Some 0.9 and 0.95 on a quiet machine; more is the noise of a busy one.
    assert all(row["ratios"]["run, C++"] <= 1.1 for row in rows), rows
