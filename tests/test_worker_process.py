"""The pipes to a worker that is dead, or does not read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoti_eager import _worker_process
from aoti_eager._environment import cpu_features, cpu_target
from aoti_eager._worker_process import WorkerProcess
from aoti_eager.errors import CompileError

from .workers import until


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    """A worker that never comes to read anything."""
    monkeypatch.setattr(_worker_process, "child_command", lambda *_: ["/bin/sleep", "1000"])
    worker = WorkerProcess(cpu_target(cpu_features()), 0)
    yield worker
    worker.kill()


def test_a_long_request_to_a_worker_that_does_not_read_ends_in_time(
    sleeper: WorkerProcess,
) -> None:
    start = time.monotonic()
    assert sleeper.ask({"long": "x" * (4 << 20)}, start + 0.3) is None
    assert time.monotonic() - start < 20.0
    assert not sleeper.is_alive()


DEAD = """
import os, signal, time
from aoti_eager import _backend
from aoti_eager._worker_process import WorkerProcess

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as command line tools do
worker = WorkerProcess(_backend.current().target, 0)
os.kill(worker._process.pid, signal.SIGKILL)
worker._process.wait()
print(worker.ask({}, time.monotonic() + 5.0), flush=True)
"""


def test_a_dead_worker_does_not_end_a_script_that_wants_to_end_by_sigpipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEAD], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


def test_a_worker_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker_process, "child_command", lambda *_: ["/bin/cat"])
    before = len(os.listdir("/proc/self/fd"))
    worker = WorkerProcess(cpu_target(cpu_features()), 0)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    worker._process.send_signal(signal.SIGTERM)
    worker.kill()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_worker_that_cannot_be_started_leaves_no_file_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_worker_process, "child_command", lambda *_: ["/nonexistent"])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CompileError, match="cannot be started"):
        WorkerProcess(cpu_target(cpu_features()), 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was"))
    with pytest.raises(CompileError, match="no Python interpreter"):
        WorkerProcess(cpu_target(cpu_features()), 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has such a file")
def test_memory_that_runs_out_costs_a_worker_and_not_the_script() -> None:
    worker = WorkerProcess(cpu_target(cpu_features()), 0)
    try:
        score = Path(f"/proc/{worker._process.pid}/oom_score_adj")
        until(lambda: score.read_text().strip() == "1000", "the worker comes first")
    finally:
        worker.kill()


def test_a_worker_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(module: str, function: str) -> list[str]:
        code = f"import sys; from aoti_eager import _worker; _worker.IDLE_S = 0.1; {function}()"
        return [sys.executable, "-c", code.replace("main()", "_worker.main()")]

    monkeypatch.setattr(_worker_process, "child_command", command)
    worker = WorkerProcess(cpu_target(cpu_features()), 0)
    until(lambda: not worker.is_alive(), "it has ended")
    worker.kill()
