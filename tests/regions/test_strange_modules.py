"""Modules that are unlike others: the model is called as if nobody had fused anything."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager._regions import root_search, whole_script
from aoti_eager._regions.choice import Choice
from aoti_eager._regions.target import Fused
from aoti_eager.errors import AotiEagerWarning, FuseError

from ..support.regions import Policy, assert_same, assert_served, hits, inputs, seeded, served

pytestmark = pytest.mark.native


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enable for one test."""
    monkeypatch.setattr(whole_script, "_roots", whole_script._Roots())
    aoti_eager.enable(include=(), regions=True)
    yield
    aoti_eager.disable()


@dataclasses.dataclass
class Unhashable(nn.Module):
    """A module whose class has no hash, and is equal to others."""

    scale: float = 2.0

    def __post_init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).tanh().relu()


class Before(nn.Module):
    """A module that calls another one, and then a policy.

    Args:
        first: What is called before the policy.
    """

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.policy = seeded(Policy)

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(self.first(x))


def is_fused(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), Fused)


# -- TorchScript --


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_model_with_a_scripted_part_runs_and_its_other_parts_are_served() -> None:
    scripted = torch.jit.script(nn.Linear(5, 5).eval())  # type: ignore[no-untyped-call]
    model = Before(scripted).eval()
    x = inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), want)
        root, policy = report.regions
        assert (root.state, root.reason) == ("stopped", "unsupported_module")
        assert "first" in root.message
        assert (policy.path, policy.state) == ("policy", "served")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_model_with_a_scripted_part_runs_with_gradients() -> None:
    scripted = torch.jit.script(nn.Linear(5, 5).eval())  # type: ignore[no-untyped-call]
    model = Before(scripted).eval()
    x = inputs(4, 5)
    want = model(x)
    with fuse(model), torch.enable_grad():
        for _ in range(3):
            assert_same(model(x).detach(), want)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_is_refused_and_never_a_root(enabled: None) -> None:
    scripted = torch.jit.script(nn.Linear(5, 5).eval())  # type: ignore[no-untyped-call]
    with pytest.raises(FuseError, match="TorchScript"):
        fuse(scripted)
    for _ in range(4):
        scripted(inputs(4, 5))
    assert whole_script.region_states() == {}


# -- hashes, and modules in two places --


def test_modules_without_a_hash_are_roots(enabled: None) -> None:
    module, x = Unhashable(), inputs(3, 4)
    want = (x * 2.0).tanh().relu()
    for _ in range(4):
        assert_same(module(x), want)
    assert is_fused(module)


def test_the_hash_of_a_module_is_not_asked_for(enabled: None) -> None:
    class Asked(Policy):
        def __hash__(self) -> int:
            raise AssertionError("somebody asks for a hash")

    module, x = Asked().eval(), inputs(4, 5)
    for _ in range(3):
        module(x)
    assert is_fused(module)


def test_modules_that_equal_each_other_are_looked_at_one_by_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Unhashable(), Unhashable()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model, x = Two(), inputs(3, 4)
    assert model.first == model.second
    with fuse(model) as report:
        assert_served(report, lambda: model(x), ((x * 2).tanh().relu() * 2).tanh().relu())
        model.second.scale = 3.0
        assert_same(model(x), ((x * 2).tanh().relu() * 3).tanh().relu())


def test_a_count_is_forgotten_with_its_module(enabled: None) -> None:
    search = whole_script._roots.search
    assert search is not None
    module = Policy().eval()
    module(inputs(4, 5))
    assert len(search._calls) == 1
    del module
    assert search._calls == {}


def test_an_error_of_the_search_ends_the_search_and_not_the_call(
    enabled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: Any, counts: Any) -> None:
        raise LookupError("a fault")

    monkeypatch.setattr(root_search, "_counted", fail)
    module, x = seeded(Policy), inputs(4, 5)
    with pytest.warns(AotiEagerWarning, match="a fault"):
        module(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_what_is_excluded_by_one_of_its_paths_is_excluded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = seeded(Policy)
            self.b = self.a
            self.c = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) + self.c(x)

    model = Shared()
    with fuse(model, exclude="b") as report:
        assert [one.path for one in report.regions] == ["c"]
    with fuse(model, include="b") as report:
        assert [one.path for one in report.regions] == ["b"]
    with fuse(model, exclude="a") as report:
        assert [one.path for one in report.regions] == ["c"]


