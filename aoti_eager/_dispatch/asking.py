"""Asking the workers for a call's kernel: its own, or one for several sizes.

With ``miss``, ``pending``, ``rare`` and ``kernel_cache`` the only place that decides policy.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from threading import get_ident

from .._compile_service.cache_context import CacheContext
from .._keys.dynamic_plan import Plan
from .kernel_request import KernelRequest
from .pending import compile_later, decline_meanwhile


class Asked(enum.Enum):
    """What became of asking for a kernel."""

    QUEUED = enum.auto()
    CAPPED = enum.auto()  # the op has enough kernels
    FOUND = enum.auto()  # there is one by now, which the next call finds
    PASSES = enum.auto()  # none until it is asked for again: see ``Specialisations.plan``
    FULL = enum.auto()
    MANY = enum.auto()  # not asked: too many keys are counted at a time
    NO_PLAN = enum.auto()  # a kernel for several sizes was wanted, and cannot be had


def ask(
    call: KernelRequest, context: CacheContext, *, for_family: bool = False, calls: int = 1
) -> Asked:
    """Ask the workers for a call's kernel, its own or that of its family.

    Args:
        call: The call, whose original has run.
        backend: That of the call.
        for_family: Whether a kernel of its own is not wanted.
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
        plan, passes = dynamic.plan(schema, key)
        if passes:
            return Asked.PASSES
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


# Threads whose calls ask for their kernels at once, because nobody would count further ones.
_at_once: dict[int, int] = {}  # by thread, how many blocks it is in


@contextlib.contextmanager
def asking_at_once() -> Iterator[None]:
    """Have this thread's calls in the block ask for kernels at their first."""
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
    """Return whether this thread's calls ask for kernels at their first."""
    return get_ident() in _at_once
