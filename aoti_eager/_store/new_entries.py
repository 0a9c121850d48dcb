"""The entry that a finished compile becomes: with a library, or with the reason for none.

Pure: used by the process that asked for the compile and by the worker that did it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._base.printable import shortened
from .._keys.declines import DEPENDS_ON_THREADS, REMEMBERED
from .._keys.guards import Guards
from .._keys.kernel_key import ANY_THREADS, KernelKey
from ..errors import CompileError
from .entry import Entry, Remembered, Status
from .environment import Environment

# In an entry's provenance, beside the version: ``_base.cpp_compiler.compiler_identity``.
IDENTITY = "compiler_identity"
# In the provenance, too: how many zeros in the trial had another sign than the original's. Such
# zeros decline nothing.
LOST_SIGNS = "lost_signs_of_zero"
# In the provenance of a region's entry: the tape's listing, for a reader.
TAPE = "tape"
# Most characters of a listing that are kept.
_LONGEST_LISTING = 100_000
# Most characters of a failure's message that are kept and sent: a compiler's messages about a graph
# may have megabytes.
LONGEST_MESSAGE = 4000


def ready_entry(
    key: KernelKey,
    environment: Environment,
    target: str,
    requires: frozenset[str],
    *,
    outputs: Sequence[Mapping[str, Any]],
    calls_aten: bool,
    parallel: bool,
    compiler: str,
    identity: str | None,
    checked: bool,
    portable: bool = False,
    guards: Guards | None = None,
    lost_signs: int = 0,
    tape: str = "",
) -> Entry:
    """Return the entry of a library that was compiled for ``key``.

    Args:
        key: The call that was asked for, with its thread count.
        environment: The environment that it was compiled in.
        target: Name of the instruction set.
        requires: CPU features that the code needs.
        outputs: As ``Entry.outputs``.
        calls_aten: As ``Entry.calls_aten``.
        parallel: Whether the code has parallel regions.
        compiler: Its name and version, for the reader.
        identity: ``compiler_identity`` of the compiler, by which ``prune`` finds what it has made.
        checked: Whether the library was compared with the original on a call's own arguments.
        portable: Whether the code is not AOTInductor's and depends on no thread count.
        guards: The guards of a dynamic specialisation, whose ``key`` is a pattern.
        lost_signs: How many zeros in the trial had another sign than the original's.
        tape: The listing of the tape that a region's library was compiled from.
    """
    # Code without parallel regions is the same for every thread count. Exception: code compiled for
    # one thread, which may have no parallel regions for that reason only.
    any_threads = not parallel and (portable or dict(key.context)["threads"] > 1)
    return Entry(
        status=Status.READY,
        key=key.with_threads(ANY_THREADS) if any_threads else key,
        environment=environment,
        target=target,
        requires=requires,
        outputs=tuple(outputs),
        calls_aten=calls_aten,
        checked=checked,
        provenance=(
            ("compiler", compiler),
            *([] if identity is None else [(IDENTITY, identity)]),
            *([(LOST_SIGNS, str(lost_signs))] if lost_signs else []),
            *([(TAPE, shortened(tape, _LONGEST_LISTING))] if tape else []),
        ),
        guards=guards,
    )


def failed_entry(
    key: KernelKey,
    environment: Environment,
    target: str,
    requires: frozenset[str],
    *,
    reason: str,
    message: str,
    remembered: Remembered,
    guards: Guards | None = None,
) -> Entry:
    """Return the entry that remembers why ``key`` has no library, or none that may be used."""
    return Entry(
        status=Status.QUARANTINED if reason == "mismatch" else Status.DECLINED,
        key=key if reason in DEPENDS_ON_THREADS else key.with_threads(ANY_THREADS),
        environment=environment,
        target=target,
        requires=requires,
        reason=reason,
        message=shortened(message, LONGEST_MESSAGE),
        guards=guards,
        remembered=remembered,
    )


def is_remembered(error: CompileError) -> bool:
    """Return whether the store keeps a failure for later processes."""
    return error.remember and error.reason in REMEMBERED


def identity_of(entry: Entry) -> str | None:
    """Return the identity of the compiler that an entry was made with; ``None`` if unknown."""
    if entry.remembered is not None:
        return entry.remembered.compiler
    return dict(entry.provenance).get(IDENTITY)
