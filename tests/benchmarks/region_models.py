"""The models of ``tests.benchmarks.regions``, with random weights, and the inputs of each size.

Models of transformers are made from their configurations: nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Made small, as models in a loop are: hidden 256, four layers.
WORDS, WIDTH, LAYERS, HEADS, INNER = 1000, 256, 4, 8, 1024

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Sizes = dict[str, tuple[int, ...]]
TOKENS: Sizes = {"1x1": (1, 1), "1x16": (1, 16), "2x128": (2, 128)}
BATCHES: Sizes = {"1": (1,), "64": (64,)}


class GruCell(nn.Module):
    """A gated cell written by hand, and eight steps of it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * width, 2 * width)
        self.candidate = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the last state: x (batch, 8, 64), state (batch, 64)."""
        for step in range(x.size(1)):
            now = x[:, step]
            gates = torch.sigmoid(self.gates(torch.cat((now, state), -1)))
            reset, update = gates.chunk(2, -1)
            new = torch.tanh(self.candidate(torch.cat((now, reset * state), -1)))
            state = (1 - update) * state + update * new
        return state


class GraphLayer(nn.Module):
    """Two rounds of messages along edges, summed up by ``index_add``."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.message = nn.Linear(2 * width, width)
        self.update = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return the nodes: x (nodes, 64), source and target (edges,), int64."""
        for _ in range(2):
            ends = torch.cat((x[source], x[target]), -1)
            messages = torch.relu(self.message(ends))
            summed = torch.zeros_like(x).index_add(0, target, messages)
            x = x + torch.relu(self.update(torch.cat((x, summed), -1)))
        return x


def policy(batch: int) -> Case:
    """Return a policy network, 17-64-64-6."""
    layers = [nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6)]
    return nn.Sequential(*layers), (torch.randn(batch, 17),), {}


def gru(batch: int) -> Case:
    """Return eight steps of a gated cell."""
    return GruCell(), (torch.randn(batch, 8, 64), torch.zeros(batch, 64)), {}


def conv(batch: int) -> Case:
    """Return four convolutions with batch norms, for images of 32x32."""
    layers: list[nn.Module] = []
    for before in (3, 16, 16, 16):
        layers += [nn.Conv2d(before, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU()]
    return nn.Sequential(*layers), (torch.randn(batch, 3, 32, 32),), {}


def graph(batch: int) -> Case:
    """Return a graph layer, for 16 nodes and 48 edges a graph."""
    nodes, edges = 16 * batch, 48 * batch
    ends = [torch.randint(nodes, (edges,)) for _ in range(2)]
    return GraphLayer(), (torch.randn(nodes, 64), *ends), {}


def _of(config: str, model: str, **settings: Any) -> nn.Module:
    """Return a model of transformers."""
    transformers = importlib.import_module("transformers")
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return made


def _of_tokens(make: Callable[[], nn.Module], **kwargs: Any) -> Callable[..., Case]:
    return lambda *sizes: (make(), (torch.randint(WORDS, sizes),), kwargs)


def _bert() -> nn.Module:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    return _of("BertConfig", "BertModel", vocab_size=WORDS, num_attention_heads=HEADS, **sizes)


def _llama() -> nn.Module:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    return _of("LlamaConfig", "LlamaModel", vocab_size=WORDS, num_attention_heads=HEADS, **sizes)


def _gpt2() -> nn.Module:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    return _of("GPT2Config", "GPT2Model", vocab_size=WORDS, **sizes)


def _t5() -> nn.Module:
    sizes = {"d_model": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "d_ff": 512}
    return _of("T5Config", "T5EncoderModel", vocab_size=WORDS, **sizes)


def _distilbert() -> nn.Module:
    sizes = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER}
    return _of("DistilBertConfig", "DistilBertModel", vocab_size=WORDS, **sizes)


def _vit(batch: int) -> Case:
    sizes = {"hidden_size": 128, "num_hidden_layers": LAYERS, "intermediate_size": 256}
    model = _of("ViTConfig", "ViTModel", num_attention_heads=4, image_size=64, **sizes)
    return model, (torch.randn(batch, 3, 64, 64),), {}


def _whisper(batch: int, tokens: int) -> Case:
    sizes = {"d_model": WIDTH, "encoder_layers": LAYERS, "encoder_attention_heads": HEADS}
    model = _of(
        "WhisperConfig",
        "WhisperModel",
        vocab_size=WORDS,
        encoder_ffn_dim=INNER,
        max_source_positions=tokens,
        decoder_layers=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **sizes,
    )
    return model.get_encoder(), (torch.randn(batch, 80, 2 * tokens),), {}  # type: ignore[operator]


# Name -> how it is made from a size, and the sizes.
MODELS: dict[str, tuple[Callable[..., Case], Sizes]] = {
    "policy": (policy, BATCHES),
    "gru": (gru, BATCHES),
    "conv": (conv, BATCHES),
    "graph": (graph, BATCHES),
    "bert": (_of_tokens(_bert), TOKENS),
    "llama": (_of_tokens(_llama, use_cache=False), TOKENS),
    "gpt2": (_of_tokens(_gpt2, use_cache=False), TOKENS),
    "t5": (_of_tokens(_t5), TOKENS),
    "distilbert": (_of_tokens(_distilbert), TOKENS),
    "vit": (_vit, BATCHES),
    "whisper": (_whisper, TOKENS),
}
OF_TRANSFORMERS = ("bert", "llama", "gpt2", "t5", "distilbert", "vit", "whisper")


def case(name: str, size: str) -> Case:
    """Return a model in evaluation mode, its arguments and keyword arguments; always the same."""
    torch.manual_seed(0)
    make, sizes = MODELS[name]
    model, args, kwargs = make(*sizes[size])
    return model.eval(), args, kwargs
