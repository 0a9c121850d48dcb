"""Takes the entries of a bundle into a store, each as if it had been made there and never tried.

What is taken in is unchecked and unmeasured: whoever made the bundle has said nothing that is
believed, besides what the code is for. The trial of a new library is the maker's; here, a call
compares the library with the original before it serves.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .._base.cpu import cpu_features
from .._base.data_class import dataclass
from .._base.trusted_files import Directory
from .._store.entry import Entry, Library, Status, decode
from .._store.environment import Environment, current_environment
from .._store.store import LIBRARY_FILE, Store, store_at
from .._store.store_root import store_errors
from ..config import config
from ..errors import (
    BundleError,
    CacheFormatError,
    EntryDamagedError,
    SigningError,
    UntrustedBundleError,
)
from .archive import BundleFile
from .manifest import Member
from .signing import signers, trusted

TRUST = ("signed", "any")

_Contents = Iterator[tuple[Member, bytes | None]]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What ``load`` took.

    Attributes:
        entries: Entries that are new in the store.
        fitting: How many of these can serve here: same environment, and a CPU that has what the
            library needs.
        toolchain: Files of the toolchain that are new in the store.
        skipped: What was left out, counted by the reason: ``there_already``, ``damaged``,
            ``newer_format``, ``quarantined``.
        problems: What was wrong with damaged entries, one line each, the first ten.
        signed_by: Public keys that have signed the bundle, and that this user trusts.
    """

    entries: int
    fitting: int
    toolchain: int
    skipped: dict[str, int]
    problems: tuple[str, ...]
    signed_by: tuple[str, ...]


def load(
    path: str | os.PathLike[str],
    *,
    trust: str = "signed",
    cache_dir: str | os.PathLike[str] | None = None,
) -> LoadReport:
    """Take the entries of a bundle into the store.

    Every file is compared with the digest that the manifest names before it is used. What the store
    has stays as it is. Entries that are taken are unchecked and unmeasured: calls compare them with
    the original, and they are measured here.

    Args:
        path: The bundle.
        trust: ``"signed"``: the bundle must be signed by this user's key, or by one of the setting
            ``trusted_keys``. ``"any"``: whoever made it may run code as this user.
        cache_dir: The store's directory; made if it is missing.

    Raises:
        UntrustedBundleError: Nobody who is trusted has signed the bundle. Nothing was taken.
        BundleError: The file is no bundle, or its end is missing; entries before that were taken.
        SigningError: The package ``cryptography`` is missing.
        StoreError: The store cannot be written.
    """
    store = store_at(cache_dir)
    if trust not in TRUST:
        raise BundleError(f"trust: got {trust!r}; wants 'signed' or 'any'")
    with BundleFile(Path(path)) as bundle:
        signed_by = trusted_signers(bundle, trust)
        taken = _Taken(store)
        contents = bundle.contents()
        with store.workspace() as work:
            for members in bundle.manifest.entries:
                _, record = next(contents)
                library = next(contents)[1] if members.library is not None else None
                taken.entry(work, record, library, has_library=members.library is not None)
        if bundle.manifest.toolchain:
            with store.writable() as root:
                taken.tools(root, [name for name, _ in bundle.manifest.toolchain], contents)
        for _ in contents:
            raise AssertionError  # Nothing is left; this looks at the file's end.
    return LoadReport(
        taken.entries,
        taken.fitting,
        taken.toolchain,
        dict(sorted(taken.skipped.items())),
        tuple(taken.problems),
        signed_by,
    )


def trusted_signers(bundle: BundleFile, trust: str) -> tuple[str, ...]:
    """Return who has signed the bundle and is trusted.

    Args:
        bundle: The bundle.
        trust: ``"signed"`` or ``"any"``; see ``load``.

    Raises:
        UntrustedBundleError: Nobody is, and ``trust`` asks for a signature.
    """
    try:
        found = signers(bundle.document, bundle.signatures)
        known = trusted(found, config.trusted_keys)
    except SigningError:
        if trust == "any":
            return ()
        raise
    if known or trust == "any":
        return known
    who = f"signed by {', '.join(found)}, which you do not trust" if found else "not signed"
    raise UntrustedBundleError(
        f"{bundle.path}: is {who}. Kernels are code that runs as you. If you made the bundle, or "
        "trust who did, name the signer's key in the setting trusted_keys, or say trust='any' "
        "(--trust any)"
    )


def _library_of(content: bytes) -> Library:
    return Library(len(content), hashlib.sha256(content).hexdigest())


def checked_entry(record: bytes | None, library: bytes | None, *, has_library: bool) -> Entry:
    """Return the entry that a bundle's record describes, as one that was checked by nobody.

    Args:
        record: The record's bytes; ``None`` if they are not those that the manifest names.
        library: The library's bytes; likewise.
        has_library: Whether the manifest names a library.

    Raises:
        EntryDamagedError: The record or the library is not what it should be.
        CacheFormatError: A newer format wrote the entry.
    """
    if record is None:
        raise EntryDamagedError("its record is not the one that the manifest names")
    entry = decode(record)
    what = f"{entry.key.op} {entry.digest[:12]}"
    if (entry.library is not None) != has_library:
        raise EntryDamagedError(f"{what}: its library is not as its record says")
    if entry.library is None and entry.status is Status.READY:
        raise EntryDamagedError(f"{what}: has no library")
    if has_library and library is None:
        raise EntryDamagedError(f"{what}: its library is not the one that the manifest names")
    if library is not None and _library_of(library) != entry.library:
        raise EntryDamagedError(f"{what}: its library is not the one that its record names")
    return replace(entry, checked=False)


class _Taken:
    """Takes members into a store, and counts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._environment: Environment = current_environment()
        self._features = cpu_features()
        self.entries = self.fitting = self.toolchain = 0
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []

    def entry(
        self, work: Path, record: bytes | None, library: bytes | None, *, has_library: bool
    ) -> None:
        """Publish one entry, or count why not."""
        try:
            entry = checked_entry(record, library, has_library=has_library)
        except CacheFormatError:
            self.skipped["newer_format"] += 1
            return
        except EntryDamagedError as error:
            self._damaged(str(error))
            return
        if entry.status is Status.QUARANTINED:
            self.skipped["quarantined"] += 1
            return
        if self._store.holds(entry):
            self.skipped["there_already"] += 1
            return
        file: Path | None = None
        if library is not None:
            file = work / LIBRARY_FILE
            file.write_bytes(library)
        self._store.publish(entry, work, file, "")
        self.entries += 1
        self.fitting += entry.environment == self._environment and entry.requires <= self._features

    def tools(self, root: Directory, paths: Sequence[str], contents: _Contents) -> None:
        """Write files of the toolchain that are not there yet.

        A record comes behind what it is of, so nobody finds a record without the file.
        """
        spoilt: set[str] = set()
        for path in paths:
            _, content = next(contents)
            *above, name = path.split("/")
            stem = "/".join((*above, name.partition(".")[0]))
            if content is None or stem in spoilt:
                spoilt.add(stem)
                self._damaged(f"{path}: is not the file that the manifest names")
                continue
            with (
                store_errors(f"{self._store.root / path}: cannot be written"),
                root.descend(*above, create=True) as directory,
            ):
                if name in directory.names():
                    self.skipped["there_already"] += 1
                    continue
                directory.write(name, content)
            self.toolchain += 1

    def _damaged(self, problem: str) -> None:
        self.skipped["damaged"] += 1
        if len(self.problems) < 10:
            self.problems.append(problem)
