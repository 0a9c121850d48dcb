"""What the tiers of this process are, and what they have given."""

from __future__ import annotations

from dataclasses import dataclass

from .._remote.courier import courier_of
from .._store.store_root import StoreRoot
from ..errors import AotiEagerError
from . import cache_context


@dataclass(frozen=True, slots=True)
class TierState:
    """One store of the chain that calls look into.

    Attributes:
        name: ``cache_dir``, or the tier as the setting ``tiers`` names it.
        place: Its path or URL.
        is_writable: Whether new kernels are put there.
        state: For a directory, ``there``, ``missing`` or ``unusable``; for a URL, ``unused`` (not
            asked yet by this process), ``closed``, ``open`` or ``half-open``: an open breaker makes
            no requests.
        counts: What the tier has given to this process, by kind: ``hits``, ``misses``, ``copies``
            (into the cache directory), ``given`` (new kernels, to the tier), ``errors``; for a
            URL, also ``requests``, ``refused`` and ``bytes``.
        last_error: The last error in words; empty if there was none.
    """

    name: str
    place: str
    is_writable: bool
    state: str
    counts: dict[str, int]
    last_error: str


def tiers() -> list[TierState]:
    """Return the cache directory and the tiers behind it, in the order in which calls look.

    Raises:
        ConfigError: A setting has a wrong value.
        StoreError: This user has no home directory, and no cache directory is set.
    """
    context = cache_context.current()
    store = context.store
    found = [TierState("cache_dir", str(store.root), True, _state(store), {}, "")]
    behind = context.tiers
    if behind is None:
        return found
    for tier in behind.local:
        state = _state(tier.store)
        counts = dict(sorted(tier.counts.items()))
        place = str(tier.store.root)
        found.append(TierState(tier.name, place, tier.is_writable, state, counts, tier.last_error))
    asked = {one.name.text: one for one in courier_of(store, behind.remote).stores}
    for name in behind.remote:
        one = asked.get(name.text)
        if one is None:
            found.append(TierState(name.text, name.place, name.is_writable, "unused", {}, ""))
            continue
        counts = dict(sorted(one.counts.items()))
        state = one.breaker.state
        found.append(
            TierState(name.text, name.place, name.is_writable, state, counts, one.last_error)
        )
    return found


def _state(store: StoreRoot) -> str:
    try:
        with store.below() as directory:
            return "missing" if directory is None else "there"
    except AotiEagerError:
        return "unusable"
