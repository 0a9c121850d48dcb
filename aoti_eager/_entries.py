"""What is written down about a key once its compile has ended: an entry with a library, or why not.

Pure: used by the process that asked for the compile and by the worker that did it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._declines import DEPENDS_ON_THREADS
from ._entry import Entry, Status
from ._environment import Environment
from ._guards import Guards
from ._key import ANY_THREADS, KernelKey


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
    checked: bool,
    portable: bool = False,
    guards: Guards | None = None,
) -> Entry:
    """Return the entry of a library that was compiled for ``key``.

    Args:
        key: The call that was asked for, with its thread count.
        environment: Where it was compiled.
        target: Name of the instruction set.
        requires: CPU features that the code needs.
        outputs: As ``Entry.outputs``.
        calls_aten: As ``Entry.calls_aten``.
        parallel: Whether the code has parallel regions.
        compiler: For the reader.
        checked: Whether it was compared with the original on a call's own arguments.
        portable: Whether the code is not AOTInductor's and depends on no thread count.
        guards: Those of a dynamic specialisation, whose ``key`` is a pattern.
    """
    # Code without parallel regions is the same for every thread count, unless it has none only
    # because there was one thread to compile for.
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
        provenance=(("compiler", compiler),),
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
    guards: Guards | None = None,
) -> Entry:
    """Return the entry that remembers why ``key`` has no library, or one that must not be used."""
    return Entry(
        status=Status.QUARANTINED if reason == "mismatch" else Status.DECLINED,
        key=key if reason in DEPENDS_ON_THREADS else key.with_threads(ANY_THREADS),
        environment=environment,
        target=target,
        requires=requires,
        reason=reason,
        message=message,
        guards=guards,
    )
