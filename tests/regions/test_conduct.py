"""How a region treats calls that it cannot serve, or not well: no more work than they are worth."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager._dispatch.gate import Judged
from aoti_eager._regions import call_times, kinds, recorded_call, region, results
from aoti_eager._regions import recordings as recordings_module
from aoti_eager._regions.region import Region
from aoti_eager._regions.region_kernel import RegionKernel
from aoti_eager._regions.target import Target
from aoti_eager._regions.variant import Variant

from ..support.regions import Policy, assert_same, assert_served, hits, inputs, seeded, served

pytestmark = pytest.mark.native


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """Return a list to which each recorded call adds its target."""
    found: list[Target] = []
    record = region.record_call

    def noted(target: Target, *rest: Any) -> Any:
        found.append(target)
        return record(target, *rest)

    monkeypatch.setattr(region, "record_call", noted)
    return found


def counted(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[str]:
    """Return a list that grows by one with each call of a method."""
    found: list[str] = []
    method = getattr(kind, name)

    def call(*args: Any) -> Any:
        found.append(name)
        return method(*args)

    monkeypatch.setattr(kind, name, call)
    return found


def region_of(module: nn.Module) -> Region:
    found = vars(module)["forward"].region
    assert isinstance(found, Region)
    return found


class Head(nn.Module):
    """A policy with something after it that reads an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = seeded(Policy)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x) * self.scale


# -- the gate --


class Clock:
    """Gives seconds, which pass only where somebody says so."""

    def __init__(self) -> None:
        self.now = 1.0

    def perf_counter(self) -> float:
        return self.now

    def passes(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that takes some seconds more."""

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slow


PARTS = ("guard", "library", "build", None)
WAYS = [(is_short, part) for is_short in (True, False) for part in PARTS]


@pytest.mark.parametrize(("is_short", "part"), [*WAYS, (False, "arguments")])
def test_each_part_of_a_served_call_counts(
    is_short: bool, part: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate of calls is on here, and its clock counts what the test says.

    A worker's times decide nothing: they are those of the machine.
    """
    clock = Clock()
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    monkeypatch.setattr(region, "time", clock)
    if not is_short:
        monkeypatch.setattr(region, "fast_call", lambda *args: None)
    monkeypatch.setattr(Judged, "loses", False)
    with fuse(model) as report, aoti_eager.config.scope(gate=True):
        mine = region_of(model)
        model(x)
        (variant,) = mine.variants
        plain = clock.passes(1.0, mine.target.forward)
        root, its_own = mine.target, Target.forward.fget
        forward = property(lambda one: plain if one is root else its_own(one))
        monkeypatch.setattr(Target, "forward", forward)
        if part == "arguments":
            monkeypatch.setattr(region, "read_arguments", clock.passes(0.98, region.read_arguments))
        elif part == "guard":
            variant.read = clock.passes(0.98, variant.read)
        elif part == "library":
            monkeypatch.setattr(RegionKernel, "call", clock.passes(0.98, RegionKernel.call))
        elif part == "build":
            variant.build = clock.passes(0.98, variant.build)
        for _ in range(3 * call_times._TIMED[-1]):
            assert_same(model(x), want)
        (state,) = report.regions[:1]
        assert variant.kernel.is_serving
        assert variant.times.is_complete
        assert (variant.stop is None) == (part is None)
        assert state.hits >= call_times._TIMED[0 if part is None else -1]
        if part is not None:
            assert variant.stop is not None
            assert variant.stop.reason == "slower"


# -- attributes that change in each call --


def test_an_attribute_that_changes_in_each_call_ends_the_recordings_and_the_guards(
    recordings: list[Target],
) -> None:
    model, x = Head().eval(), inputs(4, 5)
    plain = copy.deepcopy(model)
    numbers = itertools.count(2)

    def call() -> None:
        model.scale = plain.scale = float(next(numbers))
        assert_same(model(x), plain(x))

    with fuse(model) as report, aoti_eager.config.scope(region_cap=3):
        for _ in range(3 + kinds._MISSES):
            call()
        mine = region_of(model)
        assert mine.variants == []
        root = report.regions[0]
        assert (root.state, root.reason) == ("stopped", "too_many_signatures")
        assert "scale" in root.message
        assert sum(one is mine.target for one in recordings) == 3
        # The part that the attribute does not reach is served.
        served(report, lambda: call())
        policy = next(one for one in report.regions if one.path == "policy")
        assert policy.hits


def test_a_state_that_is_called_often_stays_served_beside_one_that_changes() -> None:
    model, x = Head().eval(), inputs(4, 5)
    plain = copy.deepcopy(model)
    with fuse(model) as report, aoti_eager.config.scope(region_cap=2):
        served(report, lambda: model(x))
        mine = region_of(model)
        (often,) = mine.variants
        for number in range(2 * kinds._MISSES):
            model.scale = plain.scale = 2.0 + number
            assert_same(model(x), plain(x))
            model.scale = plain.scale = 1.0
            before = often.hits
            assert_same(model(x), plain(x))
            assert often.hits >= before
        assert mine.variants == [often]
        before = often.hits
        model(x)
        assert often.hits == before + 1


def test_a_region_whose_attribute_settles_is_served_again(recordings: list[Target]) -> None:
    model, x = Head().eval(), inputs(4, 5)
    plain = copy.deepcopy(model)
    with fuse(model) as report, aoti_eager.config.scope(region_cap=2):
        for number in range(2 + kinds._MISSES):
            model.scale = 2.0 + number
            model(x)
        model.scale = plain.scale = 1.0
        assert region_of(model).variants == []
        for _ in range(64):
            assert_same(model(x), plain(x))
        assert len(region_of(model).variants) == 1
        served(report, lambda: model(x))


def test_the_variant_of_the_last_call_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Head().eval(), inputs(4, 5)
    with fuse(model):
        model(x)
        model.scale = 2.0
        model(x)
        guards = counted(monkeypatch, Variant, "inputs")
        model(x)
        guards.clear()
        model(x)
        assert len(guards) == 1


# -- calls that raise --


class EarlyExitError(Exception):
    """What a forward raises to end early."""


class Exits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy = seeded(Policy)
        self.exits = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.policy(x)
        if self.exits:
            raise EarlyExitError
        return y * 2 + 1


def test_calls_that_raise_are_recorded_a_few_times_only(recordings: list[Target]) -> None:
    model, x = Exits().eval(), inputs(4, 5)
    with fuse(model) as report:
        for _ in range(100):
            with pytest.raises(EarlyExitError):
                model(x)
        mine = region_of(model)
        # Each error before the calls count as raising, and one look at a stopped kind.
        assert sum(one is mine.target for one in recordings) <= recordings_module._ERRORS + 1
        assert report.regions[0].reason == "raises"
        assert "EarlyExitError" in report.regions[0].message
        model.exits = False
        want = model.policy(x) * 2 + 1
        for _ in range(256):
            assert_same(model(x), want)
        served(report, lambda: model(x))
        assert report.regions[0].hits


def test_an_error_of_the_user_goes_on_where_a_region_is_strict() -> None:
    model = Exits().eval()
    with fuse(model, strict=True):
        for _ in range(5):
            with pytest.raises(EarlyExitError):
                model(inputs(4, 5))


def test_errors_between_calls_that_return_stop_nothing() -> None:
    kept = recordings_module.Recordings()
    for _ in range(5 * recordings_module._ERRORS):
        assert not kept.raised("a")
        kept.returned("a")
    assert [kept.raised("b") for _ in range(recordings_module._ERRORS)][-1]


def test_a_recording_that_raises_is_put_off(recordings: list[Target]) -> None:
    class Checks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            y = self.policy(x)
            if limit:
                raise EarlyExitError
            return y + 1

    global limit
    limit = 0
    model, x = Checks().eval(), inputs(4, 5)
    with fuse(model):
        model(x)
        limit = 1
        recordings.clear()
        for _ in range(60):
            # No guard sees a global name: calls that are served do not raise.
            with contextlib.suppress(EarlyExitError):
                model(x)
        mine = region_of(model)
        assert sum(one is mine.target for one in recordings) <= 7


limit = 0


# -- parameters of other types --


def test_one_odd_call_has_later_calls_compare_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    plain = copy.deepcopy(model)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), plain(x))
        half = x.to(torch.bfloat16)
        model.bfloat16()
        want = copy.deepcopy(plain).bfloat16()(half)
        for _ in range(2):
            assert_same(model(half), want)
        model.load_state_dict(plain.float().state_dict())
        model.float()
        model.load_state_dict(plain.state_dict())
        # One call for each odd one, in which C++ compares.
        assert_served(report, lambda: model(x), plain(x))
        keys = counted(monkeypatch, Variant, "has_key")
        before = hits(report)
        model(x)
        model(x)
        assert hits(report) == before + 2
        assert keys == []


