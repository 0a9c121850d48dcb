"""A call with another key than the one before is not taken for it, whatever the keys differ in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager._registration import registry

from ..support.kept_builds import make_cache_dir

pytestmark = pytest.mark.native

X = torch.randn(6, 8)
# One other operand after another, each with a key of its own.
OTHERS: dict[str, Any] = {
    "plain": X,
    "sizes": torch.randn(1, 8),
    "dimensions": torch.randn(8),
    "no dimension": torch.tensor(2.0),
    "six dimensions": torch.randn(1, 1, 1, 1, 6, 8),
    "other sizes of six dimensions": torch.randn(2, 1, 1, 1, 6, 8),
    "strides": torch.randn(8, 6).t(),
    "expanded": torch.randn(8).expand(6, 8),
    "dtype": torch.ones(6, 8, dtype=torch.float64),
    "integers": torch.ones(6, 8, dtype=torch.int64),
    "complex": torch.randn(6, 8, dtype=torch.complex64),
    "a number": 2.0,
    "an integer": 2,
}


# Made before anything is registered.
RESULTS = {name: X * other for name, other in OTHERS.items()}


@pytest.fixture
def declines(tmp_path: Path, shared_cache_dir: Path) -> Any:
    """Give the number of keys that are declined, where nothing is in the cache."""
    empty = make_cache_dir(tmp_path / "empty", shared_cache_dir)
    with (
        aoti_eager.config.scope(mode="cache_only", cache_dir=empty),
        aoti_eager.register(["aten::mul.Tensor", "aten::mul_.Tensor"]),
    ):
        yield lambda: sum(len(cache.table.declines) for cache in registry.caches())


def calls_of(other: Any) -> list[Callable[[], Tensor]]:
    """Return a typed call and a boxed one."""
    return [lambda: torch.mul(X, other), lambda: torch.ops.aten.mul.Tensor(X, other)]


@pytest.mark.parametrize("kind", [0, 1], ids=["typed", "boxed"])
def test_each_key_is_its_own(declines: Callable[[], int], kind: int) -> None:
    for number, (name, other) in enumerate(OTHERS.items(), 1):
        for _ in range(3):  # Into Python; then after another key.
            assert torch.equal(calls_of(other)[kind](), RESULTS[name])
            assert torch.equal(calls_of(X)[kind](), RESULTS["plain"])
        assert declines() == number, name


def test_settings_are_a_part_of_a_key(declines: Callable[[], int]) -> None:
    torch.mul(X, X)
    assert declines() == 1
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.mul(X, X)
        torch.mul(X, X)
        assert declines() == 2
    finally:
        torch.use_deterministic_algorithms(False)
    torch.mul(X, X)
    assert declines() == 2


def test_an_argument_that_is_written_and_shares_memory_has_another_key(
    declines: Callable[[], int],
) -> None:
    base = torch.ones(20)
    for _ in range(2):
        base[:8].mul_(torch.ones(8))
    assert declines() == 1
    for _ in range(2):
        base[:8].mul_(base[8:16])
    assert declines() == 1
    for _ in range(2):
        base[:8].mul_(base[:8])
    assert declines() == 2
