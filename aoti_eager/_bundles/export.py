"""Writes entries of a store to one file."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .._base.data_class import dataclass
from .._base.op_names import TAPE_NAMESPACE
from .._base.output_file import OutputFile
from .._base.store_format import KEPT, File, Names, children, names_at
from .._base.trusted_files import Directory
from .._store.entry import Entry, Status, encode
from .._store.environment import Environment, current_environment
from .._store.evict import matches
from .._store.store import BadEntry, Store, StoredEntry, store_at
from .._store.stored_failures import still_holds
from ..errors import BundleError, EntryDamagedError, UntrustedFileError
from .archive import write
from .manifest import (
    MOST_ENTRIES,
    TOOLCHAIN_LIMIT,
    EntryMembers,
    Manifest,
    Member,
)
from .manifest import encode as encode_manifest
from .signing import has_own_key, key_path, public_key, read_key, signed


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What ``export`` wrote.

    Attributes:
        path: The bundle.
        entries: Entries in it.
        regions: How many of these are of regions.
        failures: How many of these are remembered failures, without a library.
        toolchain: Files of the toolchain in it: of the C++ path, and precompiled headers.
        size_bytes: Bytes of the bundle.
        skipped: Entries that were left out, counted by the reason.
        signed_by: The public key that signed the bundle; ``None`` for an unsigned bundle.
    """

    path: Path
    entries: int
    regions: int
    failures: int
    toolchain: int
    size_bytes: int
    skipped: dict[str, int]
    signed_by: str | None


