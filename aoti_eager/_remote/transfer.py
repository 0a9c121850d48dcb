"""``push`` and ``pull``: many kernels to or from a remote place, while the caller waits."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from .._base.cpu import cpu_features
from .._base.data_class import dataclass
from .._base.tier_names import TierName, tier_name
from .._bundles.signing import has_own_key, key_path, read_key
from .._store.entry import Status
from .._store.environment import current_environment
from .._store.evict import matches
from .._store.store import BadEntry, store_at
from ..config import config
from ..errors import AotiEagerError, ConfigError, RemoteTierError, StoreError
from .fetch import give, is_there, put
from .packed import ENDING, object_path, unpack
from .remote_store import RemoteStore

T = TypeVar("T")

# How often a request that fails is made again, and after how many seconds.
_AGAIN_S = (0.5, 2.0)
# After so many kernels in turn that could not be moved, the rest is not tried.
_MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What ``push`` or ``pull`` has moved.

    Attributes:
        url: The other side.
        moved: How many kernels were moved.
        there_already: How many the other side, or this one, had.
        skipped: How many were left out, by the reason.
        failed: How many could not be moved.
        problems: What went wrong, one line each, the first ten.
        size_bytes: Bytes that were moved.
    """

    url: str
    moved: int
    there_already: int
    skipped: dict[str, int]
    failed: int
    problems: tuple[str, ...]
    size_bytes: int


def push(
    url: str | None = None,
    *,
    ops: Sequence[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TransferReport:
    """Copy the kernels of this torch and these settings to a remote place.

    Each is signed with this user's key, if there is one.

    Args:
        url: The place, ``s3://bucket/prefix``; by default, the writable remote tier.
        ops: Patterns for the names of ops, as for ``evict``; ``None`` for all ops.
        cache_dir: The store's directory.

    Raises:
        ConfigError: There is no such place, or several.
        SigningError: This user's key cannot be used.
        StoreError: The store cannot be read.
    """
    remote = RemoteStore(_tier(url, is_writable=True))
    store = store_at(cache_dir)
    key = read_key(key_path()) if has_own_key() else None
    moving, environment = _Moving(remote), current_environment()
    chosen = []
    for found in store.scan():
        if isinstance(found, BadEntry):
            moving.skipped[found.kind] += 1
        elif found.entry.environment != environment:
            moving.skipped["other_environment"] += 1
        elif found.entry.status is not Status.READY:
            moving.skipped["no_kernel"] += 1
        elif not _is_wanted(found.entry.key.op, ops):
            moving.skipped["other_op"] += 1
        else:
            chosen.append(found)
    moving.each(
        chosen, lambda one: object_path(one.entry), lambda one: give(remote, store, one, key)
    )
    return moving.report()


def pull(
    url: str | None = None,
    *,
    ops: Sequence[str] | None = None,
    trust: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TransferReport:
    """Copy the kernels of this torch and these settings from a remote place into the store.

    They are unchecked and unmeasured here, as those of a bundle.

    Args:
        url: The place; by default, the remote tier of the setting ``tiers``.
        ops: Patterns for the names of ops, as for ``evict``; ``None`` for all ops.
        trust: ``"signed"`` or ``"any"``, as for ``load``; by default, as the tier says.
        cache_dir: The store's directory.

    Raises:
        ConfigError: There is no such place, or several.
        RemoteTierError: The place cannot be listed.
        StoreError: The store cannot be written.
    """
    name = _tier(url, is_writable=False)
    remote, store = RemoteStore(name), store_at(cache_dir)
    store.create()
    moving, features = _Moving(remote), cpu_features()
    above = f"v1/{current_environment().digest[:16]}"
    listed = _retried(lambda: remote.objects(above))
    chosen = []
    for path in sorted(listed):
        if not path.endswith(ENDING):
            moving.skipped["no_kernel"] += 1
        elif not _is_wanted(path.split("/")[2].replace(".", "::", 1), ops):
            moving.skipped["other_op"] += 1
        else:
            chosen.append(path)

    def taken(path: str) -> bool:
        if is_there(store, path):
            return False
        content = remote.read(path, listed[path])
        if content is None:
            raise RemoteTierError("is gone, or is being written")
        entry, library = unpack(content, path, trust or name.trust)
        if not entry.requires <= features:
            moving.skipped["other_cpu"] += 1
            return False
        if put(remote, store, entry, library) is None:
            raise StoreError(f"cannot be stored: {remote.last_error}")
        return True

    moving.each(chosen, str, taken)
    return moving.report()


def _tier(url: str | None, *, is_writable: bool) -> TierName:
    """Return the place that is meant.

    Raises:
        ConfigError: There is none, or there are several.
    """
    if url is not None:
        try:
            name = tier_name(url if url[:3] in ("ro:", "rw:") else f"rw:{url}")
        except ValueError as error:
            raise ConfigError(f"url: got {url!r}; {error}") from error
        if not name.is_remote:
            raise ConfigError(f"url: got {url!r}; wants a URL of fsspec's, s3://BUCKET/PREFIX")
        return name
    found = [tier_name(one) for one in config.tiers]
    found = [one for one in found if one.is_remote and (one.is_writable or not is_writable)]
    if len(found) != 1:
        what = "writable remote tiers (rw:s3://...)" if is_writable else "remote tiers"
        raise ConfigError(f"the setting tiers has {len(found)} {what}; name the URL")
    return found[0]


def _is_wanted(op: str, ops: Sequence[str] | None) -> bool:
    return ops is None or any(matches(op, pattern) for pattern in ops)


def _retried(request: Callable[[], T]) -> T:
    for pause_s in _AGAIN_S:
        try:
            return request()
        except RemoteTierError:
            time.sleep(pause_s)
    return request()


class _Moving:
    """Moves kernels one by one, and counts."""

    def __init__(self, remote: RemoteStore) -> None:
        self._remote = remote
        self.skipped: Counter[str] = Counter()
        self._moved = self._there = self._failed = 0
        self._problems: list[str] = []

    def each(
        self, chosen: Iterable[T], path_of: Callable[[T], str], move: Callable[[T], bool]
    ) -> None:
        """Move each, and go on after an error, unless the place answers no more."""
        from tqdm import tqdm

        chosen, in_turn = list(chosen), 0
        shown: Any = tqdm(
            chosen, unit="kernel", disable=not (sys.stderr.isatty() and len(chosen) > 1)
        )
        for number, one in enumerate(shown):
            skipped = sum(self.skipped.values())
            try:
                is_moved = _retried(lambda one=one: move(one))  # type: ignore[misc]
            except (AotiEagerError, OSError) as error:
                self._fail(1, f"{path_of(one)}: {error}")
                in_turn = in_turn + 1 if isinstance(error, RemoteTierError) else 0
                if in_turn >= _MOST_FAILURES:
                    self._fail(len(chosen) - number - 1, "the place answers no more")
                    return
                continue
            in_turn = 0
            self._moved += is_moved
            self._there += not is_moved and sum(self.skipped.values()) == skipped

    def _fail(self, count: int, problem: str) -> None:
        self._failed += count
        if count and len(self._problems) < 10:
            self._problems.append(problem)

    def report(self) -> TransferReport:
        """Return what was moved."""
        return TransferReport(
            self._remote.name.place,
            self._moved,
            self._there,
            dict(sorted(self.skipped.items())),
            self._failed,
            tuple(self._problems),
            self._remote.counts["bytes"],
        )
