"""The entry's format on disk: encode and decode, nothing else.

An entry is one JSON document. Its outermost level is the same in every format: ``format`` (a whole
number), ``sha256`` (of the payload's canonical JSON) and ``payload``. The format is read before
anything else, and the digest is compared before any field is used. docs/store.md describes the
fields.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Any

from .._base.data_class import dataclass
from .._base.digest import json_digest
from .._keys.guards import Guards
from .._keys.kernel_key import KernelKey
from .._keys.pattern import expressions_in
from ..errors import CacheFormatError, EntryDamagedError
from .environment import Environment

FORMAT_VERSION = 1


class Status(enum.Enum):
    """What an entry can be used for.

    ``READY`` has a library to run. ``DECLINED`` remembers why there is none. ``QUARANTINED`` keeps
    a library that gave wrong results, for inspection; it is never loaded.
    """

    READY = "ready"
    DECLINED = "declined"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Library:
    """The kernel library of an entry: size in bytes, SHA-256 in hexadecimal."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """When a failure was met, and with which compiler; ``remembered`` says how long it holds.

    Attributes:
        at: Seconds since 1970.
        compiler: ``_base.cpp_compiler.compiler_identity`` at that time; ``None`` if unknown.
    """

    at: int
    compiler: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's record.

    Attributes:
        status: What the entry can be used for.
        key: The canonical key, compared in full on every lookup.
        environment: The environment that the entry was made in.
        target: Name of the instruction set it was compiled for.
        requires: CPU features without which the library must not be loaded.
        outputs: One value for each result of the op: ``{"argument": name}``, ``{"output": i}``,
            ``{"outputs": [i, ...]}`` for a list, or ``{"none": true}`` for an undefined tensor.
        calls_aten: Whether the library calls back into ATen for a part of its work.
        checked: Whether the library's results were compared with the original's.
        library: The kernel library; ``None`` for a declined entry.
        reason: Why it is declined or quarantined, one of docs/declines.md; else ``None``.
        message: The reason in words, with what differed.
        provenance: The compiler and other facts for a reader; nothing is decided by them.
        guards: For a dynamic specialisation, whose key is a pattern: what must hold of its symbols.
        remembered: For a declined or quarantined entry: when its failure was met; ``None`` if an
            older version wrote the entry.
    """

    status: Status
    key: KernelKey
    environment: Environment
    target: str
    requires: frozenset[str]
    outputs: tuple[Mapping[str, Any], ...] = ()
    calls_aten: bool = False
    checked: bool = False
    library: Library | None = None
    reason: str | None = None
    message: str | None = None
    provenance: tuple[tuple[str, str], ...] = ()
    guards: Guards | None = None
    remembered: Remembered | None = None

    @property
    def digest(self) -> str:
        """Return the entry's name: the key's digest, or with guards, the digest of key and guards.

        Two libraries may have the same pattern; then only their guards tell the calls apart.
        """
        if self.guards is None:
            return self.key.digest
        return json_digest([self.key.to_json(), self.guards.to_json()])


def encode(entry: Entry) -> bytes:
    """Return the document of ``entry``, UTF-8."""
    library = entry.library
    payload = {
        "status": entry.status.value,
        "key": entry.key.to_json(),
        "environment": dict(entry.environment.components),
        "target": entry.target,
        "requires": sorted(entry.requires),
        "outputs": [dict(output) for output in entry.outputs],
        "calls_aten": entry.calls_aten,
        "checked": entry.checked,
        "library": library and {"size_bytes": library.size_bytes, "sha256": library.sha256},
        "reason": entry.reason,
        "message": entry.message,
        "provenance": dict(entry.provenance),
    }
    if entry.guards is not None:
        payload["guards"] = entry.guards.to_json()
    if entry.remembered is not None:
        remembered = entry.remembered
        payload["remembered"] = {"at": remembered.at, "compiler": remembered.compiler}
    return _document({"format": FORMAT_VERSION, "sha256": json_digest(payload), "payload": payload})


def decode(document: bytes) -> Entry:
    """Return the entry that ``encode`` wrote.

    Raises:
        CacheFormatError: A newer format wrote it.
        EntryDamagedError: The document is not what ``encode`` wrote.
    """
    try:
        outer = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise EntryDamagedError(f"is not JSON: {error}") from error
    if not isinstance(outer, dict) or type(outer.get("format")) is not int:
        raise EntryDamagedError("has no format number")
    if outer["format"] > FORMAT_VERSION:
        raise CacheFormatError(
            f"has format {outer['format']}; this version reads up to {FORMAT_VERSION}"
        )
    if outer["format"] < 1:
        raise EntryDamagedError(f"has format {outer['format']}, which never was")
    payload = outer.get("payload")
    if not isinstance(payload, dict) or not _has_digest(payload, outer.get("sha256")):
        raise EntryDamagedError("its digest does not match its content")
    try:
        # The digest does not cover spaces, escapes and keys given twice.
        as_written = _document(outer) == document
        entry = _entry(payload)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EntryDamagedError(f"lacks a field or has a wrong one: {error!r}") from error
    if not as_written:
        raise EntryDamagedError("is not in the form in which entries are written")
    return entry


def _document(outer: Mapping[str, Any]) -> bytes:
    return (json.dumps(outer, indent=1, sort_keys=True) + "\n").encode()


def _has_digest(payload: Any, sha256: object) -> bool:
    # json.loads takes NaN and Infinity, which no writer of ours emits, and deeper nesting than
    # json.dumps.
    try:
        return json_digest(payload) == sha256
    except (ValueError, RecursionError):
        return False


def _entry(payload: dict[str, Any]) -> Entry:
    library = payload["library"]
    key = KernelKey.from_json(payload["key"])
    guards = Guards.from_json(payload["guards"]) if "guards" in payload else None
    if guards is not None:
        for expression in expressions_in(key):
            guards.check(expression)
    return Entry(
        status=Status(payload["status"]),
        key=key,
        environment=Environment(tuple(sorted(payload["environment"].items()))),
        target=str(payload["target"]),
        requires=frozenset(payload["requires"]),
        outputs=tuple(payload["outputs"]),
        calls_aten=bool(payload["calls_aten"]),
        checked=bool(payload["checked"]),
        library=Library(int(library["size_bytes"]), str(library["sha256"])) if library else None,
        reason=payload["reason"],
        message=payload["message"],
        provenance=tuple(sorted(payload["provenance"].items())),
        guards=guards,
        remembered=_remembered(payload["remembered"]) if "remembered" in payload else None,
    )


def _remembered(written: Any) -> Remembered:
    at, compiler = written["at"], written["compiler"]
    if type(at) is not int or not (compiler is None or isinstance(compiler, str)):
        raise TypeError(f"remembered is {written!r}")
    return Remembered(at, compiler)
