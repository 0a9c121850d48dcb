"""A decoder of Llama's kind, with operators of our own for what is between its matrix products.

RMS norm with the residual, rotary embedding, SwiGLU and cross-entropy are plain functions. The
model is trained on the text of ``char_lm.py`` three times in one process, with the same numbers to
begin with: with the functions as they are, with operators that ``custom_op`` makes of them, and
with the functions under ``torch.compile``.

    python llama_block.py --steps 60

Prints the loss after the last step and the median time of a step of each, and what was served.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aoti_eager

sys.path.insert(0, str(Path(__file__).parent))
from char_lm import Characters, read_text

Functions = Any


def rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of both, and its norm: x, residual (batch, length, width), weight (width,)."""
    total = x + residual
    return total, total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x, (batch, heads, length, channels), turned by angles, (length, channels / 2)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) * up``, of any sizes."""
    return gate * torch.sigmoid(gate) * up


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss of logits, (rows, classes), at target, (rows,), int64."""
    chosen = torch.arange(logits.size(-1), device=logits.device) == target.unsqueeze(-1)
    return (torch.logsumexp(logits, -1) - torch.where(chosen, logits, 0.0).sum(-1)).mean()


FUNCTIONS = (rms_norm, rotary, swiglu, cross_entropy)


class Block(nn.Module):
    """Attention with rotary positions, then a gated layer."""

    def __init__(self, width: int, heads: int, functions: Functions) -> None:
        super().__init__()
        self.heads, self.functions = heads, functions
        self.norms = nn.ParameterList([nn.Parameter(torch.ones(width)) for _ in range(2)])
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, residual: Tensor, cos: Tensor, sin: Tensor) -> Any:
        """Return what is added to the residual next, and the residual."""
        f = self.functions
        residual, normed = f.rms_norm(x, residual, self.norms[0])
        batch, length, width = normed.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (
            one.view(shape).transpose(1, 2) for one in self.project(normed).chunk(3, -1)
        )
        query, key = f.rotary(query, cos, sin), f.rotary(key, cos, sin)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = self.out(attended.transpose(1, 2).reshape(batch, length, width))
        residual, normed = f.rms_norm(x, residual, self.norms[1])
        gate, up = self.gate_up(normed).chunk(2, -1)
        return self.down(f.swiglu(gate, up)), residual


class Decoder(nn.Module):
    """Characters to the loss of predicting each from those before it."""

    def __init__(self, characters: int, width: int, functions: Functions) -> None:
        super().__init__()
        self.functions = functions
        self.embedding = nn.Embedding(characters, width)
        self.blocks = nn.ModuleList([Block(width, 4, functions) for _ in range(2)])
        self.norm = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, characters, bias=False)
        self.channels = width // 4

    def forward(self, text: Tensor) -> Tensor:
        """Return the loss of text, (batch, length + 1), int64."""
        length = text.size(1) - 1
        powers = torch.arange(0, self.channels, 2) / self.channels
        angles = torch.outer(torch.arange(length), 10_000.0**-powers)
        cos, sin = angles.cos(), angles.sin()
        residual = self.embedding(text[:, :-1])
        x = torch.zeros_like(residual)
        for block in self.blocks:
            x, residual = block(x, residual, cos, sin)
        _, normed = self.functions.rms_norm(x, residual, self.norm)
        logits = self.head(normed).flatten(0, 1)
        loss: Tensor = self.functions.cross_entropy(logits, text[:, 1:].flatten())
        return loss


def train(functions: Functions, numbers: Tensor, steps: int) -> tuple[float, float]:
    """Return the last loss and the median milliseconds of a step."""
    torch.manual_seed(0)
    model = Decoder(int(numbers.max()) + 1, 128, functions)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    times, value = [], 0.0
    for _ in range(steps):
        places = torch.randint(len(numbers) - 65, (8,), generator=generator).tolist()
        text = torch.stack([numbers[place : place + 65] for place in places])
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(text)
        loss.backward()
        optimizer.step()
        value = loss.item()
        times.append((time.perf_counter() - start) * 1e3)
    return value, statistics.median(times[steps // 2 :])


def main() -> None:
    """Train three times, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--without-compile", action="store_true")
    options = parser.parse_args()
    text = read_text()
    numbers = Characters(text).encode(text)
    ways: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
        "eager": lambda function: function,
        "ours": lambda function: aoti_eager.custom_op(f"llama::{function.__name__}", function),
        "compile": lambda function: torch.compile(function, dynamic=False),
    }
    if options.without_compile:
        del ways["compile"]
    found: dict[str, Any] = {}
    for name, way in ways.items():
        functions = SimpleNamespace(**{one.__name__: way(one) for one in FUNCTIONS})
        if name == "ours":
            for _ in range(3):  # Kernels are asked for, compared, and used.
                train(functions, numbers, 4)
                aoti_eager.wait()
        loss, step_ms = train(functions, numbers, options.steps)
        found[name] = {"loss": round(loss, 5), "step_ms": round(step_ms, 3)}
    counts = aoti_eager.stats()
    found["hits"] = {name: one.hits for name, one in counts.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
