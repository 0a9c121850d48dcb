"""What the store holds, in words."""

from __future__ import annotations

from collections.abc import Sequence

from .. import cache
from .._base.amounts import size_in_words
from ..config import config


def held_in_words(entries: Sequence[cache.CacheEntry]) -> str:
    """Return what the store holds, and what it may hold at most."""
    limits = [] if config.max_entries is None else [f"{config.max_entries} entries"]
    limits += [] if config.max_size is None else [size_in_words(config.max_size)]
    most = f" of at most {' and '.join(limits)}" if limits else ""
    size = size_in_words(sum(e.size_bytes for e in entries))
    return f"{len(entries)} entries, {size}{most}, in {config.cache_dir}"
