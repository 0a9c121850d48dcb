"""Models of the benchmark, fused: policies, a gated cell, convolutions, a graph layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ..benchmarks.region_models import case
from ..support.regions import assert_is_served_whole

pytestmark = pytest.mark.native


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("policy", "1"),
        ("policy", "64"),
        ("gru", "1"),
        ("conv", "1"),
        ("graph", "1"),
        *(pytest.param(name, "64", marks=pytest.mark.full) for name in ("gru", "conv", "graph")),
    ],
)
def test_a_model_is_served_whole(name: str, size: str, shared_cache: Path) -> None:
    with torch.inference_mode():
        assert_is_served_whole(*case(name, size))
