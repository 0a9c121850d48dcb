"""What stops a region: results stay right, the report names the reason, children are served."""

from __future__ import annotations

import copy
import dataclasses
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aoti_eager import FusionReport, fuse
from aoti_eager._regions.report import RegionState

from ..support.regions import Policy, assert_same, inputs, seeded

pytestmark = pytest.mark.native


class Parent(nn.Module):
    """A module with a child that can be served, and a way to call it that cannot.

    Args:
        way: What forward does: it gets the module, the child's result, and the arguments.
    """

    def __init__(self, way: Callable[..., Any]) -> None:
        super().__init__()
        self.child = seeded(Policy)
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("shown", torch.zeros(3))
        self.norm = nn.BatchNorm1d(3)
        self.count = 0
        self.seen: list[int] = []
        self.recent: deque[int] = deque(maxlen=3)
        self.names: dict[str, int] = {}
        self.way = way

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the way makes of the child's result."""
        return self.way(self, self.child(x), x, *args, **kwargs)


@dataclasses.dataclass
class Pair:
    """A container that pytree does not know."""

    first: Tensor
    second: Tensor


class Counter:
    """An object with state, such as a cache of keys and values."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: list[Tensor] = []


calls_seen = 0


def _branch(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    return y if x.sum() > 0 else -y


def _count(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    m.count += 1
    return y * 2


def _append(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    m.seen.append(1)
    return y * 2


def _append_to_deque(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    m.recent.append(len(m.recent))
    return y * 2


def _set_item(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    m.names[str(len(m.names))] = 1
    return y * 2


def _count_on_class(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    type(m).calls = getattr(type(m), "calls", 0) + 1  # type: ignore[attr-defined]
    return y * 2


def _count_globally(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    global calls_seen
    calls_seen += 1
    return y * 2


def _keep_result(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    m.shown = y * 3
    return y * 2


def _keep_in_data(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    m.shown.data.copy_(y[0])
    return y * 2


def _add_to_buffer(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    m.total += y.sum(0)
    return y * 2


def _write_to_argument(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    x.clamp_(-0.5, 0.5)
    return y * 2


def _write_to_view(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    x.view(-1)[:2].zero_()
    return y * 2


def _fill_list(m: Parent, y: Tensor, x: Tensor, cache: list[Tensor]) -> Tensor:
    cache.append(y)
    return y * 2


def _fill_dict(m: Parent, y: Tensor, x: Tensor, *, out: dict[str, Tensor]) -> Tensor:
    out["y"] = y.sin()
    return y * 2


def _fill_object(m: Parent, y: Tensor, x: Tensor, cache: Counter) -> Tensor:
    cache.steps.append(y)
    return y * 2


def _map(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    return (y + 1).clone().apply_(lambda one: one * 2)


def _caught(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    try:
        return y @ y @ y
    except RuntimeError:
        return y * 2


def _print(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    print("called")
    return y * 2


def _seeds(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return y * 2


def _grows(m: Parent, y: Tensor, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return y.requires_grad_() * 2 + 1


Way = Callable[..., Any]
# name -> what forward does, the reason to stop, a word of the message
WAYS: dict[str, tuple[Way, str, str]] = {
    "branches on data": (_branch, "data_dependent_output", "_local_scalar_dense"),
    "item": (lambda m, y, x: y * x.sum().item(), "data_dependent_output", "_local_scalar_dense"),
    "float": (lambda m, y, x: y * float(x.sum()), "data_dependent_output", "_local_scalar_dense"),
    "tolist": (lambda m, y, x: y * x.tolist()[0][0], "data_leaves", "tolist in"),
    "numpy": (lambda m, y, x: y * float(x.numpy()[0, 0]), "data_leaves", "numpy in"),
    "printed tensor": (lambda m, y, x: y * len(str(x)), "data_leaves", ""),
    "apply_": (_map, "data_leaves", "apply_ in"),
    "equal": (lambda m, y, x: y * torch.equal(y, y), "data_dependent_output", "equal"),
    "nonzero": (lambda m, y, x: y * x.nonzero().shape[0], "data_dependent_output", "nonzero"),
    "a mask as an index": (lambda m, y, x: (y * 2)[y > 0], "data_dependent_output", ""),
    "rand": (lambda m, y, x: y + torch.rand(3), "random", "rand"),
    "dropout": (lambda m, y, x: nn.functional.dropout(y, 0.5), "random", ""),
    "a generator": (
        lambda m, y, x: y + torch.rand(3, generator=torch.Generator()),
        "random",
        "rand",
    ),
    "seeds": (_seeds, "python_state", "manual_seed"),
    "Python's random": (lambda m, y, x: y * (1 + random.random()), "python_state", "random in"),
    "Python's choice": (lambda m, y, x: y * random.choice([1.5, 2.5]), "python_state", ""),
    "time": (lambda m, y, x: y * (time.time() > 0) + 1, "python_state", "time in"),
    "a counter": (_count, "writes_attribute", "count"),
    "a list": (_append, "writes_attribute", "seen"),
    "a deque": (_append_to_deque, "writes_attribute", "recent"),
    "a dict": (_set_item, "writes_attribute", "names"),
    "a counter of the class": (_count_on_class, "writes_attribute", "calls"),
    "a global counter": (_count_globally, "side_effect", "calls_seen"),
    "print": (_print, "side_effect", "print"),
    "a buffer replaced": (_keep_result, "writes_attribute", "shown"),
    "data of a buffer": (_keep_in_data, "unknown_tensor", "copy_"),
    "a buffer": (_add_to_buffer, "mutates_constant", "add_"),
    "an argument": (_write_to_argument, "mutates_constant", "clamp_"),
    "a view of an argument": (_write_to_view, "mutates_constant", "zero_"),
    "returns a view of its input": (lambda m, y, x: (y * 2, x.t()), "result_shares_storage", ""),
    "returns a parameter": (
        lambda m, y, x: (y * 2, m.child.first.weight),
        "result_is_shared",
        "parameter",
    ),
    "returns a buffer": (lambda m, y, x: (y * 2, m.total), "unknown_tensor", ""),
    "returns a view of a parameter": (
        lambda m, y, x: (y * 2, m.child.first.weight[0]),
        "result_shares_storage",
        "",
    ),
    "returns two views": (lambda m, y, x: (y[:1], y[1:]), "result_shares_storage", ""),
    "returns a dataclass": (lambda m, y, x: Pair(y, y * 2), "unsupported_result", "Pair"),
    "returns a generator": (lambda m, y, x: (one for one in (y, y)), "unsupported_result", ""),
    "changes sizes": (lambda m, y, x: y.clone().resize_(2, 2), "changes_metadata", "resize_"),
    "as_strided": (lambda m, y, x: y.as_strided((2, 2), (1, 1)) + 1, "reads_storage_offset", ""),
    "empty": (lambda m, y, x: (y * 2, torch.empty(3).isnan() & False), "uninitialised", ""),
    "sparse": (lambda m, y, x: y.to_sparse().to_dense() * 2, "unsupported_tensor", ""),
    "numbers of Python's": (
        lambda m, y, x: y + torch.tensor([float(n) for n in range(70)])[:3],
        "unknown_tensor",
        "more than 64",
    ),
    "an error that forward catches": (_caught, "not_recorded", "raised an error"),
    "gradients that forward makes": (_grows, "result_needs_gradients", ""),
    "batch norm in training": (
        lambda m, y, x: m.norm(y),
        "mutates_constant",
        "add_",
    ),
    "a list that is an argument": (_fill_list, "writes_argument", "list or dict"),
    "a dict that is an argument": (_fill_dict, "writes_argument", "list or dict"),
    "an object that is an argument": (_fill_object, "unsupported_argument", "Counter"),
    "returns its argument's list": (lambda m, y, x, z: (y * 2, z), "writes_argument", "returns"),
}


ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "a list that is an argument": (([],), {}),
    "a dict that is an argument": ((), {"out": {}}),
    "an object that is an argument": ((Counter(),), {}),
    "returns its argument's list": (([1, 2],), {}),
}


def state(report: FusionReport, path: str = "") -> RegionState:
    return next(one for one in report.regions if one.path == path)


def twins(way: Way) -> tuple[Parent, Parent]:
    return Parent(way).eval(), Parent(way).eval()


def _attributes(model: Parent) -> dict[str, Any]:
    kept = {"count": model.count, "seen": model.seen, "recent": model.recent, "names": model.names}
    return {**kept, **model.state_dict()}


def assert_alike(model: Parent, plain: Parent, *args: Any, **kwargs: Any) -> None:
    """Assert that a call does the same to both models: results, arguments, attributes, random."""
    given = copy.deepcopy((args, kwargs)), copy.deepcopy((args, kwargs))
    results = []
    for one, (positional, named) in zip((model, plain), given, strict=True):
        torch.manual_seed(0)
        random.seed(0)
        result = one(*positional, **named)
        if isinstance(result, Pair):
            result = dataclasses.astuple(result)
        elif hasattr(result, "__next__"):
            result = tuple(result)
        results.append((result, torch.rand(1), random.random()))
    assert_same(results[0], results[1])
    assert_same(_attributes(model), _attributes(plain))
    for mine, theirs in zip(given[0][0], given[1][0], strict=True):
        if isinstance(mine, Counter):
            mine, theirs = mine.steps, theirs.steps
        assert_same(mine, theirs)
    assert_same(given[0][1], given[1][1])


@pytest.mark.parametrize("name", WAYS)
def test_a_module_that_no_library_may_serve_stops_and_its_child_is_served(name: str) -> None:
    way, reason, word = WAYS[name]
    model, plain = twins(way)
    x = inputs(4, 5)
    args, kwargs = ARGUMENTS.get(name, ((), {}))
    if name == "batch norm in training":
        for one in (model, plain):
            one.norm.train()
    with fuse(model) as report:
        for _ in range(8):
            assert_alike(model, plain, x, *args, **kwargs)
        found = state(report)
        assert (found.state, found.reason) == ("stopped", reason), str(report)
        assert word in found.message
        assert state(report, "child").state == "served"
        assert state(report, "child").hits >= 1
