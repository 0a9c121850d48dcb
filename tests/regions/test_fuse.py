"""``fuse``: what serves, what the report says, and what stays as it was."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager.errors import FuseError, RegionStoppedError

from ..support import processes
from ..support.regions import (
    Block,
    Convolutional,
    Policy,
    assert_same,
    assert_served,
    hits,
    inputs,
    seeded,
    served,
)

pytestmark = pytest.mark.native


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (Policy, lambda: inputs(4, 5)),
        (Block, lambda: torch.tensor([[1, 5, 3], [0, 10, 7]])),
        (Convolutional, lambda: inputs(2, 1, 6, 6)),
    ],
)
def test_a_module_is_served_whole(make: type[nn.Module], given: object) -> None:
    model, x = seeded(make), given()  # type: ignore[operator]
    want = model(x)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), want)
        (region,) = report.regions
        assert (region.path, region.state) == ("", "served")
        assert "served" in str(report)
    assert_same(model(x), want)
    assert "forward" not in vars(model)


def test_other_values_of_the_same_sizes_are_served() -> None:
    model = seeded(Policy)
    given = [inputs(4, 5, seed=n) for n in range(4)]
    want = [model(x) for x in given]
    with fuse(model) as report:
        served(report, lambda: model(given[0]))
        for x, right in zip(given, want, strict=True):
            assert_same(model(x), right)
        assert hits(report) >= 4


def test_other_sizes_and_dtypes_are_kinds_of_their_own() -> None:
    model = seeded(Policy)
    for x in (inputs(4, 5), inputs(1, 5), inputs(5)):
        want = model(x)
        with fuse(model) as report:
            assert_served(report, lambda x=x: model(x), want)  # type: ignore[misc]


def test_a_function_is_served() -> None:
    model = seeded(Policy)

    def act(x: Tensor, noise: float = 0.0) -> tuple[Tensor, float]:
        return model(x).sigmoid() + noise, noise

    x = inputs(4, 5)
    want = act(x, noise=0.5)
    fast = fuse(act)
    try:
        assert_served(fast.report, lambda: fast(x, noise=0.5), want)
        assert fast.__name__ == "act"
        assert inspect.signature(fast) == inspect.signature(act)
    finally:
        fast.report.undo()
    assert_same(fast(x, noise=0.5), want)


def test_a_function_that_names_torch_is_served() -> None:
    model, x = seeded(Policy), inputs(4, 5)

    def act(x: Tensor) -> Tensor:
        return torch.tanh(model(x)).clamp(-0.5, 0.5)

    want = act(x)
    fast = fuse(act)
    try:
        assert_served(fast.report, lambda: fast(x), want)
    finally:
        fast.report.undo()


@pytest.mark.parametrize("mode", ["sync", "background"])
def test_what_this_package_does_for_an_op_is_no_part_of_a_forward(mode: str) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with aoti_eager.config.scope(mode=mode), aoti_eager.register("aten::tanh"):
        want = model(x)
        with fuse(model) as report:
            # The op's own miss is counted, timed and keyed in Python, and reads addresses.
            for n in range(1, 4):
                model(inputs(n, 5))
            assert report.regions[0].reason == "", report
            assert_served(report, lambda: model(x), want)


def test_results_in_containers_and_arguments_among_them_are_handed_back() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, y: list[Tensor]) -> tuple[object, ...]:
            z = x.sin() + y[0]
            return x, {"z": z, "again": z, "n": x.shape[0]}, [y[1], z.cos()], None

    model, x, y = Nested(), inputs(3), [inputs(3, seed=1), inputs(2, seed=2)]
    want = model(x, y)
    with fuse(model) as report:
        got = served(report, lambda: model(x, y))
    assert_same(got, want)
    assert got[0] is x
    assert got[2][0] is y[1]
    assert got[1]["z"] is got[1]["again"]


def test_the_largest_modules_come_first_and_their_children_after_them() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)
            self.policies = nn.ModuleList([seeded(Policy, 1)])

        def forward(self, x: Tensor) -> Tensor:
            return self.policy(x) + self.policies[0](x) + torch.rand(())

    model, x = Noisy(), inputs(4, 5)
    with fuse(model) as report:
        for _ in range(4):
            model(x)
        found = {one.path: one for one in report.regions}
        assert found[""].state == "stopped"
        assert found[""].reason == "random"
        assert "rand" in found[""].message
        assert found["policy"].state == found["policies.0"].state == "served"
        # Equal tapes have one library.
        assert len(aoti_eager.registered_ops()) == 1


def test_include_and_exclude_choose_by_paths_and_classes() -> None:
    model = nn.Sequential(seeded(Policy), nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    for options, paths in (
        ({"include": "0*"}, ["0"]),
        ({"include": Policy}, ["0"]),
        ({"exclude": "0*"}, ["1"]),
        ({"exclude": nn.Tanh}, ["0", "1.0"]),
        ({"include": ["1", Policy], "exclude": nn.Linear}, []),
    ):
        if not paths:
            with pytest.raises(FuseError, match="no module of the Sequential matches"):
                fuse(model, **options)
            continue
        with fuse(model, **options) as report:
            assert [one.path for one in report.regions] == paths
    assert all("forward" not in vars(module) for module in model.modules())


def test_fusing_twice_is_fusing_once() -> None:
    model = seeded(Policy)
    with fuse(model) as report:
        assert fuse(model) == report
        with pytest.raises(FuseError, match="fused already, with other options"):
            fuse(model, strict=True)
    with fuse(model, strict=True) as again:
        assert again != report


@pytest.mark.parametrize("wrong", [None, 3, "model", nn.Linear, [nn.Linear(1, 1)]])
def test_what_is_no_module_and_no_function_is_refused(wrong: object) -> None:
    with pytest.raises(FuseError, match=f"got {type(wrong).__name__}"):
        fuse(wrong)  # type: ignore[arg-type]


def test_wrong_patterns_are_refused() -> None:
    with pytest.raises(FuseError, match="include has a int"):
        fuse(nn.Linear(1, 1), include=[3])  # type: ignore[list-item]
    with pytest.raises(FuseError, match="are for modules"):
        fuse(lambda x: x, include="a")


def test_a_dry_run_says_what_would_be_compiled_and_compiles_nothing(no_compiles: None) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model, dry_run=True) as report:
        for _ in range(4):
            assert_same(model(x), want)
        (region,) = report.regions
        assert region.state == "recorded"
        assert "parameters" in region.message
    assert aoti_eager.registered_ops() == []


def test_strict_raises_where_a_region_stops() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(3)

    model = Random()
    with fuse(model, strict=True), pytest.raises(RegionStoppedError, match="random") as caught:
        model(inputs(3))
    assert caught.value.reason == "random"


def test_a_signature_and_a_docstring_stay_those_of_the_module() -> None:
    model = seeded(Policy)
    before = inspect.signature(model.forward)
    with fuse(model):
        assert inspect.signature(model.forward) == before


def test_a_forward_that_raises_raises_its_own_error() -> None:
    model, x = seeded(Block), torch.tensor([[1, 2]])
    want = model(x)
    with fuse(model) as report:
        for _ in range(2):
            with pytest.raises(IndexError):
                model(torch.tensor([[1, 99]]))
        assert_served(report, lambda: model(x), want)
        # The library refuses the index; the forward says why, and the library serves the next call.
        with pytest.raises(IndexError):
            model(torch.tensor([[1, 99]]))
        before = hits(report)
        assert_same(model(x), want)
        assert hits(report) == before + 1


def test_a_second_process_is_served_after_one_eager_call(shared_cache: Path) -> None:
    code = """
