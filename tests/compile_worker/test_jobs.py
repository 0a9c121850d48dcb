"""What a compile worker says of what went wrong: in bounds, and down to the traceback."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._base.child_process import LONGEST_ANSWER
from aoti_eager._base.printable import shortened
from aoti_eager._compile_service import cache_context
from aoti_eager._compile_service.replies import Failure, Measured
from aoti_eager._compile_service.requests import PartsRequest
from aoti_eager._compile_worker.jobs import CompileJobs
from aoti_eager._store.new_entries import LONGEST_MESSAGE
from aoti_eager.errors import CompileError

from ..support.child_patches import patch_children

aten = torch.ops.aten
X = torch.ones(4, 4)


@pytest.mark.parametrize("length", [0, 99, 100, 101, 1000, 10_000_000])
def test_a_text_that_is_too_long_keeps_its_beginning_and_its_end(length: int) -> None:
    text = "".join(chr(0x100 + i % 0x100) for i in range(length))
    short = shortened(text, 100)
    assert len(short) == min(length, 100)
    if length > 100:
        assert f"{length} characters" in short
        assert (short[:20], short[-20:]) == (text[:20], text[-20:])


@pytest.mark.parametrize("error", [CompileError, RuntimeError, OSError])
@pytest.mark.parametrize("character", ["x", "\n", "\U0001f600", "\udc80"])
def test_whatever_went_wrong_is_told_in_an_answer_that_is_read(
    error: type[Exception], character: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = character * (2 * LONGEST_ANSWER)

    def fail(jobs: CompileJobs, request: Any) -> Any:
        if error is CompileError:
            raise CompileError("compile_failed", said, log=said, remember=True)
        raise error(said)

    monkeypatch.setattr(CompileJobs, "_make_parts", fail)
    jobs = CompileJobs(0)
    line = jobs.answer_line(PartsRequest(tmp_path, 1, 60.0))
    assert len(line) <= LONGEST_ANSWER
    assert line.count("\n") == 1
    told = Failure.from_json(json.loads(line)).error("this")
    assert told.reason == "compile_failed"
    assert len(str(told)) <= LONGEST_MESSAGE + len("this: ")


def test_an_answer_that_nobody_would_read_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Measured({}, compared=False, unmeasured="x" * LONGEST_ANSWER)
    monkeypatch.setattr(CompileJobs, "_make_parts", lambda jobs, request: long)
    line = CompileJobs(0).answer_line(PartsRequest(tmp_path, 1, 60.0))
    assert Failure.from_json(json.loads(line)).reason == "compile_failed"


@pytest.fixture
def fresh_workers() -> Iterator[None]:
    """No worker of before, and none of this test's afterwards."""
    cache_context.close_workers()
    yield
    cache_context.close_workers()


@pytest.mark.full
@pytest.mark.compiles
@pytest.mark.usefixtures("fresh_workers")
@pytest.mark.parametrize("mode", ["sync", "background"])
def test_an_error_with_megabytes_of_words_costs_no_worker(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what is written down of it can be read."""
    fails = "def lower(*_): raise NotImplementedError('for this reason: ' + 5_000_000 * 'x')"
    patch_children(monkeypatch, tmp_path, {"aoti_eager._compile_worker.lowering": fails})
    with (
        aoti_eager.config.scope(mode=mode, compile_after=1),
        aoti_eager.register("aten::silu"),
    ):
        aten.silu(X)
        assert aoti_eager.wait(120.0)
        explained = aoti_eager.explain("aten::silu", X)
        assert explained.reason == "compile_failed"
        assert "for this reason: xxx" in explained.message
    (entry,) = cache.list()
    assert (entry.status, entry.reason) == ("declined", "compile_failed")
    (details,) = cache.inspect(entry.digest)
    assert details.entry.message is not None
    assert len(details.entry.message) == LONGEST_MESSAGE


@pytest.mark.compiles
@pytest.mark.usefixtures("fresh_workers")
def test_a_fault_in_the_measurement_is_told_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By ``explain``, in the verdict, and in the log."""
    faulty = "def _measure(request): raise ValueError('a fault in the measurement')"
    patch_children(monkeypatch, tmp_path, {"aoti_eager._compile_worker.measure": faulty})
    caplog.set_level(logging.DEBUG, "aoti_eager")
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        aten.silu(X)
        explained = aoti_eager.explain("aten::silu", X)
        assert explained.reason == "unmeasured"
        message = explained.message
    (entry,) = cache.list()
    assert entry.status == "ready"
    (details,) = cache.inspect(entry.digest)
    assert details.verdict is not None
    for told in (message, details.verdict.unmeasured, caplog.text):
        assert "in _measure" in told
        assert "ValueError: a fault in the measurement" in told
