"""What registering costs: its work grows with the ops, and nothing is generated before a call."""

from __future__ import annotations

import cProfile
import pstats
import sys
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.torch_compat.dispatcher import OpOverload
from aoti_eager._dispatch import kernel_cache
from aoti_eager._enable.op_set import shipped
from aoti_eager._native.op_kernel import NativeOp
from aoti_eager._registration import registry
from aoti_eager._registration.resolve import has_composite_kernel, resolve
from aoti_eager.errors import NativePathError

pytestmark = pytest.mark.native

NAMES = shipped().ops("all", "")


def plain_ops() -> list[OpOverload]:
    """Return ops of the set that are not made of others."""
    found = [resolve(name, "CPU")[0][0] for name in NAMES]
    return [op for op in found if not has_composite_kernel(op, "CPU")]


def calls_of(register: Any) -> int:
    """Return how many functions are called: the same on every machine, however busy it is."""
    profile = cProfile.Profile()
    profile.runcall(register)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def looked_at(op: OpOverload) -> None:
    """Do once what any registration does: find the op by its name, and put a kernel there."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl(resolve(op.name(), "CPU")[0][0], lambda *a: None, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
    library._destroy()  # type: ignore[no-untyped-call]


def test_an_op_costs_as_much_as_the_one_before() -> None:
    ops = plain_ops()
    half = len(ops) // 2
    registered = [aoti_eager.register(ops[0])]  # What is imported and read once.
    costs = [
        sum(calls_of(lambda op=op: registered.append(aoti_eager.register(op))) for op in part)
        for part in (ops[1:half], ops[half : 2 * half - 1])
    ]
    for one in registered:
        one.unregister()
    assert costs[1] < 1.3 * costs[0], "registering looks at what is registered already"
    assert costs[0] < 12 * sum(calls_of(lambda op=op: looked_at(op)) for op in ops[1:half])


def test_python_is_generated_at_an_ops_first_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[str] = []
    generate = kernel_cache.python_kernel

    def noted(cache: Any) -> Any:
        generated.append(cache.schema.op)
        return generate(cache)

    monkeypatch.setattr("aoti_eager._dispatch.python_kernel.python_kernel", noted)
    x = torch.linspace(-2, 2, 16).reshape(4, 4)
    with aoti_eager.register(["aten::silu.default", "aten::tanh.default"]):
        assert generated == []
        want = torch.nn.functional.silu(x)
        assert generated == ["aten::silu"]
        for _ in range(3):
            assert torch.equal(torch.nn.functional.silu(x), want)
        assert generated == ["aten::silu"]
        assert aoti_eager.stats()["aten::silu"].hits == 3


def test_a_first_call_without_room_on_the_stack_runs_the_original(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(cache: Any) -> Any:
        raise RecursionError("maximum recursion depth exceeded")

    x = torch.linspace(-2, 2, 16).reshape(4, 4)
    want = torch.tanh(x)
    with aoti_eager.register("aten::tanh.default"):
        with monkeypatch.context() as patched:
            patched.setattr("aoti_eager._dispatch.python_kernel.python_kernel", full)
            assert torch.equal(torch.tanh(x), want)
        assert aoti_eager.stats()["aten::tanh"].calls == 0
        torch.testing.assert_close(torch.tanh(x), want)
        assert aoti_eager.stats()["aten::tanh"].calls == 1


def test_python_serves_without_the_stub_where_cpp_cannot_be_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(op: NativeOp) -> None:
        raise NativePathError("made up")

    monkeypatch.setattr(NativeOp, "install", refuse)
    seen: list[str] = []
    x = torch.linspace(-2, 2, 16).reshape(4, 4)
    want = torch.nn.functional.silu(x)
    with aoti_eager.register("aten::silu.default"):
        for _ in range(2):
            torch.testing.assert_close(torch.nn.functional.silu(x), want)
        sys.setprofile(lambda frame, event, _: seen.append(frame.f_code.co_filename))
        try:
            torch.nn.functional.silu(x)
        finally:
            sys.setprofile(None)
    assert [name for name in seen if "kernel of aten::silu" in name], "Python's kernel serves"
    assert not [name for name in seen if name.endswith("python_kernel.py")]


def test_python_serves_without_the_stub_where_it_serves_hits() -> None:
    with (
        aoti_eager.config.scope(native="0"),
        aoti_eager.register("aten::silu.default"),
    ):
        cache = registry.find_cache(torch.ops.aten.silu.default, "CPU")
        assert cache is not None
        assert cache._is_generated