def export(
    path: str | os.PathLike[str],
    *,
    ops: Sequence[str] | None = None,
    environments: str = "this",
    regions: bool = True,
    native: bool = True,
    headers: bool = False,
    sign: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ExportReport:
    """Write entries to one file, a bundle, which ``load`` takes into another store.

    Kernels and failures that hold are exported; damaged and quarantined entries, logs and verdicts
    are not. The same entries give the same bytes.

    Args:
        path: The file; replaced in one piece.
        ops: Patterns for the names of ops, as for ``evict``; ``None`` for all ops.
        environments: ``"this"``, entries that this torch and these settings would use, or
            ``"all"``.
        regions: Whether entries of regions are exported.
        native: Whether the C++ path is, for machines without a compiler.
        headers: Whether precompiled headers are, 150 MB each: for machines with the same compiler.
        sign: Whether to sign with this user's key; ``None``: if there is one.
        cache_dir: The store's directory.

    Raises:
        BundleError: A library is damaged, or there are too many entries.
        SigningError: There is no key to sign with, or the key cannot be used.
        OutputFileError: The file cannot be written; an old one stays.
        StoreError: The store cannot be read.
    """
    store = store_at(cache_dir)
    if environments not in ("this", "all"):
        raise BundleError(f"environments: got {environments!r}; wants 'this' or 'all'")
    output = OutputFile(path)
    key = _signing_key(sign)
    chosen, skipped = _chosen(store, ops, environments, regions)
    with store.below() as root:
        kinds = [kind for kind, wanted in (("native", native), ("headers", headers)) if wanted]
        tools = [] if root is None else list(_tools(root, kinds))
        document = _manifest(chosen, root, tools)
        signatures = None if key is None else signed(document, None, key)
        with output.stream() as file:
            write(file, document, signatures, _contents(store, chosen, root, tools))
    records = [one.entry for one in chosen]
    return ExportReport(
        output.path,
        len(records),
        sum(_is_region(one) for one in records),
        sum(one.status is not Status.READY for one in records),
        len(tools),
        output.path.stat().st_size,
        skipped,
        None if key is None else public_key(key),
    )


def _chosen(
    store: Store, ops: Sequence[str] | None, environments: str, regions: bool
) -> tuple[list[StoredEntry], dict[str, int]]:
    """Return the entries of the bundle in their order, and how many were left out by reason."""
    skipped: Counter[str] = Counter()
    chosen: dict[tuple[str, ...], StoredEntry] = {}
    # Computed once: that takes longer than reading an entry.
    wanted = current_environment() if environments == "this" else None
    for found in store.scan():
        reason = _left_out(store, found, ops, wanted, regions)
        if reason is not None:
            skipped[reason] += 1
            continue
        assert isinstance(found, StoredEntry)
        chosen[found.path.relative_to(store.root).parts] = found
    if len(chosen) > MOST_ENTRIES:
        raise BundleError(
            f"{len(chosen)} entries; a bundle has at most {MOST_ENTRIES}: choose fewer ops"
        )
    return [chosen[place] for place in sorted(chosen)], dict(sorted(skipped.items()))


def _manifest(chosen: Sequence[StoredEntry], root: Directory | None, tools: Sequence[str]) -> bytes:
    named = [] if root is None else [(name, _member(_tool(root, name))) for name in tools]
    return encode_manifest(
        Manifest(
            {"torch": str(torch.__version__)},
            tuple(_members(one.entry) for one in chosen),
            tuple(named),
        )
    )


def _signing_key(sign: bool | None) -> Any:
    """Return the key to sign with: by default, the user's if there is one.

    Raises:
        SigningError: There is a key that cannot be used; or none, and ``sign`` is true.
    """
    if sign is None:
        sign = has_own_key()
    return read_key(key_path()) if sign else None


def _left_out(
    store: Store,
    found: StoredEntry | BadEntry,
    ops: Sequence[str] | None,
    wanted: Environment | None,
    regions: bool,
) -> str | None:
    """Return why an entry is not in the bundle; ``None`` if it is.

    ``wanted`` is the environment whose entries are exported; ``None`` for all.
    """
    if isinstance(found, BadEntry):
        return found.kind
    entry = found.entry
    if wanted is not None and entry.environment != wanted:
        return "other_environment"
    if not regions and _is_region(entry):
        return "region"
    if ops is not None and not any(matches(entry.key.op, pattern) for pattern in ops):
        return "other_op"
    if entry.status is Status.QUARANTINED:
        return "quarantined"
    return None if still_holds(store, found) else "lapsed"


def _is_region(entry: Entry) -> bool:
    return entry.key.op.startswith(f"{TAPE_NAMESPACE}::")


def _record(entry: Entry) -> bytes:
    """Return an entry as it is given away.

    Nothing was checked where the entry is taken in. A failure's message may name paths.
    """
    return encode(replace(entry, checked=False, message=None))


def _members(entry: Entry) -> EntryMembers:
    library = entry.library
    return EntryMembers(
        _member(_record(entry)),
        None if library is None else Member(library.size_bytes, library.sha256),
    )


def _member(content: bytes) -> Member:
    return Member(len(content), hashlib.sha256(content).hexdigest())


def _contents(
    store: Store, entries: Sequence[StoredEntry], root: Directory | None, tools: Sequence[str]
) -> Iterator[bytes]:
    """Give the bytes of every member, in the manifest's order."""
    for found in entries:
        yield _record(found.entry)
        if found.entry.library is None:
            continue
        try:
            content = store.check_library(found).content
        except (EntryDamagedError, FileNotFoundError) as error:
            raise BundleError(
                f"{found.path}: is damaged, or went while it was exported ({error}); "
                "`aoti-eager verify` removes what is damaged: then export again"
            ) from error
        assert content is not None
        yield content
    for name in tools:
        assert root is not None
        yield _tool(root, name)


def _tools(root: Directory, kinds: Sequence[str]) -> Iterator[str]:
    """Give the paths of the toolchain's files of some kinds, a record behind what it is of."""
    for kind in kinds:
        yield from _files(root, "toolchain", kind)


def _files(root: Directory, *path: str) -> Iterator[str]:
    try:
        directory = root.descend(*path)
    except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
        return
    names = names_at(*path)
    with directory:
        for name in sorted(children(directory, *path), key=lambda one: (".json" in one, one)):
            what = names.find(name)
            if isinstance(what, Names):
                yield from _files(root, *path, name)
            elif isinstance(what, File) and what != KEPT and "." in name and _is_whole(name):
                yield "/".join((*path, name))


def _is_whole(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".tmp")


def _tool(root: Directory, path: str) -> bytes:
    *above, name = path.split("/")
    with root.descend(*above) as directory:
        return directory.read(name, TOOLCHAIN_LIMIT)
