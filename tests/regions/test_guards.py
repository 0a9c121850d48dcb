"""What a variant's guard sees, and what one kind of call does not decide for others."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager._regions import region_kernel
from aoti_eager.errors import FuseError

from ..support.regions import Policy, assert_same, hits, inputs, seeded, served

pytestmark = pytest.mark.native


class Attributed(nn.Module):
    """Reads an attribute in a way that a test chooses."""

    def __init__(self, read: Callable[[Attributed], float], **attributes: Any) -> None:
        super().__init__()
        self.read = read
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.read(self)).sin() + 1.0


class Scale:
    """An object that is called, and has an attribute."""

    def __init__(self) -> None:
        self.beta = 2.0

    def __call__(self) -> float:
        return self.beta


class DoubleScale(Scale):
    """Gives twice as much."""

    def __call__(self) -> float:
        return 2.0 * self.beta


class Slotted:
    """An object without a ``__dict__``."""

    __slots__ = ("beta",)

    def __init__(self) -> None:
        self.beta = 2.0


class Classed(Attributed):
    """Has an attribute of its class, and a property."""

    eps = 2.0

    @property
    def doubled(self) -> float:
        """Return twice what an attribute says."""
        return 2.0 * self.base


class ClassedOtherwise(Classed):
    """Has another value of the attribute."""

    eps = 5.0


CHANGES: dict[str, tuple[Callable[[], Attributed], Callable[[Attributed], object]]] = {
    "an ordered dict": (
        lambda: Attributed(lambda m: m.table["a"], table=OrderedDict(a=2.0)),
        lambda m: m.table.update(a=3.0),
    ),
    "a callable's attribute": (
        lambda: Attributed(lambda m: m.scale(), scale=Scale()),
        lambda m: setattr(m.scale, "beta", 3.0),
    ),
    "a slot": (
        lambda: Attributed(lambda m: m.slotted.beta, slotted=Slotted()),
        lambda m: setattr(m.slotted, "beta", 3.0),
    ),
    "an attribute of the class": (
        lambda: Classed(lambda m: m.eps),
        lambda m: setattr(Classed, "eps", 3.0),
    ),
    "an attribute that hides the class's": (
        lambda: Classed(lambda m: m.eps),
        lambda m: setattr(m, "eps", 4.0),
    ),
    "another class": (
        lambda: Classed(lambda m: m.eps),
        lambda m: setattr(m, "__class__", ClassedOtherwise),
    ),
    "another class of an object": (
        lambda: Attributed(lambda m: m.scale(), scale=Scale()),
        lambda m: setattr(m.scale, "__class__", DoubleScale),
    ),
    "what a property reads": (
        lambda: Classed(lambda m: m.doubled, base=2.0),
        lambda m: setattr(m, "base", 3.0),
    ),
    "a list in a dict in a tuple": (
        lambda: Attributed(lambda m: m.tree[0]["a"][1], tree=({"a": [1.0, 2.0]},)),
        lambda m: m.tree[0]["a"].__setitem__(1, 3.0),
    ),
    "a set": (
        lambda: Attributed(lambda m: 2.0 if "fast" in m.flags else 3.0, flags={"fast"}),
        lambda m: m.flags.clear(),
    ),
    "the order of a dict": (
        lambda: Attributed(lambda m: next(iter(m.table.values())), table={"a": 2.0, "b": 3.0}),
        lambda m: m.table.update(a=m.table.pop("a")),
    ),
    "an attribute of an attribute's attribute": (
        lambda: Attributed(
            lambda m: m.config.rope.theta,
            config=SimpleNamespace(rope=SimpleNamespace(theta=2.0)),
        ),
        lambda m: setattr(m.config.rope, "theta", 3.0),
    ),
    "an object replaced by its like": (
        lambda: Attributed(lambda m: m.scale(), scale=Scale()),
        lambda m: setattr(m, "scale", _scale(3.0)),
    ),
}


def _scale(beta: float) -> Scale:
    scale = Scale()
    scale.beta = beta
    return scale


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_a_forward_reads_is_seen(name: str) -> None:
    make, change = CHANGES[name]
    model, x = make(), inputs(3)
    before = Classed.eps
    try:
        with fuse(model) as report:
            served(report, lambda: model(x))
            change(model)
            for _ in range(4):
                assert_same(model(x), (x * model.read(model)).sin() + 1.0)
    finally:
        Classed.eps = before


class Tied(nn.Module):
    """Uses one parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.tie()

    def tie(self) -> None:
        """Have both layers use the first one's weight."""
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_parameters_that_are_untied_and_tied_again_are_seen() -> None:
    model, plain = seeded(Tied), seeded(Tied)
    x = inputs(2, 3)
    with fuse(model) as report:
        assert_same(served(report, lambda: model(x)), plain(x))
        for one in (model, plain):
            one.second.weight = nn.Parameter(inputs(3, 3, seed=4))
        for _ in range(4):
            assert_same(model(x), plain(x))
        for one in (model, plain):
            one.tie()
        before = hits(report)
        for _ in range(3):
            assert_same(model(x), plain(x))
        assert hits(report) > before  # By the first library.
        # Tied to another tensor than before, in both places.
        for one in (model, plain):
            one.first.weight = one.second.weight = nn.Parameter(inputs(3, 3, seed=5))
        for _ in range(3):
            assert_same(model(x), plain(x))


