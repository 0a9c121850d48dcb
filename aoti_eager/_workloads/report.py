"""What a warm-up did, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WarmFailure:
    """A call of a workload that has no entry afterwards; the next ``warm`` tries it again.

    Attributes:
        op: Qualified name of the overload; ``"?"`` for a damaged line.
        digest: The key's digest; empty for a damaged line.
        reason: One word: a reason of a failed compile, ``other_environment`` or ``other_cpu``
            (of the machine that was to compile it), ``executor`` (it lost the call),
            ``wrong_answer``, ``newer_entry`` (a newer version has written it), ``unstorable`` (the
            store can hold other calls, not this one) or ``damaged_line`` (of the workload's file).
        message: The reason in words.
    """

    op: str
    digest: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What became of the calls of a workload.

    Attributes:
        calls: How many distinct calls the workload has, damaged lines included.
        compiled: How many got a kernel library.
        present: How many had an entry already.
        declined: How many keep their original kernel, by the reason that the store remembers.
        failed: The calls without an entry, each with the reason.
        remaining: How many were not compiled, because the warm-up was interrupted.
        seconds: How long it took.
        jobs: How many compiles ran at a time; ``None`` if an executor decided.
    """

    calls: int
    compiled: int
    present: int
    declined: Mapping[str, int]
    failed: tuple[WarmFailure, ...]
    remaining: int
    seconds: float
    jobs: int | None
