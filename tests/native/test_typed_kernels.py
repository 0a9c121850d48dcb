"""Calls with C++ values: the C++ kernel takes them without boxes, and does what boxed calls get."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.op_names import find_overload
from aoti_eager._base.torch_compat.dispatcher import has_computed_kernel
from aoti_eager._base.torch_compat.tensors import wrapped_number
from aoti_eager._commands.run import DEFAULT_OPS
from aoti_eager._keys.key_words import argument_kind
from aoti_eager._keys.schema import Kind, OpSchema, op_schema
from aoti_eager._native import op_kernel
from aoti_eager._registration import registry

from ..support.calls import examples, keyable_schemas

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("shared_cache")]

CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
NUMBERS = (bool, int, float, complex)

# Of each kind of op that can win, besides what ``run`` registers.
OTHER_OPS = (
    "abs",
    "add.Tensor",
    "add_.Tensor",
    "add.out",
    "add.Scalar",
    "addcmul",
    "addcdiv_",
    "all.dim",
    "amax",
    "any.dims",
    "argmax",
    "cat",
    "cat.out",
    "clamp",
    "clamp_",
    "clamp.Tensor",
    "cumsum",
    "div.Tensor_mode",
    "elu",
    "elu_backward",
    "eq.Tensor",
    "exp.out",
    "flip",
    "gelu",
    "gelu_",
    "gelu.out",
    "glu",
    "hardtanh",
    "huber_loss_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "lerp.Scalar",
    "lerp.Tensor",
    "log_sigmoid_forward",
    "logit",
    "lt.Scalar",
    "masked_fill.Scalar",
    "max.dim",
    "mean",
    "mean.dim",
    "mse_loss",
    "mse_loss_backward",
    "mul.Tensor",
    "mul_.Tensor",
    "mul.out",
    "nan_to_num",
    "native_group_norm_backward",
    "pow.Scalar",
    "relu_",
    "sigmoid",
    "softplus_backward",
    "_softmax.out",
    "stack",
    "std.correction",
    "sum",
    "sum.dim_IntList",
    "threshold_backward",
    "tril",
    "where.self",
)


class Pair:
    """An op with our kernel in the dispatcher, to be called on both ways."""

    def __init__(self, schema: OpSchema) -> None:
        self.overload: Any = find_overload(schema.op)
        self.schema = schema
        kinds = [argument_kind(argument) for argument in schema.arguments]
        mutated = [argument.mutated for argument in schema.arguments]
        self.op = op_kernel.NativeOp(schema.op, "CPU", kinds, mutated)
        self.op.install()
        self._kernel = torch.library.get_kernel(self.overload, "CPU")

    def words(self, values: Sequence[Any]) -> tuple[bytes | None, bytes | None]:
        """Return the words of a call's key, boxed and typed; ``None`` for no valid call.

        What autograd calls, it calls with C++ values.
        """
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument, value in zip(self.schema.arguments, values, strict=True):
            is_number = argument.kind is Kind.TENSOR and isinstance(value, NUMBERS)
            taken = wrapped_number(value) if is_number else value
            if argument.kwarg_only:
                kwargs[argument.name] = taken
            else:
                args.append(taken)
        boxed = self._words(lambda: self._kernel.call_boxed(CPU, *args, **kwargs), typed=False)
        return boxed, self._words(lambda: self.overload(*args, **kwargs), typed=True)

    def _words(self, call: Callable[[], Any], *, typed: bool) -> bytes | None:
        self.op.set_state(op_kernel.RECORD)
        try:
            with torch.no_grad():
                call()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if "the key is recorded" not in str(error):
                return None
            return op_kernel.recorded_key() if op_kernel.recorded_by_typed() == typed else None
        finally:
            self.op.set_state(op_kernel.PASS)
        return None

    def close(self) -> None:
        """Take the kernel out."""
        self.op.uninstall()
        self.op.close()


def compared_words(pair: Pair) -> int:
    """Compare the words of both ways, for samples of each argument; return how many calls."""
    compared, schema = 0, pair.schema
    base = [next(iter(examples(argument)), None) for argument in schema.arguments]
    for position, argument in enumerate(schema.arguments):
        for value in examples(argument):
            values = [*base[:position], value, *base[position + 1 :]]
            if schema.op == "aten::_stack" and not values[0]:
                continue  # Torch crashes, with nothing of ours registered.
            boxed, typed = pair.words(values)
            if boxed is not None and typed is not None:
                compared += 1
                assert typed == boxed, f"{schema.op}: {argument.name}={value!r}"
    return compared


def test_every_typed_call_has_the_words_of_the_boxed_one() -> None:
    """Each argument of each op with a typed kernel once, with a sample of its values."""
    ops, calls = 0, 0
    for schema in keyable_schemas():
        if has_computed_kernel(schema.op, "CPU"):
            with contextlib.closing(Pair(schema)) as pair:
                compared = compared_words(pair) if pair.op.is_typed else 0
            ops += compared > 0
            calls += compared
    assert ops > 300
    assert calls > 3000


@pytest.mark.parametrize("op", [*DEFAULT_OPS, *(f"aten::{name}" for name in OTHER_OPS)])
def test_the_ops_that_can_win_have_typed_kernels(op: str) -> None:
    with contextlib.closing(Pair(op_schema(find_overload(op)))) as pair:
        assert pair.op.is_typed


def test_ops_of_others_have_boxed_kernels() -> None:
    """They may be defined again, with another signature, while a kernel of ours stays."""
    with torch.library._scoped_library("aoti_typed_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CPU")
        with contextlib.closing(Pair(op_schema(find_overload("aoti_typed_test::twice")))) as pair:
            assert not pair.op.is_typed
            assert torch.equal(pair.overload(torch.ones(2)), torch.full((2,), 2.0))


def test_an_original_of_pythons_has_a_boxed_kernel() -> None:
    """It would be called with boxes all the same."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("erfc", lambda x: x + 1, "CPU")
        with contextlib.closing(Pair(op_schema(find_overload("aten::erfc")))) as pair:
            assert not pair.op.is_typed
            assert torch.equal(torch.erfc(torch.ones(2)), torch.full((2,), 2.0))


