"""A compile worker's replies, as the process that asked reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass, field
from .._keys.declines import REASONS
from .._keys.guards import Guards
from .._keys.kernel_key import KernelKey
from .._store.verdict import PathTime, path_times
from ..errors import CompileError


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
    outputs: tuple[dict[str, Any], ...]
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

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Compiled:
        """Return what a worker's answer says; see ``failure`` for what it may raise."""
        return cls(
            library=Path(answer["library"]),
            sha256=answer["sha256"],
            outputs=tuple(answer["outputs"]),
            calls_aten=answer["calls_aten"],
            parallel=answer["parallel"],
            compiler=answer["compiler"],
            times=path_times(answer["times"]),
            compared=answer["compared"],
            pattern=KernelKey.from_json(answer["pattern"]) if answer["pattern"] else None,
            guards=Guards.from_json(answer["guards"]) if answer["guards"] else None,
            identity=answer["identity"],
            lost_signs=answer.get("lost_signs", 0),
            unmeasured=answer.get("unmeasured", ""),
        )


@dataclass(frozen=True, slots=True)
class Published:
    """An entry that a worker has found in the store, or (``compiled``) made and put there."""

    entry: Path
    compiled: bool

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Published | None:
        """Return what a worker's answer says; see ``failure`` for what it may raise."""
        if "busy" in answer:
            return None
        return cls(Path(answer["entry"]), compiled=answer.get("compiled", False))


@dataclass(frozen=True, slots=True)
class Measured:
    """What a first run of a library has shown; fields as in ``_store.verdict.Verdict``."""

    times: dict[str, PathTime]
    compared: bool
    unmeasured: str = ""

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Measured:
        """Return what a worker's answer says; see ``failure`` for what it may raise."""
        times, unmeasured = path_times(answer["times"]), answer.get("unmeasured", "")
        return cls(times, compared=answer["compared"], unmeasured=unmeasured)


def failure(answer: Mapping[str, Any], what: str) -> CompileError:
    """Return the error that an answer with a ``reason`` stands for; ``what`` begins its message.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: The answer has another form. A worker of
            another version may send such an answer.
    """
    reason, message = answer["reason"], f"{what}: {answer['message']}"
    if reason not in REASONS:
        raise ValueError(f"no reason: {reason!r}")
    return CompileError(reason, message, log=answer["log"], remember=answer["remember"])
