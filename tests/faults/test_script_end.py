"""The end of a script, in any way and at any moment: its workers end, and nothing is left of them.

Real workers; what they are doing is seen from outside (``workers.py``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoti_eager import cache

from ..support.child_patches import patch_children
from ..support.kept_builds import make_cache_dir
from ..support.processes import run_script, start
from ..support.workers import Marked, until, work

pytestmark = pytest.mark.compiles

ENDS = """
import atexit, sys
import torch

def late():  # after all of ours
    assert torch.equal(torch.ops.aten.silu(x), want), "wrong at the end"

atexit.register(late)
import aoti_eager

x = torch.arange(12.0).reshape(3, 4)
want = x * torch.sigmoid(x)
registration = aoti_eager.register("aten::silu")
assert torch.allclose(torch.ops.aten.silu(x), want)
want = torch.ops.aten.silu(x)
print("called", flush=True)
how = sys.stdin.readline().strip()
assert torch.allclose(torch.ops.aten.silu(x), want)
if how == "exit":
    sys.exit(3)
if how == "raise":
    raise ValueError("on purpose")
"""


class Script:
    """A script that has made its first call and waits to be told how to end."""

    def __init__(self, cache_dir: Path, marked: Marked, text: str = ENDS) -> None:
        self.marked = marked
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cache_dir.parent,
            env={
                **os.environ,
                **marked.variables,
                "AOTI_EAGER_CACHE_DIR": str(cache_dir),
                "AOTI_EAGER_MODE": "background",
                "AOTI_EAGER_COMPILE_AFTER": "1",  # It makes one call, and ends during its compile.
            },
        )
        assert self.process.stdout is not None
        self._out = self.process.stdout

    def called(self) -> None:
        """Wait for its first call."""
        line = self._out.readline()
        assert line == "called\n", self.process.communicate()[1]

    def end(self, how: str | int) -> tuple[int, str]:
        """Tell it, or send it a signal, and return its status and what it complained of."""
        if isinstance(how, int):
            self.process.send_signal(how)
        _, errors = self.process.communicate(how if isinstance(how, str) else None, timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def script(cache_dir: Path, precompiled_header: None) -> Iterator[Script]:
    """The script; nothing that it has started may be left."""
    started = Script(cache_dir, Marked())
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.communicate()
    until(lambda: not started.marked.processes(), "nothing runs any more", 20)
    until(lambda: not work(cache_dir), "nothing is left of a compile", 20)
    report = cache.verify()
    assert (report.damaged, report.intact) == ((), 0)


MOMENTS = {
    "called": lambda script, cache_dir: script.called(),
    "imports": lambda script, cache_dir: until(script.marked.worker, "a worker"),
    "traces": lambda script, cache_dir: until(lambda: work(cache_dir, "compile.log"), "a log"),
    "compiles": lambda script, cache_dir: until(script.marked.compiles, "a compiler"),
}


@pytest.mark.full
@pytest.mark.share(of=4)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_script_ends_at_once_in_the_middle_of_a_compile(
    moment: str, script: Script, cache_dir: Path
) -> None:
    MOMENTS[moment](script, cache_dir)
    assert script.end("\n") == (0, "")


@pytest.mark.full
@pytest.mark.share(of=5)
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("exit\n", 3),
        ("raise\n", 1),
        (signal.SIGINT, -signal.SIGINT),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_script_may_end_in_any_way(
    how: str | int, status: int, script: Script, cache_dir: Path
) -> None:
    MOMENTS["compiles"](script, cache_dir)
    returned, errors = script.end(how)
    assert returned == status, errors
    assert "aoti_eager" not in errors
    assert errors.count("Traceback") == (how in ("raise\n", signal.SIGINT))


def test_workers_end_with_their_parent_though_a_child_of_its_lives(
    cache_dir: Path, precompiled_header: None
) -> None:
    """The child has the ends of their pipes, too."""
    text = (
        ENDS
        + """
import os, time
if how == "fork":
    if os.fork() == 0:
        time.sleep(1000)
    print("forked", flush=True)
    time.sleep(1000)
"""
    )
    marked = Marked()
    script = Script(cache_dir, marked, text)
    script.called()
    script.process.stdin.write("fork\n")  # type: ignore[union-attr]
    script.process.stdin.flush()  # type: ignore[union-attr]
    assert script._out.readline() == "forked\n"
    worker = until(marked.worker, "the worker")
    try:
        script.process.kill()
        until(lambda: not worker.runs(), "the worker ends", 20)
        until(lambda: not work(cache_dir), "nothing is left of a compile", 20)
    finally:
        for process in marked.processes():
            process.send(signal.SIGKILL)
        script.process.communicate()


HANGS = """
import ctypes, os
def hang(*_):
    open(os.environ["AE_TEST_HANGS"], "w").close()
    ctypes.PyDLL(None).sleep(1000)  # It keeps the interpreter's lock.
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "hangs"),
    [
        ("aoti_eager._compile_worker.jobs", "hang()"),
        ("aoti_eager._compile_worker.lowering", "lower = hang"),
    ],
    ids=["imports", "traces"],
)
def test_a_worker_that_does_nothing_else_ends_with_its_script(
    module: str,
    hangs: str,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precompiled_header: None,
) -> None:
    """As on a machine that is so busy that it takes minutes to come to look."""
    patch_children(monkeypatch, tmp_path, {module: f"{HANGS}\n{hangs}\n"})
    monkeypatch.setenv("AE_TEST_HANGS", str(tmp_path / "hangs"))
    marked = Marked()
    script = Script(cache_dir, marked, ENDS + "import os\nos._exit(5)\n")
    try:
        script.called()
        until((tmp_path / "hangs").exists, "it hangs", 200)
        assert script.end("\n") == (5, "")
        until(lambda: not marked.processes(), "nothing runs any more")
        assert list((cache_dir / "tmp").iterdir()) == []
    finally:
        for process in marked.processes():
            process.send(signal.SIGKILL)
        script.process.communicate()


@pytest.mark.both_paths(costly=True)
def test_a_killed_process_takes_its_workers_with_it(tmp_path: Path, shared_cache_dir: Path) -> None:
    path = make_cache_dir(tmp_path / "orphans", shared_cache_dir)
    process = start(path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    workers: list[str] = []
    while not workers and time.monotonic() < deadline:
        workers = children.read_text().split()
        time.sleep(0.05)
    assert workers
    process.kill()
    process.communicate()
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and is_running(pid) for pid in workers):
            return
        time.sleep(0.05)
    pytest.fail(f"workers {workers} outlived their process")


def is_running(pid: str) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.both_paths(costly=True)
def test_python_ends_well_while_a_daemon_thread_compiles(cache_dir: Path) -> None:
    done = run_script(
        """
        import threading, time, torch, aoti_eager
        aoti_eager.register("aten::silu")
        threading.Thread(target=lambda: torch.ops.aten.silu(torch.randn(3, 3)), daemon=True).start()
        time.sleep(1.5)
        """,
        cache_dir,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list((cache_dir / "tmp").iterdir()) == []
