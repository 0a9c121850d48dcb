"""Train a small character transformer on text that every Python has, in plain eager PyTorch.

The text is what ``help("while")`` prints: the topics of the language reference, 465,000 characters
in ``pydoc_data.topics``. The model reads a block of characters and predicts, at each place, the
next one. It starts at a loss near ln(number of characters), about 4.6, the loss of a guess that
knows nothing.

    python char_lm.py --steps 200

This file is an ordinary script: it imports torch and the standard library, nothing else. It is
also what ``python -m aoti_eager demo`` runs, once like this and once under our kernels:

    python -m aoti_eager run char_lm.py --steps 200
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn


def read_text() -> str:
    """Return the topics of Python's language reference as one string."""
    return "\n\n".join(text for _, text in sorted(topics.items()))


class Characters:
    """The characters of a text, numbered in order of their code points.

    Attributes:
        known: The characters; a character's number is its place in this string.
    """

    def __init__(self, text: str) -> None:
        self.known = "".join(sorted(set(text)))
        self._numbers = {character: number for number, character in enumerate(self.known)}

    def encode(self, text: str) -> Tensor:
        """Return the numbers of the characters of ``text``: (length,), int64."""
        return torch.tensor([self._numbers[character] for character in text])

    def decode(self, numbers: Tensor) -> str:
        """Return the text that ``numbers``, (length,), int64, stand for."""
        return "".join(self.known[number] for number in numbers.tolist())


class Attention(nn.Module):
    """Causal self-attention: each place looks at itself and at what came before it."""

    def __init__(self, width: int, heads: int, block: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        future = torch.ones(block, block, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each place gathered. x and result: (batch, length, width), float32."""
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        scores = scores.masked_fill(self.future[:length, :length], float("-inf"))
        gathered = scores.softmax(dim=-1) @ v
        return self.to_out(gathered.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int, block: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, block)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result. x and result: (batch, length, width), float32."""
        x = x + self.attention(self.norm1(x))
        return x + self.perceptron(self.norm2(x))


class CharacterModel(nn.Module):
    """A decoder-only transformer over characters.

    Args:
        characters: How many characters there are.
        block: The longest context, in characters.
        width: Features a character; a multiple of ``heads``.
        layers: How many blocks.
        heads: How many attention heads a block has.
    """

    def __init__(
        self, *, characters: int, block: int, width: int, layers: int, heads: int = 4
    ) -> None:
        super().__init__()
        self.block = block
        self.of_character = nn.Embedding(characters, width)
        self.of_place = nn.Embedding(block, width)
        self.blocks = nn.Sequential(*(Block(width, heads, block) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.to_scores = nn.Linear(width, characters)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return a score for each next character.

        Args:
            numbers: (batch, length), int64, length at most ``block``.

        Returns:
            (batch, length, characters), float32.
        """
        places = torch.arange(numbers.shape[1], device=numbers.device)
        x = self.of_character(numbers) + self.of_place(places)
        return self.to_scores(self.norm(self.blocks(x)))

    @torch.no_grad()
    def write(self, numbers: Tensor, length: int) -> Tensor:
        """Return ``numbers``, (1, any), int64, continued by ``length`` characters drawn at random.

        The window is moved in steps that keep its length, so every forward has the same sizes.
        """
        for _ in range(length):
            scores = self(numbers[:, -self.block :])[:, -1]
            drawn = torch.multinomial(scores.softmax(dim=-1), num_samples=1)
            numbers = torch.cat([numbers, drawn], dim=1)
        return numbers


def draw_batch(data: Tensor, *, batch: int, block: int) -> tuple[Tensor, Tensor]:
    """Return blocks from random places of ``data`` and, for each character, the next one.

    Both results are (batch, block), int64.
    """
    starts = torch.randint(len(data) - block, (batch, 1))
    places = starts + torch.arange(block + 1)
    blocks = data[places]
    return blocks[:, :-1], blocks[:, 1:]


def train(
    model: CharacterModel, data: Tensor, *, steps: int, batch: int, report_every: int
) -> tuple[list[float], list[float]]:
    """Return the loss and the seconds of each step.

    A step is everything from drawing its batch to the optimizer's update.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    losses, seconds = [], []
    for step in range(1, steps + 1):
        start = time.perf_counter()
        given, wanted = draw_batch(data, batch=batch, block=model.block)
        scores = model(given)
        # Cross entropy, written out: the logarithm of each row's sum less the wanted score.
        picked = scores.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        loss = (scores.logsumexp(-1) - picked).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        if step == 1 or step % report_every == 0 or step == steps:
            print(f"step {step:5}  loss {losses[-1]:.4f}")
    return losses, seconds


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description="Train a small character transformer on Python's own help texts."
    )
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    parser.add_argument("--batch", type=int, default=16, help="blocks a step (default: 16)")
    parser.add_argument("--block", type=int, default=64, help="characters a block (default: 64)")
    parser.add_argument("--width", type=int, default=64, help="features, 4 heads (default: 64)")
    parser.add_argument("--layers", type=int, default=2, help="blocks of the model (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: 0)")
    parser.add_argument(
        "--write", type=int, default=0, metavar="N", help="then write N characters (default: 0)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write each step's loss and seconds to FILE"
    )
    return parser.parse_args()


def main() -> None:
    """Train, and write what was asked for."""
    options = parse_arguments()
    torch.manual_seed(options.seed)
    text = read_text()
    characters = Characters(text)
    data = characters.encode(text)
    model = CharacterModel(
        characters=len(characters.known),
        block=options.block,
        width=options.width,
        layers=options.layers,
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(text):,} characters, {len(characters.known)} different; {size:,} parameters")
    losses, seconds = train(
        model,
        data,
        steps=options.steps,
        batch=options.batch,
        report_every=max(1, options.steps // 10),
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"losses": losses, "seconds": seconds}))
    if options.write:
        # A whole block to begin with: a shorter one would change its sizes at every character.
        print(characters.decode(model.write(data[None, : model.block], options.write)[0]))


if __name__ == "__main__":
    main()