# -- what becomes of calls --

x = torch.linspace(-2, 2, 12).reshape(3, 4)

CALLS: dict[str, Callable[[], Any]] = {
    "aten::tanh": lambda: torch.tanh(x),
    "aten::mul.Tensor": lambda: torch.mul(x, 2.5),
    "aten::mul_.Tensor": lambda: x.clone().mul_(x),
    "aten::mul.out": lambda: torch.mul(x, x, out=torch.empty(3, 4)),
    "aten::cat": lambda: torch.cat([x, x[:, :0], x], 1),
    "aten::var_mean.correction": lambda: torch.var_mean(x, [1], correction=1),
    "aten::native_layer_norm": lambda: torch.native_layer_norm(x, [4], None, x[0], 1e-5),
    "aten::native_layer_norm_backward": lambda: torch.ops.aten.native_layer_norm_backward(
        x, x, [4], x[:, :1], x[:, :1], x[0], None, [True, False, False]
    ),
    "aten::clamp": lambda: torch.clamp(x, min=-1.0),
    "aten::sum.dim_IntList": lambda: x.sum([0], dtype=torch.float64),
    "aten::gelu": lambda: torch.nn.functional.gelu(x, approximate="tanh"),
}


def counted(op: str) -> aoti_eager.OpStats:
    """Return what happened to calls of ``op``."""
    name = op_schema(find_overload(op)).op
    (cache,) = (cache for cache in registry.caches() if cache.schema.op == name)
    assert cache.native is not None
    assert cache.native.is_typed
    return cache.counters.snapshot()


def same(found: Any, expected: Any) -> bool:
    """Return whether two results are the same, undefined tensors included."""
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found is expected is None or torch.equal(found, expected)


@pytest.mark.parametrize("op", CALLS)
def test_declined_calls_are_the_originals_in_every_bit(op: str, tmp_path: Path) -> None:
    call = CALLS[op]
    expected = call()
    with (
        aoti_eager.config.scope(mode="cache_only", cache_dir=tmp_path, recheck=False),
        aoti_eager.register(op),
    ):
        for _ in range(3):
            assert same(call(), expected)
        assert counted(op).declined == {"not_in_cache": 3}


