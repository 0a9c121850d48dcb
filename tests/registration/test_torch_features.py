"""What else PyTorch does works as before with ops registered."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import aoti_eager

from ..conftest import assert_close
from ..support import forked_python

pytestmark = pytest.mark.both_paths

OPS = ["aten::silu", "aten::silu_backward", "aten::mul.Tensor", "aten::sum.dim_IntList"]
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(5))


def function(x: torch.Tensor) -> torch.Tensor:
    return (torch.nn.functional.silu(x) * x).sum((0, 1))


@pytest.fixture
def registered(shared_cache: Path) -> Iterator[None]:
    """The function's ops, warm: what follows meets kernels that are in use."""
    with aoti_eager.register(OPS):
        x = X.clone().requires_grad_()
        for _ in range(2):
            function(x).backward()
        assert aoti_eager.stats()["aten::silu"].hits > 0
        yield


def expected(call: Any) -> Any:
    with aoti_eager.config.scope(mode="off"):
        return call()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(registered: None, backend: str) -> None:
    x = X.clone().requires_grad_()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    (got,) = torch.autograd.grad(compiled(x), x)
    (want,) = expected(lambda: torch.autograd.grad(function(x), x))
    assert_close(got, want)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch's own imports
def test_torch_compile_with_inductor(registered: None) -> None:
    torch.compiler.reset()
    got = torch.compile(function, fullgraph=True)(X)
    assert_close(got, expected(lambda: function(X)))


def test_torch_export(registered: None) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    program = torch.export.export(Module(), (X,))
    assert_close(program.module()(X), expected(lambda: function(X)))


def test_fake_tensor_mode(registered: None) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode:
        result = function(mode.from_tensor(X))
    assert isinstance(result, FakeTensor)
    assert result.shape == ()


def test_meta_tensors(registered: None) -> None:
    assert function(X.to("meta")).device.type == "meta"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch's own imports
def test_vmap_and_func_grad(registered: None) -> None:
    def row(x: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.silu(x) * x).sum()

    for call in (
        lambda: torch.func.vmap(row)(X),
        lambda: torch.func.grad(row)(X),
        lambda: torch.func.vmap(torch.func.grad(row))(X),
        lambda: torch.func.jvp(row, (X,), (X,)),
    ):
        assert_close(call(), expected(call))


def test_double_backward(registered: None) -> None:
    def call() -> torch.Tensor:
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return second

    assert_close(call(), expected(call))


def test_autocast(registered: None) -> None:
    w = torch.randn(8, 8)

    def call() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.nn.functional.silu(torch.nn.functional.linear(X, w)) * 2.0

    for _ in range(2):
        got = call()
        want = expected(call)
        assert got.dtype == want.dtype == torch.bfloat16
        assert_close(got, want)


def test_a_key_first_met_under_autocast_or_inference_mode_is_the_same_kernel(
    shared_cache: Path,
) -> None:
    """Nothing of the caller's thread leaks into the trace: it happens in another process."""
    x = torch.randn(3, 9)
    with aoti_eager.register("aten::silu"):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            torch.nn.functional.silu(x)
        before = aoti_eager.stats()["aten::silu"]
        y = x.clone().requires_grad_()
        got = torch.nn.functional.silu(y)
        after = aoti_eager.stats()["aten::silu"]
        got.sum().backward()
    assert after.hits == before.hits + 1
    assert_close(got, x * torch.sigmoid(x))
    assert y.grad is not None


def test_inference_mode_gives_inference_tensors(registered: None) -> None:
    with torch.inference_mode():
        got = torch.nn.functional.silu(X)
        assert got.is_inference()
    assert_close(got.clone(), expected(lambda: torch.nn.functional.silu(X)))


def test_a_hit_keeps_version_counters_and_leaf_checks(registered: None, shared_cache: Path) -> None:
    with aoti_eager.register("aten::add_.Tensor"):
        for _ in range(2):
            x = X.clone()
            version = x._version
            x.add_(X)
            assert x._version == version + 1
        leaf = X.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            leaf.add_(X)


