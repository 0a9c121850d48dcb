"""Ops that are made of others: served, and with all that being decomposed gives them.

Each test but the first fails with a plain kernel at the CPU key: ``plain`` shows it for some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import aoti_eager
from aoti_eager import stats
from aoti_eager.errors import CompositeImplicitOpError

from ..conftest import assert_close

OP, BACKWARD = "aten::rms_norm", "aoti_eager::_aten_rms_norm_backward"


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.size(-1),), weight, 1e-6)


def original(function: Callable[..., Any], *args: Any) -> Any:
    with aoti_eager.config.scope(mode="off"):
        return function(*args)


def pair(requires_grad: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*n, generator=generator, dtype=dtype) for n in ((3, 5), (5,)))
    return x.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)


def gradients(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(rms_norm(x, weight).pow(2).sum(), (x, weight))


@pytest.fixture
def registered(shared_cache: Path) -> Iterator[aoti_eager.Registration]:
    with aoti_eager.register(OP) as registration:
        yield registration


@pytest.fixture
def plain() -> Iterator[None]:
    """A kernel at the CPU key alone, which computes without autograd, as a library does."""
    library = torch.library.Library("aten", "IMPL")
    kernel = torch.library.get_kernel(OP, "CPU")

    def run(keys: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return kernel.call_boxed(keys, *args, **kwargs)

    library.impl("rms_norm", run, "CPU", with_keyset=True)
    yield
    library._destroy()


@pytest.mark.full
@pytest.mark.both_paths
def test_calls_are_served(registered: aoti_eager.Registration) -> None:
    x, weight = pair(requires_grad=False)
    for _ in range(3):
        assert_close(rms_norm(x, weight), original(rms_norm, x, weight))
    assert registered.ops == (OP,)
    assert stats()[OP].hits >= 1
    with torch.inference_mode():
        rms_norm(x, weight)
    assert stats()[OP].hits >= 2


def test_explain_is_of_the_op_itself(registered: aoti_eager.Registration) -> None:
    x, weight = pair()
    gradients(x, weight)
    for op in (OP, torch.ops.aten.rms_norm.default):
        explained = aoti_eager.explain(op, x, [5], weight, 1e-6)
        assert (explained.op, explained.gradient) == (OP, "a backward kernel serves it")


@pytest.mark.both_paths
def test_gradients_are_compiled(registered: aoti_eager.Registration) -> None:
    x, weight = pair()
    want = original(gradients, x, weight)
    for _ in range(4):
        assert_close(gradients(x, weight), want)
    assert stats()[BACKWARD].hits >= 2
    assert stats()[BACKWARD].compiles <= 1
    double = pair(dtype=torch.float64)
    assert torch.autograd.gradcheck(rms_norm, double)
    assert torch.autograd.gradgradcheck(rms_norm, double)


def test_a_plain_kernel_has_none(plain: None) -> None:
    x, weight = pair()
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        found = torch.autograd.grad(rms_norm(x, weight).sum(), (x, weight), allow_unused=True)
    assert found == (None, None)


def test_torch_func(registered: aoti_eager.Registration) -> None:
    x, weight = pair(requires_grad=False)

    def loss(one: Tensor) -> Tensor:
        return rms_norm(one, weight).pow(2).sum()

    assert_close(torch.func.grad(loss)(x), original(torch.func.grad(loss), x))
    batch = torch.stack([x, x + 1])
    mapped = torch.vmap(lambda one: rms_norm(one, weight))
    assert_close(mapped(batch), original(mapped, batch))


def test_torch_compile_with_a_backward(registered: aoti_eager.Registration) -> None:
    x, weight = pair()
    torch.compiler.reset()
    compiled = torch.compile(rms_norm, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, weight).pow(2).sum(), (x, weight))
    assert_close(got, original(gradients, x, weight))


@pytest.mark.both_paths
def test_autocast(registered: aoti_eager.Registration) -> None:
    def calls(x: Tensor, other: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            product = x @ other
            found = [torch.inner(x, other), torch.inner(product, product)]
            with torch.inference_mode():
                found.append(torch.inner(x, other))
        return found

    with aoti_eager.register("aten::inner"):
        x, other = torch.randn(4, 4), torch.randn(4, 4)
        for _ in range(2):  # Served where there is no autocast, and not under it.
            torch.inner(x, other)
        got, want = calls(x, other), original(calls, x, other)
        assert [one.dtype for one in got] == [one.dtype for one in want] == [torch.bfloat16] * 3
        got, want = calls(x.requires_grad_(), other), original(calls, x, other)
        assert [one.dtype for one in got] == [one.dtype for one in want]


def test_what_is_written_to_is_left_to_the_original(shared_cache: Path) -> None:
    """Version counters and the check of leaves are those of what it decomposes into."""
    with pytest.raises(CompositeImplicitOpError, match="takes tensors and returns new ones"):
        aoti_eager.register("aten::selu_")
    x = torch.ones(3, requires_grad=True)
    with aoti_eager.register("aten::selu"):
        with pytest.raises(RuntimeError, match="a leaf Variable"):
            torch.selu_(x)
        inner = x * 1
        version = inner._version
        torch.selu_(inner)
        assert inner._version == version + 1


def test_unregistering_gives_all_of_it_back(shared_cache: Path) -> None:
    before = [str(torch.library.get_kernel(OP, key)) for key in ("CPU", "AutogradCPU")]
    with aoti_eager.register(OP):
        gradients(*pair())
    after = [str(torch.library.get_kernel(OP, key)) for key in ("CPU", "AutogradCPU")]
    assert after == before
    assert type(rms_norm(*pair()).grad_fn).__name__ == "MulBackward0"
    assert aoti_eager.registered_ops() == []
