"""The stored entry that is most like a call: what a call lacks for a hit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .._compile_service import cache_context
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._store.entry import Entry
from .._store.environment import Environment
from .._store.store import StoredEntry


@dataclass(frozen=True, slots=True)
class Nearest:
    """The stored entry most like a call's key.

    ``differing`` maps a component's name to its value in the call and in the entry; the value is
    ``None`` on a side that lacks the component.
    """

    digest: str
    status: str
    differing: dict[str, tuple[str | None, str | None]]


def nearest_entry(
    key: KernelKey, environment: Environment, features: Iterable[str]
) -> Nearest | None:
    """Return the entry of a key's op that differs in the fewest components; ``None`` for no entry.

    Raises:
        StoreError: The store cannot be read.
    """
    candidates = [
        Nearest(found.entry.digest, found.entry.status.value, differing)
        for found in cache_context.current().store.scan()
        if isinstance(found, StoredEntry) and found.entry.key.op == key.op
        for differing in [_differing(key, environment, frozenset(features), found.entry)]
    ]
    return min(candidates, key=lambda one: len(one.differing), default=None)


def _differing(
    key: KernelKey, environment: Environment, features: frozenset[str], entry: Entry
) -> dict[str, tuple[str | None, str | None]]:
    mine, theirs = key.components(), entry.key.components()
    if theirs.get("context.threads") == f'"{ANY_THREADS}"':
        mine["context.threads"] = theirs["context.threads"]
    differing: dict[str, tuple[str | None, str | None]] = {
        name: (mine.get(name), theirs.get(name))
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    }
    for name, (here, there) in environment.differing(entry.environment).items():
        differing[f"environment.{name}"] = (str(here), str(there))
    lacking = sorted(entry.requires - features)
    if lacking:
        differing["cpu_features"] = ("without " + " ".join(lacking), "needs them")
    return differing
