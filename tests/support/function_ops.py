"""Ops of a user's own, from torch.library.custom_op, with what their functions may use."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-6
WEIGHT = torch.linspace(-1, 1, 64)
_numbers = itertools.count()


def helper(tensor: Tensor, by: float = 2.0) -> Tensor:
    """Return something of ``tensor``: a function that another one calls."""
    return functional.silu(tensor) * by


def scale(x: Tensor, k: float = 2.0) -> Tensor:
    """Return ``x`` scaled: uses a global tensor, a global number and another function."""
    return helper(x * WEIGHT + EPS) * k * math.pi


def closing_over(weight: Tensor) -> Callable[..., Any]:
    """Return a function that closes over a tensor."""

    def weighted(x: Tensor) -> Tensor:
        return torch.tanh(x * weight)

    return weighted


def with_module(module: torch.nn.Module) -> Callable[..., Any]:
    """Return a function that closes over a module and calls it."""

    def normed(x: Tensor) -> Tensor:
        return torch.sigmoid(module(x))

    return normed


def with_parameters_of(linear: torch.nn.Linear) -> Callable[..., Any]:
    """Return a function that uses a module's parameters without calling it."""

    def shifted(x: Tensor) -> Tensor:
        return torch.tanh(x * linear.weight[0] + linear.bias)

    return shifted


def counting(counter: Tensor) -> Callable[..., Any]:
    """Return a function that writes to the tensor it closes over."""

    def counted(x: Tensor) -> Tensor:
        counter.add_(1)
        return torch.tanh(x) * counter

    return counted


def drawing(x: Tensor) -> Tensor:
    """Return ``x`` with noise: a random function without the tag of one."""
    return x + torch.rand_like(x)


def drawing_nothing(x: Tensor) -> Tensor:
    """Return zeros by a draw at a rate of zero, which moves the random stream all the same."""
    return torch.tanh(x) + torch.bernoulli(x, p=0.0)


def branching(x: Tensor) -> Tensor:
    """Return one of two things, depending on the data."""
    if x.sum() > 0:
        return torch.tanh(x) * 2
    return torch.tanh(x) * 3


def literal(x: Tensor) -> Tensor:
    """Return ``x`` with a tensor that the function makes: a constant of the graph."""
    table = torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5, 11.5])
    return torch.tanh(x[:, :12] * table)


def add_into(target: Tensor) -> Callable[..., Any]:
    """Return a function that writes to its argument and reads the tensor it closes over."""

    def added(x: Tensor) -> None:
        x.add_(torch.tanh(target.flip(0)))

    return added


@contextlib.contextmanager
def op_of(function: Callable[..., Any], mutates_args: tuple[str, ...] = ()) -> Iterator[str]:
    """Give the name of a new op that runs ``function``, while the block runs."""
    name = f"aoti_eager_tests::{function.__name__}_{next(_numbers)}"
    op = torch.library.custom_op(name, function, mutates_args=mutates_args)
    yield op._qualname


def call(name: str) -> Callable[..., Any]:
    """Return the op called ``name``."""
    namespace, _, base = name.partition("::")
    found: Callable[..., Any] = getattr(getattr(torch.ops, namespace), base)
    return found


STATE = {"calls": 0}
HELPER_CALLS: list[int] = []


def counting_in_a_dict(x: Tensor) -> Tensor:
    """Return ``x`` by a count that the function keeps."""
    STATE["calls"] += 1
    return x * STATE["calls"]


def appending(x: Tensor) -> Tensor:
    """Return ``x`` by the length of a list that grows with each call."""
    HELPER_CALLS.append(1)
    return x * len(HELPER_CALLS)


def writing(x: Tensor) -> Tensor:
    """Write to an argument that the op does not declare as mutated."""
    x.add_(1)
    return torch.tanh(x) * 2


def normalising(mean: Tensor, var: Tensor) -> Callable[..., Any]:
    """Return a function that updates running statistics."""

    def normalised(x: Tensor) -> Tensor:
        return torch.batch_norm(x, None, None, mean, var, True, 0.5, 1e-5, False)

    return normalised


def gathering(x: Tensor, places: Tensor) -> Tensor:
    """Return something that is looked up, which raises on indices out of range."""
    return torch.tanh(torch.gather(x, 0, places))


def dividing(x: Tensor) -> Tensor:
    """Return an integer quotient, which raises for a zero."""
    return torch.floor_divide(x, x - 1)
