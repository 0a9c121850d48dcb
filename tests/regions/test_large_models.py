"""Recordings of very large models are bounded, and what they generate does not grow for nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aoti_eager import fuse
from aoti_eager._regions import recorded_call
from aoti_eager._regions.reader import StateReader
from aoti_eager._regions.target import Target

from ..support.regions import Policy, assert_same, inputs, seeded

pytestmark = pytest.mark.native


class Wide(nn.Module):
    """Has many parameters, and uses a few; its child can be served."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.child = seeded(Policy)
        self.parts = nn.ParameterList([nn.Parameter(torch.zeros(3)) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) + self.parts[0]


class Repeats(nn.Module):
    """Calls many ops after its child."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.child = seeded(Policy)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        y = self.child(x)
        for _ in range(self.count):
            y = y * 1.0
        return y


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Wide(recorded_call.MOST_PARTS), "modules and tensors"),
        (lambda: Repeats(recorded_call.MOST_CALLS), "calls"),
    ],
)
def test_what_is_too_large_is_no_region_and_its_children_are(
    make: Callable[[], nn.Module], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes: list[int] = []
    tape_of = recorded_call.tape_of
    monkeypatch.setattr(
        recorded_call,
        "tape_of",
        lambda recording, *rest: tapes.append(len(recording.calls)) or tape_of(recording, *rest),
    )
    model, x = make().eval(), inputs(4, 5)
    want = model(x)
    with fuse(model, dry_run=True) as report:
        assert_same(model(x), want)
        assert report.regions[0].reason == "too_large"
        assert word in report.regions[0].message
        # Of the model's calls none was read, or kept.
        assert max(tapes) < 10
        assert_same(model(x), want)
        assert [one.path for one in report.regions][:2] == ["", "child"]
        assert report.regions[1].reason == ""


def _size(model: nn.Module, inputs: int) -> tuple[int, int]:
    """Return how much code is generated, and how much text; the first ``inputs`` are read."""
    reader = StateReader(Target(model.forward, model), frozenset({"weight", "bias"}))
    read, _ = reader.generate("sizes", list(reader.paths.values())[:inputs])
    assert len(read([]) or []) == inputs
    return len(read.__code__.co_code), read.__code__.co_argcount


def _chain(count: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(2, 2) for _ in range(count)])


def test_the_code_of_a_check_grows_as_the_modules_and_not_faster() -> None:
    for few_read, many_read in ((100, 200), (6, 6)):
        few, many = _size(_chain(100), few_read), _size(_chain(200), many_read)
        assert many[0] < 2.2 * few[0]
        assert few[1] == many[1] == 1


def test_a_change_among_many_modules_is_seen_and_named() -> None:
    model = _chain(40)
    reader = StateReader(Target(model.forward, model), frozenset({"weight", "bias"}))
    read, guard = reader.generate("changes", ["0.weight"])
    assert read([]) is not None
    assert guard.first_change() == ""
    changes: list[tuple[Callable[[], object], Callable[[], object], str]] = [
        (lambda: model[33].train(False), lambda: model[33].train(True), "33.training"),
        (
            lambda: setattr(model[34], "more", 1),
            lambda: delattr(model[34], "more"),
            "the attributes of 34",
        ),
        (
            lambda: model[35]._forward_hooks.update({0: print}),
            lambda: model[35]._forward_hooks.clear(),
            "the hooks of 35",
        ),
        (
            lambda: model[36].register_buffer("more", torch.zeros(1)),
            lambda: model[36]._buffers.clear(),
            "the buffers of 36",
        ),
        (
            lambda: setattr(model[37].bias, "data", torch.zeros(3)),
            lambda: setattr(model[37].bias, "data", torch.zeros(2)),
            "37.bias",
        ),
    ]
    for change, undo, text in changes:
        change()
        assert read([]) is None, text
        assert guard.first_change() == text
        undo()
        assert read([]) is not None, text
