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

from aoti_eager._base import scheduling
from aoti_eager._compile_service import share as core_share
from aoti_eager._compile_service.share import Share

needs_groups = pytest.mark.skipif(
    not scheduling.has_groups(), reason="needs Linux's groups of processes (sched_autogroup)"
)
needs_times = pytest.mark.skipif(
    scheduling.waits(os.getpid())[0] == 0 or not Path("/proc/self/task").exists(),
    reason="needs a Linux that says how long a process has waited for a core",
)
needs_children = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(),
    reason="needs a Linux that says which children a process has",
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


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Linux with groups of processes, and none of control groups."""
    monkeypatch.setattr(scheduling, "has_groups", lambda: True)


@pytest.mark.usefixtures("groups")
def test_a_session_gives_way(start: Callable[[str], int]) -> None:
    session = start(SPIN)
    scheduling.give_way(session)
    assert os.getpriority(os.PRIO_PROCESS, session) == 19


FIRST, OTHER = "cgroup:[4026531835]", "cgroup:[4026532300]"


@pytest.mark.parametrize(
    ("enabled", "lines", "namespace", "weighed", "expected"),
    [
        ("1", ["0::/"], FIRST, [], True),
        ("0", ["0::/"], FIRST, [], False),
        ("1", ["0::/user.slice/user-0.slice"], FIRST, [], True),
        ("1", ["0::/user.slice/user-0.slice"], FIRST, ["user.slice"], False),
        ("1", ["0::/a/b"], FIRST, ["a/b"], False),
        ("1", ["0::/"], OTHER, ["."], False),  # A container.
        ("1", ["2:cpu,cpuacct:/", "0::/"], FIRST, [], True),
        ("1", ["2:cpu,cpuacct:/docker/1", "0::/"], FIRST, [], False),
        ("1", ["2:cpu,cpuacct:/", "0::/"], OTHER, [], False),
        ("1", ["2:cpuset:/docker/1", "1:name=a:b:/", "0::/"], FIRST, [], True),
    ],
)
def test_groups_count_where_no_control_group_has_the_cpu(
    enabled: str,
    lines: list[str],
    namespace: str,
    weighed: list[str],
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("self/ns", *(f"groups/{one}" for one in weighed)):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "enabled").write_text(f"{enabled}\n", encoding="ascii")
    (tmp_path / "self" / "cgroup").write_text("\n".join(lines) + "\n", encoding="ascii")
    (tmp_path / "self" / "ns" / "cgroup").symlink_to(namespace)
    for one in weighed:
        (tmp_path / "groups" / one / "cpu.weight").write_text("100\n", encoding="ascii")
    monkeypatch.setattr(scheduling, "_ENABLED", tmp_path / "enabled")
    monkeypatch.setattr(scheduling, "_PROC", tmp_path)
    monkeypatch.setattr(scheduling, "_CONTROL_GROUPS", tmp_path / "groups")
    assert scheduling.has_groups() is expected


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


@needs_times
@needs_children
def test_what_children_run_and_wait_counts(start: Callable[[str], int]) -> None:
    session = start(SPIN_BELOW)
    until(lambda: scheduling.waits(session)[0] > 1e9)
    own = Path(f"/proc/{session}/schedstat").read_text(encoding="ascii").split()
    assert int(own[0]) < 1e9


@needs_groups
@needs_times
@needs_children
@pytest.mark.parametrize("code", [SPIN, SPIN_BELOW])
def test_who_waits_for_a_core_gets_windows(code: str, start: Callable[[str], int]) -> None:
    """On one core, which is the script's."""
    core = {min(os.sched_getaffinity(0))}
    session, share = start(f"import os\nos.sched_setaffinity(0, {core})\n{code}"), Share(0.3)
    for _ in range(2):
        os.sched_setaffinity(start(SPIN), core)
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


class System:
    """A system in which every session waits; it refuses a change that follows on another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses = False
        self.times: dict[int, int] = {}
        self.nice: dict[int, int] = {}
        self.raised: list[int] = []
        self.gone: set[int] = set()
        self._last = 0.0
        for name in ("waits", "set_group_nice", "is_there"):
            monkeypatch.setattr(scheduling, name, getattr(self, name))
        monkeypatch.setattr("os.setpriority", lambda *arguments: None)

    def waits(self, session: int) -> tuple[int, int]:
        """Return more from call to call."""
        self.times[session] = self.times.get(session, 0) + 1000
        return 0, self.times[session]

    def set_group_nice(self, session: int, nice: int) -> bool:
        """Refuse within a tenth of a second."""
        now = time.monotonic()
        if self.refuses or now - self._last < 0.1 or session in self.gone:
            return False
        self._last = now
        self.nice[session] = nice
        if nice == 0:
            self.raised.append(session)
        return True

    def is_there(self, session: int) -> bool:
        """Return whether it has not ended."""
        return session not in self.gone


@pytest.mark.usefixtures("groups")
def test_each_session_has_its_turn_where_the_system_refuses_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system, share = System(monkeypatch), Share(period_s=0.3)
    for session in (1, 2, 3):
        share.begin(session)
    until(lambda: {1, 2, 3} <= set(system.raised))
    for session in (1, 2, 3):
        share.end(session)
    until(lambda: share._thread is None)
    assert system.nice == {1: 19, 2: 19, 3: 19}


@pytest.mark.usefixtures("groups")
def test_what_the_system_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    system, share = System(monkeypatch), Share(period_s=0.3)
    system.refuses = True
    share.begin(1)
    share.end(1)
    system.refuses = False
    until(lambda: system.nice.get(1) == 19)
    until(lambda: share._thread is None)


@pytest.mark.usefixtures("groups")
def test_a_session_that_nobody_ends_is_left_alone_when_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system, share = System(monkeypatch), Share(period_s=0.3)
    share.begin(1)
    until(lambda: 1 in system.raised)
    system.gone.add(1)
    until(lambda: share._thread is None)
    assert share._sessions == {}
    assert share._to_lower == set()


@pytest.mark.usefixtures("groups")
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


@pytest.mark.usefixtures("groups")
def test_processes_that_wait_for_each_other_on_a_core_of_their_own_get_none(
    start: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    changes: list[tuple[int, int]] = []

    def waits(session: int) -> tuple[int, int]:
        asked.append(session)
        now = time.monotonic_ns()
        return now, 2 * now  # One of three runs.

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


def test_without_groups_there_are_no_windows_and_priorities_stay(
    start: Callable[[str], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The lowest priority, without windows, would be too little for a compile in time."""
    monkeypatch.setattr(scheduling, "_ENABLED", tmp_path / "none")
    session, share = start(SPIN), Share()
    mine = os.getpriority(os.PRIO_PROCESS, session)
    share.begin(session)
    assert share._thread is None
    assert os.getpriority(os.PRIO_PROCESS, session) == mine
    share.end(session)


@pytest.mark.usefixtures("groups")
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
    core_share.share.begin(session)
    try:
        child = os.fork()
        if child == 0:
            os._exit(len(core_share.share._sessions))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        core_share.share.end(session)
