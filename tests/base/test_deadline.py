"""A process that waits for a core has not used its time."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from aoti_eager._base import deadline as deadline_module
from aoti_eager._base import scheduling
from aoti_eager._base.deadline import Deadline
from aoti_eager._compile_worker import fork_server

S = 1_000_000_000
SPIN_ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.fork(), print(flush=True)
while True: pass
"""


class Clock:
    """The clock, and what the system says of processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.times: dict[int, tuple[float, float]] = {7: (50.0, 60.0)}
        monkeypatch.setattr(deadline_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(
            scheduling,
            "process_times",
            lambda _: {p: (int(r * S), int(w * S)) for p, (r, w) in self.times.items()},
        )

    def pass_by(self, seconds: float, **changed: tuple[float, float]) -> None:
        self.now += seconds
        for name, (run, waited) in changed.items():
            process = int(name.removeprefix("p"))
            before = self.times.get(process, (0.0, 0.0))
            self.times[process] = (before[0] + run, before[1] + waited)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that passes when a test says so."""
    return Clock(monkeypatch)


@pytest.fixture
def deadline(clock: Clock) -> Deadline:
    """Ten seconds for process 7."""
    deadline = Deadline(10.0)
    deadline.follow(7)
    return deadline


def test_time_without_a_process_counts(clock: Clock) -> None:
    deadline = Deadline(10.0)
    clock.pass_by(4.0, p7=(0.0, 4.0))
    assert deadline.left() == pytest.approx(6.0)
    clock.pass_by(6.5)
    assert deadline.left() < 0.0
    assert deadline.next_look() == 0.0


def test_time_that_a_process_runs_or_sleeps_counts(clock: Clock, deadline: Deadline) -> None:
    clock.pass_by(3.0, p7=(3.0, 0.0))
    assert deadline.left() == pytest.approx(7.0)
    clock.pass_by(3.0)
    assert deadline.left() == pytest.approx(4.0)


def test_time_that_a_process_waits_does_not_count(clock: Clock, deadline: Deadline) -> None:
    clock.pass_by(100.0, p7=(6.0, 94.0))
    assert deadline.left() == pytest.approx(4.0)
    clock.pass_by(100.0, p7=(6.0, 94.0))
    assert deadline.left() < 0.0


def test_what_a_process_starts_waits_for_it(clock: Clock, deadline: Deadline) -> None:
    clock.pass_by(5.0, p8=(1.0, 4.0))
    assert deadline.left() == pytest.approx(9.0)
    del clock.times[8]
    clock.pass_by(1.0)
    assert deadline.left() == pytest.approx(8.0)
    clock.times[8] = (0.0, 0.0)  # The number is another process's.
    clock.pass_by(2.0, p8=(0.5, 1.5))
    assert deadline.left() == pytest.approx(7.5)


def test_two_that_take_turns_on_a_core_end(clock: Clock, deadline: Deadline) -> None:
    clock.pass_by(8.0, p8=(4.0, 4.0), p9=(4.0, 4.0))
    assert deadline.left() == pytest.approx(6.0)


def test_all_that_the_system_does_not_say_counts(clock: Clock) -> None:
    clock.times = {}
    deadline = Deadline(10.0)
    deadline.follow(7)
    clock.pass_by(10.5)
    assert deadline.left() < 0.0


def test_a_second_process_begins_with_what_the_first_has_left(clock: Clock) -> None:
    deadline = Deadline(10.0)
    deadline.follow(7)
    clock.pass_by(4.0, p7=(1.0, 3.0))
    assert deadline.left() == pytest.approx(9.0)
    clock.times = {9: (50.0, 70.0)}
    deadline.follow(9)
    clock.pass_by(1.0, p9=(1.0, 0.0))
    assert deadline.left() == pytest.approx(8.0)


@pytest.fixture
def spinners() -> Iterator[int]:
    """Two processes that share one core; the number of one."""
    with subprocess.Popen(
        [sys.executable, "-c", SPIN_ON_ONE_CORE], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        os.killpg(process.pid, 9)


@pytest.mark.skipif(
    not scheduling.process_times(os.getpid()) or not hasattr(os, "sched_setaffinity"),
    reason="needs a Linux that says how long a process has waited for a core",
)
def test_a_process_beside_another_has_more_time(spinners: int) -> None:
    deadline, begun = Deadline(1000.0), time.monotonic()
    deadline.follow(spinners)
    waited = scheduling.waits(spinners)[1]
    while scheduling.waits(spinners)[1] < waited + S:
        time.sleep(0.01)
    assert deadline.left() > 1000.0 - (time.monotonic() - begun) + 0.2


def test_a_child_that_only_waits_for_a_core_is_no_child_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has five seconds; each look puts the clock on by one, and it ends after twenty looks."""
    looks: list[int] = []
    may_end, tell = os.pipe()

    def all_waited(process: int) -> dict[int, tuple[int, int]]:
        looks.append(process)
        if len(looks) == 20:
            os.write(tell, b"!")
        return {process: (0, len(looks) * S)}

    seconds = itertools.count(100.0)
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(deadline_module, "time", clock)
    monkeypatch.setattr(deadline_module, "LOOK_S", 0.01)
    monkeypatch.setattr(scheduling, "process_times", all_waited)

    def handler(_: object) -> dict[str, object]:
        return {"ended": os.read(may_end, 1) == b"!"}

    try:
        answer = fork_server._once_in_child({"timeout_s": 5.0}, handler)
    finally:
        os.close(may_end)
        os.close(tell)
    assert answer == {"ended": True}
    assert len(looks) >= 20
    assert len(set(looks)) == 1