def test_a_large_container_that_is_read_stops_a_region() -> None:
    model, x = Attributed(lambda m: m.table[0], table=[2.0] * 300), inputs(3)
    with fuse(model) as report:
        model(x)
        assert report.regions[0].reason == "large_attribute"
        model.table[0] = 3.0
        assert_same(model(x), (x * 3.0).sin() + 1.0)


def test_a_container_within_itself_stops_a_region() -> None:
    tree: dict[str, Any] = {"scale": 2.0}
    tree["parent"] = [tree]
    model, x = Attributed(lambda m: m.tree["scale"], tree=tree), inputs(3)
    with fuse(model) as report:
        for _ in range(3):
            assert_same(model(x), (x * 2.0).sin() + 1.0)
        assert report.regions[0].reason == "large_attribute"


def test_another_forward_of_a_child_is_seen() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    model.first.forward = lambda x: nn.functional.linear(x, model.first.weight)
    with fuse(model) as report:
        served(report, lambda: model(x))
        model.first.forward = lambda x: nn.functional.linear(x, -model.first.weight)
        with aoti_eager.config.scope(mode="off"):
            want = model(x)
        for _ in range(3):
            assert_same(model(x), want)


def test_another_order_of_modules_is_seen() -> None:
    model = seeded(lambda: nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Tanh())))
    x = inputs(2, 3)
    with fuse(model) as report:
        served(report, lambda: model(x))
        first = model.a
        del model.a
        model.add_module("a", first)
        for _ in range(3):
            assert_same(model(x), first(torch.tanh(x)))


