"""Inspect and manage the store: what it holds, its limits, bundles, and the tiers behind it.

The command line has the same verbs. Every function takes ``cache_dir``; the default is the setting
``config.cache_dir``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ._base.cpu import cpu_features
from ._bundles.export import ExportReport, export
from ._bundles.load import LoadReport, load
from ._bundles.signed_bundles import BundleSignatures, keygen, sign, verify_signature
from ._compile_service.tier_states import TierState, tiers
from ._keys.kernel_key import ANY_THREADS
from ._remote.transfer import TransferReport, pull, push
from ._store.entry import Entry, Status
from ._store.entry_inputs import inputs_in_short
from ._store.entry_tape import tape_in_short
from ._store.environment import Environment, current_environment
from ._store.evict import EvictedEntry, EvictReport, evict, trim
from ._store.kept_queue import forget_wanted
from ._store.prune import PruneReport, prune
from ._store.store import BadEntry, Store, StoredEntry, store_at
from ._store.store_root import store_errors
from ._store.stored_failures import still_holds
from ._store.verdict import PathTime, Verdict, Verdicts, clear_verdicts
from ._store.verify import look, mend
from ._workloads.left_out import forget_runs
from ._workloads.report import WarmFailure, WarmReport
from ._workloads.warm import warm
from ._workloads.workload import Call, read_workload
from .errors import EntryDamagedError

__all__ = [
    "BundleSignatures",
    "CacheEntry",
    "Call",
    "EntryDetails",
    "EvictReport",
    "EvictedEntry",
    "ExportReport",
    "LoadReport",
    "PruneReport",
    "TierState",
    "TransferReport",
    "VerifyReport",
    "WarmFailure",
    "WarmReport",
    "clear",
    "evict",
    "export",
    "inspect",
    "keygen",
    "list",
    "load",
    "prune",
    "pull",
    "push",
    "read_workload",
    "sign",
    "tiers",
    "trim",
    "verify",
    "verify_signature",
    "warm",
]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One line of ``list``.

    Attributes:
        op: Qualified name of the overload, or ``"?"`` where the entry cannot be read.
        digest: The key's digest, 64 hexadecimal digits; what ``inspect`` takes.
        status: ``ready``, ``slower`` (was measured not to beat the original on this processor),
            ``declined``, ``quarantined``; ``stale`` (made in another environment, never opened),
            ``other_cpu`` (needs CPU features that are not here), ``damaged`` or ``future`` (a
            newer format).
        reason: Why the entry is declined or quarantined, and whether that failure has lapsed, so
            that the next call is tried again; the times of a slower entry; or what is wrong with
            the entry.
        inputs: The tensors of the call in short, ``f32[8,8] f32[8,8]``; with symbols in place of
            the sizes that a dynamic specialisation leaves open, ``f32[s0,8]``.
        size_bytes: Bytes of all the entry's files.
        path: The entry's directory.
        region: What a region's library computes, in short: ``8 ops: addmm x3, tanh x2``; empty for
            the entries of ops, and where no library was made.
    """

    op: str
    digest: str
    status: str
    reason: str | None
    inputs: str
    size_bytes: int
    path: Path
    region: str = ""


