"""A transformer's encoder, served whole by one kernel library.

    python docs/examples/fused_encoder.py [--width 256] [--layers 4] [--length 16]

prints what a forward takes, plain and served, and the report. The first run compiles for some
seconds per layer; every later run finds the library in the cache. With the package transformers:

    model = transformers.AutoModel.from_pretrained("bert-base-uncased").eval()
    report = aoti_eager.fuse(model)
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

import aoti_eager


class Layer(nn.Module):
    """Attention and a network of two layers, each with a norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x: (batch, length, width)."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Encoder(nn.Module):
    """Token numbers to vectors."""

    def __init__(self, width: int, layers: int, words: int = 1000) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.layers = nn.ModuleList(Layer(width, heads=4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return a vector for each token: tokens (batch, length), int64."""
        x = self.words(tokens) + self.places(torch.arange(tokens.size(1)))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def median_ms(model: nn.Module, tokens: torch.Tensor) -> float:
    """Return the median time of twenty calls."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        model(tokens)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Run the encoder plain, fuse it, and run it again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Encoder(options.width, options.layers).eval()
    tokens = torch.randint(1000, (1, options.length))
    with torch.inference_mode():
        want, plain_ms = model(tokens), median_ms(model, tokens)
        report = aoti_eager.fuse(model)
        for _ in range(3):  # Recorded, compared, timed.
            model(tokens)
            aoti_eager.wait()  # For this example; a program goes on with the plain forward.
        served_ms = median_ms(model, tokens)
        torch.testing.assert_close(model(tokens), want, rtol=1e-4, atol=1e-5)
    print(f"plain {plain_ms:.3f} ms, served {served_ms:.3f} ms")
    print(report)


if __name__ == "__main__":
    main()
