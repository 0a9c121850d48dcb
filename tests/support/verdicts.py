"""Verdicts of the store at hand, as another machine would find them."""

from __future__ import annotations

import aoti_eager
from aoti_eager._compile_service import cache_context


def forget_verdicts() -> None:
    """Let the store's libraries be as ones that were made on another model of processor."""
    for entry in aoti_eager.cache.list():
        cache_context.current().verdicts.remove(entry.digest)
