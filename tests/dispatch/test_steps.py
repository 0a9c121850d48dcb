"""The work of our threads beside the script is divided into steps of some hundred calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, FrameType
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._compile_service import queue

# What hands the interpreter over, or waits for another thread or process.
ENDS = ("sleep", "acquire", "poll")
# A function call of Python or C takes half a microsecond.
MOST_CALLS = 1000


class Steps:
    """Counts the function calls of each step in threads of ours; a profiler of threads."""

    def __init__(self) -> None:
        self.longest: dict[str, int] = {}
        self._calls: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, what: Any) -> None:
        # An encoder of JSON is resumed once for each value in each list around it.
        if event not in ("call", "c_call") or frame.f_globals.get("__name__") == "json.encoder":
            return
        name = threading.current_thread().name
        if event == "c_call" and isinstance(what, BuiltinFunctionType) and what.__name__ in ENDS:
            self._calls[name] = 0
            return
        self._calls[name] = self._calls.get(name, 0) + 1
        self.longest[name] = max(self.longest.get(name, 0), self._calls[name])


@pytest.fixture
def count_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Steps]]:
    """Count the steps of threads that start from now on: the queue has new ones."""
    background = queue.Background()
    found = Steps()

    def begin() -> Steps:
        assert queue.background.wait(60)
        monkeypatch.setattr(queue, "background", background)
        threading.setprofile(found)
        return found

    yield begin
    threading.setprofile(None)  # type: ignore[arg-type]
    assert background.wait(60)
    background.end(lambda: None)


@pytest.mark.full
@pytest.mark.native
@pytest.mark.compiles
def test_a_kernel_that_comes_is_many_steps(
    shared_cache: Path, count_steps: Callable[[], Steps]
) -> None:
    def served(rows: int) -> None:
        x = torch.randn(rows, 7)
        for _ in range(3):  # The original; the comparison; the kernel.
            torch.nn.functional.silu(x)
            assert aoti_eager.wait(300)

    with (
        aoti_eager.config.scope(mode="background", compile_after=1),
        aoti_eager.register("aten::silu"),
    ):
        served(6)  # What a process does once.
        steps = count_steps()
        served(13)
        assert aoti_eager.stats()["aten::silu"].hits == 2
    for name in ("aoti_eager-compile", "aoti_eager-write_0"):
        assert 0 < steps.longest[name] < MOST_CALLS, steps.longest
