"""What the tests of regions share: no gradients, and one store for the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _store(request: pytest.FixtureRequest, settings: None) -> None:
    """Use the run's shared store: the models are few, and many tests have the same.

    Tests marked ``shipped`` have a store of theirs, and tests without a mark ask for no kernel.
    """
    if request.node.get_closest_marker("native") is not None:
        request.getfixturevalue("shared_cache")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """Call without gradients, as libraries of regions serve no others."""
    with torch.no_grad():
        yield