import json, sys, torch, aoti_eager
before = set(sys.modules)
from tests.support.regions import Policy, seeded, inputs
model = seeded(Policy)
x = inputs(4, 5)
with torch.no_grad():
    want = model(x)
    report = aoti_eager.fuse(model)
    states = []
    for _ in range(4):  # The fourth is recorded again.
        got = model(x)
        assert torch.allclose(got, want)
        states.append(report.regions[0].hits)
new = [name for name in set(sys.modules) - before
       if name.startswith(("torch._dynamo", "torch._inductor", "torch.export"))]
(stats,) = aoti_eager.stats().values()
print(json.dumps({"hits": states, "compiles": stats.compiles, "imported": new}))
"""
    first = processes.run(shared_cache, code)
    second = processes.run(shared_cache, code)
    assert second["hits"] == [0, 0, 1, 1]
    assert second["compiles"] == 0
    assert first["imported"] == second["imported"] == []


def test_nothing_is_recorded_in_the_mode_off(no_compiles: None) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report, aoti_eager.config.scope(mode="off"):
        model(x)
        (state,) = report.regions
        assert (state.state, state.message) == ("runs as before", "its calls came in mode off"), (
            state
        )


def test_cache_only_serves_what_is_there_and_compiles_nothing() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
    with aoti_eager.config.scope(mode="cache_only"), fuse(model) as report:
        assert_served(report, lambda: model(x), want)
        y = inputs(7, 5)
        for _ in range(3):
            assert model(y).shape == (7, 3)


def test_pickles_are_loaded_without_the_package() -> None:
    model, x = nn.Sequential(nn.Linear(5, 3), nn.Tanh()), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        content = pickle.dumps(model)
    assert b"aoti_eager" not in content
    loaded = pickle.loads(content)  # noqa: S301 - our own
    assert_same(loaded(x), want)


def test_an_op_whose_kernel_somebody_has_replaced_stops_a_region() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    plain = model(x)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("tanh", lambda x: torch.zeros_like(x), "CPU")
        want = model(x)
        with fuse(model) as report:
            for _ in range(4):
                assert_same(model(x), want)
            assert report.regions[0].reason == "overridden"
            assert "aten::tanh" in report.regions[0].message
    assert not torch.equal(want, plain)


def test_ops_that_are_served_one_by_one_are_served_within_a_region() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with aoti_eager.register("aten::tanh"):
        for _ in range(4):
            assert_same(model(x), want)
        with fuse(model) as report:
            assert_served(report, lambda: model(x), want)
