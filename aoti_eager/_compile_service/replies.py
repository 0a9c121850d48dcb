"""What a compile worker replies, as both sides see it: one reply for each kind of request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass, field
from .._keys.declines import REASONS
from .._keys.guards import Guards
from .._keys.kernel_key import KernelKey
from .._store.verdict import PathTime, path_times
from ..errors import CompileError
from .messages import (
    Document,
    Fields,
    MessageError,
    document,
    flag,
    many,
    path,
    pattern,
    text,
    version,
    whole,
)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled library, tried in another process; fields as in the worker's ``lowering.Lowered``.

    ``sha256`` is the digest of the bytes that were tried: no other bytes may be loaded or kept.
    ``identity`` and ``lost_signs`` are as in ``_store.new_entries.ready_entry``; ``times`` and
    ``compared`` are as in ``_store.verdict.Verdict``. ``times`` are by hit path. If no times were
    taken, ``times`` is empty, and ``unmeasured`` says why.
    """

    library: Path
    sha256: str
    outputs: tuple[Document, ...]
    calls_aten: bool
    parallel: bool
    compiler: str
    times: dict[str, PathTime] = field(default_factory=dict)
    compared: bool = False
    pattern: KernelKey | None = None
    guards: Guards | None = None
    identity: str | None = None
    lost_signs: int = 0
    unmeasured: str = ""
    kind = "compiled"

    def to_json(self) -> Document:
        """Return the reply as a JSON object."""
        return {
            **_head(self),
            "library": str(self.library),
            "sha256": self.sha256,
            "outputs": list(self.outputs),
            "calls_aten": self.calls_aten,
            "parallel": self.parallel,
            "compiler": self.compiler,
            "times": _times(self.times),
            "compared": self.compared,
            "pattern": None if self.pattern is None else self.pattern.to_json(),
            "guards": None if self.guards is None else self.guards.to_json(),
            "identity": self.identity,
            "lost_signs": self.lost_signs,
            "unmeasured": self.unmeasured,
        }

    @classmethod
    def from_json(cls, values: object) -> Compiled:
        """Return the reply that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the reply")
        return cls(
            library=fields.read("library", path),
            sha256=fields.read("sha256", text),
            outputs=fields.read("outputs", many(document)),
            calls_aten=fields.read("calls_aten", flag),
            parallel=fields.read("parallel", flag),
            compiler=fields.read("compiler", text),
            times=fields.read("times", path_times),
            compared=fields.read("compared", flag),
            pattern=fields.optional("pattern", pattern),
            guards=fields.optional("guards", Guards.from_json),
            identity=fields.optional("identity", text),
            lost_signs=fields.read("lost_signs", whole),
            unmeasured=fields.read("unmeasured", text),
        )


@dataclass(frozen=True, slots=True)
class Published:
    """An entry that a worker has found in the store, or (``compiled``) made and put there.

    ``times`` and ``unmeasured`` are as in ``Compiled``; only an entry that was made has them.
    """

    entry: Path
    compiled: bool
    times: dict[str, PathTime] = field(default_factory=dict)
    unmeasured: str = ""
    kind = "published"

    def to_json(self) -> Document:
        """Return the reply as a JSON object."""
        return {
            **_head(self),
            "entry": str(self.entry),
            "compiled": self.compiled,
            "times": _times(self.times),
            "unmeasured": self.unmeasured,
        }

    @classmethod
    def from_json(cls, values: object) -> Published:
        """Return the reply that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the reply")
        return cls(
            fields.read("entry", path),
            compiled=fields.read("compiled", flag),
            times=fields.read("times", path_times),
            unmeasured=fields.read("unmeasured", text),
        )


@dataclass(frozen=True, slots=True)
class Busy:
    """No entry yet: another process compiles the key, or a key that shares its lock."""

    kind = "busy"

    def to_json(self) -> Document:
        """Return the reply as a JSON object."""
        return _head(self)

    @classmethod
    def from_json(cls, values: object) -> Busy:
        """Return the reply that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        Fields.of_message(values, "the reply")
        return cls()


@dataclass(frozen=True, slots=True)
class Measured:
    """What a first run of a library has shown; fields as in ``_store.verdict.Verdict``."""

    times: dict[str, PathTime]
    compared: bool
    unmeasured: str = ""
    kind = "measured"

    def to_json(self) -> Document:
        """Return the reply as a JSON object."""
        return {
            **_head(self),
            "times": _times(self.times),
            "compared": self.compared,
            "unmeasured": self.unmeasured,
        }

    @classmethod
    def from_json(cls, values: object) -> Measured:
        """Return the reply that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the reply")
        return cls(
            times=fields.read("times", path_times),
            compared=fields.read("compared", flag),
            unmeasured=fields.read("unmeasured", text),
        )


@dataclass(frozen=True, slots=True)
class PartsMade:
    """What libraries share is there; ``was_made`` says whether any of it was missing."""

    was_made: bool
    kind = "parts_made"

    def to_json(self) -> Document:
        """Return the reply as a JSON object."""
        return {**_head(self), "was_made": self.was_made}

    @classmethod
    def from_json(cls, values: object) -> PartsMade:
        """Return the reply that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the reply")
        return cls(fields.read("was_made", flag))


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed.

    The form of a failure stays the same in all versions: a worker of another version must be able
    to say that it cannot read a request.

    Attributes:
        reason: One of ``_keys.declines.REASONS``.
        message: What happened, in words.
        log: What compilers have written.
        remember: Whether the store keeps the failure for later processes.
    """

    reason: str
    message: str
    log: str = ""
    remember: bool = False

    def error(self, what: str) -> CompileError:
        """Return the error that the failure stands for; ``what`` begins its message."""
        message = f"{what}: {self.message}"
        return CompileError(self.reason, message, log=self.log, remember=self.remember)

    def to_json(self) -> Document:
        """Return the reply as a JSON object."""
        return {
            "reason": self.reason,
            "message": self.message,
            "log": self.log,
            "remember": self.remember,
        }

    @classmethod
    def from_json(cls, values: object) -> Failure:
        """Return the failure that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form.
        """
        fields = Fields(values, "the failure")
        reason = fields.read("reason", text)
        if reason not in REASONS:
            raise MessageError(f"the failure has a reason that does not exist: {reason[:40]!r}")
        return cls(
            reason=reason,
            message=fields.read("message", text),
            log=fields.read("log", text),
            remember=fields.read("remember", flag),
        )


Reply = Compiled | Published | Busy | Measured | PartsMade | Failure
_KINDS = {one.kind: one for one in (Compiled, Published, Busy, Measured, PartsMade)}


def _head(reply: Any) -> Document:
    return {"kind": reply.kind, "version": version()}


def _times(times: Mapping[str, PathTime]) -> Document:
    return {hit_path: asdict(time) for hit_path, time in times.items()}


def read_reply(values: object) -> Reply:
    """Return the reply that a decoded message is.

    Raises:
        MessageError: The message has another form, or comes from another version.
    """
    if isinstance(values, dict) and "reason" in values:
        return Failure.from_json(values)
    kind = Fields.of_message(values, "the reply").read("kind", text)
    if kind not in _KINDS:
        raise MessageError(f"no reply has the kind {kind[:40]!r}")
    return _KINDS[kind].from_json(values)
