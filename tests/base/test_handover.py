"""Threads of ours hand the interpreter over; the script's own threads do not."""

from __future__ import annotations

import threading
import time

import pytest

from aoti_eager._base.handover import beside_script, let_others_run
from aoti_eager._compile_service.queue import Background
from aoti_eager._dispatch.look_thread import LookThread


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have handed the interpreter over."""
    names: list[str] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        if seconds == 0:
            names.append(threading.current_thread().name)
        sleep(seconds)

    monkeypatch.setattr("aoti_eager._base.handover.time.sleep", noted)
    return names


def test_only_a_thread_beside_the_script_hands_over(handed_over: list[str]) -> None:
    let_others_run()
    assert handed_over == []
    with beside_script():
        let_others_run()
        with beside_script():
            let_others_run()
        let_others_run()
    let_others_run()
    assert len(handed_over) == 3


class Job:
    """A job with one step."""

    rank = (0,)

    def __init__(self) -> None:
        self.done = threading.Event()

    def run(self) -> None:
        """Do the step."""
        let_others_run()
        self.done.set()


def test_the_threads_of_the_queue_and_of_the_looks_do(handed_over: list[str]) -> None:
    background, job, looked = Background(), Job(), threading.Event()
    assert background.submit(job)
    assert job.done.wait(60)
    assert background.run_background_write(let_others_run)
    assert background.wait(60)
    background.end(lambda: None)

    def look() -> None:
        let_others_run()
        looked.set()

    changed = threading.Condition()
    thread = LookThread(look, lambda: float("inf"), time.monotonic, changed)
    with changed:
        thread.wake(0.0)
    assert looked.wait(60)
    wanted = {"aoti_eager-compile", "aoti_eager-write_0", "aoti_eager-rare"}
    assert wanted <= set(handed_over)
