"""What a compile worker can be asked for: the requests of a script, as both sides see them.

A ``CompileRequest`` is something else: what a device's own compile backend is asked for.

Every request has a ``kind``, which is its name in a message, and ``works_alone``: whether a worker
can finish the request without the script, because the worker itself puts the result into the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass, field
from .._store.limits import Limits
from .messages import (
    Document,
    Fields,
    MessageError,
    document,
    flag,
    many,
    number,
    path,
    text,
    version,
    whole,
)
from .requested import BuiltLibrary, EntryOrigin, RequestedCall, RequestedCode


@dataclass(frozen=True, slots=True)
class LibraryRequest:
    """Asks for a library in a directory of the caller's; the reply is ``Compiled``.

    Attributes:
        code: What the library is to contain.
        work: An empty directory of the store; everything temporary goes there.
    """

    code: RequestedCode
    work: Path
    kind = "compile"
    works_alone = False

    @property
    def what(self) -> str:
        """Return the op's name."""
        return self.code.call.key.op

    @property
    def root(self) -> Path:
        """Return the root of the store."""
        return self.code.call.root

    @property
    def timeout_s(self) -> float:
        """Return the seconds that a worker has."""
        return self.code.call.timeout_s

    @property
    def threads(self) -> int:
        """Return the thread count that the code may use."""
        return self.code.call.threads

    def with_options(self, options: Document) -> LibraryRequest:
        """Return the request with Inductor's settings filled in."""
        return replace(self, code=replace(self.code, options=options))

    def to_json(self) -> Document:
        """Return the request as a JSON object."""
        return {**_head(self), "code": self.code.to_json(), "work": str(self.work)}

    @classmethod
    def from_json(cls, values: object) -> LibraryRequest:
        """Return the request that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the request for a library")
        return cls(fields.read("code", RequestedCode.from_json), fields.read("work", path))


@dataclass(frozen=True, slots=True)
class EntryRequest:
    """Asks for a key's entry in the store; the reply is ``Published``, or ``Busy``.

    Attributes:
        code: What the entry's library is to contain.
        origin: What the entry says of where it was made.
        limits: What the store may hold: the worker evicts if the entry is too much.
    """

    code: RequestedCode
    origin: EntryOrigin
    limits: Limits
    kind = "publish"
    works_alone = True

    @property
    def what(self) -> str:
        """Return the op's name."""
        return self.code.call.key.op

    @property
    def root(self) -> Path:
        """Return the root of the store."""
        return self.code.call.root

    @property
    def timeout_s(self) -> float:
        """Return the seconds that a worker has."""
        return self.code.call.timeout_s

    @property
    def threads(self) -> int:
        """Return the thread count that the code may use."""
        return self.code.call.threads

    def with_options(self, options: Document) -> EntryRequest:
        """Return the request with Inductor's settings filled in."""
        return replace(self, code=replace(self.code, options=options))

    def to_json(self) -> Document:
        """Return the request as a JSON object."""
        return {
            **_head(self),
            "code": self.code.to_json(),
            "origin": self.origin.to_json(),
            "limits": self.limits.to_json(),
        }

    @classmethod
    def from_json(cls, values: object) -> EntryRequest:
        """Return the request that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the request for an entry")
        return cls(
            fields.read("code", RequestedCode.from_json),
            fields.read("origin", EntryOrigin.from_json),
            fields.read("limits", _limits),
        )


def _limits(values: object) -> Limits:
    """Return the limits that a request says.

    Raises:
        MessageError: ``values`` have another form.
    """
    fields = Fields(values, "the limits")
    return Limits(fields.optional("max_size", whole), fields.optional("max_entries", whole))


@dataclass(frozen=True, slots=True)
class TimesRequest:
    """Asks for the times of a library that exists; the reply is ``Measured``.

    Attributes:
        call: The call to time.
        library: The library.
        compared: Whether the library was tried on this model of processor: then it is only timed.
        numbers: The number arguments that are inputs of the kernel.
        digest: The digest of the library's entry. A worker that outlives the script keeps the
            verdict under this digest, with the size class.
        size: The call's size class, for a dynamic specialisation.
    """

    call: RequestedCall
    library: BuiltLibrary
    compared: bool
    numbers: tuple[str, ...]
    digest: str
    size: int | None
    kind = "measure"
    works_alone = True

    @property
    def what(self) -> str:
        """Return the op's name."""
        return self.call.key.op

    @property
    def root(self) -> Path:
        """Return the root of the store."""
        return self.call.root

    @property
    def timeout_s(self) -> float:
        """Return the seconds that a worker has."""
        return self.call.timeout_s

    def to_json(self) -> Document:
        """Return the request as a JSON object."""
        return {
            **_head(self),
            "call": self.call.to_json(),
            "library": self.library.to_json(),
            "compared": self.compared,
            "numbers": list(self.numbers),
            "digest": self.digest,
            "size": self.size,
        }

    @classmethod
    def from_json(cls, values: object) -> TimesRequest:
        """Return the request that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the request for times")
        return cls(
            call=fields.read("call", RequestedCall.from_json),
            library=fields.read("library", BuiltLibrary.from_json),
            compared=fields.read("compared", flag),
            numbers=fields.read("numbers", many(text)),
            digest=fields.read("digest", text),
            size=fields.optional("size", whole),
        )


@dataclass(frozen=True, slots=True)
class PartsRequest:
    """Asks for the parts that all libraries share; the reply is ``PartsMade``.

    Attributes:
        root: The root of the store.
        threads: The thread count of the calls to come.
        timeout_s: Seconds that the worker has before it is killed; waits for a core do not count.
        options: As in ``RequestedCode``.
    """

    root: Path
    threads: int
    timeout_s: float
    options: Document = field(default_factory=dict)
    kind = "parts"
    works_alone = False

    @property
    def what(self) -> str:
        """Return what the request is about, for errors."""
        return "what kernel libraries share"

    def with_options(self, options: Document) -> PartsRequest:
        """Return the request with Inductor's settings filled in."""
        return replace(self, options=options)

    def to_json(self) -> Document:
        """Return the request as a JSON object."""
        return {
            **_head(self),
            "root": str(self.root),
            "threads": self.threads,
            "timeout_s": self.timeout_s,
            "options": self.options,
        }

    @classmethod
    def from_json(cls, values: object) -> PartsRequest:
        """Return the request that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the request for shared parts")
        return cls(
            root=fields.read("root", path),
            threads=fields.read("threads", whole),
            timeout_s=fields.read("timeout_s", number),
            options=fields.read("options", document),
        )


@dataclass(frozen=True, slots=True)
class Linger:
    """Tells a worker that the script ends: finish the request, begin nothing more; no reply.

    Attributes:
        until: When the worker ends at the latest, by the system's monotonic clock, in seconds.
    """

    until: float
    kind = "linger"

    def to_json(self) -> Document:
        """Return the message as a JSON object."""
        return {**_head(self), "until": self.until}

    @classmethod
    def from_json(cls, values: object) -> Linger:
        """Return the message that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the message to linger")
        return cls(fields.read("until", number))


Request = LibraryRequest | EntryRequest | TimesRequest | PartsRequest
_READERS: dict[str, Callable[[object], Request | Linger]] = {
    LibraryRequest.kind: LibraryRequest.from_json,
    EntryRequest.kind: EntryRequest.from_json,
    TimesRequest.kind: TimesRequest.from_json,
    PartsRequest.kind: PartsRequest.from_json,
    Linger.kind: Linger.from_json,
}


def _head(request: Any) -> Document:
    return {"kind": request.kind, "version": version()}


def read_request(values: object) -> Request | Linger:
    """Return the request that a decoded message is.

    Raises:
        MessageError: The message has another form, or comes from another version.
    """
    fields = Fields.of_message(values, "the request")
    kind = fields.read("kind", text)
    if kind not in _READERS:
        raise MessageError(f"no request has the kind {kind[:40]!r}")
    return _READERS[kind](values)
