"""Calls with the settings as they ship, before their kernels are there, meanwhile and after.

Whether a kernel of a small call wins depends on the machine and on its load. So a test asserts what
holds in either case: each call does what the original does, and no kernel fails or is found wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch

import aoti_eager
from aoti_eager import OpStats

from ..conftest import assert_close

Call = Callable[[], Any]
# For these a kernel is not used, however right it is.
NOT_FASTER = frozenset({"slower", "unmeasured", "unchecked"})


# After so many further calls, a key that still waits for a comparison waits for good.
_MOST_COMPARISONS = 64


def outcome(call: Call) -> Any:
    """Return what a call returns, or what it raises: the type and the text."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - whatever the original raises is what is wanted
        return type(error), str(error)


def assert_same(got: Any, want: Any) -> None:
    """Compare outcomes leaf by leaf: of tensors values, dtype, sizes and strides."""
    assert type(got) is type(want), (got, want)
    if isinstance(want, torch.Tensor):
        assert_close(got, want, equal_nan=True, check_stride=True)
    elif isinstance(want, tuple | list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same(one, other)
    else:
        assert got == want


def settle(call: Call) -> list[Any]:
    """Return a call's outcomes: some before anything is asked for, some meanwhile, some after.

    The first of those after is compared with the original, in the call; a call that a busy machine
    makes slow leaves that to the next one, for each library that the call needs. ``wait`` asks for
    kernels of keys that were called once, and says when all are decided on.
    """
    got = [outcome(call) for _ in range(3)]
    while not aoti_eager.wait(0.05):
        got.append(outcome(call))
    got += [outcome(call) for _ in range(5)]
    for _ in range(_MOST_COMPARISONS):
        if not any(one.unfinished.get("comparing") for one in aoti_eager.stats().values()):
            break
        got.append(outcome(call))
    return got


def check(
    call: Call,
    *ops: str,
    declined: str | None = None,
    may_decline: Set[str] = NOT_FASTER,
) -> None:
    """Assert that a call does what the original does, whatever becomes of its kernels.

    Args:
        call: Makes what it writes to anew each time.
        ops: What is registered meanwhile.
        declined: The reason for which each call is declined.
        may_decline: Else, the reasons for which calls may be declined.
    """
    with aoti_eager.config.scope(mode="off"):
        want = outcome(call)
    with aoti_eager.register(list(ops)):
        before = aoti_eager.stats()
        got = settle(call)
        after = {op: since(before, op, stats) for op, stats in aoti_eager.stats().items()}
    for one in got:
        assert_same(one, want)
    assert_nothing_failed(after, {declined} if declined else may_decline)
    if declined:
        assert sum(stats.declined.get(declined, 0) for stats in after.values()) >= len(got)


def since(before: dict[str, OpStats], op: str, now: OpStats) -> OpStats:
    """Return what happened to an op's calls since ``before``."""
    then = before.get(op, OpStats())
    reasons = {name: n - then.declined.get(name, 0) for name, n in now.declined.items()}
    return OpStats(
        hits=now.hits - then.hits,
        misses=now.misses - then.misses,
        declines=now.declines - then.declines,
        failures=now.failures - then.failures,
        declined={name: n for name, n in reasons.items() if n},
        unfinished=now.unfinished,
    )


def assert_nothing_failed(found: dict[str, OpStats], reasons: Set[str] = NOT_FASTER) -> None:
    """Assert that no kernel failed, none is undecided, and calls declined for ``reasons`` alone."""
    for op, stats in found.items():
        assert stats.failures == 0, (op, stats)
        assert not any(stats.unfinished.values()), (op, stats.unfinished)
        assert stats.declined.keys() <= reasons, (op, stats)
