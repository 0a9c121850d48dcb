"""How many children of a model are recorded in one call: the others are in later calls."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor, nn

from aoti_eager import fuse
from aoti_eager._regions import fusion
from aoti_eager._regions.recording_time import RecordingTime

from ..support.regions import assert_same

pytestmark = pytest.mark.native


class Clocks:
    """Two clocks that a test sets: the time that passes, and that of the thread."""

    def __init__(self) -> None:
        self.now_s = 1.0
        self.own_s = 0.0
        self.step_s = 0.0

    def own(self) -> float:
        """Return the thread's time, which goes on with each question."""
        self.own_s += self.step_s
        return self.own_s

    def time(self, *, is_limited: bool = True) -> RecordingTime:
        """Return a time for recordings by these clocks."""
        return RecordingTime(is_limited=is_limited, clock=lambda: self.now_s, own_clock=self.own)


def record(time: RecordingTime, clocks: Clocks, seconds: float) -> None:
    with time.counted():
        clocks.own_s += seconds


def test_after_a_first_share_recordings_take_a_fifth_of_the_time() -> None:
    clocks = Clocks()
    time = clocks.time()
    record(time, clocks, 0.15)
    assert not time.is_spent()
    record(time, clocks, 0.15)
    assert time.is_spent()
    clocks.now_s += 0.45
    assert time.is_spent()
    clocks.now_s += 0.1  # 0.3 s were taken: 0.2 s at once, and a fifth of half a second.
    assert not time.is_spent()
    record(time, clocks, 0.1)
    assert time.is_spent()


def test_an_error_within_counts_and_passes() -> None:
    clocks = Clocks()
    time = clocks.time()
    clocks.step_s = 9.0
    with pytest.raises(ZeroDivisionError), time.counted():
        raise ZeroDivisionError
    assert time.is_spent()


def test_time_without_a_limit_is_never_spent() -> None:
    clocks = Clocks()
    time = clocks.time(is_limited=False)
    record(time, clocks, 1e9)
    assert not time.is_spent()


class Drawing(nn.Module):
    """A model that stops, because it draws; its children are different kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4 + i), nn.Tanh(), nn.Linear(4 + i, 4)) for i in range(12)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + 0.0 * torch.rand(())


def test_the_children_of_a_large_model_are_recorded_in_several_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(
        fusion,
        "RecordingTime",
        functools.partial(RecordingTime, clock=lambda: clocks.now_s, own_clock=clocks.own),
    )
    clocks.step_s = 0.03  # for the begin and the end of a recording: 0.03 s each
    model, x = Drawing().eval(), torch.ones(2, 4)
    counts = []
    with torch.no_grad(), fuse(model, dry_run=True) as report:
        want = model(x)
        for _ in range(8):
            assert_same(model(x), want)
            clocks.now_s += 0.16
            counts.append(sum(one.state == "recorded" for one in report.regions))
    assert counts[0] == 7, counts  # of 0.03 s: the seventh begins before 0.2 s are over
    assert all(0 <= after - before <= 2 for before, after in itertools.pairwise(counts))
    assert counts[-1] == 12, counts


def test_a_model_that_is_served_whole_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(
        fusion,
        "RecordingTime",
        functools.partial(RecordingTime, clock=lambda: clocks.now_s, own_clock=clocks.own),
    )
    clocks.step_s = 100.0
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval(), torch.ones(2, 4)
    with torch.no_grad(), fuse(model, dry_run=True) as report:
        model(x)
        model(torch.ones(3, 4))
        assert [one.state for one in report.regions] == ["recorded"]
