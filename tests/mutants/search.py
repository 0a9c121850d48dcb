"""Whether a mutant ever behaves in another way than the kernel that it was made from.

It looks far longer than a trial, and at bit patterns and magnitudes of its own choice; it knows
nothing of what the trial makes up.
"""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aoti_eager._base.sealed_library import SealedLibrary
from aoti_eager._functions.call_target import call_target
from aoti_eager._keys.call_template import TensorSlot, call_template, slot_dtype
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._runner.kernel_runner import LibraryRunner

ROUNDS = 240
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# What differs by less, as a share, is rounding.
_SHARE = {torch.float16: 2e-2, torch.bfloat16: 8e-2, torch.float32: 1e-4, torch.float64: 1e-6}


def differs(original: Path, mutant: Path, request: dict[str, Any], timeout_s: float = 60) -> str:
    """Return on which round they differ, or how the mutant ended; ``""`` where they do not."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.write(write, json.dumps(_searched(original, mutant, request)).encode())
        finally:
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], timeout_s)
    answer = os.read(read, 1 << 16) if ready else b""
    os.close(read)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return str(json.loads(answer)) if answer else "ended"


def _searched(original: Path, mutant: Path, request: dict[str, Any]) -> str:
    torch.set_num_threads(1)
    key = KernelKey.from_json(request["key"])
    _, schema = call_target(key.op, request["function"], request["schema"])
    template = call_template(schema, key, request.get("numbers") or ())
    runs = []
    for path in (original, mutant):
        with SealedLibrary(path.read_bytes(), path) as library:
            runs.append(LibraryRunner(library, calls_aten=False).run)
    generator = torch.Generator().manual_seed(11)
    for number in range(ROUNDS):
        inputs = [_input(slot, number, generator) for slot in template.slots]
        both = []
        for run in runs:
            mine = [
                one.clone() if slot.mutated else one
                for one, slot in zip(inputs, template.slots, strict=True)
            ]
            got = run(list(mine))
            both.append(
                [*got, *(m for m, slot in zip(mine, template.slots, strict=True) if slot.mutated)]
            )
        for want, have in zip(*both, strict=True):
            if _differ(want, have):
                return f"round {number}"
    return ""


def _input(slot: TensorSlot, number: int, generator: torch.Generator) -> Tensor:
    dtype = slot_dtype(slot)
    if slot.number_kind:
        return torch.tensor([1.5, -0.3, 0.0, 7.0][number % 4]).to(dtype)
    sizes, strides = slot.component["sizes"], slot.component["strides"]
    count = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1
    way = number % 12
    if dtype is torch.bool:
        flat = torch.randint(0, 2, (count,), generator=generator).bool()
    elif not dtype.is_floating_point:
        high = 2 if way < 3 else min(torch.iinfo(dtype).max, 1 << (4 + way * 5))
        low = 0 if way < 3 else max(torch.iinfo(dtype).min, -high)
        flat = torch.randint(low, high, (count,), generator=generator).to(dtype)
    elif way == 0:
        bits = _BITS[dtype.itemsize]
        ii = torch.iinfo(bits)
        flat = torch.randint(ii.min, ii.max, (count,), generator=generator).to(bits).view(dtype)
    else:
        scale = [1.0, 1.0, 0.01, 1e-5, 30.0, 1e3, 1e15, 1e-20, 1e30, 3.0, 6.0, 1.0][way]
        flat = torch.randn(count, generator=generator, dtype=torch.float64)
        if way in (9, 10):
            flat = (flat * scale).round() / 2
            scale = 1.0
        if way == 11:
            places = torch.rand(count, generator=generator) < 0.02
            kinds = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, 1e38])
            drawn = kinds[torch.randint(0, 5, (count,), generator=generator)].double()
            flat = torch.where(places, drawn, flat)
        if number % 5 == 4:
            flat += 100.0
        flat = (flat * scale).to(dtype)
    return flat.as_strided(sizes, strides)


def _differ(want: Tensor, have: Tensor) -> bool:
    if not want.is_floating_point():
        return not torch.equal(want, have)
    theirs, mine = want.double(), have.double()
    if not torch.equal(theirs.isnan(), mine.isnan()):
        return True
    if not torch.equal(theirs.isinf(), mine.isinf()):
        return True
    known = theirs.isfinite()
    off = (theirs - mine).abs()[known]
    size = theirs.abs()[known]
    if not off.numel():
        return False
    share = _SHARE[want.dtype]
    typical = float(size.median())
    return bool((off > share * size.clamp(min=typical * 1e-3)).any())