@pytest.mark.parametrize("op", CALLS)
def test_hits_are_what_boxed_hits_are(op: str) -> None:
    call = CALLS[op]
    call()
    config = aoti_eager.config
    with (
        config.scope(mode="sync", gate=False, dynamic=False, recheck=False),
        aoti_eager.register(op),
    ):
        call()
        typed = call()
        assert counted(op).hits >= 1
        with torch._C._AutoDispatchBelowAutograd():
            boxed = call()
    assert same(typed, boxed)


@pytest.mark.parametrize("mode", ["sync", "cache_only"])
def test_in_place_and_out_return_the_callers_tensor(mode: Any, tmp_path: Path) -> None:
    with (
        aoti_eager.config.scope(mode=mode, gate=False, dynamic=False, recheck=False),
        aoti_eager.register(["aten::mul_.Tensor", "aten::mul.out"]),
    ):
        for _ in range(3):
            y, out = x.clone(), torch.empty(3, 4)
            version = y._version
            assert y.mul_(x) is y
            assert y._version == version + 1
            assert torch.mul(x, x, out=out) is out
            assert torch.equal(y, x * x)
            assert torch.equal(out, x * x)


INVALID: dict[str, Callable[[], Any]] = {
    "aten::mul.Tensor": lambda: torch.mul(torch.ones(2), torch.ones(3)),
    "aten::cat": lambda: torch.cat([torch.ones(2, 2), torch.ones(3, 3)], 1),
    "aten::_softmax": lambda: torch.softmax(torch.ones(2, 2), 5),
    "aten::gelu": lambda: torch.nn.functional.gelu(torch.ones(2), approximate="other"),
    "aten::mul_.Tensor": lambda: torch.ones(2, dtype=torch.int64).mul_(1.5),
}


@pytest.mark.parametrize("op", INVALID)
@pytest.mark.parametrize("mode", ["sync", "cache_only", "off"])
def test_an_exception_of_the_original_is_its_own(op: str, mode: Any) -> None:
    call = INVALID[op]
    with pytest.raises((RuntimeError, IndexError)) as expected:
        call()
    with (
        aoti_eager.config.scope(mode=mode),
        aoti_eager.register(op),
    ):
        for _ in range(3):
            with pytest.raises(type(expected.value)) as found:
                call()
            assert type(found.value) is type(expected.value)
            assert str(found.value) == str(expected.value)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_and_compiled_callers_are_served_and_right() -> None:
    def function(a: torch.Tensor) -> torch.Tensor:
        return torch.tanh(a) * a

    expected = function(x)
    scripted = torch.jit.trace(function, (x,))
    compiled = torch.compile(function, backend="aot_eager")
    with (
        aoti_eager.config.scope(mode="sync", gate=False, dynamic=False, recheck=False),
        aoti_eager.register("aten::tanh"),
    ):
        function(x)
        for one in (scripted, compiled):
            before = counted("aten::tanh").hits
            torch.testing.assert_close(one(x), expected)
            torch.testing.assert_close(one(x), expected)
            assert counted("aten::tanh").hits > before


def test_gradients_go_through() -> None:
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(torch.tanh(leaf).sum(), leaf)[0]
    config = aoti_eager.config
    with (
        config.scope(mode="sync", gate=False, dynamic=False, recheck=False),
        aoti_eager.register(["aten::tanh", "aten::tanh_backward"]),
    ):
        for _ in range(3):
            found = torch.autograd.grad(torch.tanh(leaf).sum(), leaf)[0]
            torch.testing.assert_close(found, expected)
        assert counted("aten::tanh_backward").hits >= 1


def test_calls_of_many_threads_are_counted_each(tmp_path: Path) -> None:
    """More threads than counters have parts of their own."""
    threads, calls = 20, 200
    with (
        aoti_eager.config.scope(mode="cache_only", cache_dir=tmp_path),
        aoti_eager.register("aten::tanh"),
    ):
        torch.tanh(x)
        begin = threading.Barrier(threads)

        def work() -> None:
            begin.wait()
            for _ in range(calls):
                torch.tanh(x)

        running = [threading.Thread(target=work) for _ in range(threads)]
        for one in running:
            one.start()
        for one in running:
            one.join()
        assert counted("aten::tanh").declined == {"not_in_cache": threads * calls + 1}
