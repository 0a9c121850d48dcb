"""Registration: what goes into PyTorch's dispatcher, and that all of it comes out again."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager._registration import registry
from aoti_eager.errors import (
    CompositeImplicitOpError,
    OriginalKernelError,
    RegistrationError,
    UnknownOpError,
)

from ..conftest import assert_close
from ..support import forked_python

pytestmark = pytest.mark.both_paths


@pytest.fixture(autouse=True)
def never_compile(settings: None, no_compiles: None) -> Iterator[None]:
    """Nothing here needs a kernel: calls decline and reach the original."""
    with aoti_eager.config.scope(mode="cache_only"):
        yield


def dispatch_table(op: str) -> str:
    return str(torch._C._dispatch_dump_table(op))


def test_registers_by_name_overload_packet_and_list() -> None:
    aten = torch.ops.aten
    for ops, names in (
        ("aten::add.Tensor", ["aten::add.Tensor"]),
        ("aten::silu", ["aten::silu", "aten::silu.out"]),
        (aten.add.Tensor, ["aten::add.Tensor"]),
        (aten.silu, ["aten::silu", "aten::silu.out"]),
        (["aten::add.Tensor", aten.mm.default], ["aten::add.Tensor", "aten::mm"]),
    ):
        with aoti_eager.register(ops) as registration:
            assert sorted(registration.ops) == names
            assert aoti_eager.registered_ops() == names
        assert aoti_eager.registered_ops() == []


def test_a_packet_leaves_out_what_cannot_be_served_and_says_why() -> None:
    with aoti_eager.register("aten::mm") as registration:
        assert registration.ops == ("aten::mm", "aten::mm.out")
        assert set(registration.skipped) == {"aten::mm.dtype", "aten::mm.dtype_out"}
        assert all("no kernel at dispatch key CPU" in t for t in registration.skipped.values())


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("aten::gellu", "aten::gelu"),
        ("aten::add.Tensr", "aten::add.Tensor"),
        ("gelu", "aten::gelu"),
        ("torch.gelu", "aten::gelu"),
    ],
)
def test_an_unknown_op_raises_and_suggests_near_names(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownOpError, match=name.replace(".", r"\.")) as raised:
        aoti_eager.register(name)
    assert suggestion in raised.value.suggestions
    assert suggestion in str(raised.value)


def test_an_unknown_op_in_a_list_registers_nothing() -> None:
    before = dispatch_table("aten::silu")
    with pytest.raises(UnknownOpError):
        aoti_eager.register(["aten::silu", "aten::nope"])
    assert dispatch_table("aten::silu") == before
    assert aoti_eager.registered_ops() == []


@pytest.mark.parametrize("op", ["aten::selu_", "aten::flatten.using_ints", "aten::vstack"])
def test_composite_implicit_ops_are_refused_with_the_reason(op: str) -> None:
    with pytest.raises(CompositeImplicitOpError, match=f"{op}.*gradients"):
        aoti_eager.register(op)


def test_composite_implicit_ops_are_served_on_the_cpu_and_by_register_only() -> None:
    with pytest.raises(CompositeImplicitOpError, match=r"aten::rms_norm.*CUDA"):
        aoti_eager.register("aten::rms_norm", dispatch_key="CUDA")
    library = torch.library.Library("aten", "IMPL")
    with pytest.raises(CompositeImplicitOpError, match="a library of the caller's"):
        aoti_eager.impl(library, "rms_norm")
    library._destroy()


def test_what_is_no_dense_backend_is_refused() -> None:
    for key in ("AutogradCPU", "SparseCPU", "Meta", "cpu", "CompositeExplicitAutograd"):
        with pytest.raises(RegistrationError, match="Dense backend key"):
            aoti_eager.register("aten::silu", dispatch_key=key)


def test_an_op_without_a_kernel_at_the_key_is_refused() -> None:
    with pytest.raises(RegistrationError, match="no kernel at dispatch key XPU"):
        aoti_eager.register("aten::quantize_per_tensor.default", dispatch_key="XPU")


def test_registers_at_other_backends_and_restores_them() -> None:
    for key in ("CUDA", "PrivateUse1", "XPU"):
        before = dispatch_table("aten::silu")
        with aoti_eager.register("aten::silu", dispatch_key=key):
            assert dispatch_table("aten::silu") != before
        assert dispatch_table("aten::silu") == before


def test_unregistering_restores_exactly_in_any_order() -> None:
    ops = ["aten::silu", "aten::add.Tensor", "aten::ones_like"]
    before = {op: dispatch_table(op) for op in ops}
    x = torch.randn(4)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        registrations = [aoti_eager.register(op) for op in ops]
        for index in order:
            registrations[index].unregister()
            torch.nn.functional.silu(x), x + x, torch.ones_like(x)
        assert {op: dispatch_table(op) for op in ops} == before


def test_unregistering_twice_does_nothing() -> None:
    registration = aoti_eager.register("aten::silu")
    registration.unregister()
    registration.unregister()
    assert aoti_eager.registered_ops() == []


def test_an_exception_in_a_with_block_unregisters() -> None:
    before = dispatch_table("aten::silu")
    with pytest.raises(KeyError), aoti_eager.register("aten::silu"):
        raise KeyError
    assert dispatch_table("aten::silu") == before


def test_two_registrations_of_one_op_share_a_kernel_until_the_last_is_gone() -> None:
    before = dispatch_table("aten::silu")
    first = aoti_eager.register("aten::silu")
    second = aoti_eager.register("aten::silu")
    first.unregister()
    assert aoti_eager.registered_ops() == ["aten::silu", "aten::silu.out"]
    second.unregister()
    assert dispatch_table("aten::silu") == before


def test_registering_warns_nothing_and_works_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with aoti_eager.register(["aten::silu", "aten::mm", "aten::add.Tensor"]):
            torch.nn.functional.silu(torch.randn(3))


def test_an_earlier_override_is_what_a_call_falls_back_to() -> None:
    x = torch.tensor([1.0, -2.0])
    library = torch.library.Library("aten", "IMPL")
    library.impl("silu", lambda t: t + 100, "CPU")
    try:
        with aoti_eager.register("aten::silu"):
            torch.testing.assert_close(torch.ops.aten.silu(x), x + 100)
        torch.testing.assert_close(torch.ops.aten.silu(x), x + 100)
    finally:
        library._destroy()
    torch.testing.assert_close(torch.ops.aten.silu(x), x * torch.sigmoid(x))


def test_an_override_that_is_destroyed_before_us_gives_a_clear_error_and_no_crash() -> None:
    x = torch.randn(3)
    library = torch.library.Library("aten", "IMPL")
    library.impl("silu", lambda t: t + 100, "CPU")
    with aoti_eager.register("aten::silu"):
        library._destroy()
        with pytest.raises(OriginalKernelError, match="aten::silu.*register again"):
            torch.ops.aten.silu(x)
    torch.testing.assert_close(torch.ops.aten.silu(x), x * torch.sigmoid(x))


def test_a_later_override_wins_and_leaves_ours_when_it_goes() -> None:
    x = torch.randn(3)
    want = torch.ops.aten.silu(x)
    with aoti_eager.register("aten::silu"):
        library = torch.library.Library("aten", "IMPL")
        library.impl("silu", lambda t: t + 100, "CPU")
        torch.testing.assert_close(torch.ops.aten.silu(x), x + 100)
        library._destroy()
        before = aoti_eager.stats()["aten::silu"]
        torch.testing.assert_close(torch.ops.aten.silu(x), want)
        assert aoti_eager.stats()["aten::silu"].declines == before.declines + 1


def test_disable_and_enable_flip_a_flag_and_leave_the_dispatcher_alone() -> None:
    x = torch.randn(3)
    with aoti_eager.register("aten::silu") as registration:
        table = dispatch_table("aten::silu")
        start = aoti_eager.stats()["aten::silu"]
        torch.ops.aten.silu(x)
        registration.disable()
        assert dispatch_table("aten::silu") == table
        torch.ops.aten.silu(x)
        between = aoti_eager.stats()["aten::silu"]
        registration.enable()
        torch.ops.aten.silu(x)
        end = aoti_eager.stats()["aten::silu"]
    assert between.declines == start.declines + 1
    assert end.declines == between.declines + 1


def test_mode_off_runs_originals_and_counts_nothing() -> None:
    with aoti_eager.register("aten::silu"):
        before = aoti_eager.stats()["aten::silu"]
        with aoti_eager.config.scope(mode="off"):
            torch.ops.aten.silu(torch.randn(3))
        assert aoti_eager.stats()["aten::silu"] == before


def test_impl_registers_in_the_callers_library_and_goes_with_it() -> None:
    x = torch.randn(3)
    before = dispatch_table("aten::mul.Tensor")
    library = torch.library.Library("aten", "IMPL")
    aoti_eager.impl(library, "mul.Tensor", "CPU")
    assert aoti_eager.registered_ops() == ["aten::mul.Tensor"]
    torch.testing.assert_close(torch.mul(x, x), x * x)
    assert aoti_eager.stats()["aten::mul.Tensor"].declines >= 1
    library._destroy()
    assert aoti_eager.registered_ops() == []
    assert dispatch_table("aten::mul.Tensor") == before


def test_without_a_compiler_and_with_an_empty_store_nothing_is_registered_and_one_warning_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    before = dispatch_table("aten::silu")
    with pytest.warns(aoti_eager.errors.AotiEagerWarning, match=r"install g\+\+ or clang"):
        registration = aoti_eager.register("aten::silu")
    assert registration.ops == ()
    assert dispatch_table("aten::silu") == before
    aoti_eager.register("aten::mm").unregister()  # warns no second time: warnings are errors here
    registration.disable()
    registration.enable()
    registration.unregister()


def test_stats_outlive_a_registration() -> None:
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(torch.randn(3))
        during = aoti_eager.stats()["aten::silu"]
    assert aoti_eager.stats()["aten::silu"] == during


def test_registering_and_calling_import_neither_inductor_nor_dynamo(cache_dir: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import aoti_eager
aoti_eager.config.mode = "cache_only"
with aoti_eager.register(["aten::silu", "aten::add.Tensor"]):
    torch.nn.functional.silu(torch.randn(3)) + 1
new = {m for m in set(sys.modules) - before if m.startswith(("torch._inductor", "torch._dynamo"))}
assert not new, new
"""
    forked_python.run([sys.executable, "-c", code], check=True, cwd=cache_dir)


@pytest.mark.parametrize("op", ["aten::add", "aten::mul", "aten::div", "aten::eq"])
def test_overloads_that_only_torchscript_has_are_left_alone(op: str) -> None:
    with aoti_eager.register(op) as registration:
        assert f"{op}.Tensor" in registration.ops
        assert f"{op}.int" not in registration.ops


def test_impl_over_a_registration_outlives_it() -> None:
    x = torch.randn(3)
    registration = aoti_eager.register("aten::tanh")
    library = torch.library.Library("aten", "IMPL")
    aoti_eager.impl(library, "tanh", "CPU")
    registration.unregister()
    assert_close(torch.tanh(x), x.sinh() / x.cosh())
    library._destroy()
    assert_close(torch.tanh(x), x.sinh() / x.cosh())


def test_a_dropped_handle_keeps_its_ops() -> None:
    aoti_eager.register("aten::silu.default")
    gc.collect()
    for _ in range(300):
        with aoti_eager.register(["aten::silu.default", "aten::mm.default"]):
            pass
    assert aoti_eager.registered_ops() == ["aten::silu"]
    for token in list(registry._installed["aten::silu", "CPU"].holders):
        registry._release("aten::silu", "CPU", token)
