"""Functions of many kinds, and the state that they and modules read."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aoti_eager import fuse

from ..support.regions import Policy, assert_same, assert_served, hits, inputs, seeded, served

pytestmark = pytest.mark.native


class Scaled(nn.Module):
    """A policy that reads something from elsewhere."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.policy = seeded(Policy)
        self.read = read

    def forward(self, x: Tensor) -> Any:
        return self.policy(x) * self.read(self) + 1


class Agent:
    """A class that is no module, with a network."""

    scale = 2.0

    def __init__(self) -> None:
        self.net = seeded(Policy)
        self.shift = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.act(x) * 2

    def act(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale + self.shift


class Slotted:
    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 2.0


def _closure(agent: Agent) -> Callable[[Tensor], Tensor]:
    def act(x: Tensor) -> Tensor:
        return agent.net(x) * agent.scale + agent.shift

    return act


def _plain_function(x: Tensor, w: Tensor, *, factor: float = 1.0) -> Tensor:
    return torch.tanh(x @ w) * factor


def _shift(agent: Agent) -> None:
    agent.shift = 3.0


def _scale(agent: Agent) -> None:
    agent.scale = 5.0


def _weights(agent: Agent) -> None:
    agent.net.first.weight.mul_(0.5)


def _network(agent: Agent) -> None:
    agent.net = seeded(Policy, 4)


@pytest.mark.parametrize("change", [_shift, _scale, _weights, _network])
@pytest.mark.parametrize(
    "function",
    [lambda agent: agent.act, lambda agent: agent, _closure, lambda agent: lambda x: agent.act(x)],
    ids=["method", "object", "closure", "lambda"],
)
def test_functions_see_changes_of_what_they_refer_to(
    function: Callable[[Agent], Any], change: Callable[[Agent], None]
) -> None:
    agent, plain, x = Agent(), Agent(), inputs(4, 5)
    fast = fuse(function(agent))
    try:
        for _ in range(4):
            assert_same(fast(x), function(plain)(x))
        for one in (agent, plain):
            change(one)
        for _ in range(4):
            assert_same(fast(x), function(plain)(x))
        assert hits(fast.report) > 0
    finally:
        fast.report.undo()


def test_partial_functions_and_defaults_are_served() -> None:
    w, x = inputs(5, 3), inputs(4, 5)
    partial = functools.partial(_plain_function, w=w, factor=2.0)
    fast = fuse(partial)
    assert_served(fast.report, lambda: fast(x), partial(x))
    w.mul_(2)
    assert_same(fast(x), partial(x))
    fast.report.undo()

    def with_default(x: Tensor, w: Tensor = w) -> Tensor:
        return torch.tanh(x @ w) * 2

    fast = fuse(with_default)
    assert_served(fast.report, lambda: fast(x), with_default(x))
    w.mul_(2)
    assert_same(fast(x), with_default(x))
    fast.report.undo()


FLAGS = {"doubled": False}


@pytest.mark.parametrize("name", ["a class", "slots", "by name", "grad mode", "a deque"])
def test_state_that_forward_reads_is_seen_when_it_changes(name: str) -> None:
    def read(module: Any) -> Any:
        if name == "a class":
            return module.factor
        if name == "slots":
            return module.config.factor
        if name == "by name":
            return getattr(module, f"factor_{module.mode}")
        if name == "grad mode":
            return 3.0 if torch.is_grad_enabled() else 2.0
        return float(sum(module.recent))

    pair = []
    for _ in range(2):
        kind = type("Kind", (Scaled,), {"factor": 2.0})
        model = kind(read).requires_grad_(False)
        model.config, model.mode, model.factor_a = Slotted(), "a", 2.0
        model.recent = collections.deque([1, 2])
        pair.append(model)

    def change(model: Any) -> None:
        type(model).factor = 5.0
        model.config.factor = 5.0
        model.factor_a = 5.0
        model.recent.append(3)

    x = inputs(4, 5)
    with fuse(pair[0]) as report:
        served(report, lambda: pair[0](x))
        for one in pair:
            change(one)
        with torch.set_grad_enabled(name == "grad mode"):
            for _ in range(3):
                assert_same(pair[0](x), pair[1](x))


def test_a_flag_outside_of_the_contract_is_found_by_a_recording() -> None:
    model = Scaled(lambda module: 2.0 if FLAGS["doubled"] else 1.0)
    x = inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        FLAGS["doubled"] = True
        try:
            with pytest.warns(UserWarning, match="made different calls of ops"):
                for _ in range(10):
                    got = model(x)
            assert_same(got, seeded(Policy)(x) * 2 + 1)
            root = next(one for one in report.regions if not one.path)
            assert root.reason == "tape_differs"
        finally:
            FLAGS["doubled"] = False
