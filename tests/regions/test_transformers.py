"""Models of transformers, unmodified and with random weights, fused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aoti_eager import fuse

from ..benchmarks.region_models import OF_TRANSFORMERS, TINY, case
from ..support.regions import assert_is_served_whole, assert_same, hits

pytestmark = pytest.mark.native

# The import alone takes seconds: the fast tier has one model whose code asks about its own masks.
_FAST = "llama"


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == _FAST else pytest.mark.full)
        for name in OF_TRANSFORMERS
    ],
)
def test_a_model_is_served_whole(name: str, shared_cache: Path) -> None:
    assert_is_served_whole(*case(name, "1" if name == "vit" else "1x16", TINY))


@pytest.mark.full
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_where_a_mask_decides_on_the_way_the_modules_within_are_served(
    name: str, shared_cache: Path
) -> None:
    model, args, kwargs = case(name, "1x16", TINY)
    given: dict[str, Any] = {**kwargs, "attention_mask": torch.ones_like(args[0])}
    want = model(*args, **given)
    with fuse(model) as report:
        for _ in range(4):
            assert_same(model(*args, **given), want)
        whole, *parts = report.regions
        assert (whole.state, whole.reason) == ("stopped", "data_dependent_output")
        assert any(one.state == "served" for one in parts), report
        assert all(one.state == "served" or one.reason for one in parts), report
        assert hits(report)
        # Another mask takes another way through the code.
        given["attention_mask"][:, -3:] = 0
        report.undo()
    want = model(*args, **given)
    with fuse(model) as report:
        for _ in range(4):
            assert_same(model(*args, **given), want)


@pytest.mark.full
def test_a_cache_that_a_call_returns_stops_the_model_and_its_layers_are_served(
    shared_cache: Path,
) -> None:
    model, args, _ = case("llama", "1x16", TINY)
    want = model(*args)
    with fuse(model) as report:
        for _ in range(4):
            got = model(*args)
            assert type(got.past_key_values) is type(want.past_key_values)
            assert_same(got.last_hidden_state, want.last_hidden_state)
        whole, *parts = report.regions
        assert whole.state == "stopped"
        assert whole.reason
        assert all(one.state in ("served", "not called") or one.reason for one in parts), report
