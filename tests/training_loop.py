"""A loop whose sizes and numbers vary: ``python -m tests.training_loop [--steps 1000]``.

The learning rate changes with each step, and the sequence length is drawn from 1 to 512. Prints as
JSON how many specialisations each op has at the end, after how many steps the last was compiled,
and what served the calls. Results are compared with those of originals on the way.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from typing import Any

import torch
from torch.nn import functional

import aoti_eager
from aoti_eager import cache

OPS = [
    "aten::mul.Tensor",
    "aten::silu",
    "aten::silu_backward",
    "aten::tanh",
    "aten::tanh_backward",
    "aten::native_layer_norm",
    "aten::native_layer_norm_backward",
    "aten::_softmax",
    "aten::_softmax_backward_data",
    "aten::add_.Tensor",
]
WIDTH = 64


def step(parameters: list[torch.Tensor], x: torch.Tensor, rate: float) -> float:
    """Train once, and return the loss."""
    weight, bias, gate = parameters
    hidden = functional.layer_norm(x, (WIDTH,), weight, bias)
    hidden = functional.silu(hidden * gate) + torch.tanh(hidden)
    loss = functional.silu(torch.softmax(hidden, 1)).sum()
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(gradient, alpha=-rate)
    return float(loss)


def run(steps: int, seed: int) -> dict[str, Any]:
    """Return what the loop came to."""
    dice = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    mine, theirs = (
        [torch.ones(WIDTH), torch.zeros(WIDTH), torch.full((WIDTH,), 0.5)] for _ in range(2)
    )
    for one in (*mine, *theirs):
        one.requires_grad_()
    compiles, last, worst = 0, 0, 0.0
    with aoti_eager.config.scope(mode="sync", gate=False), aoti_eager.register(OPS):
        for number in range(steps):
            x = torch.randn(dice.randint(1, 512), WIDTH, generator=generator)
            rate = 1e-3 * (1 + math.cos(math.pi * number / steps)) + 1e-6
            got = step(mine, x, rate)
            with aoti_eager.config.scope(mode="off"):
                want = step(theirs, x, rate)
            worst = max(worst, abs(got - want) / max(1.0, abs(want)))
            before, compiles = compiles, sum(s.compiles for s in aoti_eager.stats().values())
            last = number if compiles > before else last
        stats = {op: s for op, s in aoti_eager.stats().items() if s.calls}
    entries = [entry for entry in cache.list() if entry.status == "ready"]
    return {
        "steps": steps,
        "last_compile_at_step": last,
        "worst_relative_difference_of_losses": worst,
        "specialisations": {op: sum(e.op == op for e in entries) for op in stats},
        "inputs": {op: [e.inputs for e in entries if e.op == op] for op in stats},
        "hits": {op: s.hits for op, s in stats.items()},
        "declined": {op: dict(s.declined) for op, s in stats.items() if s.declined},
    }


def main() -> None:
    """Print what the loop came to; status 1 if an op has too many kernels or compiled too late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    namespace = parser.parse_args()
    result = run(namespace.steps, namespace.seed)
    print(json.dumps(result, indent=1))
    most = max(result["specialisations"].values())
    sys.exit(most > 4 or result["last_compile_at_step"] >= 50)


if __name__ == "__main__":
    main()
