"""What a worker does of its own after its script has ended: the kernel under way, and nothing more.

What it is doing is seen from outside (``workers.py``).
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager import _backend, cache
from aoti_eager._base import scheduling

from . import processes
from .child_patches import patch_children
from .workers import Marked, Process, until, work

pytestmark = pytest.mark.compiles


@pytest.fixture(autouse=True)
def share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let workers have as much of the cores as other tests, which else would keep them all."""
    patches = {"aoti_eager._base.scheduling": "has_groups = lambda: False"}
    patch_children(monkeypatch, tmp_path, patches)


x = torch.arange(12.0).reshape(3, 4)

# Three keys wait, and one worker is asked for one of them after another.
SCRIPT = """
import sys, torch, aoti_eager

x = torch.arange(12.0).reshape(3, 4)
aoti_eager.register("aten::silu")
for rows in (3, 2, 1):
    for _ in range(rows):
        torch.ops.aten.silu(x[:rows])
print("called", flush=True)
how = sys.stdin.readline().strip()
if how == "raise":
    raise ValueError("on purpose")
"""


class Script:
    """A script that has made its calls, and ends when it is told to."""

    def __init__(self, cache_dir: Path, text: str = SCRIPT, **variables: str) -> None:
        self.marked = Marked()
        settings = {"AOTI_EAGER_MODE": "background", "AOTI_EAGER_LINGER_S": "120", **variables}
        self._process = processes.start(
            cache_dir, text, stdin=subprocess.PIPE, **self.marked.variables, **settings
        )

    def called(self) -> None:
        """Wait for its calls."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "called\n", self._process.communicate()[1]

    def end(self, how: str | int = "\n") -> tuple[int, str]:
        """Tell it, or send it a signal, and return its status and what it complained of."""
        if isinstance(how, int):
            self._process.send_signal(how)
        words = how if isinstance(how, str) else None
        _, errors = self._process.communicate(words, timeout=60)
        return self._process.returncode, errors

    def is_gone(self) -> bool:
        """Return whether neither it nor a process that it has started runs."""
        return not self.marked.processes()

    def kill(self) -> None:
        """End all of it."""
        self._process.kill()
        self._process.communicate()
        for process in self.marked.processes():
            process.send(signal.SIGKILL)
        until(self.is_gone, "nothing runs any more")


def a_compiler(script: Script) -> Process | None:
    """Return a C++ compiler of the script's worker, if one runs."""
    return next((p for p in script.marked.processes() if "cc1plus" in p.command), None)


@pytest.fixture
def script(cache_dir: Path) -> Iterator[Script]:
    """The script, whose worker has begun with a kernel; nothing of it may be left."""
    started = Script(cache_dir)
    try:
        started.called()
        until(lambda: work(cache_dir, "compile.log"), "a kernel is being made")
        yield started
        assert started.is_gone()
        assert list((cache_dir / "tmp").iterdir()) == []
        assert cache.verify().damaged == ()
    finally:
        started.kill()


@pytest.mark.parametrize(("how", "status"), [("\n", 0), ("raise\n", 1), (signal.SIGINT, -2)])
def test_the_kernel_under_way_is_finished_and_no_other_begun(
    how: str | int, status: int, script: Script
) -> None:
    assert cache.list() == []
    returned, errors = script.end(how)
    assert returned == status
    assert "aoti_eager" not in errors
    assert script.marked.worker() is not None
    until(script.is_gone, "the worker has ended", 100)
    (entry,) = cache.list()
    assert entry.status == "ready"


