"""Ask the workers for the kernel of a call: a static kernel, or a dynamic one."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from threading import get_ident

from .._base.handover import let_others_run
from .._compile_service.cache_context import CacheContext
from .._keys.dynamic_plan import Plan
from .kernel_request import KernelRequest
from .pending import compile_later, decline_meanwhile


class Asked(enum.Enum):
    """What became of asking for a kernel."""

    QUEUED = enum.auto()
    CAPPED = enum.auto()  # the op may have no more kernels: see ``Specialisations.refusal``
    FOUND = enum.auto()  # a kernel has come meanwhile; the next call finds it
    PASSES = enum.auto()  # no kernel until the key is asked for again: see ``Specialisations.plan``
    FULL = enum.auto()
    MANY = enum.auto()  # not asked: as many keys are counted as may be at a time
    NO_PLAN = enum.auto()  # only a dynamic kernel was wanted, and the call can have none


def ask(
    call: KernelRequest, context: CacheContext, *, for_family: bool = False, calls: int = 1
) -> Asked:
    """Ask the workers for a call's kernel: a static one, or a dynamic one for its family.

    Args:
        call: The call, whose original has run.
        context: The cache context of the call.
        for_family: Whether only a dynamic kernel is wanted, and no static one.
        calls: How often this process has called the key.
    """
    schema, key, table = call.cache.schema, call.key, call.table
    dynamic = table.dynamic
    plan: Plan | None = None
    if call.may_be_dynamic:
        waits = dynamic.wait_for(
            schema,
            key,
            call.table_key,
            lambda: decline_meanwhile(call),
            table.forget_decline,
        )
        if waits:
            return Asked.QUEUED
        let_others_run()
        plan, passes = dynamic.plan(schema, key)
        if passes:
            return Asked.PASSES
        let_others_run()
    if plan is None and for_family:
        return Asked.NO_PLAN
    if plan is None:
        refusal = dynamic.refusal(schema, key, table.static_count)
        if refusal is not None:
            call.decline("specialisation_cap", refusal)
            return Asked.CAPPED
    if not compile_later(call, None, plan, context, calls):
        return Asked.FULL
    if plan is None:
        dynamic.start_static(schema, key)
    return Asked.QUEUED


# Threads whose calls ask for their kernels immediately, because no further call would be counted.
_at_once: dict[int, int] = {}  # thread -> how many ``asking_at_once`` blocks it is in


@contextlib.contextmanager
def asking_at_once() -> Iterator[None]:
    """Let this thread's calls in the block ask for a kernel at a key's first call."""
    thread = get_ident()
    before = _at_once.get(thread, 0)
    _at_once[thread] = before + 1
    try:
        yield
    finally:
        if before:
            _at_once[thread] = before
        else:
            del _at_once[thread]


def is_asking_at_once() -> bool:
    """Return whether this thread's calls ask for a kernel at a key's first call."""
    return get_ident() in _at_once
