"""Models to fuse, with random weights, for ``tests.benchmarks.regions`` and the tests of regions.

Models of transformers are made from their configurations: nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Scale:
    """How large the models of transformers are, and how many words their vocabularies have."""

    words: int
    width: int
    layers: int
    heads: int
    inner: int


# Models in a loop, and models for tests.
SMALL = Scale(words=1000, width=256, layers=4, heads=8, inner=1024)
TINY = Scale(words=50, width=32, layers=1, heads=2, inner=64)

# A model, its arguments, and its keyword arguments.
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


def policy(_: Scale, batch: int) -> Case:
    """Return a policy network, 17-64-64-6."""
    layers = [nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6)]
    return nn.Sequential(*layers), (torch.randn(batch, 17),), {}


def gru(_: Scale, batch: int) -> Case:
    """Return eight steps of a gated cell."""
    return GruCell(), (torch.randn(batch, 8, 64), torch.zeros(batch, 64)), {}


def conv(_: Scale, batch: int) -> Case:
    """Return four convolutions with batch norms, for images of 32x32."""
    layers: list[nn.Module] = []
    for before in (3, 16, 16, 16):
        layers += [nn.Conv2d(before, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU()]
    return nn.Sequential(*layers), (torch.randn(batch, 3, 32, 32),), {}


def graph(_: Scale, batch: int) -> Case:
    """Return a graph layer, for 16 nodes and 48 edges a graph."""
    nodes, edges = 16 * batch, 48 * batch
    ends = [torch.randint(nodes, (edges,)) for _ in range(2)]
    return GraphLayer(), (torch.randn(nodes, 64), *ends), {}


def _library() -> Any:
    """Return transformers; the import takes seconds, and the models above do without it."""
    return importlib.import_module("transformers")


def _bert(scale: Scale) -> nn.Module:
    config = _library().BertConfig(
        vocab_size=scale.words,
        hidden_size=scale.width,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        intermediate_size=scale.inner,
    )
    model: nn.Module = _library().BertModel(config)
    return model


def _llama(scale: Scale) -> nn.Module:
    config = _library().LlamaConfig(
        vocab_size=scale.words,
        hidden_size=scale.width,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        intermediate_size=scale.inner,
    )
    model: nn.Module = _library().LlamaModel(config)
    return model


def _gpt2(scale: Scale) -> nn.Module:
    config = _library().GPT2Config(
        vocab_size=scale.words,
        n_embd=scale.width,
        n_layer=scale.layers,
        n_head=scale.heads,
        bos_token_id=0,
        eos_token_id=1,
    )
    model: nn.Module = _library().GPT2Model(config)
    return model


def _t5(scale: Scale) -> nn.Module:
    config = _library().T5Config(
        vocab_size=scale.words,
        d_model=scale.width,
        num_layers=scale.layers,
        num_heads=scale.heads,
        d_ff=scale.inner // 2,
    )
    model: nn.Module = _library().T5EncoderModel(config)
    return model


def _distilbert(scale: Scale) -> nn.Module:
    config = _library().DistilBertConfig(
        vocab_size=scale.words,
        dim=scale.width,
        n_layers=scale.layers,
        n_heads=scale.heads,
        hidden_dim=scale.inner,
    )
    model: nn.Module = _library().DistilBertModel(config)
    return model


def _of_tokens(
    make: Callable[[Scale], nn.Module], scale: Scale, batch: int, tokens: int, **kwargs: Any
) -> Case:
    return make(scale), (torch.randint(scale.words, (batch, tokens)),), kwargs


def _vit(scale: Scale, batch: int) -> Case:
    config = _library().ViTConfig(
        hidden_size=scale.width // 2,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads // 2,
        intermediate_size=scale.inner // 4,
        image_size=64,
    )
    return _library().ViTModel(config), (torch.randn(batch, 3, 64, 64),), {}


def _whisper(scale: Scale, batch: int, tokens: int) -> Case:
    config = _library().WhisperConfig(
        vocab_size=scale.words,
        d_model=scale.width,
        encoder_layers=scale.layers,
        encoder_attention_heads=scale.heads,
        encoder_ffn_dim=scale.inner,
        max_source_positions=tokens,
        decoder_layers=1,
        decoder_attention_heads=scale.heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    encoder = _library().WhisperModel(config).get_encoder()
    return encoder, (torch.randn(batch, 80, 2 * tokens),), {}


# Name -> how it is made from a scale and a size, and the sizes.
OF_TRANSFORMERS: dict[str, tuple[Callable[..., Case], Sizes]] = {
    "bert": (partial(_of_tokens, _bert), TOKENS),
    "llama": (partial(_of_tokens, _llama, use_cache=False), TOKENS),
    "gpt2": (partial(_of_tokens, _gpt2, use_cache=False), TOKENS),
    "t5": (partial(_of_tokens, _t5), TOKENS),
    "distilbert": (partial(_of_tokens, _distilbert), TOKENS),
    "vit": (_vit, BATCHES),
    "whisper": (_whisper, TOKENS),
}
MODELS: dict[str, tuple[Callable[..., Case], Sizes]] = {
    "policy": (policy, BATCHES),
    "gru": (gru, BATCHES),
    "conv": (conv, BATCHES),
    "graph": (graph, BATCHES),
    **OF_TRANSFORMERS,
}


def case(name: str, size: str, scale: Scale = SMALL) -> Case:
    """Return a model in evaluation mode, its arguments and keyword arguments; always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make, sizes = MODELS[name]
        model, args, kwargs = make(scale, *sizes[size])
    return model.eval(), args, kwargs
