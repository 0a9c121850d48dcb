"""Small modules for the tests of regions, and what the tests ask of a fused model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import aoti_eager
from aoti_eager import FusionReport, fuse
from aoti_eager._regions.arguments import read_arguments
from aoti_eager._regions.fuse import FusedFunction

from ..conftest import assert_close


class Policy(nn.Module):
    """A network of a policy: two hidden layers; an attribute decides on a branch."""

    def __init__(self, inputs: int = 5, hidden: int = 8, outputs: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs)
        self.scale = 2.0
        self.squashes = True

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) * self.scale
        x = self.second(x)
        return torch.tanh(x) if self.squashes else torch.sigmoid(x)


class Block(nn.Module):
    """A block of a transformer, by hand, with an embedding before it."""

    def __init__(self, words: int = 11, size: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(words, size)
        self.norm = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.dropout = nn.Dropout(0.1)
        self.heads = heads

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.words(ids)
        batch, length, size = x.shape
        parts = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, size // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        y = self.out(y.transpose(1, 2).reshape(batch, length, size))
        y = x + self.dropout(y)
        return {"last": y, "pooled": y.mean(1)}


class Convolutional(nn.Sequential):
    """Two convolutions with batch norms."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.Conv2d(4, 2, 3),
            nn.BatchNorm2d(2),
            nn.ReLU(),
        )


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a module in evaluation mode, with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make()
    return module.eval()


def inputs(*sizes: int, seed: int = 0) -> Tensor:
    """Return numbers that depend on sizes and seed alone."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def assert_same(got: Any, want: Any) -> None:
    """Compare results leaf by leaf, and the containers around them."""
    mine, my_spec = tree_flatten(got)
    theirs, their_spec = tree_flatten(want)
    assert type(got) is type(want)
    assert my_spec == their_spec
    for one, other in zip(mine, theirs, strict=True):
        if isinstance(other, Tensor):
            assert_close(one, other, equal_nan=True)
            assert one.stride() == other.stride()
            assert one.requires_grad == other.requires_grad
        else:
            assert type(one) is type(other)
            assert one == other


def hits(report: FusionReport) -> int:
    """Return how many calls the libraries of a fused model have served."""
    return sum(one.hits for one in report.regions)


def served(report: FusionReport, call: Callable[[], Any]) -> Any:
    """Return the result of a call that a library has served: as a rule the third one."""
    for _ in range(3):
        call()
    aoti_eager.wait()
    for _ in range(3):
        before = hits(report)
        result = call()
        if hits(report) > before:
            return result
    raise AssertionError(f"no library serves:\n{report}")


def assert_served(report: FusionReport, call: Callable[[], Any], want: Any) -> None:
    """Assert that a library serves a call, and that the result is right."""
    assert_same(served(report, call), want)


def assert_is_served_whole(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Assert that one library serves a model's calls, and that nothing else about it changes.

    Args:
        model: The model; its parameters are others afterwards.
        args: The arguments of the calls.
        kwargs: The keyword arguments of the calls.
    """
    before, kept = dict(model.state_dict()), set(vars(model))
    want = model(*args, **kwargs)
    with fuse(model) as report:
        assert_served(report, lambda: model(*args, **kwargs), want)
        (region,) = report.regions
        assert (region.path, region.state, region.reason) == ("", "served", ""), report
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(after[name].data_ptr() == one.data_ptr() for name, one in before.items())
        for one in model.parameters():
            one.mul_(0.5)
        with aoti_eager.config.scope(mode="off"):
            want = model(*args, **kwargs)
        served_before = hits(report)
        assert_same(model(*args, **kwargs), want)
        assert hits(report) == served_before + 1, report
    assert set(vars(model)) == kept
    assert_same(model(*args, **kwargs), want)


def recorded(model: Any, *given: Any) -> None:
    """Call a fused model so often that its calls are recorded twice."""
    for _ in range(3):
        look(model)
        model(*given)


def look(model: Any) -> None:
    """End the rest in which calls pass without a look, so that the next call looks."""
    fused = model if isinstance(model, FusedFunction) else vars(model).get("forward")
    if fused is not None:
        fused.region.stopped.waiting = None


def would_serve(model: Any, *given: Any) -> list[Tensor]:
    """Return the inputs that a library would get in this call; empty if none would serve.

    The guard and the key decide; whether the library is there does not count.
    """
    region = model.region if isinstance(model, FusedFunction) else vars(model)["forward"].region
    own, tensors = read_arguments(given, {})
    for variant in region.by_key.get((region.target.training, own), ()):
        taken = variant.inputs(tensors)
        if taken is not None and variant.has_key(taken):
            return list(taken)
    return []


def reason_of(report: FusionReport) -> str | None:
    """Return why the first region stops; ``None`` if it does not."""
    return report.regions[0].reason
