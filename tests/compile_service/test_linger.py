"""What a worker does of its own after its script has ended: the kernel under way, and nothing more.

What it is doing is seen from outside (``workers.py``). Tests stop its compiler: so the kernel under
way is under way until the script has ended, however long that takes on a busy machine.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._base import scheduling
from aoti_eager._compile_service import cache_context
from aoti_eager._compile_worker.parent_watch import NAME

from ..support import processes
from ..support.child_patches import patch_children
from ..support.verdicts import forget_verdicts
from ..support.workers import (
    Marked,
    Process,
    stopped,
    until,
    work,
)

pytestmark = pytest.mark.compiles

SHARE_OF_THE_CORES = {"aoti_eager._base.scheduling": "has_groups = lambda: False"}


@pytest.fixture(autouse=True)
def share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let workers have as much of the cores as other tests, which else would keep them all."""
    patch_children(monkeypatch, tmp_path, SHARE_OF_THE_CORES)


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
        settings = {
            "AOTI_EAGER_MODE": "background",
            "AOTI_EAGER_LINGER_S": "120",
            # A key is asked for at its first call: what is tested is what happens to it then.
            "AOTI_EAGER_COMPILE_AFTER": "1",
            **variables,
        }
        self._process = processes.start(
            cache_dir, text, stdin=subprocess.PIPE, **self.marked.variables, **settings
        )

    def called(self) -> None:
        """Wait for its calls."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "called\n", self._process.communicate()[1]

    def stop_compiler(self) -> int:
        """Stop the compiler of a kernel, and return how many kernels were made before.

        That one is under way until ``go_on``.
        """
        self._stopped = until(
            lambda: stopped(self.marked.kernel_compiler()), "a compiler is stopped", 200
        )
        return len(cache.list())

    def go_on(self) -> None:
        """Let the compiler go on."""
        self._stopped.send(signal.SIGCONT)

    def is_at_it(self) -> bool:
        """Return whether its worker is there, and the compiler stopped still."""
        return self.marked.worker() is not None and self._stopped.is_stopped()

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
            with contextlib.suppress(ProcessLookupError):
                process.send(signal.SIGKILL)
        until(self.is_gone, "nothing runs any more")


@pytest.fixture
def script(cache_dir: Path) -> Iterator[Script]:
    """The script; nothing of it may be left."""
    started = Script(cache_dir)
    try:
        started.called()
        yield started
        assert started.is_gone()
        assert list((cache_dir / "tmp").iterdir()) == []
        assert cache.verify().damaged == ()
    finally:
        started.kill()


@pytest.mark.full
@pytest.mark.parametrize(("how", "status"), [("\n", 0), ("raise\n", 1), (signal.SIGINT, -2)])
def test_the_kernel_under_way_is_finished_and_no_other_begun(
    how: str | int, status: int, script: Script
) -> None:
    made = script.stop_compiler()
    returned, errors = script.end(how)
    assert returned == status
    assert "aoti_eager" not in errors
    assert script.is_at_it()
    script.go_on()
    until(script.is_gone, "the worker has ended", 100)
    assert [entry.status for entry in cache.list()] == ["ready"] * (made + 1)


@pytest.mark.full
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
    patch_children(monkeypatch, tmp_path, {"aoti_eager._compile_service.share": window})
    script = Script(cache_dir)
    try:
        script.called()
        worker = until(script.marked.worker, "a worker")
        group = Path(f"/proc/{worker.pid}/autogroup")
        script.stop_compiler()  # The worker is there as long as we look.
        assert group.read_text().endswith(" nice 0\n")
        script.end()
        until(lambda: group.read_text().endswith(" nice 19\n"), "it is behind everything")
    finally:
        script.kill()


@pytest.mark.full
def test_another_process_takes_its_scratch_for_nobody_elses(
    script: Script, cache_dir: Path
) -> None:
    """The directory bears the number of the script, which is not there any more."""
    made = script.stop_compiler()
    assert script.end() == (0, "")
    assert script.is_at_it()
    assert work(cache_dir, "compile.log")
    assert cache_context.current().store.stale_work() == []
    assert cache.verify().residue == 0
    script.go_on()
    until(script.is_gone, "the worker has ended", 100)
    assert len(cache.list()) == made + 1


@pytest.mark.full
def test_a_worker_that_hangs_ends_when_its_time_is_over(cache_dir: Path) -> None:
    script = Script(cache_dir, AOTI_EAGER_LINGER_S="2")
    try:
        script.called()
        made = script.stop_compiler()
        assert script.end() == (0, "")
        until(script.is_gone, "nobody is left")
        assert work(cache_dir) == []
        assert len(cache.list()) == made
    finally:
        script.kill()


@pytest.mark.full
def test_nothing_lingers_where_the_setting_says_so_or_the_script_was_killed(
    cache_dir: Path,
) -> None:
    for how, linger_s in (("\n", "0"), (signal.SIGKILL, "120")):
        script = Script(cache_dir, AOTI_EAGER_LINGER_S=linger_s)
        try:
            script.called()
            made = script.stop_compiler()
            script.end(how)
            until(script.is_gone, "nobody is left")
            until(lambda: not work(cache_dir), "nothing is left of a compile")
            assert len(cache.list()) == made
        finally:
            script.kill()


@pytest.mark.full
def test_an_idle_worker_ends_with_its_script(cache_dir: Path) -> None:
    text = SCRIPT.replace('print("called"', 'assert aoti_eager.wait(100)\nprint("called"')
    script = Script(cache_dir, text)
    try:
        script.called()
        assert script.marked.worker() is not None
        assert script.end() == (0, "")
        assert script.marked.worker() is None
        until(script.is_gone, "what it had started has ended, too")
    finally:
        script.kill()


@pytest.mark.full
def test_a_worker_that_has_not_begun_to_read_hears_that_it_may_go_on(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A script that ends while its worker imports torch has its kernel nevertheless."""
    waits = """
import os, time
open(os.environ["AE_TEST_BEGUN"], "w").close()
while not os.path.exists(os.environ["AE_TEST_GO_ON"]):
    time.sleep(0.01)
"""
    patches = {**SHARE_OF_THE_CORES, "aoti_eager._compile_worker.jobs": waits}
    patch_children(monkeypatch, tmp_path, patches)
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    script = Script(cache_dir, AE_TEST_BEGUN=str(begun), AE_TEST_GO_ON=str(go_on))
    try:
        script.called()
        until(begun.exists, "the worker is there")
        assert script.end() == (0, "")
        watch = "the watcher has seen that and ended, the worker has not"
        until(lambda: [p.name for p in script.marked.processes()].count(NAME) == 0, watch)
        assert script.marked.worker() is not None
        go_on.touch()
        until(script.is_gone, "the worker has ended", 100)
        assert [entry.status for entry in cache.list()] == ["ready"]
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


