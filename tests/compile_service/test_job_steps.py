"""What a worker tells of its steps: told in order, and no harm to the job whatever is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import config
from aoti_eager._base.child_process import LONGEST_ANSWER
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._base.deadline import Deadline
from aoti_eager._compile_service import messages, worker_process
from aoti_eager._compile_service.job_progress import JobProgress, progress_here
from aoti_eager._compile_service.replies import PartsMade, read_reply
from aoti_eager._compile_service.requests import PartsRequest
from aoti_eager._compile_service.steps import MOST_STEPS, Step, StepReader
from aoti_eager._compile_service.worker_process import WorkerProcess
from aoti_eager._compile_worker.job_steps import JobSteps

FIRST, SECOND = Step("tracing", 1, 2), Step("compiling C++", 2, 2)
ANSWER = b'{"kind": "parts_made"}\n'


def line(step: Step) -> bytes:
    return json.dumps(step.to_json()).encode() + b"\n"


def damaged(name: str, value: object) -> bytes:
    return json.dumps({**FIRST.to_json(), name: value}).encode() + b"\n"


# What a worker may write in place of a step, and is no step.
MALFORMED = {
    "no JSON": b'{"kind": "step", "version"\n',
    "too deep": b'{"kind": "step", "name": ' + b"[" * 100_000 + b"\n",
    "no text": b'{"kind": "step", \xff\xfe}\n',
    "a field is missing": b'{"kind": "step"}\n',
    "another version": damaged("version", "0"),
    "a long name": damaged("name", "x" * 41),
    "no name": damaged("name", ""),
    "a name that moves the cursor": damaged("name", "\x1b[2J"),
    "number 0": damaged("number", 0),
    "beyond the last": damaged("number", 3),
    "too many": damaged("count", 1000),
    "a number that is none": damaged("number", True),
}


def read(chunks: list[bytes]) -> tuple[bytes, list[Step]]:
    told: list[Step] = []
    reader, written = StepReader(told.append), b""
    for chunk in chunks:
        written = reader.rest(written + chunk)
    return written, told


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_steps_are_told_however_the_pipe_divides_them(size: int) -> None:
    written = line(FIRST) + line(SECOND) + ANSWER
    chunks = [written[i : i + size] for i in range(0, len(written), size)]
    assert read(chunks) == (ANSWER, [FIRST, SECOND])


@pytest.mark.parametrize("what", MALFORMED)
def test_a_step_of_another_form_is_left_out(what: str) -> None:
    assert read([line(FIRST), MALFORMED[what], line(SECOND) + ANSWER]) == (ANSWER, [FIRST, SECOND])


def test_more_steps_than_a_job_has_are_not_told() -> None:
    rest, told = read([line(FIRST) * (3 * MOST_STEPS) + ANSWER])
    assert (rest, told) == (ANSWER, [FIRST] * MOST_STEPS)


def test_another_message_is_no_step() -> None:
    for other in (ANSWER, b'{"kind": "steps"}\n', b"words\n"):
        assert read([other + line(FIRST)]) == (other + line(FIRST), [])


# -- through a pipe --

# In place of a worker: it writes the lines of a file when it gets a request.
TELLER = (
    "import sys; sys.stdin.readline(); sys.stdout.buffer.write(open({!r}, 'rb').read()); "
    "sys.stdout.flush(); "
)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    workers: list[WorkerProcess] = []

    def ask(written: bytes, *, then: str = "sys.stdin.read()") -> Any:
        lines = tmp_path / "lines"
        lines.write_bytes(written)
        command = [sys.executable, "-c", TELLER.format(str(lines)) + then]
        monkeypatch.setattr(worker_process, "child_command", lambda *_: command)
        worker = WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)
        workers.append(worker)
        progress, told = JobProgress(), []
        monkeypatch.setattr(JobProgress, "tell", lambda one, step: told.append((one, step)))
        with progress.asked_for_here():
            answer = worker.ask(PartsRequest(config.cache_dir, 1, 60.0), Deadline(60.0))
        assert progress_here() is None
        assert all(one is progress for one, _ in told)
        return answer, [step for _, step in told], worker

    yield ask
    for worker in workers:
        worker.kill()


def reply() -> bytes:
    return json.dumps(PartsMade(True).to_json()).encode() + b"\n"


@pytest.mark.parametrize("what", MALFORMED)
def test_a_reply_arrives_whatever_a_worker_tells_before(what: str, ask: Callable[..., Any]) -> None:
    answer, told, worker = ask(line(FIRST) + MALFORMED[what] + line(SECOND) + reply())
    assert read_reply(answer) == PartsMade(True)
    assert told == [FIRST, SECOND]
    assert worker.is_alive()


def test_a_reply_as_long_as_may_be_arrives_after_steps(ask: Callable[..., Any]) -> None:
    long = json.dumps({"reason": "x" * (LONGEST_ANSWER - 100)}).encode() + b"\n"
    answer, told, _ = ask(line(FIRST) * MOST_STEPS + long)
    assert len(answer["reason"]) == LONGEST_ANSWER - 100
    assert told == [FIRST] * MOST_STEPS


def test_a_worker_that_dies_after_a_step_is_dead(ask: Callable[..., Any]) -> None:
    answer, told, worker = ask(line(FIRST) + line(SECOND)[:20], then="")
    assert (answer, told) == (None, [FIRST])
    assert not worker.is_alive()


def test_a_step_of_another_version_is_not_told_and_its_reply_is_refused(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(messages, "MESSAGE_VERSION", 0)
        written = line(FIRST) + reply()
    answer, told, _ = ask(written)
    assert told == []
    with pytest.raises(messages.MessageError, match="comes from version"):
        read_reply(answer)


# -- what the script keeps --


def test_the_latest_step_is_said_with_the_seconds_in_it() -> None:
    now = [100.0]
    progress = JobProgress(lambda: now[0])
    now[0] = 102.4
    assert str(progress) == "waiting for a worker, 2 s"
    progress.tell(FIRST)
    assert str(progress) == "step 1 of 2, tracing, 0 s"
    progress.tell(SECOND)
    now[0] += 12.0
    assert str(progress) == "step 2 of 2, compiling C++, 12 s"
    progress.tell(None)  # Its worker has died: another one starts.
    assert str(progress) == "waiting for a worker, 0 s"


# -- the worker's side --


def test_steps_go_on_and_back_and_a_second_library_adds_its_own() -> None:
    told: list[Step] = []
    steps = JobSteps()
    steps.begin("b")  # Nobody listens.
    with steps.told_to(told.append):
        steps.begin("b")  # It is not planned.
        steps.plan("a", "b", "c")
        for name in ("b", "b", "c", "b", "c"):
            steps.begin(name)
        steps.plan("b", "c")
        for name in ("b", "c", "d", "b", "c"):
            steps.begin(name)
    steps.begin("a")
    assert [(one.name, one.number, one.count) for one in told] == [
        *[("b", 2, 3), ("c", 3, 3), ("b", 2, 3), ("c", 3, 3)],
        *[("b", 4, 5), ("c", 5, 5), ("b", 4, 5), ("c", 5, 5)],
    ]
    told.clear()
    with steps.told_to(told.append):  # The next job has no step of this one.
        steps.begin("b")
        steps.plan("a", "b")
        for _ in range(MOST_STEPS):
            steps.begin("a")
            steps.begin("b")
    assert len(told) == MOST_STEPS


# -- a real worker --


@pytest.mark.compiles
def test_a_real_worker_tells_each_step_of_each_job_once(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mode ``sync``, whose worker has not compiled before."""
    told: list[str] = []
    seen: list[tuple[dict[str, int], tuple[str, ...], aoti_eager.Explanation]] = []
    silu, x = torch.ops.aten.silu, torch.randn(3, 5)
    tell = JobProgress.tell

    def telling(progress: JobProgress, step: Step | None) -> None:
        tell(progress, step)
        told.append("" if step is None else f"{step.number}/{step.count} {step.name}")
        stats = aoti_eager.stats()["aten::silu"]
        seen.append((dict(stats.unfinished), stats.steps, aoti_eager.explain("aten::silu", x)))

    monkeypatch.setattr(JobProgress, "tell", telling)
    aoti_eager._compile_service.cache_context.close_workers()
    with config.scope(gate=True), aoti_eager.register("aten::silu"):
        silu(x)
        stats = aoti_eager.stats()["aten::silu"]
        assert (stats.compiles, stats.steps, stats.unfinished) == (1, (), {})
        assert told == ["", *(f"{n}/6 {name}" for n, name in enumerate(STEPS, 1))]
        for unfinished, steps, explained in seen:
            assert unfinished == {"compiling": 1}
            assert explained.state == "compiling"
            assert explained.message.startswith("its kernel is being made in a call that waits: ")
            assert len(steps) == 1
        assert [steps[0].rpartition(", ")[0] for _, steps, _ in seen] == [
            "waiting for a worker",
            *(f"step {n} of 6, {name}" for n, name in enumerate(STEPS, 1)),
        ]
        told.clear()
        x = torch.randn(3, 6)
        silu(x)
        assert told == ["", *(f"{n}/6 {name}" for n, name in enumerate(STEPS, 1) if n > 1)]


STEPS = ("importing Inductor", "tracing", "generating code", "compiling C++", "trying", "measuring")