@dataclass(frozen=True, slots=True)
class EntryDetails:
    """All that is known about one entry.

    Attributes:
        summary: What ``list`` says of the entry.
        entry: What the entry's file says: key, guards, environment, outputs, or the failure.
        differing: The components of the environment that differ from this process's, each with the
            value here and the entry's.
        log: What the compiler wrote, or the report of a mismatch; possibly empty.
        verdict: What was measured and checked of the library on this processor; ``None`` if nothing
            was yet.
    """

    summary: CacheEntry
    entry: Entry
    differing: dict[str, tuple[str, str]]
    log: str
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes:
        intact: How many entries are what was published.
        damaged: Path and problem of each damaged entry; of each part of the toolchain that is not
            what its record says, or has no record; and of each file in a verdict's place that is
            no verdict.
        foreign: How many entries are of another environment, CPU or a newer format; left alone.
        residue: How many directories and files dead processes have left.
        repaired: Whether what is damaged and residue were removed.
    """

    intact: int
    damaged: tuple[tuple[Path, str], ...]
    foreign: int
    residue: int
    repaired: bool


def list(*, cache_dir: str | os.PathLike[str] | None = None) -> Sequence[CacheEntry]:
    """Return every entry of the store, by op and key; an absent store has none.

    Args:
        cache_dir: The store's directory.

    Raises:
        StoreError: The store cannot be read, or others can write to it.
    """
    store = store_at(cache_dir)
    verdicts, environment = Verdicts(store.root), current_environment()
    return sorted(
        (_summary(found, store, verdicts, environment) for found in store.scan()),
        key=lambda one: (one.op, one.digest, one.status),
    )


def inspect(
    digest: str, *, cache_dir: str | os.PathLike[str] | None = None
) -> Sequence[EntryDetails]:
    """Return all that is known about the entries whose digest begins with ``digest``.

    Args:
        digest: The beginning of a key's digest, at least one hexadecimal digit.
        cache_dir: The store's directory.

    Raises:
        KeyError: No entry that can be read has such a digest.
        StoreError: The store cannot be read.
    """
    store = store_at(cache_dir)
    verdicts, environment = Verdicts(store.root), current_environment()
    found = [
        _details(stored, store, verdicts, environment)
        for stored in store.scan()
        if isinstance(stored, StoredEntry) and stored.entry.digest.startswith(digest)
    ]
    if not digest or not found:
        raise KeyError(f"no entry has a digest that begins with {digest!r}; see list")
    return found


def verify(*, repair: bool = True, cache_dir: str | os.PathLike[str] | None = None) -> VerifyReport:
    """Read every file of the store and compare it with its digest; remove what is broken.

    Covers entries, the toolchain (what compilers have made for all entries), and the verdicts of
    all processors. Skips a toolchain that is a link to another place.

    Args:
        repair: Remove what is damaged and what dead processes left behind; else only report.
        cache_dir: The store's directory.

    Raises:
        StoreError: The store cannot be read, or cannot be written while ``repair`` is set.
    """
    store = store_at(cache_dir)
    if repair:
        store.require_marker()
    verdicts, environment = Verdicts(store.root), current_environment()
    intact = foreign = 0
    damaged: dict[Path, str] = {}
    for found in store.scan():
        if isinstance(found, BadEntry):
            if found.kind == "future":
                foreign += 1
            else:
                damaged[found.path] = found.problem
            continue
        try:
            if found.entry.library is not None:
                store.check_library(found)
        except FileNotFoundError:
            continue  # Another process has evicted the entry meanwhile.
        except EntryDamagedError as error:
            damaged[found.path] = str(error)
            continue
        if _summary(found, store, verdicts, environment).status in ("stale", "other_cpu"):
            foreign += 1
        else:
            intact += 1
    findings = look(store.root)
    residue = len(store.stale_work()) + len(findings.leftovers)
    if repair:
        for path in damaged:
            store.discard(path)
        store.remove_stale_work()
        mend(store.root, findings)
    others = [(store.root.joinpath(*one.place), one.problem) for one in findings.damaged]
    return VerifyReport(intact, (*damaged.items(), *others), foreign, residue, repair)


def clear(*, cache_dir: str | os.PathLike[str] | None = None) -> int:
    """Remove all entries, those of other environments too, and return how many there were.

    Verdicts, the kept queue and the record of scripts' runs are removed, too; the toolchain and the
    totals stay. Kernels that this process has loaded stay in use.

    Args:
        cache_dir: The store's directory.

    Raises:
        StoreError: The store cannot be written, or is not ours.
    """
    store = store_at(cache_dir)
    count = store.clear()
    with store.marked() as root, store_errors(f"{store.root}: its verdicts cannot be removed"):
        if root is not None:
            clear_verdicts(root)
            forget_wanted(root)
            forget_runs(root)
    return count


def _verdict(entry: Entry, verdicts: Verdicts) -> Verdict | None:
    """Return this processor's verdict on an entry's library; ``None`` if it says nothing."""
    if entry.library is None:
        return None
    verdict = verdicts.get(entry.digest, entry.library.sha256)
    return None if verdict == Verdict(entry.library.sha256) else verdict


def _losing_time(entry: Entry, verdicts: Verdicts) -> PathTime | None:
    """Return the times of a library that loses here: in C++, or if none were taken, in Python."""
    verdict = _verdict(entry, verdicts)
    if verdict is None:
        return None
    threads = dict(entry.key.context).get("threads", ANY_THREADS)
    # Parallel code serves only calls with its own thread count.
    count = torch.get_num_threads() if threads == ANY_THREADS else int(str(threads))
    taken = verdict.time("native", count) or verdict.time("python", count)
    return None if taken is None or taken.wins else taken


def _summary(
    found: StoredEntry | BadEntry,
    store: Store,
    verdicts: Verdicts,
    # Computed once for all entries: computing it takes longer than reading an entry.
    environment: Environment,
) -> CacheEntry:
    size = store.size_bytes(found.path)
    if isinstance(found, BadEntry):
        digest, op = found.path.parent.name, found.path.parent.parent.parent.name
        return CacheEntry(
            op.replace(".", "::", 1), digest, found.kind, found.problem, "", size, found.path
        )
    entry = found.entry
    status = entry.status.value
    reason = entry.reason
    if entry.environment != environment:
        status, reason = "stale", "made in another environment"
    elif entry.status is Status.READY and not entry.requires <= cpu_features():
        status, reason = "other_cpu", "needs " + " ".join(sorted(entry.requires - cpu_features()))
    elif entry.status is Status.READY and (losing := _losing_time(entry, verdicts)) is not None:
        status, reason = "slower", str(losing)
    elif not still_holds(store, found):
        reason = f"{reason or 'mismatch'}, lapsed: tried again"
    return CacheEntry(
        entry.key.op,
        entry.digest,
        status,
        reason,
        inputs_in_short(entry),
        size,
        found.path,
        tape_in_short(entry),
    )


def _details(
    found: StoredEntry, store: Store, verdicts: Verdicts, environment: Environment
) -> EntryDetails:
    differing = {
        name: (str(here), str(there))
        for name, (here, there) in environment.differing(found.entry.environment).items()
    }
    return EntryDetails(
        _summary(found, store, verdicts, environment),
        found.entry,
        differing,
        store.read_log(found),
        _verdict(found.entry, verdicts),
    )
