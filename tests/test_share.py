"""What works beside a script is behind it, and gets its windows where no core is free."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoti_eager import _share
from aoti_eager._base import scheduling
from aoti_eager._share import Share

needs_groups = pytest.mark.skipif(
    not scheduling.has_groups(), reason="needs Linux's groups of processes (sched_autogroup)"
)
SPIN = "while True: pass"
# The compiler is a child of the worker.
SPIN_BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPIN!r}])"
DEADLINE_S = 120.0


@pytest.fixture
def start() -> Iterator[Callable[[str], int]]:
    """Start a program as the first of a session, and return its number."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(code: str) -> int:
        command = [sys.executable, "-c", code]
        started.append(subprocess.Popen(command, start_new_session=True))
        return started[-1].pid

    yield begin
    for process in started:
        os.killpg(process.pid, 9)
        process.wait()


def group_nice(session: int) -> int:
    text = Path(f"/proc/{session}/autogroup").read_text(encoding="ascii")
    found = re.search(r"nice (-?\d+)", text)
    assert found is not None
    return int(found[1])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_session_gives_way(start: Callable[[str], int]) -> None:
    session = start(SPIN)
    scheduling.give_way(session)
    assert os.getpriority(os.PRIO_PROCESS, session) == 19


@needs_groups
def test_a_group_gives_way_and_may_be_raised_again(start: Callable[[str], int]) -> None:
    session = start(SPIN)
    assert group_nice(session) == 0
    for nice in (19, 0, 7):
        until(lambda nice=nice: scheduling.set_group_nice(session, nice))  # type: ignore[misc]
        assert group_nice(session) == nice


def test_a_session_that_has_ended_is_left_alone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    scheduling.give_way(process.pid)
    assert not scheduling.set_group_nice(process.pid, 0)
    assert scheduling.waits(process.pid) == (0, 0)
    share = Share()
    share.begin(process.pid)
    share.end(process.pid)


@needs_groups
def test_what_children_run_and_wait_counts(start: Callable[[str], int]) -> None:
    session = start(SPIN_BELOW)
    until(lambda: scheduling.waits(session)[0] > 1e9)
    own = Path(f"/proc/{session}/schedstat").read_text(encoding="ascii").split()
    assert int(own[0]) < 1e9


@needs_groups
@pytest.mark.parametrize("code", [SPIN, SPIN_BELOW])
def test_who_waits_for_a_core_gets_windows(code: str, start: Callable[[str], int]) -> None:
    for _ in range(2 * (os.cpu_count() or 1)):
        start(SPIN)
    session, share = start(code), Share(period_s=0.3)
    share.begin(session)
    try:
        until(lambda: group_nice(session) == 19)
        for _ in range(2):
            until(lambda: group_nice(session) == 0)
            until(lambda: group_nice(session) == 19)
    finally:
        share.end(session)
    # A window that was open is closed, and no other one opens.
    until(lambda: share._thread is None)
    assert group_nice(session) == 19


@needs_groups
def test_who_has_a_core_gets_none(
    start: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are made up: the machine of a test is seldom idle."""
    asked: list[int] = []
    changes: list[tuple[int, int]] = []

    def waits(session: int) -> tuple[int, int]:
        asked.append(session)
        return 1000 * len(asked), 300 * len(asked)

    def set_group_nice(session: int, nice: int) -> bool:
        changes.append((session, nice))
        return True

    monkeypatch.setattr(scheduling, "waits", waits)
    monkeypatch.setattr(scheduling, "set_group_nice", set_group_nice)
    session, share = start(SPIN), Share(period_s=0.15, window_s=0.1)
    share.begin(session)
    until(lambda: len(asked) > 4)
    share.end(session)
    assert changes == [(session, 19)]


def test_without_groups_there_are_no_windows_and_no_thread(
    start: Callable[[str], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scheduling, "_ENABLED", tmp_path / "none")
    session, share = start(SPIN), Share()
    share.begin(session)
    assert share._thread is None
    assert os.getpriority(os.PRIO_PROCESS, session) == 19
    share.end(session)


@needs_groups
def test_a_thread_that_cannot_start_leaves_the_lowest_priority(
    start: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", fail)
    session, share = start(SPIN), Share()
    share.begin(session)
    share.end(session)
    assert os.getpriority(os.PRIO_PROCESS, session) == 19


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_sessions(start: Callable[[str], int]) -> None:
    session = start(SPIN)
    _share.share.begin(session)
    try:
        child = os.fork()
        if child == 0:
            os._exit(len(_share.share._sessions))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        _share.share.end(session)
