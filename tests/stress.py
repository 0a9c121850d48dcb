"""The whole hit path under threads: ``python -m tests.stress [--seconds 60] [--threads 16]``.

Real kernels, real calls. Most threads call ops of several kinds on shapes of which some have
kernels, some are declined and some come from the store on a miss; the others flip ``disable`` and
``enable``, modes and cache directories, take entries out of the tables, and read ``stats``. Every
eighth result is compared with what the original gave before. At the end the threads only call, and
each call must have been counted once. Prints what happened as JSON; a wrong result, an exception or
a count that does not add up ends it with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import aoti_eager
from aoti_eager._native import op_kernel
from aoti_eager._registration import registry

SHAPES = [(2, 8), (3, 8), (4, 8)]
OPS = [
    "aten::mul.Tensor",
    "aten::add_.Tensor",
    "aten::silu",
    "aten::native_layer_norm",
    "aten::cat",
    "aten::mm",  # declines
]

Call = Callable[[torch.Tensor], Any]

CALLS: dict[str, Call] = {
    "mul": lambda x: x * x,
    "number": lambda x: x * 1.5,
    "in place": lambda x: x.clone().add_(x, alpha=2),
    "silu": torch.ops.aten.silu,
    "layer norm": lambda x: torch.native_layer_norm(x, [8], None, None, 1e-5)[0],
    "cat": lambda x: torch.cat([x, x]),
    "declined": lambda x: torch.mm(x, x.t()),
}


class Stress:
    """The threads and what they share."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.stop = threading.Event()
        self.problems: list[str] = []
        self.calls = 0
        self.flips = 0
        self._lock = threading.Lock()
        self.inputs = {
            shape: torch.linspace(-1, 1, shape[0] * 8).reshape(shape) for shape in SHAPES
        }
        self.expected = {
            (name, shape): call(x)
            for name, call in CALLS.items()
            for shape, x in self.inputs.items()
        }

    def guarded(self, body: Callable[[random.Random], int], number: int) -> None:
        """Run ``body`` until the end; keep what it raises."""
        dice = random.Random(self.seed * 1000 + number)
        done = 0
        try:
            while not self.stop.is_set():
                done += body(dice)
        except BaseException as error:  # noqa: BLE001 - reported, and ends the run
            self.problems.append(f"{type(error).__name__}: {error}")
            self.stop.set()
        with self._lock:
            if body == self.call:
                self.calls += done
            else:
                self.flips += done

    def call(self, dice: random.Random) -> int:
        """Make some calls and compare every eighth result, within the check's tolerance."""
        for number in range(200):
            name, shape = dice.choice(list(CALLS)), dice.choice(SHAPES)
            got = CALLS[name](self.inputs[shape])
            if number % 8:
                continue
            want = self.expected[name, shape]
            # In Python: torch's own comparison would call ops that are registered.
            if got.shape != want.shape or got.stride() != want.stride():
                raise AssertionError(f"{name} {shape}: {got.shape} {got.stride()}")
            for mine, theirs in zip(got.flatten().tolist(), want.flatten().tolist(), strict=True):
                if abs(mine - theirs) > 1e-5 + 1.3e-6 * abs(theirs):
                    raise AssertionError(f"{name} {shape}: {mine} instead of {theirs}")
        return 200

    def flip(self, dice: random.Random, registrations: list[Any], directories: list[Path]) -> int:
        """Change what readers look at."""
        what = dice.randrange(6)
        if what == 0:
            registration = dice.choice(registrations)
            registration.disable()
            time.sleep(dice.random() * 0.002)
            registration.enable()
        elif what == 1:
            with aoti_eager.config.scope(mode=dice.choice(["off", "cache_only"])):
                time.sleep(dice.random() * 0.002)
        elif what == 2:
            with aoti_eager.config.scope(cache_dir=dice.choice(directories)):
                time.sleep(dice.random() * 0.01)
        elif what == 3:
            for cache in registry.caches():
                cache.table.clear()  # evicted: the next calls are misses that the store serves
        elif what == 4:
            cache = dice.choice(registry.caches())
            for key, kernel in list(cache.table.kernels.items())[:2]:
                cache.table.put(key, kernel)  # replaced under its readers
        else:
            aoti_eager.stats()
        time.sleep(dice.random() * 0.03)
        return 1


def count_exactly(stress: Stress, threads: int) -> None:
    """Note a problem unless each of many calls at once is counted as a hit or a decline."""
    x = stress.inputs[SHAPES[0]]
    calls = 2000

    def counted() -> tuple[int, int]:
        counts = aoti_eager.stats()
        return counts["aten::silu"].hits, counts["aten::mm"].declines

    def work() -> None:
        for _ in range(calls):
            torch.ops.aten.silu(x)
            torch.ops.aten.mm(x, x.t())

    torch.ops.aten.silu(x), torch.ops.aten.mm(x, x.t())  # evicted, maybe
    before = counted()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    grown = tuple(after - first for after, first in zip(counted(), before, strict=True))
    if grown != (threads * calls, threads * calls):
        stress.problems.append(f"{threads * calls} calls were counted as {grown}")


def run(seconds: float, threads: int, seed: int, native: str) -> dict[str, Any]:
    """Return what happened, with all problems that were found."""
    stress = Stress(seed)
    before = aoti_eager.stats()
    with tempfile.TemporaryDirectory() as other, contextlib.ExitStack() as stack:
        stack.enter_context(aoti_eager.config.scope(native=native, mode="sync", gate=False))
        registrations = [stack.enter_context(aoti_eager.register(op)) for op in OPS]
        for call in CALLS.values():
            for x in stress.inputs.values():
                call(x)
        directories = [aoti_eager.config.cache_dir, Path(other) / "cache"]
        flippers = max(1, threads // 4)
        bodies: list[Callable[[random.Random], int]] = [stress.call] * (threads - flippers)
        bodies += [lambda dice: stress.flip(dice, registrations, directories)] * flippers
        # A scope with an empty store compiles in the call: not what this is about.
        stack.enter_context(aoti_eager.config.scope(mode="cache_only", gate=False))
        workers = [
            threading.Thread(target=stress.guarded, args=(body, number))
            for number, body in enumerate(bodies)
        ]
        for worker in workers:
            worker.start()
        stress.stop.wait(seconds)
        stress.stop.set()
        for worker in workers:
            worker.join()
        count_exactly(stress, threads)
        served = sum(cache.counters.snapshot().hits for cache in registry.caches())
        alive = op_kernel.alive()
    after = aoti_eager.stats()
    aoti_eager.wait(60.0)  # A job that runs holds its table.
    gc.collect()
    left = op_kernel.alive()
    if any(left.values()):
        stress.problems.append(f"left after unregister: {left}")
    return {
        "problems": stress.problems,
        "threads": threads,
        "seconds": seconds,
        "calls": stress.calls,
        "flips": stress.flips,
        "hits": served,
        "declines": sum(
            counts.declines - before.get(op, aoti_eager.OpStats()).declines
            for op, counts in after.items()
        ),
        "misses": sum(
            counts.misses - before.get(op, aoti_eager.OpStats()).misses
            for op, counts in after.items()
        ),
        "alive at the end": alive,
        "left": left,
    }


def main() -> None:
    """Print what happened; status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--native", choices=("0", "1"), default="1")
    namespace = parser.parse_args()
    result = run(namespace.seconds, namespace.threads, namespace.seed, namespace.native)
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