@pytest.mark.full
def test_a_measurement_under_way_is_written_down_by_the_worker(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The server of first runs stops at its start: the script ends before the measurement does.
    stops = """
import os, signal
served = serve
def serve():
    os.kill(os.getpid(), signal.SIGSTOP)
    served()
"""
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(x)
    (entry,) = cache.list()
    forget_verdicts()
    patch_children(
        monkeypatch, tmp_path, {**SHARE_OF_THE_CORES, "aoti_eager._compile_worker.trial": stops}
    )
    script = Script(cache_dir, MEASURES, AOTI_EAGER_GATE="1")

    def stopped_server() -> Process | None:
        server = script.marked.server("trial")
        return server if server is not None and server.is_stopped() else None

    try:
        script.called()
        server = until(stopped_server, "the server of first runs is stopped", 200)
        assert script.end() == (0, "")
        assert script.marked.worker() is not None
        server.send(signal.SIGCONT)
        until(script.is_gone, "the worker has ended", 100)
    finally:
        script.kill()
    verdict = cache.inspect(entry.digest)[0].verdict
    assert verdict is not None
    assert verdict.compared


@pytest.mark.full
def test_a_second_interrupt_ends_what_would_linger(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SCRIPT.replace(
        "import sys, torch, aoti_eager",
        "import sys, time, torch, aoti_eager, aoti_eager._compile_service.worker_pool as c\n"
        "def interrupted(_):\n    raise KeyboardInterrupt\n"
        "c.time = type('time', (), {'monotonic': time.monotonic, 'sleep': interrupted})",
    )
    script = Script(cache_dir, text)
    try:
        script.called()
        made = script.stop_compiler()
        script.end()
        until(script.is_gone, "nobody is left")
        assert len(cache.list()) == made
    finally:
        script.kill()


@pytest.mark.full
def test_the_end_does_not_wait_for_a_worker_that_lingers(cache_dir: Path) -> None:
    """The script ends, though its worker's work does not: the compiler is stopped for good."""
    script = Script(cache_dir)
    try:
        script.called()
        script.stop_compiler()
        assert script.end() == (0, "")
        assert script.is_at_it()
    finally:
        script.kill()
