"""Each test gives back what it has enabled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import aoti_eager
from aoti_eager._enable import scripts


@pytest.fixture(autouse=True)
def _given_back(settings: None) -> Iterator[None]:
    """Switch off, and take the kernels out of the dispatcher.

    ``disable`` leaves them there while other threads run Python, as a parallel run of pytest's own.
    """
    yield
    aoti_eager.disable()
    scripts._switch.uninstall()