def test_a_module_that_lies_in_itself_is_fused() -> None:
    model = seeded(Policy)
    model.self_ = model
    x = inputs(4, 5)
    want = model(x)
    with fuse(model, exclude="nothing.*") as report:
        assert_served(report, lambda: model(x), want)


# -- parts that are not there yet, or that raise --


def test_a_lazy_model_is_recorded_once_its_parameters_have_sizes() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x = inputs(4, 5)
    with fuse(model) as report:
        want = model(x)
        assert report.regions[0].ops == ()
        assert_served(report, lambda: model(x), want)
        assert len(report.regions) == 1


def test_an_error_while_children_are_tried_stays_out_of_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = Before(nn.Dropout(0.5)), inputs(4, 5)

    def fail(*args: Any) -> None:
        raise LookupError("a fault")

    monkeypatch.setattr(Choice, "inside", fail)
    with fuse(model):
        with pytest.warns(AotiEagerWarning, match="the modules within Before .*a fault"):
            model.train()(x)
        model(x)


def test_an_attribute_that_raises_costs_no_call() -> None:
    class Odd:
        __slots__ = ("factor",)

        def __getattr__(self, name: str) -> Any:
            raise (ZeroDivisionError if name == "factor" else AttributeError)(name)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)
            self.odd = Odd()
            self.odd.factor = 2.0

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.policy(x) * self.odd.factor
            except ZeroDivisionError:
                return self.policy(x)

    model, x = Model().eval(), inputs(4, 5)
    policy = copy.deepcopy(model.policy)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), policy(x) * 2.0)
        del model.odd.factor
        for _ in range(4):
            assert_same(model(x), policy(x))


# -- subclasses of tensors --


class Wrapped(Tensor):
    """A tensor of a subclass with a dispatch of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten":
            raise NotImplementedError(func)
        args = torch.utils._pytree.tree_map_only(cls, lambda one: one.inner, args)
        return func(*args, **(kwargs or {}))


class Named(Tensor):
    """A tensor of a subclass whose results are of the subclass, too."""


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.adj = torch.eye(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(self.adj, self.lin(x)).relu()


@pytest.mark.parametrize("kind", [Wrapped, Named])
def test_a_captured_tensor_that_becomes_one_of_a_subclass(kind: Any) -> None:
    model, plain, x = seeded(Graph), seeded(Graph), inputs(3, 4)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), plain(x))
        adj = 2 * torch.eye(3)
        model.adj = plain.adj = kind(adj) if kind is Wrapped else adj.as_subclass(kind)
        want = plain(x)
        before = hits(report)
        for _ in range(4):
            assert_same(model(x), want)
        assert hits(report) == before
        model.adj = plain.adj = adj
        assert_same(served(report, lambda: model(x)), plain(x))


def test_an_error_of_the_op_runs_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        region = vars(model)["forward"].region
        (variant,) = region.variants

        def fail(inputs: Any) -> None:
            raise LookupError("a fault")

        monkeypatch.setattr(variant.kernel, "_call", fail)
        with pytest.warns(AotiEagerWarning, match="a fault"):
            assert_same(model(x), want)
        assert_same(model(x), want)


def _doubled(x: Tensor) -> Tensor:
    return (x * 2).sin()


class Static(nn.Module):
    forward = staticmethod(_doubled)


class OfAnOp(nn.Module):
    forward = torch.relu


class OfAClass(nn.Module):
    @classmethod
    def forward(cls, x: Tensor) -> Tensor:
        return _doubled(x)


class OfAProperty(nn.Module):
    @property
    def forward(self) -> Any:
        return _doubled


@pytest.mark.parametrize("kind", [Static, OfAnOp, OfAClass, OfAProperty])
def test_a_forward_that_is_not_called_with_its_module_runs_as_it_is(kind: type[nn.Module]) -> None:
    x = inputs(3, 4)
    with pytest.raises(FuseError, match="a method that is called with the module"):
        fuse(kind())
    model = nn.Sequential(kind(), nn.Tanh())
    with fuse(model):
        for _ in range(3):
            assert_same(model(x), nn.Sequential(kind(), nn.Tanh())(x))
