"""What one compile of a warm-up sent back: checked in types, sizes and content before it is stored.

An executor's process may be anybody's, and may have gone wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .._base.cpu import Target
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._store.entry import Entry, Status, decode
from .._store.environment import Environment
from ..errors import EntryDamagedError
from .compile_task import sha256

# Limits for an answer, in bytes.
_LARGEST_ENTRY = 4 << 20
_LARGEST_LIBRARY = 64 << 20
_KEPT_LOG = 1 << 20
# Characters.
_LONGEST_REASON = 100
_KEPT_MESSAGE = 10_000

# What reading a document raises that is no entry, besides what ``decode`` says.
_NOT_AN_ENTRY = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Made:
    """An answer with an entry to publish.

    Attributes:
        entry: The entry's document.
        library: The library, if the entry has one.
        log: What the compiler wrote.
        verdict: The verdict's document, if the sender has sent one.
    """

    entry: bytes
    library: bytes | None
    log: str
    verdict: object


@dataclass(frozen=True, slots=True)
class Nothing:
    """An answer without an entry, and why."""

    reason: str
    message: str


def received(answer: object) -> Made | Nothing:
    """Return what ``compile_call`` should have returned, in its types and of a plausible size.

    Raises:
        EntryDamagedError: ``answer`` is something else.
    """
    if type(answer) is not dict:
        raise EntryDamagedError(f"is a {type(answer).__name__}, not a dict")
    if "entry" not in answer:
        reason, message = answer.get("reason"), answer.get("message")
        if type(reason) is not str or type(message) is not str or len(reason) > _LONGEST_REASON:
            raise EntryDamagedError("has neither an entry nor a reason and a message in words")
        return Nothing(reason, message[:_KEPT_MESSAGE])
    entry, library, log_ = answer["entry"], answer.get("library"), answer.get("log")
    for name, value, largest in (
        ("entry", entry, _LARGEST_ENTRY),
        ("library", library, _LARGEST_LIBRARY),
    ):
        if value is None and name == "library":
            continue
        if type(value) is not bytes:
            raise EntryDamagedError(f"has a {type(value).__name__} as its {name}, not bytes")
        if len(value) > largest:
            raise EntryDamagedError(
                f"has {len(value)} bytes as its {name}; up to {largest} are taken"
            )
    if type(log_) is not str:
        raise EntryDamagedError(f"has a {type(log_).__name__} as its log, not words")
    # Cut before it is encoded, too: it may be of any length, and hold what no file can.
    kept = log_[:_KEPT_LOG].encode("utf-8", "replace")[:_KEPT_LOG].decode("utf-8", "ignore")
    return Made(entry, library, kept, answer.get("verdict"))


def entry_of(answer: Made, key: KernelKey, environment: Environment, target: Target) -> Entry:
    """Return the entry of an answer, if it is the one that was asked for; it is unchecked.

    Args:
        answer: The answer.
        key: The key of the call that was to be compiled.
        environment: The environment to compile in.
        target: The instruction set to compile for.

    Raises:
        EntryDamagedError: The entry is another one, or its library is.
        CacheFormatError: A newer version made it.
    """
    try:
        entry = decode(answer.entry)
    except _NOT_AN_ENTRY as error:
        raise EntryDamagedError(f"is no entry: {error!r:.200}") from error
    if entry.key not in keys_of(key):
        raise EntryDamagedError("is an entry of another call")
    if entry.environment != environment:
        raise EntryDamagedError("is an entry of another environment")
    if (entry.target, entry.requires) != (target.name, target.requires):
        raise EntryDamagedError(f"is for {entry.target}, not {target.name}")
    if entry.guards is not None:
        raise EntryDamagedError("is a kernel for several sizes, which was not asked for")
    if entry.status is Status.QUARANTINED:
        raise EntryDamagedError("is quarantined, which is for a library that served here")
    if (entry.status is Status.READY) != (answer.library is not None):
        raise EntryDamagedError("has a library and should not, or the other way round")
    if answer.library is not None and (
        entry.library is None or sha256(answer.library) != entry.library.sha256
    ):
        raise EntryDamagedError("has a library with another digest")
    # Whatever the entry says: there was no call whose arguments a result could be compared on.
    return replace(entry, checked=False)


def keys_of(key: KernelKey) -> tuple[KernelKey, KernelKey]:
    """Return the keys that an entry of a call with ``key`` may have."""
    return key.with_threads(ANY_THREADS), key