@pytest.mark.skipif(not scheduling.has_groups(), reason="this system has no groups to lower")
def test_a_lingering_worker_is_behind_everything_else(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though it had a window when its script ended."""
    window = """
def begin(self, session):
    scheduling.set_group_nice(session, 0)
Share.begin = begin
"""
    patch_children(monkeypatch, tmp_path, {"aoti_eager._share": window})
    script = Script(cache_dir)
    try:
        script.called()
        worker = until(script.marked.worker, "a worker")
        group = Path(f"/proc/{worker.pid}/autogroup")
        compiler = until(lambda: a_compiler(script), "a compiler")
        compiler.send(signal.SIGSTOP)  # The worker is there as long as we look.
        assert group.read_text().endswith(" nice 0\n")
        script.end()
        until(lambda: group.read_text().endswith(" nice 19\n"), "it is behind everything")
    finally:
        script.kill()


def test_another_process_takes_its_scratch_for_nobody_elses(
    script: Script, cache_dir: Path
) -> None:
    """The directory bears the number of the script, which is not there any more."""
    assert script.end() == (0, "")
    assert script.marked.worker() is not None
    assert work(cache_dir, "compile.log")
    assert _backend.current().store.stale_work() == []
    assert cache.verify().residue == 0
    until(script.is_gone, "the worker has ended", 100)
    assert len(cache.list()) == 1


def test_a_worker_that_hangs_ends_when_its_time_is_over(cache_dir: Path) -> None:
    script = Script(cache_dir, AOTI_EAGER_LINGER_S="2")
    try:
        script.called()
        hung = until(lambda: a_compiler(script), "a compiler")
        hung.send(signal.SIGSTOP)
        assert script.end() == (0, "")
        until(script.is_gone, "nobody is left")
        assert work(cache_dir) == []
        assert cache.list() == []
    finally:
        script.kill()


def test_nothing_lingers_where_the_setting_says_so_or_the_script_was_killed(
    cache_dir: Path,
) -> None:
    for how, linger_s in (("\n", "0"), (signal.SIGKILL, "120")):
        script = Script(cache_dir, AOTI_EAGER_LINGER_S=linger_s)
        try:
            script.called()
            until(script.marked.compiles, "a compiler")
            script.end(how)
            until(script.is_gone, "nobody is left", 20)
            until(lambda: not work(cache_dir), "nothing is left of a compile", 20)
            assert cache.list() == []
        finally:
            script.kill()


def test_an_idle_worker_ends_with_its_script(cache_dir: Path) -> None:
    text = SCRIPT.replace('print("called"', 'assert aoti_eager.wait(100)\nprint("called"')
    script = Script(cache_dir, text)
    try:
        script.called()
        assert script.marked.worker() is not None
        assert script.end() == (0, "")
        assert script.is_gone()
    finally:
        script.kill()


MEASURES = """
import sys, torch, aoti_eager

x = torch.arange(12.0).reshape(3, 4)
aoti_eager.register("aten::silu")
torch.ops.aten.silu(x)
print("called", flush=True)
sys.stdin.readline()
"""


def test_a_measurement_under_way_is_written_down_by_the_worker(cache_dir: Path) -> None:
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(x)
    (entry,) = cache.list()
    assert cache.inspect(entry.digest)[0].verdict is None
    script = Script(cache_dir, MEASURES, AOTI_EAGER_GATE="1")
    try:
        script.called()
        server = until(lambda: script.marked.server("_trial"), "the server of first runs")
        server.send(signal.SIGSTOP)  # So that the script ends before the measurement does.
        assert script.end() == (0, "")
        server.send(signal.SIGCONT)
        until(script.is_gone, "the worker has ended", 100)
    finally:
        script.kill()
    verdict = cache.inspect(entry.digest)[0].verdict
    assert verdict is not None
    assert verdict.compared


def test_a_second_interrupt_ends_what_would_linger(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SCRIPT.replace(
        "import sys, torch, aoti_eager",
        "import sys, time, torch, aoti_eager, aoti_eager._compile as c\n"
        "def interrupted(_):\n    raise KeyboardInterrupt\n"
        "c.time = type('time', (), {'monotonic': time.monotonic, 'sleep': interrupted})",
    )
    script = Script(cache_dir, text)
    try:
        script.called()
        until(script.marked.compiles, "a compiler")
        script.end()
        until(script.is_gone, "nobody is left", 20)
        assert cache.list() == []
    finally:
        script.kill()


def test_the_end_is_no_later_for_a_worker_that_lingers(script: Script) -> None:
    """By the clock of both: within the seconds that the end waits for threads, at most."""
    start = time.monotonic()
    assert script.end() == (0, "")
    assert time.monotonic() - start < 20.0
    until(script.is_gone, "the worker has ended", 100)
