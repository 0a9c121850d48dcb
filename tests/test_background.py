"""The queue and its threads where threads cannot be had, or Python ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aoti_eager._background import Background


class Job:
    calls = 1

    def __init__(self) -> None:
        self.done = threading.Event()

    def run(self) -> None:
        self.done.set()


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_job_is_refused_where_no_thread_can_be_started_and_taken_where_one_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    background = Background()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        assert not background.submit(Job())
        assert background.wait(5.0)
    job = Job()
    assert background.submit(job)
    assert job.done.wait(20.0)
    assert background.wait(20.0)
    background.end(lambda: None)


def test_waiting_ends_where_no_thread_runs_errands(monkeypatch: pytest.MonkeyPatch) -> None:
    background = Background()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert not background.run_errand(lambda: None)
    assert background.wait(5.0)


def test_waiting_ends_while_python_does(tmp_path: Path) -> None:
    text = """
import atexit
from aoti_eager import _background
background = _background.Background()
background.run_errand(lambda: print("written", flush=True))
atexit.register(lambda: print(background.wait(), flush=True))
"""
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("written\nTrue\n", "")
