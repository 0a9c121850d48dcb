"""Calls of fused models under traces, modes, profilers and functorch; tensor subclasses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from aoti_eager import fuse

from ..support.regions import Policy, assert_same, assert_served, hits, inputs, seeded, served

pytestmark = pytest.mark.native


class _DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.tanh else result


def _profiled(model: nn.Module, x: Tensor) -> Any:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        return model(x)


def _traced_by_python(model: nn.Module, x: Tensor) -> Any:
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        return model(x)
    finally:
        sys.settrace(before)


def _profiled_by_python(model: nn.Module, x: Tensor) -> Any:
    seen: list[str] = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        result = model(x)
        assert sys.getprofile() is not None
        return result
    finally:
        sys.setprofile(None)
        assert seen


def _under(mode: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Any]:
    def call(model: nn.Module, x: Tensor) -> Any:
        with mode():
            return model(x)

    return call


def _jvp(model: nn.Module, x: Tensor) -> Any:
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))


def _functional(model: nn.Module, x: Tensor) -> Any:
    weights = {name: one * 2 for name, one in model.named_parameters()}
    return torch.func.functional_call(model, weights, (x,))


def _gradient(model: nn.Module, x: Tensor) -> Any:
    with torch.enable_grad():
        return torch.func.grad(lambda one: model(one).sum())(x)


WAYS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "functional_call": _functional,
    "vmap": lambda model, x: torch.func.vmap(model)(x),
    "jvp": _jvp,
    "grad": _gradient,
    "a dispatch mode": _under(_DispatchMode),
    "a function mode": _under(_FunctionMode),
    "autocast": _under(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "inference mode": _under(torch.inference_mode),
    "a profiler": _profiled,
    "sys.settrace": _traced_by_python,
    "sys.setprofile": _profiled_by_python,
    "jit.trace": lambda model, x: torch.jit.trace(model, (x,), check_trace=False)(x),
    "conjugated": lambda model, x: model(torch.complex(x, x).conj().real),
    "inference tensors": lambda model, x: model(_inference_tensor(x)),
    "vmap over weights": lambda model, x: torch.func.vmap(
        lambda weight: torch.func.functional_call(model, {"first.weight": weight}, (x,))
    )(torch.stack([torch.ones(8, 5), torch.zeros(8, 5)])),
}


def _inference_tensor(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("name", WAYS)
def test_a_call_in_another_way_gives_what_the_plain_model_gives(name: str, is_warm: bool) -> None:
    model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
    way = WAYS[name]
    want = plain(x)
    with fuse(model) as report:
        if is_warm:
            served(report, lambda: model(x))
        for _ in range(3):
            assert_same(way(model, x), way(plain, x))
        assert_served(report, lambda: model(x), want)
        assert_same(way(model, x), way(plain, x))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["compile", "inside", "export"])
def test_a_fused_model_can_be_compiled_and_exported(way: str) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        before = hits(report)
        torch._dynamo.reset()
        if way == "compile":
            made: Any = torch.compile(model, backend="eager")
        elif way == "inside":
            made = torch.compile(lambda one: model(one) + 0, backend="eager")
        else:
            made = torch.export.export(model, (x,)).module()
        assert_same(made(x), want)
        assert_same(made(x), want)
        assert hits(report) == before
        assert_served(report, lambda: model(x), want)
    torch._dynamo.reset()


def test_a_fake_mode_around_a_call_takes_the_plain_way() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.empty(4, 5)).shape == (4, 3)
        assert_served(report, lambda: model(x), seeded(Policy)(x))


class Sub(Tensor):
    """A subclass whose ops are plain tensors' ops."""


def test_subclasses_sparse_and_quantized_arguments_run_as_they_are() -> None:
    class Any_(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.dequantize() * 2 if x.is_quantized else x * 2 * 1.5

    for make in (
        lambda: inputs(4, 5).as_subclass(Sub),
        lambda: inputs(4, 5).to_sparse(),
    ):
        model, plain = Any_(), Any_()
        with fuse(model) as report:
            for _ in range(4):
                got, want = model(make()), plain(make())
                assert type(got) is type(want)
                assert_same(
                    (got.to_dense() if got.is_sparse else got.as_subclass(Tensor)),
                    (want.to_dense() if want.is_sparse else want.as_subclass(Tensor)),
                )
            assert hits(report) == 0
            assert report.regions[0].reason == "unsupported_argument"


def test_a_parameter_of_a_subclass_runs_as_it_is() -> None:
    class Logged(Tensor):
        calls = 0

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            Logged.calls += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    model, x = seeded(Policy), inputs(4, 5)
    model.first.weight = nn.Parameter(model.first.weight.data.as_subclass(Logged))
    want = model(x)
    with fuse(model) as report:
        for _ in range(5):
            before = Logged.calls
            got = model(x)
            assert Logged.calls > before
            assert type(got) is type(want)
            assert_same(got.as_subclass(Tensor), want.as_subclass(Tensor))
        assert hits(report) == 0
