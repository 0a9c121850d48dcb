"""Whatever is done to a fused model: the next call does what an unfused one would do."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import FusionReport, fuse

from ..conftest import assert_close
from ..support.regions import (
    Block,
    Convolutional,
    Policy,
    assert_same,
    hits,
    inputs,
    seeded,
    served,
)

pytestmark = pytest.mark.native


def calls_alike(model: nn.Module, plain: nn.Module, *given: Any, count: int = 5) -> None:
    """Assert that two models give the same results: before, while and after libraries come."""
    for _ in range(count):
        assert_same(model(*given), plain(*given))


Change = Callable[[Policy], object]


def _set_bias(model: Policy) -> None:
    model.first.bias = None


def _replace_layer(model: Policy) -> None:
    model.second = seeded(lambda: nn.Linear(8, 3), 5)


def _patch_forward(model: Policy) -> None:
    model.first.forward = lambda x: nn.functional.linear(x, model.first.weight) + 1  # type: ignore[method-assign]


CHANGES: dict[str, Change] = {
    "other values": lambda model: model.first.weight.fill_(0.25),
    "a new parameter": lambda model: setattr(
        model.first, "weight", nn.Parameter(torch.full((8, 5), 0.5))
    ),
    "load_state_dict": lambda model: model.load_state_dict(seeded(Policy, 3).state_dict()),
    "load_state_dict, assigned": lambda model: model.load_state_dict(
        seeded(Policy, 3).state_dict(), assign=True
    ),
    "data": lambda model: setattr(model.second.weight, "data", torch.ones(3, 8)),
    "float64": lambda model: model.double(),
    "float64 and back": lambda model: model.double().float(),
    "bfloat16": lambda model: model.bfloat16(),
    "no bias any more": _set_bias,
    "another layer": _replace_layer,
    "a layer more": lambda model: model.add_module("third", nn.Linear(1, 1)),
    "an attribute": lambda model: setattr(model, "scale", 3.0),
    "an attribute of another type": lambda model: setattr(model, "scale", 2),
    "another branch": lambda model: setattr(model, "squashes", False),
    "training": lambda model: model.train(),
    "requires_grad": lambda model: model.requires_grad_(False),
    "tied weights": lambda model: setattr(model.second, "bias", model.first.bias[:3]),
    "a child's forward": _patch_forward,
    "a hook on the root": lambda model: model.register_forward_hook(lambda m, a, out: out * 2),
    "a hook before the root": lambda model: model.register_forward_pre_hook(lambda m, a: a[0] + 1),
    "a hook on a child": lambda model: model.first.register_forward_hook(lambda m, a, out: out * 2),
}


def changed(model: Policy, change: Change) -> Any:
    try:
        return change(model)
    except (TypeError, KeyError) as error:  # torch refuses a plain tensor in a parameter's place
        return error


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_model_is_seen_by_the_next_call(name: str) -> None:
    change = CHANGES[name]
    model, plain = seeded(Policy), seeded(Policy)
    x = inputs(4, 5)
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(name, torch.float32)
    with fuse(model) as report:
        served(report, lambda: model(x))
        assert type(changed(model, change)) is type(changed(plain, change))  # type: ignore[arg-type]
        calls_alike(model, plain, x.to(dtype))
        aoti_eager.wait()
        calls_alike(model, plain, x.to(dtype))
    calls_alike(model, plain, x.to(dtype), count=1)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_served_as_it_is_when_it_is_fused(name: str) -> None:
    model, plain = seeded(Policy), seeded(Policy)
    changed(model, CHANGES[name])  # type: ignore[arg-type]
    changed(plain, CHANGES[name])  # type: ignore[arg-type]
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(name, torch.float32)
    with fuse(model):
        calls_alike(model, plain, inputs(4, 5).to(dtype))


def test_hooks_that_are_removed_are_gone() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        handle = model.first.register_forward_hook(lambda m, a, out: out * 2)
        twice = model(x)
        assert not torch.equal(twice, want)
        assert report.regions[0].reason == "hooks"
        handle.remove()
        for _ in range(4):
            assert_same(model(x), want)


def test_flips_of_training_mode_come_back_to_the_library() -> None:
    model, plain = seeded(Convolutional), seeded(Convolutional)
    x = inputs(2, 1, 6, 6)
    with fuse(model) as report:
        served(report, lambda: model(x))
        for _ in range(3):
            for one in (model, plain):
                one.train()
            calls_alike(model, plain, x, count=2)
            for one in (model, plain):
                one.eval()
            before = hits(report)
            calls_alike(model, plain, x, count=4)
            assert hits(report) >= before + 3  # One call may be recorded again.
    assert_same(model.state_dict(), plain.state_dict())


def test_dropout_in_training_runs_as_it_is() -> None:
    model, ids = seeded(Block), torch.tensor([[1, 2, 3]])
    model.train()
    with fuse(model) as report:
        for seed in range(4):
            torch.manual_seed(seed)
            got = model(ids)
            with aoti_eager.config.scope(mode="off"):
                torch.manual_seed(seed)
                want = model(ids)
            assert_same(got, want)
        assert report.regions[0].reason == "random"


def test_state_dict_keys_and_parameters_are_those_of_the_model() -> None:
    model = seeded(Block)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    with fuse(model):
        assert list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert type(model) is Block


def test_steps_of_an_optimizer_are_seen() -> None:
    model, plain = seeded(Policy), seeded(Policy)
    x, y = inputs(4, 5), inputs(4, 3, seed=1)
    with fuse(model) as report:
        served(report, lambda: model(x))
        for one in (model, plain):
            optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
            for _ in range(3):
                with torch.enable_grad():
                    loss = ((one(x) - y) ** 2).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        before = hits(report)
        calls_alike(model, plain, x)
        assert hits(report) >= before + 4  # One call may be recorded again.


def test_calls_that_need_gradients_have_them() -> None:
    model, plain = seeded(Policy), seeded(Policy)
    x = inputs(4, 5)
    with fuse(model) as report:
        with torch.enable_grad():
            for _ in range(3):
                grads = []
                for one in (model, plain):
                    one.zero_grad()
                    one(x).sum().backward()
                    grads.append([p.grad for p in one.parameters()])
                for mine, theirs in zip(*grads, strict=True):
                    assert_close(mine, theirs)
        assert report.regions[0].state == "needs gradients"
        assert "inference_mode" in str(report)
        served(report, lambda: model(x))


def test_a_copy_has_weights_and_regions_of_its_own() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        other = copy.deepcopy(model)
        other.first.weight.fill_(0.125)
        plain = seeded(Policy)
        plain.first.weight.fill_(0.125)
        calls_alike(other, plain, x)
        assert_same(model(x), want)
        with fuse(other) as its_own:
            assert its_own != report
            served(its_own, lambda: other(x))
            assert_same(model(x), want)
        calls_alike(other, plain, x)
    assert_same(model(x), want)


@pytest.mark.parametrize("way", ["pickle", "torch.save", "state_dict"])
def test_saved_models_are_plain_models(way: str) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        if way == "pickle":
            loaded = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
        elif way == "torch.save":
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            loaded = torch.load(buffer, weights_only=False)
        else:
            loaded = Policy().eval()
            loaded.load_state_dict(model.state_dict())
        loaded.first.weight.mul_(1.0)
        assert_same(loaded(x), want)
        again = pickle.loads(pickle.dumps(loaded))  # noqa: S301 - our own
        assert_same(again(x), want)
        loaded.second.bias.fill_(9.0)
        assert not torch.equal(loaded(x), want)
        assert_same(model(x), want)


def test_two_models_of_a_class_have_their_own_weights_and_one_library() -> None:
    models = [seeded(Policy, seed) for seed in (0, 1)]
    x = inputs(4, 5)
    wants = [model(x) for model in models]
    reports = [fuse(model) for model in models]
    try:
        for model, report, want in zip(models, reports, wants, strict=True):
            assert_same(served(report, lambda model=model: model(x)), want)  # type: ignore[misc]
        assert len(aoti_eager.registered_ops()) == 1
    finally:
        for report in reports:
            report.undo()


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.words(ids)))

    model, plain = seeded(Tied), seeded(Tied)
    ids = torch.tensor([[0, 3, 6]])
    with fuse(model) as report:
        served(report, lambda: model(ids))
        for one in (model, plain):
            one.words.weight.mul_(0.5)
        calls_alike(model, plain, ids)
        for one in (model, plain):
            one.head.weight = nn.Parameter(torch.ones(7, 4))
        calls_alike(model, plain, ids)


def test_a_kind_of_call_comes_back_to_its_library_after_others() -> None:
    model, plain = seeded(Policy), seeded(Policy)
    with fuse(model) as report:
        for _ in range(6):
            for x in (inputs(4, 5), inputs(2, 5), inputs(5)):
                assert_same(model(x), plain(x))
        aoti_eager.wait()
        before = hits(report)
        for _ in range(3):
            for x in (inputs(4, 5), inputs(2, 5), inputs(5)):
                assert_same(model(x), plain(x))
        assert hits(report) >= before + 6


def test_too_many_kinds_of_calls_stop_a_region_and_say_what_varies() -> None:
    model, plain = seeded(Policy), seeded(Policy)
    with aoti_eager.config.scope(region_cap=2), fuse(model) as report:
        for n in range(1, 5):
            assert_same(model(inputs(n, 5)), plain(inputs(n, 5)))
        found = _root(report)
        assert found.state == "served"
        assert found.reason == "too_many_signatures"
        assert "torch.Size([3, 5])" in found.message


def _root(report: FusionReport) -> Any:
    return next(one for one in report.regions if not one.path)


def test_threads_share_a_fused_model(threads: Any) -> None:
    model, plain = seeded(Policy), seeded(Policy)
    given = [inputs(n % 3 + 1, 5, seed=n) for n in range(9)]
    with torch.no_grad():
        wants = [plain(x) for x in given]

    def work(number: int) -> list[tuple[int, Tensor]]:
        with torch.no_grad():
            places = [(number + step) % len(given) for step in range(60)]
            return [(place, model(given[place])) for place in places]

    with fuse(model) as report:
        found = list(threads.map(work, range(8)))
        aoti_eager.wait()
        found += threads.map(work, range(8))
        for place, got in itertools.chain(*found):
            assert_close(got, wants[place])
        assert hits(report) > 0
        assert _root(report).state == "served"


def test_other_settings_of_torch_are_kinds_of_their_own() -> None:
    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + torch.ones(3)).sin()

    model, x = Makes(), inputs(3).double()
    with fuse(model) as report:
        served(report, lambda: model(x))
        want = model(x)
        torch.set_default_dtype(torch.float64)
        try:
            for _ in range(4):
                assert_same(model(x), want)
        finally:
            torch.set_default_dtype(torch.float32)
        assert_same(model(x), want)
        assert _root(report).state == "served"


def test_attributes_that_are_read_by_names_made_at_run_time_are_guarded() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by_0, self.by_1 = 2.0, 3.0

        def forward(self, x: Tensor) -> Tensor:
            return (x * getattr(self, f"by_{x.dim()}")).sin() + 1

    model, x = Named(), inputs(3)
    with fuse(model) as report:
        assert_same(served(report, lambda: model(x)), (x * 3.0).sin() + 1)
        model.by_1 = 5.0
        assert_same(model(x), (x * 5.0).sin() + 1)


def test_attributes_of_objects_and_items_of_lists_are_guarded() -> None:
    class Config:
        def __init__(self) -> None:
            self.scale = 2.0
            self.steps = [1.0, 2.0]

    class Configured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()

        def forward(self, x: Tensor) -> Tensor:
            for step in self.config.steps:
                x = (x * self.config.scale + step).sin()
            return x

    model, plain, x = Configured(), Configured(), inputs(3)
    with fuse(model) as report:
        served(report, lambda: model(x))
        for change in (
            lambda one: setattr(one.config, "scale", 3.0),
            lambda one: one.config.steps.append(4.0),
            lambda one: setattr(one, "config", Config()),
        ):
            change(model)  # type: ignore[no-untyped-call]
            change(plain)  # type: ignore[no-untyped-call]
            calls_alike(model, plain, x)
