"""What a bundle says of itself: a document with the size and digest of everything in the file.

The manifest is the first member of a bundle. Its digest is what a signature is made of, so the
signature covers every byte that is taken from the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .._base.data_class import dataclass
from .._base.sealed_library import LIBRARY_LIMIT
from .._base.store_format import KEPT, File, lookup
from .._store.entry_files import ENTRY_LIMIT
from ..errors import BundleError

FORMAT_VERSION = 1

MANIFEST_LIMIT = 32 << 20
MOST_ENTRIES = 50_000
MOST_TOOLCHAIN = 1_000
# A precompiled header has 150 MB.
TOOLCHAIN_LIMIT = 512 << 20

# What of a toolchain is given away: the C++ path, and precompiled headers.
TOOLS = (["toolchain", "native"], ["toolchain", "headers"])

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a bundle: its bytes, and their SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class EntryMembers:
    """An entry in a bundle: its record, and its library if it has one."""

    record: Member
    library: Member | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a bundle, in the file's order.

    Attributes:
        made_with: Versions of this package and of torch, for a reader; nothing is decided by them.
        entries: The entries.
        toolchain: Files of a store's toolchain, by their path in the store.
    """

    made_with: Mapping[str, str]
    entries: tuple[EntryMembers, ...]
    toolchain: tuple[tuple[str, Member], ...]


def encode(manifest: Manifest) -> bytes:
    """Return the document of ``manifest``, UTF-8; equal manifests give equal bytes."""
    document = {
        "format": FORMAT_VERSION,
        "made_with": dict(manifest.made_with),
        "entries": [
            [_written(one.record), one.library and _written(one.library)]
            for one in manifest.entries
        ],
        "toolchain": [[path, _written(member)] for path, member in manifest.toolchain],
    }
    return (json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _written(member: Member) -> list[int | str]:
    return [member.size, member.sha256]


def decode(document: bytes) -> Manifest:
    """Return the manifest that ``encode`` wrote.

    Raises:
        BundleError: The document is none, is of a newer format, or is past a limit.
    """
    try:
        fields = json.loads(document)
        if type(fields["format"]) is not int:
            raise TypeError("has no format number")
        if fields["format"] != FORMAT_VERSION:
            raise BundleError(
                f"has format {fields['format']}; this version reads format {FORMAT_VERSION}"
            )
        entries = tuple(_entry(one) for one in _bounded(fields["entries"], MOST_ENTRIES))
        toolchain = tuple(_tool(one) for one in _bounded(fields["toolchain"], MOST_TOOLCHAIN))
        made_with = {str(name): str(value) for name, value in fields["made_with"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"its manifest cannot be read: {error!r}") from error
    if len(dict(toolchain)) != len(toolchain):
        raise BundleError("its manifest names a file twice")
    return Manifest(made_with, entries, toolchain)


def _bounded(values: Any, most: int) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"wants a list, has {type(values).__name__}")
    if len(values) > most:
        raise BundleError(f"its manifest has {len(values)} entries in a list; at most {most}")
    return values


def _entry(value: Any) -> EntryMembers:
    record, library = value
    return EntryMembers(
        _member(record, ENTRY_LIMIT), None if library is None else _member(library, LIBRARY_LIMIT)
    )


def _tool(value: Any) -> tuple[str, Member]:
    path, member = value
    parts = path.split("/")
    # The format of a store has no names like ``..``, and no absolute ones.
    found = lookup(parts)
    if parts[:2] not in TOOLS or not isinstance(found, File) or found == KEPT:
        raise ValueError(f"{path!r} is no file of a toolchain")
    return path, _member(member, TOOLCHAIN_LIMIT)


def _member(value: Any, limit: int) -> Member:
    size, sha256 = value
    if type(size) is not int or not 0 <= size <= limit:
        raise ValueError(f"a file of {size!r} bytes; at most {limit}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256!r} is no digest")
    return Member(size, sha256)
