"""``explain`` of a fused module or function: what becomes of a call, and nothing is run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import RegionExplanation, explain, fuse
from aoti_eager.errors import RegistrationError

from ..support.regions import Policy, inputs, seeded, served

pytestmark = pytest.mark.native


def test_a_call_is_explained_before_and_after_it_is_recorded_and_served() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        found = explain(model, x)
        assert isinstance(found, RegionExplanation)
        assert (found.verdict, found.reason, found.op) == ("miss", None, None)
        assert "no call of its kind was yet" in found.message
        served(report, lambda: model(x))
        calls = report.regions[0].calls
        found = explain(model, x)
        assert found.verdict == "hit"
        assert (found.op,) == report.regions[0].ops
        assert found.op in aoti_eager.stats()
        assert "aten::tanh(" in found.listing
        assert "torch.Size([4, 5])" in found.key[0]
        assert str(found).startswith("(the model)  Policy: hit\n  a loaded library serves")
        assert f"  tape of {found.op}\n    r0 = aten::t(" in str(found)
        assert report.regions[0].calls == calls


def test_what_has_changed_is_said() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        assert "no call of its kind" in explain(model, inputs(2, 5)).message
        model.squashes = False
        assert explain(model, x).message.endswith("changed since such a call was: squashes")
        model.squashes = True
        with torch.enable_grad():
            found = explain(model, x)
        assert (found.verdict, found.reason) == ("declined", None)
        assert "torch.no_grad()" in found.message
        with aoti_eager.config.scope(mode="off"):
            assert "the mode is off" in explain(model, x).message
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert "autocast" in explain(model, x).message


def test_why_a_region_stopped_is_said_and_what_is_served_within_it() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            return self.policy(x) + torch.rand(3)

    model, x = Noisy().eval(), inputs(4, 5)
    with fuse(model) as report:
        for _ in range(4):
            model(x)
        found = explain(model, x)
        assert (found.verdict, found.reason) == ("declined", "random")
        assert "aten::rand" in found.message
        assert found.inside == (str(report.regions[1]),)
        assert f"  regions within it\n    {found.inside[0]}" in str(found)
        assert explain(model.policy, x).verdict == "hit"
    with fuse(model, include="policy"):
        assert explain(model, x).message == "the module itself is no region"


def test_arguments_without_a_key_and_kinds_beyond_the_cap_are_declined() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model), aoti_eager.config.scope(region_cap=1):
        assert explain(model, object()).reason == "unsupported_argument"
        for n in range(1, 4):
            model(inputs(n, 5))
        found = explain(model, x)
        assert (found.verdict, found.reason) == ("declined", "too_many_signatures")
        assert "torch.Size([4, 5])" in found.message


def test_a_function_is_explained_by_what_fuse_made_of_it() -> None:
    def double(x: Tensor) -> Tensor:
        return (x * 2).sin()

    fast, x = fuse(double), inputs(3)
    try:
        served(fast.report, lambda: fast(x))
        assert explain(fast, x).verdict == "hit"
    finally:
        fast.report.undo()
    assert "was undone" in explain(fast, x).message


def test_a_module_that_is_not_fused_is_refused() -> None:
    with pytest.raises(RegistrationError, match="Policy: neither it nor a module within it"):
        explain(seeded(Policy), inputs(4, 5))
