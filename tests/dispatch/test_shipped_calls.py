"""Calls with the settings as they ship: values, layouts, aliasing, writes, errors, threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager._base.settings import SETTINGS

from ..support.shipped import assert_nothing_failed, assert_same, check, settle, since

pytestmark = pytest.mark.shipped

aten = torch.ops.aten


def f32(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(7))


X, Y = f32(8, 8), f32(8, 8) + 1


def test_the_settings_are_those_that_ship() -> None:
    chosen = {"cache_dir", "linger_s"}  # A store of the tests', and nothing lingers beside them.
    for name in SETTINGS.keys() - chosen:
        assert getattr(aoti_eager.config, name) == SETTINGS[name].default, name


HARD = {
    "ordinary": [0.5, -1.25, 3.0],
    "zeros": [0.0, -0.0],
    "not numbers": [math.nan, 1.0],
    "infinite": [math.inf, -math.inf, 2.0],
    "denormal": [1e-40, -1e-41, 1e-45],
    "large": [88.0, -88.0, 3e38, -3e38],
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("op", ["silu", "mul"])
def test_values(name: str, op: str) -> None:
    """All with the same two kernels."""
    x = torch.tensor(HARD[name]).repeat(64)[:64].reshape(8, 8)
    if op == "silu":
        check(lambda: aten.silu(x), "aten::silu")
    else:
        check(lambda: x * Y, "aten::mul.Tensor")


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("aten::silu", lambda: aten.silu(X.bfloat16())),
        ("aten::add.Tensor", lambda: torch.arange(64).reshape(8, 8) + torch.ones(8, 8).long()),
        ("aten::mul.Tensor", lambda: X.double() * Y.double()),
        ("aten::mul.Tensor", lambda: X * 2.5),
        ("aten::var_mean.correction", lambda: torch.var_mean(X, 1)),
    ],
    ids=["bfloat16", "int64", "float64", "a number", "two results"],
)
def test_dtypes_and_kinds_of_arguments(op: str, call: Callable[[], Any]) -> None:
    check(call, op)


VIEWS: dict[str, Callable[[], Tensor]] = {
    "whole": lambda: X,
    "at an offset": lambda: f32(9, 8)[1:],
    "a slice of more columns, made contiguous": lambda: f32(8, 16)[:, :8].contiguous(),
    "transposed": lambda: X.t(),
    "transposed twice": lambda: X.t().t(),
    "detached": lambda: X.clone().requires_grad_().detach(),
    "a parameter": lambda: torch.nn.Parameter(X),
}


@pytest.mark.parametrize("name", VIEWS)
def test_layouts(name: str) -> None:
    x = VIEWS[name]()
    with torch.no_grad():
        check(lambda: aten.silu(x), "aten::silu")


def test_a_tensor_with_itself() -> None:
    check(lambda: X * X, "aten::mul.Tensor")


def in_place() -> Any:
    x = X.clone()
    y = x.add_(Y)
    return y is x, x, x._version


def into_out() -> Any:
    out = torch.full((8, 8), math.nan)
    got = torch.mul(X, Y, out=out)
    return got is out, out


def into_an_input() -> Any:
    x = X.clone()
    torch.mul(x, Y, out=x)
    return x


def into_a_row_of_more() -> Any:
    whole = torch.zeros(3, 8, 8)
    whole[1].add_(Y)
    return whole


def a_view_sees_it() -> Any:
    x = X.clone()
    row = x[2]
    x.add_(Y)
    return row, x


def into_what_overlaps() -> Any:
    x = X.clone().flatten()
    x[1:].add_(x[:-1])
    return x


def into_one_element_for_all() -> Any:
    return torch.zeros(1, 8).expand(8, 8).add_(Y)


def into_an_empty_out() -> Any:
    return torch.mul(X, Y, out=torch.empty(0))


def into_a_leaf() -> Any:
    x = X.clone().requires_grad_()
    return x.add_(Y)


WRITES: dict[str, tuple[Callable[[], Any], str]] = {
    "in place": (in_place, "aten::add_.Tensor"),
    "out": (into_out, "aten::mul.out"),
    "a row of more": (into_a_row_of_more, "aten::add_.Tensor"),
    "a view sees it": (a_view_sees_it, "aten::add_.Tensor"),
    "a leaf": (into_a_leaf, "aten::add_.Tensor"),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes(name: str) -> None:
    call, op = WRITES[name]
    check(call, op)


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (into_what_overlaps, "aten::add_.Tensor"),
        (into_one_element_for_all, "aten::add_.Tensor"),
        (into_an_input, "aten::mul.out"),
    ],
    ids=["a shifted view", "one element for all", "out is an input"],
)
def test_writes_to_what_overlaps_are_declined(call: Callable[[], Any], op: str) -> None:
    check(call, op, declined="mutated_argument_overlaps")


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning")
def test_an_out_that_is_resized_is_declined() -> None:
    check(lambda: torch.mul(X, Y, out=torch.ones(2)), "aten::mul.out", declined="out_resized")
    check(into_an_empty_out, "aten::mul.out", declined="out_resized")


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "sizes": (lambda: X + f32(7, 8), "aten::add.Tensor"),
    "sizes of a product": (lambda: torch.mm(X, f32(7, 8)), "aten::mm"),
    "a dtype": (lambda: aten.silu(torch.ones(8, 8, dtype=torch.int64)), "aten::silu"),
    "a dtype of out": (lambda: torch.mul(X, Y, out=torch.ones(8, 8).long()), "aten::mul.out"),
    "a dtype in place": (lambda: torch.ones(8, 8).long().add_(Y), "aten::add_.Tensor"),
    "a dimension": (lambda: torch.var_mean(X, 5), "aten::var_mean.correction"),
    "an argument's type": (lambda: aten.silu("x"), "aten::silu"),  # type: ignore[arg-type]
    "too many arguments": (lambda: aten.silu(X, X), "aten::silu"),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_originals(name: str) -> None:
    call, op = ERRORS[name]
    with pytest.raises((RuntimeError, IndexError, TypeError)):
        call()
    check(call, op)


def test_sizes_that_vary() -> None:
    """One kernel for a size, and later one for many; each call is right, whichever serves."""
    xs = [f32(rows, 8) for rows in (3, 5, 6, 9, 12, 33)]
    with aoti_eager.config.scope(mode="off"):
        wants = [aten.silu(x) for x in xs]
    with aoti_eager.register("aten::silu"):
        before = aoti_eager.stats()
        for _ in range(2):
            for x, want in zip(xs[:3], wants[:3], strict=True):
                for got in settle(lambda x=x: aten.silu(x)):
                    assert_same(got, want)
        for x, want in zip(xs, wants, strict=True):
            for _ in range(4):
                assert_same(aten.silu(x), want)
        assert aoti_eager.wait()
        for x, want in zip(xs, wants, strict=True):
            assert_same(aten.silu(x), want)
        assert aoti_eager.wait()
        after = {"aten::silu": since(before, "aten::silu", aoti_eager.stats()["aten::silu"])}
    assert_nothing_failed({"aten::silu": after["aten::silu"]})


@pytest.mark.parametrize("call", [lambda: aten.silu(X), in_place], ids=["silu", "in place"])
def test_threads(call: Callable[[], Any]) -> None:
    """Before there is a kernel, and after: ``wait`` is for when no other thread calls."""
    op = "aten::add_.Tensor" if call is in_place else "aten::silu"
    with aoti_eager.config.scope(mode="off"):
        want = call()

    def calls(_: int) -> list[Any]:
        return [call() for _ in range(20)]

    with aoti_eager.register(op), ThreadPoolExecutor(4) as threads:
        before = aoti_eager.stats()
        got = [one for some in threads.map(calls, range(4)) for one in some]
        assert aoti_eager.wait()
        got += [one for some in threads.map(calls, range(4)) for one in some]
        got += settle(call)
        after = {op: since(before, op, aoti_eager.stats()[op])}
    for one in got:
        assert_same(one, want)
    assert_nothing_failed(after)
    assert after[op].calls == len(got)


def test_a_kernel_that_came_serves() -> None:
    """The gate is off: whether a small kernel wins is the machine's."""
    with aoti_eager.config.scope(gate=False), aoti_eager.register("aten::silu"):
        before = aoti_eager.stats().get("aten::silu", aoti_eager.OpStats()).hits
        want = aten.silu(X)
        for got in settle(lambda: aten.silu(X)):
            assert_same(got, want)
        assert aoti_eager.stats()["aten::silu"].hits - before >= 4