def test_parameters_that_change_their_type_by_themselves_have_libraries_of_their_own() -> None:
    """The arguments are the same: the variants differ by the metadata of parameters alone."""

    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(inputs(5))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.w).tanh() + 1

    model, x = Typed().eval(), inputs(4, 5)
    plain = copy.deepcopy(model)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), plain(x))
        for _ in range(3):
            model.double(), plain.double()
            assert_served(report, lambda: model(x), plain(x))
            model.float(), plain.float()
            assert_served(report, lambda: model(x), plain(x))
        assert len(region_of(model).variants) == 2


# -- beyond the cap --


def test_beyond_the_cap_no_call_looks_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Policy).requires_grad_(False)
    with fuse(model), aoti_eager.config.scope(region_cap=1), torch.enable_grad():
        model(inputs(2, 5))
        model(inputs(3, 5))
        looks = counted(monkeypatch, region.GradientNeed, "is_there")
        model(inputs(4, 5))
        assert looks == []


# -- tensors elsewhere --


def test_a_call_on_another_device_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Policy).to("meta")
    recorded: list[str] = counted(monkeypatch, recorded_call.Snapshot, "__init__")
    with fuse(model) as report:
        for size in (1, 2, 3):
            model(torch.empty(size, 5, device="meta"))
        assert recorded == []
        (state,) = report.regions
        assert (state.state, state.reason) == ("stopped", "unsupported_device")


def test_a_model_that_was_moved_is_served_and_its_children_are_tried() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            return self.policy(x) + torch.rand(1, device=x.device)

    model, x = Random().eval(), inputs(4, 5)
    state = copy.deepcopy(model.state_dict())
    with fuse(model) as report:
        model.to("meta")(torch.empty(4, 5, device="meta"))
        assert len(report.regions) == 1
        model.to_empty(device="cpu").load_state_dict(state)
        served(report, lambda: model(x))
        assert [one.path for one in report.regions] == ["", "policy"]


# -- what a user's container does --


def test_a_container_that_cannot_be_built_again_costs_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.policy(x) * 2}

    model, x = Pair().eval(), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), want)

        def fail(*args: Any) -> None:
            raise ZeroDivisionError("a fault")

        monkeypatch.setattr(results.containers, "unflatten", fail)
        with pytest.warns(aoti_eager.errors.AotiEagerWarning, match="a fault"):
            assert_same(model(x), want)
        assert_same(model(x), want)
