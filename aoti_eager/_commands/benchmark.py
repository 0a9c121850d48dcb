"""``benchmark``: an op's kernel against its original, on one call."""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._base.op_names import find_overload, find_packet
from .._base.printable import printable_lines
from .._base.torch_compat.dispatcher import OpOverload, dispatched_call
from .._dispatch.tensor_copies import copy_tensor
from .._registration.registry import find_cache, register
from ..config import config
from ..errors import CallTextError
from .call_text import add_arguments as add_call_arguments
from .call_text import call_arguments, no_such_call

_ROUND_S = 0.005
_RESAMPLES = 1000
# Of the time that a round takes, the thread ran at least so much on a quiet machine.
_QUIET = 0.9

Call = Callable[[], Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``benchmark``."""
    add_call_arguments(parser)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each (default 40)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache-dir", help="the cache's directory")


def main(namespace: argparse.Namespace) -> int:
    """Run ``benchmark``; return its exit status: 1 if no kernel serves the call, or it is wrong.

    Raises:
        CallTextError: An argument is none, or PyTorch takes no such call.
    """
    if namespace.rounds < 3:
        raise CallTextError(f"--rounds: got {namespace.rounds}; wants at least 3")
    args, kwargs = call_arguments(namespace.arguments)
    args, kwargs = pytree.tree_map_only(Tensor, _filled, (args, kwargs))
    op, call = _call(namespace.op, args, kwargs)
    with config.scope(mode="sync", gate=False, native="1"), torch.no_grad():
        found = _compared(op, call, namespace.rounds)
    print(json.dumps(found) if namespace.json else printable_lines(_in_words(found)))
    return 0 if found["served"] and found["matches"] else 1


def _filled(tensor: Tensor) -> Tensor:
    """Return the tensor with ordinary numbers, zeros and ones where it has no fractions."""
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.copy_(torch.randn(tensor.shape, dtype=torch.float32))
    return tensor.random_(0, 2)


def _call(name: str, args: Any, kwargs: Any) -> tuple[OpOverload, functools.partial[Any]]:
    """Return the overload that a call reaches, and the call.

    Raises:
        CallTextError: PyTorch takes no such call, or the original raises.
    """
    function = find_overload(name) if "." in name.partition("::")[2] else find_packet(name)
    try:
        overload, args, kwargs = dispatched_call(function, args, kwargs)
    except RuntimeError as error:
        raise no_such_call(name) from error
    call = functools.partial(overload, *args, **kwargs)
    try:
        with torch.no_grad():
            _on_copies(call)()
    except Exception as error:
        raise CallTextError(f"{name}: the original raises: {error}") from error
    return overload, call


def _on_copies(call: functools.partial[Any]) -> functools.partial[Any]:
    """Return the call on copies of its tensors: the op may write to them."""
    args, kwargs = pytree.tree_map_only(Tensor, copy_tensor, (call.args, call.keywords))
    return functools.partial(call.func, *args, **kwargs)


def _compared(op: OpOverload, call: functools.partial[Any], rounds: int) -> dict[str, Any]:
    want, mine = _on_copies(call)(), _on_copies(call)
    start = time.perf_counter()
    with register(op) as registration:
        mine()
        compile_s = time.perf_counter() - start
        got = _on_copies(call)()
        cache = find_cache(op, "CPU")
        assert cache is not None
        counters = cache.counters.snapshot()
        name = registration.ops[0]
    found: dict[str, Any] = {"op": name, "threads": torch.get_num_threads()}
    if not counters.hits:
        reasons = [reason for reason, count in counters.declined.items() if count]
        return found | {"served": False, "reason": ", ".join(reasons) or None, "matches": True}
    found |= {"served": True, "reason": None, "compiles": counters.compiles}
    found |= {"compile_s": round(compile_s, 3), "matches": _matches(got, want)}
    return found | _times(op, call, rounds)


def _matches(got: Any, want: Any) -> bool:
    try:
        torch.testing.assert_close(got, want, equal_nan=True)
    except AssertionError:
        return False
    return True


def _times(op: OpOverload, call: Call, rounds: int) -> dict[str, Any]:
    """Return microseconds a call, in rounds that take turns, and the ratio with its interval."""
    count = max(1, int(_ROUND_S / max(1e-7, min(_seconds(call, 1)[0] for _ in range(5)))))
    plain: list[float] = []
    served: list[float] = []
    ran = 0.0
    began = time.perf_counter()
    for _ in range(rounds):
        for registered, times in ((False, plain), (True, served)):
            if registered:
                with register(op):
                    _seconds(call, 3)  # The first call finds the kernel in the store.
                    taken, cpu = _seconds(call, count)
            else:
                taken, cpu = _seconds(call, count)
            times.append(taken / count * 1e6)
            ran += cpu / taken
    low, high = _interval(plain, served)
    return {
        "original_us": round(statistics.median(plain), 3),
        "served_us": round(statistics.median(served), 3),
        "speed": round(statistics.median(plain) / statistics.median(served), 3),
        "speed_low": round(low, 3),
        "speed_high": round(high, 3),
        "rounds": rounds,
        "calls_a_round": count,
        "busy": ran / (2 * rounds) < _QUIET or os.getloadavg()[0] > (os.cpu_count() or 1),
        "seconds": round(time.perf_counter() - began, 2),
    }


def _seconds(call: Call, count: int) -> tuple[float, float]:
    """Return wall and thread time of so many calls."""
    cpu, start = time.thread_time(), time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start, time.thread_time() - cpu


def _interval(plain: list[float], served: list[float]) -> tuple[float, float]:
    """Return bounds that hold the ratio of the medians in 95 of 100 draws of the rounds."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, len(plain), (2, _RESAMPLES, len(plain)), generator=generator)
    both = (torch.tensor(plain)[drawn[0]], torch.tensor(served)[drawn[1]])
    ratios = both[0].median(1).values / both[1].median(1).values
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def _in_words(found: dict[str, Any]) -> str:
    if not found["served"]:
        return (
            f"{found['op']}: no kernel serves the call: {found['reason'] or 'its compile failed'}"
        )
    interval = f"{found['speed_low']:.2f} to {found['speed_high']:.2f} in 95 of 100"
    lines = [
        f"{found['op']}, {found['threads']} threads",
        f"  original  {found['original_us']:.2f} us a call",
        f"  kernel    {found['served_us']:.2f} us a call",
        f"  speed     {found['speed']:.2f} times the original's, {interval}",
        f"  results   {'match' if found['matches'] else 'DIFFER beyond the tolerance'}",
    ]
    if found["compiles"]:
        lines.append(f"  compile   {found['compile_s']:.1f} s, the first call")
        won_us = found["original_us"] - found["served_us"]
        if won_us > 0 and found["speed_low"] > 1:
            lines.append(f"  pays      after {found['compile_s'] * 1e6 / won_us:,.0f} calls")
        else:
            lines.append("  pays      never: the kernel does not beat the original for sure")
    else:
        lines.append("  compile   none: the kernel was stored")
    if found["busy"]:
        lines.append("  the machine was busy: the figures say little")
    return "\n".join(lines)
