"""Tapes of calls, recorded by a dispatch mode; and small modules to record."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import aoti_eager
from aoti_eager._base.op_library import new_op_library
from aoti_eager._base.torch_compat.dispatcher import destroy
from aoti_eager._base.torch_compat.tracing import dispatch_mode
from aoti_eager._functions.op_functions import define, forget
from aoti_eager._functions.tape import NAMESPACE, SCHEMA, Tape, TapeFunction, op_name
from aoti_eager._functions.tape_call import TapeCall, data_source, tape_call
from aoti_eager._functions.tape_replay import flat_results
from aoti_eager._keys.schema import op_schema


@dataclass(frozen=True)
class Recorded:
    """A tape with the tensors that it was recorded on.

    Attributes:
        tape: The tape.
        inputs: The tensors that the tape reads, in its order.
        results: The distinct tensors that the call returned, in the order of the tape's outputs.
    """

    tape: Tape
    inputs: list[Tensor]
    results: list[Tensor]


def tape_of(
    function: Callable[..., Any], arguments: Sequence[Any], captured: Sequence[Tensor] = ()
) -> Recorded:
    """Return the tape of one call of ``function``.

    Args:
        function: What is called, without gradients.
        arguments: Its arguments; those that are tensors may become inputs of the tape.
        captured: The tensors that the function finds by itself: parameters and buffers.

    Raises:
        TapeError: The call reads a tensor that is none of these, and no small constant.
    """
    given = [one for one in tree_leaves(list(arguments)) if isinstance(one, Tensor)]
    recorder = _Recorder([*given, *captured])
    with torch.no_grad(), dispatch_mode(recorder.record):
        result = function(*arguments)
    leaves = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
    return recorder.recorded(list({id(one): one for one in leaves}.values()))


class _Recorder:
    def __init__(self, candidates: list[Tensor]) -> None:
        self._candidates = candidates
        self._sources: dict[int, Any] = {id(t): {"input": i} for i, t in enumerate(candidates)}
        self._calls: list[TapeCall] = []
        self._kept: list[Any] = []  # An address must not be used twice.

    def record(self, op: Any, args: Any, kwargs: Any) -> Any:
        values = op_schema(op).bind(args, kwargs)
        call = tape_call(op, values, self._source)
        results = op(*args, **kwargs)
        for place, one in enumerate(flat_results(results)):
            if isinstance(one, Tensor):
                self._sources[id(one)] = {"result": [len(self._calls), place]}
                self._kept.append(one)
        self._calls.append(call)
        return results

    def _source(self, tensor: Tensor) -> Any:
        if id(tensor) not in self._sources:
            found = data_source(tensor)
            assert found is not None, f"a tensor of unknown origin: {tensor.shape}"
            return found
        return self._sources[id(tensor)]

    def recorded(self, results: list[Tensor]) -> Recorded:
        """Return the tape, with the inputs that it reads only."""
        outputs = [self._source(one) for one in results]
        named = [source for call in self._calls for _, source in call.sources()] + outputs
        read = sorted({source["input"] for source in named if "input" in source})
        numbers = {old: new for new, old in enumerate(read)}

        def renumbered(source: Any) -> Any:
            return {"input": numbers[source["input"]]} if "input" in source else source

        calls = [call.with_sources(renumbered) for call in self._calls]
        tape = Tape.of(len(read), calls, [renumbered(one) for one in outputs])
        return Recorded(tape, [self._candidates[i] for i in read], results)


def module_tensors(module: torch.nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


class Attention(torch.nn.Module):
    """A block of a transformer: embedding, attention, a layer norm, a small network."""

    def __init__(self, hidden: int = 32, heads: int = 4, words: int = 50, layers: int = 1) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(words, hidden)
        self.layers = torch.nn.ModuleList([_Layer(hidden, heads) for _ in range(layers)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return hidden states ``(batch, tokens, hidden)`` of ``tokens: (batch, tokens)``."""
        x: Tensor = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


class _Layer(torch.nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(hidden, 3 * hidden)
        self.out = torch.nn.Linear(hidden, hidden)
        self.first, self.second = torch.nn.LayerNorm(hidden), torch.nn.LayerNorm(hidden)
        self.wide, self.narrow = (
            torch.nn.Linear(hidden, 4 * hidden),
            torch.nn.Linear(4 * hidden, hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        split = (batch, tokens, self.heads, hidden // self.heads)
        q, k, v = (one.view(split).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.first(x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, hidden)))
        inner = self.narrow(torch.nn.functional.gelu(self.wide(x)))
        normed: Tensor = self.second(x + inner)
        return normed


class Convolutions(torch.nn.Module):
    """A convolutional network with batch norms; for evaluation."""

    def __init__(self, channels: int = 8, layers: int = 2) -> None:
        super().__init__()
        sizes = [3, *[channels] * layers]
        self.blocks = torch.nn.Sequential(
            *[
                torch.nn.Sequential(
                    torch.nn.Conv2d(before, after, 3, padding=1),
                    torch.nn.BatchNorm2d(after),
                    torch.nn.SiLU(),
                )
                for before, after in itertools.pairwise(sizes)
            ]
        )
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return one value a channel and image."""
        means: Tensor = self.blocks(image).mean((2, 3))
        return means


def policy(sizes: Sequence[int] = (17, 64, 64, 6)) -> torch.nn.Sequential:
    """Return a small network of linear layers with tanh between them."""
    layers: list[torch.nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


class GraphLayer(torch.nn.Module):
    """A layer of a graph network: messages along edges, added up at their targets."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.message = torch.nn.Linear(width, width)

    def forward(self, nodes: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        """Return new values of the nodes ``(nodes, width)``; edges are two lists of numbers."""
        sent = torch.relu(self.message(nodes))[sources]
        return nodes + torch.zeros_like(nodes).index_add(0, targets, sent)


@contextlib.contextmanager
def registered(tape: Tape) -> Iterator[Any]:
    """Give the op of a region that runs the tape, registered to be served."""
    name = op_name(tape)
    library = new_op_library(NAMESPACE)
    replay = tape.replay_function()
    op = define(library, name, SCHEMA, TapeFunction(tape))
    library.impl(name.partition("::")[2], lambda inputs: replay(inputs), "CPU")
    try:
        with aoti_eager.register(name):
            yield op
    finally:
        forget(name)
        destroy(library)