def test_a_tensor_subclass_with_torch_dispatch(registered: None) -> None:
    class Wrapped(torch.Tensor):
        seen: list[str] = []  # noqa: RUF012 - a test's own

        @staticmethod
        def __new__(cls, data: torch.Tensor) -> Wrapped:
            return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)  # type: ignore[attr-defined,no-any-return]

        def __init__(self, data: torch.Tensor) -> None:
            self.data_ = data

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            cls.seen.append(str(func))
            plain = [a.data_ if isinstance(a, Wrapped) else a for a in args]
            return Wrapped(func(*plain, **(kwargs or {})))

    before = aoti_eager.stats()["aten::silu"].hits
    got = torch.nn.functional.silu(Wrapped(X))
    assert isinstance(got, Wrapped)
    assert Wrapped.seen == ["aten.silu.default"]
    assert aoti_eager.stats()["aten::silu"].hits == before + 1
    assert_close(got.data_, expected(lambda: torch.nn.functional.silu(X)))


def test_a_plain_subclass_and_a_parameter(registered: None) -> None:
    class Plain(torch.Tensor):
        pass

    for x in (X.as_subclass(Plain), torch.nn.Parameter(X.clone())):
        got = torch.nn.functional.silu(x)
        want = expected(lambda x=x: torch.nn.functional.silu(x))
        assert type(got) is type(want)
        assert_close(got.detach(), want.detach())


def test_a_dispatch_mode_sees_the_calls_and_nothing_of_ours(shared_cache: Path) -> None:
    class Log(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 11)
    with aoti_eager.register("aten::silu"):
        for _ in range(2):  # a miss with its check, then a hit
            with Log() as log:
                torch.nn.functional.silu(x)
            assert log.seen == ["aten.silu.default"]


def test_random_streams_are_the_originals(registered: None) -> None:
    """Neither a miss with its check nor a hit draws from the generator."""

    def call() -> torch.Tensor:
        torch.manual_seed(11)
        first = torch.randn(3)
        torch.nn.functional.silu(first.expand(2, 3).contiguous())
        return torch.randn(3)

    assert_close(call(), expected(call), rtol=0, atol=0)


def test_deepcopy_pickle_and_printing(registered: None) -> None:
    import copy
    import pickle

    with aoti_eager.config.scope(mode="cache_only"):
        assert torch.equal(copy.deepcopy(X), X)
        assert torch.equal(pickle.loads(pickle.dumps(X)), X)  # noqa: S301 - our own bytes
        assert "tensor" in repr(X)


REGISTERED_UNDER_MODES = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import aoti_eager
with FakeTensorMode(), torch.device("meta"):
    aoti_eager.register("aten::mul.Tensor")
from aoti_eager._base.torch_compat.tensors import wrapped_number
print(repr(wrapped_number(2.5)), torch.ones(2) * 2.5)
"""


def test_an_op_is_registered_under_the_modes_of_its_thread(cache_dir: Path) -> None:
    """What the first registration makes once for the process is made of real tensors."""
    done = forked_python.run(
        [sys.executable, "-c", REGISTERED_UNDER_MODES],
        env={
            **os.environ,
            "AOTI_EAGER_CACHE_DIR": str(cache_dir),
            # No kernel is needed, so none is made.
            "AOTI_EAGER_MODE": "cache_only",
        },
        capture_output=True,
        text=True,
    )
    printed = "tensor(2.5000, dtype=torch.float64) tensor([2.5000, 2.5000])"
    assert done.stdout.split() == printed.split(), done.stderr


def test_a_subclass_with_a_strict_torch_function_is_left_alone(shared_cache: Path) -> None:
    class Strict(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__name__", "") in ("silu", "sum", "backward"):
                return super().__torch_function__(func, types, args, kwargs or {})
            raise TypeError(f"Strict does not support {func}")

    plain = torch.randn(8, 8)
    with aoti_eager.register(["aten::silu", "aten::silu_backward"]):
        for _ in range(2):
            x = plain.clone().requires_grad_()
            with torch._C.DisableTorchFunctionSubclass():
                strict = x.as_subclass(Strict)
            torch.nn.functional.silu(strict).sum().backward()
    assert x.grad is not None
    s = torch.sigmoid(plain)
    assert_close(x.grad.as_subclass(torch.Tensor), s * (1 + plain * (1 - s)))