def test_an_argument_that_is_a_parameter_stops_that_call_alone() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(inputs(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.w) + 1

    model, x = Product(), inputs(3, 3, seed=1)
    with fuse(model) as report:
        for _ in range(4):
            assert_same(model(model.w), torch.tanh(model.w @ model.w) + 1)
        assert report.regions[0].reason == "argument_is_state"
        assert_same(served(report, lambda: model(x)), torch.tanh(x @ model.w) + 1)


def test_weights_of_other_sizes_are_not_served_by_what_another_model_recorded() -> None:
    class Sized(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.rows = rows
            self.w = nn.Parameter(inputs(rows, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.linear(x, self.w)
            return torch.tanh(y) if self.w.shape[0] == self.rows else torch.sigmoid(y)

    small, large, x = Sized(4), Sized(6), inputs(2, 3)
    with fuse(small) as one, fuse(large) as other:
        served(one, lambda: small(x))
        served(other, lambda: large(x))
        small.w = nn.Parameter(inputs(6, 3, seed=2))
        for _ in range(4):
            assert_same(small(x), torch.sigmoid(nn.functional.linear(x, small.w)))


def test_a_wrong_call_does_not_end_the_serving_of_others() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        for _ in range(2):
            with pytest.raises(TypeError):
                model(object())
        before = hits(report)
        for _ in range(4):
            assert_same(model(x), want)
        assert hits(report) >= before + 3
        assert report.regions[0].state == "served"


def test_other_dtypes_after_one_call_are_recorded_anew() -> None:
    model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        model(x)
        for one in (model, plain):
            one.double()
        for _ in range(4):
            assert_same(model(x.double()), plain(x.double()))
        assert report.regions[0].state == "served"


def test_a_copy_of_a_module_with_a_forward_of_its_own_is_bound_to_the_copy() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    model.forward = types.MethodType(Policy.forward, model)
    with fuse(model) as report:
        served(report, lambda: model(x))
        other = copy.deepcopy(model)
        other.second.weight.zero_()
        other.second.bias.fill_(9.0)
        assert_same(other(x), torch.ones(4, 3) * torch.tanh(torch.tensor(9.0)))


def test_threads_that_call_a_new_model_at_once_make_one_variant(threads: Any) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    together = threading.Barrier(8)

    def work(number: int) -> list[Any]:
        with torch.no_grad():
            together.wait()
            return [model(x) for _ in range(20)]

    with fuse(model) as report:
        found = list(threads.map(work, range(8)))
        for got in itertools.chain(*found):
            assert_same(got, want)
        (region,) = report._fusion.regions  # type: ignore[attr-defined]
        assert len(region.variants) == 1
        assert_same(served(report, lambda: model(x)), want)


def test_an_op_that_a_thread_is_calling_is_taken_back_by_the_next_user() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    report = fuse(model)
    served(report, lambda: model(x))
    (region,) = report._fusion.regions
    kernel = region.variants[0].kernel
    kernel._frames[0] = region_kernel.Frame(lambda: None, (), {}, ())  # another thread's
    report.undo()
    with fuse(model) as again:
        assert_same(served(again, lambda: model(x)), want)
        assert again._fusion.regions[0].variants[0].kernel is kernel
        kernel._frames.clear()
    assert aoti_eager.registered_ops() == []


def test_a_part_of_a_fused_model_cannot_be_fused_again() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            return self.policy(x) + torch.rand(())

    model = Noisy()
    with fuse(model):
        model(inputs(4, 5))
        with pytest.raises(FuseError, match="part of a model that is fused already"):
            fuse(model.policy)


def test_a_forked_child_with_a_fused_model_gives_right_results() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        child = os.fork()
        if child == 0:
            with torch.no_grad():
                good = torch.allclose(model(x), want) and torch.allclose(model(x[:2]), want[:2])
            os._exit(0 if good else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0


def test_a_function_below_a_decorator_is_served() -> None:
    model, x = seeded(Policy), inputs(4, 5)

    @torch.no_grad()
    def act(x: Tensor) -> Tensor:
        return model(x) * 2.0

    want = act(x)
    fast = fuse(act)
    try:
        assert_same(served(fast.report, lambda: fast(x)), want)
    finally:
        fast.report.undo()


def test_calls_in_a_mode_run_as_they_are_and_are_counted() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype is torch.bfloat16
        assert report.regions[0].calls == 1
        assert report.regions[0].state == "runs as before"
        assert "autocast" in report.regions[0].message


def test_what_a_garbage_collection_does_is_no_part_of_a_forward() -> None:
    class Collects(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gc.collect(0)
            return x.sin() + 1.0

    def callback(phase: str, info: dict[str, int]) -> None:
        time.perf_counter()

    model, x = Collects(), inputs(3)
    gc.callbacks.append(callback)
    try:
        with fuse(model) as report:
            assert_same(served(report, lambda: model(x)), x.sin() + 1.0)
    finally:
        gc.callbacks.remove(callback)


def test_a_wrong_setting_does_not_reach_a_change_of_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fuse(seeded(Policy)):
        monkeypatch.setenv("AOTI_EAGER_REGION_CAP", "many")
        with aoti_eager.config.scope(strict=False):
            pass
        monkeypatch.delenv("AOTI_EAGER_REGION_CAP")
