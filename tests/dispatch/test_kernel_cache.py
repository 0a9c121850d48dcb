"""Calls through PyTorch's dispatcher: key, lookup, hit and miss with real kernel libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._base.cpu import cpu_features
from aoti_eager._dispatch.counters import Counter
from aoti_eager._store.store import Store

from ..conftest import assert_close

pytestmark = pytest.mark.both_paths

aten = torch.ops.aten

Call = Callable[[], Any]


def stats(op: str) -> OpStats:
    return aoti_eager.stats().get(op, OpStats())


@pytest.fixture
def served(shared_cache: Path) -> Iterator[Callable[..., None]]:
    """Assert that a call gives the original's result on a miss and again on a hit."""

    def check(op: str, call: Callable[[], Any]) -> None:
        with aoti_eager.config.scope(mode="off"):
            expected = call()
        with aoti_eager.register(op):
            before = stats(op)
            missed = call()
            hit = call()
            after = stats(op)
        assert after.declined == before.declined, after.declined
        assert after.hits - before.hits >= 1
        for got in (missed, hit):
            assert_same(got, expected)

    return check


def assert_same(got: Any, expected: Any) -> None:
    """Compare results leaf by leaf: values, dtype, sizes, strides, and ``None`` for ``None``."""
    if isinstance(expected, torch.Tensor):
        assert_close(got, expected, equal_nan=True, check_stride=True)
    elif isinstance(expected, tuple | list):
        assert type(got) is type(expected)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected


def f32(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(7))


@pytest.mark.full
def test_a_defaulted_argument_does_not_shift_the_ones_after_it() -> None:
    """PyTorch's own eager cache gives the first call's kernel to all three."""
    x = f32(8, 8)
    calls: list[Call] = [
        lambda: torch.ops.aten.elu(x, 2.0),
        lambda: torch.ops.aten.elu(x, 1, 2.0),
        lambda: torch.ops.aten.elu(x, 1, 1, 2.0),
    ]
    expected = [call() for call in calls]
    with aoti_eager.register("aten::elu"):
        before = stats("aten::elu")
        for _ in range(2):
            for call, want in zip(calls, expected, strict=True):
                assert_close(call(), want)
        after = stats("aten::elu")
    assert after.misses - before.misses == 3
    assert after.hits - before.hits >= 3
    assert after.declines == before.declines


OPS: list[tuple[str, str, Callable[[], Any]]] = [
    ("one result", "aten::silu", lambda: torch.ops.aten.silu(f32(8, 8))),
    ("several results", "aten::var_mean.correction", lambda: torch.var_mean(f32(8, 8), 1)),
    (
        "a list of results",
        "aten::_foreach_add.List",
        lambda: torch._foreach_add([f32(8), f32(4, 4)], [f32(8), f32(4, 4)]),
    ),
    ("a list of numbers", "aten::sum.dim_IntList", lambda: f32(8, 8).sum((0, 1), keepdim=True)),
    (
        "optional tensors, given",
        "aten::native_layer_norm",
        lambda: torch.ops.aten.native_layer_norm(f32(4, 16), [16], f32(16), f32(16), 1e-5),
    ),
    (
        "optional tensors, absent",
        "aten::native_layer_norm",
        lambda: torch.ops.aten.native_layer_norm(f32(4, 16), [16], None, None, 1e-5),
    ),
    ("a string", "aten::gelu", lambda: torch.ops.aten.gelu(f32(8, 8), approximate="tanh")),
    ("a dtype", "aten::_softmax", lambda: torch.softmax(f32(8, 8), 1)),
    ("an optional number", "aten::clamp", lambda: f32(8, 8).clamp(min=-0.5)),
    ("a memory format", "aten::clone", lambda: f32(1, 2, 4, 4).clone(
        memory_format=torch.channels_last)),
    ("a factory", "aten::full", lambda: torch.full((4, 4), 1.5)),
    ("a factory by example", "aten::ones_like", lambda: torch.ones_like(f32(4, 4))),
    ("a scalar dtype conversion", "aten::_to_copy", lambda: f32(8, 8).to(torch.float64)),
    ("no dimensions", "aten::silu", lambda: torch.ops.aten.silu(torch.tensor(0.7))),
    ("NaN and infinity", "aten::silu", lambda: torch.ops.aten.silu(
        torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1.0, 2.0, 3.0, 4.0]))),
]  # fmt: skip


@pytest.mark.share(of=3)
@pytest.mark.parametrize(("what", "op", "call"), OPS, ids=[what for what, _, _ in OPS])
def test_every_kind_of_op_is_served(
    what: str, op: str, call: Callable[[], Any], served: Callable[..., None]
) -> None:
    served(op, call)


LAYOUTS: list[tuple[str, Callable[[], torch.Tensor]]] = [
    ("transposed", lambda: f32(4, 8).t()),
    ("channels last", lambda: f32(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)),
    ("permuted", lambda: f32(2, 3, 4).permute(2, 0, 1)),
    ("sliced", lambda: f32(8, 8)[:, ::2]),
    ("expanded", lambda: f32(1, 8).expand(4, 8)),
    ("offset", lambda: f32(9, 8)[1:]),
]


@pytest.mark.parametrize(("what", "make"), LAYOUTS, ids=[what for what, _ in LAYOUTS])
def test_results_have_the_originals_strides(
    what: str, make: Callable[[], torch.Tensor], served: Callable[..., None]
) -> None:
    x = make()
    served("aten::silu", lambda: torch.ops.aten.silu(x))


def test_undefined_results_come_back_as_none(served: Callable[..., None]) -> None:
    x, w = f32(4, 16), f32(16)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, [16], w, None, 1e-5)
    served(
        "aten::native_layer_norm_backward",
        lambda: torch.ops.aten.native_layer_norm_backward(
            x, x, [16], mean, rstd, w, None, [True, False, False]
        ),
    )


@pytest.mark.full
def test_in_place_and_out_return_the_callers_own_tensor(shared_cache: Path) -> None:
    x, y = f32(8, 8), f32(8, 8)
    with aoti_eager.register(["aten::add_.Tensor", "aten::add.out"]):
        before = aoti_eager.stats()
        for _ in range(3):
            mine = x.clone()
            assert mine.add_(y) is mine
            assert_close(mine, x + y)
            out = torch.empty(8, 8)
            assert torch.add(x, y, out=out) is out
            assert_close(out, x + y)
        after = aoti_eager.stats()
    for op in ("aten::add_.Tensor", "aten::add.out"):
        assert after[op].hits - before[op].hits >= 2
        assert after[op].declines == before[op].declines


def test_an_op_that_only_mutates_a_list_is_served(shared_cache: Path) -> None:
    op = "aten::_foreach_mul_.Scalar"
    tensors = [f32(8), f32(4, 4)]
    with aoti_eager.register(op):
        for _ in range(3):
            mine = [t.clone() for t in tensors]
            torch._foreach_mul_(mine, 0.5)
            for got, original in zip(mine, tensors, strict=True):
                assert_close(got, original * 0.5)
        assert stats(op).hits >= 2


def test_a_number_in_a_tensor_slot_is_an_input_and_not_in_the_key() -> None:
    """Bool, int and float are different calls; two floats are one."""
    op = "aten::mul.Tensor"
    x = f32(8, 8)
    with aoti_eager.register(op):
        before = stats(op)
        for number in (2.0, -3.5, float("nan"), float("inf"), 0.0, -0.0, 3, 2**40, True):
            got = x * number
            with aoti_eager.config.scope(mode="off"):
                want = x * number
            assert got.dtype == want.dtype
            assert_close(got, want, equal_nan=True, rtol=0, atol=0)
            assert torch.equal(torch.signbit(got), torch.signbit(want)) or number != number
        after = stats(op)
    assert after.misses - before.misses == 3  # float, int, bool
    assert after.hits - before.hits >= 6


def test_a_number_promotes_as_eager_promotes_it(shared_cache: Path) -> None:
    """On integer, bool and 0-dim tensors, the result has the original's dtype."""
    with aoti_eager.register("aten::mul.Tensor"):
        for x, number in (
            (torch.ones(8, dtype=torch.int32), 2.5),
            (torch.ones((), dtype=torch.bool), 3),
            (torch.full((), 1.3), 2.7),
        ):
            got = [x * number for _ in range(2)]
            with aoti_eager.config.scope(mode="off"):
                want = x * number
            for one in got:
                assert_same(one, want)


def test_float_and_int_scalars_of_one_value_are_two_keys() -> None:
    op = "aten::full"
    with aoti_eager.register(op):
        before = stats(op)
        for value in (1, 1.0, True):
            got = [torch.full((4,), value) for _ in range(2)]
            assert {t.dtype for t in got} == {
                int: {torch.int64},
                float: {torch.float32},
                bool: {torch.bool},
            }[type(value)]
        assert stats(op).misses - before.misses == 3


def test_after_one_compile_nothing_is_compiled_read_or_loaded_again(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 further calls need the table alone."""
    x, y = f32(8, 8), f32(8, 8)
    with aoti_eager.register("aten::mul.Tensor"):
        torch.mul(x, y)
        touched = Counter()
        for name in ("find", "check_library", "workspace", "locked", "publish"):
            monkeypatch.setattr(Store, name, lambda *a, **k: touched.add())
        monkeypatch.setattr(
            "aoti_eager._compile_service.kernel_compiler.LibraryRunner",
            lambda *a, **k: touched.add(),
        )
        before = stats("aten::mul.Tensor")
        for _ in range(1000):
            torch.mul(x, y)
        after = stats("aten::mul.Tensor")
    assert touched.value == 0
    assert after.hits - before.hits == 1000
    assert after.misses == before.misses
    assert after.compiles == before.compiles


def test_an_invalid_call_raises_the_originals_own_exception(shared_cache: Path) -> None:
    x, y = f32(8, 8), f32(7, 7)
    with pytest.raises(RuntimeError) as plain:
        torch.mul(x, y)
    with aoti_eager.register("aten::mul.Tensor"):
        for _ in range(2):
            with pytest.raises(RuntimeError) as served:
                torch.mul(x, y)
            assert str(served.value) == str(plain.value)
            assert type(served.value) is type(plain.value)


def test_gradients_flow_through_served_ops(shared_cache: Path) -> None:
    x = f32(8, 8).requires_grad_()

    def loss() -> torch.Tensor:
        (grad,) = torch.autograd.grad(torch.nn.functional.silu(x).sum(), x)
        return grad

    want = loss()
    with aoti_eager.register(["aten::silu", "aten::silu_backward"]):
        loss()
        before = aoti_eager.stats()
        assert_close(loss(), want)
        after = aoti_eager.stats()
    for op in ("aten::silu", "aten::silu_backward"):
        assert after[op].hits == before[op].hits + 1


def test_cache_only_never_compiles_and_serves_what_is_stored(
    cache_dir: Path, shared_cache_dir: Path, no_compiles: None
) -> None:
    x = f32(5, 3)
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::silu"):
        before = stats("aten::silu").declined.get("not_in_cache", 0)
        for _ in range(2):
            assert_close(torch.nn.functional.silu(x), x * torch.sigmoid(x))
        assert stats("aten::silu").declined["not_in_cache"] - before == 2


def test_a_scope_with_another_directory_starts_with_empty_tables(
    shared_cache: Path, tmp_path: Path
) -> None:
    x = f32(8, 8)
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(x)
        torch.ops.aten.silu(x)
        before = stats("aten::silu")
        with aoti_eager.config.scope(cache_dir=tmp_path / "other", mode="cache_only"):
            torch.ops.aten.silu(x)
        inside = stats("aten::silu")
        torch.ops.aten.silu(x)
        after = stats("aten::silu")
    assert inside.declined["not_in_cache"] == before.declined.get("not_in_cache", 0) + 1
    assert after.hits == before.hits + 1


def test_a_stored_kernel_is_loaded_and_not_compiled(shared_cache: Path) -> None:
    x = f32(8, 8)
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(x)
    before = stats("aten::silu")
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(x)
        after = stats("aten::silu")
    assert after.compiles == before.compiles
    assert after.hits == before.hits + 1


def test_an_entry_that_needs_more_of_the_cpu_is_a_miss(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch, no_compiles: None
) -> None:
    """A miss without a warning, in mode ``cache_only``, too: the code would be illegal here."""
    x = f32(8, 8)
    fewer = cpu_features() - {"avx2", "avx512f"}
    with aoti_eager.config.scope(cache_dir=shared_cache, mode="cache_only"):
        monkeypatch.setattr("aoti_eager._compile_service.cache_context.cpu_features", lambda: fewer)
        monkeypatch.setattr("aoti_eager._compile_service.cache_context._contexts", {})
        with aoti_eager.register("aten::silu"):
            before = stats("aten::silu")
            torch.ops.aten.silu(x)
            after = stats("aten::silu")
    assert after.hits == before.hits
    assert after.declined["not_in_cache"] == before.declined.get("not_in_cache", 0) + 1


@pytest.mark.parametrize("file", ["entry.json", "library.so"])
def test_a_garbled_entry_is_rebuilt_and_the_others_are_served(file: str) -> None:
    """One bad entry must not spoil the others."""
    x, y = f32(6, 6), f32(8, 8)
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(x)
        torch.ops.aten.silu(y)
    (mine,) = [e for e in aoti_eager.cache.list() if e.op == "aten::silu" and "[6,6]" in e.inputs]
    path = mine.path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()  # Never in place: this process has the library mapped.
    path.write_bytes(content)
    with aoti_eager.register("aten::silu"):
        before = stats("aten::silu")
        assert_close(torch.ops.aten.silu(x), torch.nn.functional.silu(x))
        torch.ops.aten.silu(y)
        after = stats("aten::silu")
    assert after.compiles == before.compiles + 1
    assert after.hits >= before.hits + 1
    assert aoti_eager.cache.verify().damaged == ()


def test_threads_have_kernels_of_their_own_where_the_code_depends_on_them(
    shared_cache: Path,
) -> None:
    """Compiled at N threads, run at M: results are right, and set_num_threads is obeyed."""
    x = f32(512, 512)
    want = torch.nn.functional.silu(x)
    threads = torch.get_num_threads()
    try:
        with aoti_eager.register("aten::silu"):
            for count in (2, 1, 2):
                torch.set_num_threads(count)
                assert_close(torch.ops.aten.silu(x), want)
            found = [e for e in aoti_eager.cache.list() if "[512,512]" in e.inputs]
            counts = {
                dict(d.entry.key.context)["threads"]
                for e in found
                for d in aoti_eager.cache.inspect(e.digest)
                if e.op == "aten::silu"
            }
    finally:
        torch.set_num_threads(threads)
    assert counts == {1, 2}


def test_complex_numbers_with_zeros_of_either_sign_are_two_numbers(no_compiles: None) -> None:
    x = torch.tensor([complex(-1, -0.0)])
    numbers = [complex(1, 0.0), complex(1, -0.0)]
    want = [torch.angle(x * n).item() for n in numbers]
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::mul.Tensor"):
        assert [torch.angle(x * n).item() for n in numbers] == want


@pytest.mark.full
@pytest.mark.parametrize("call", [aten.softshrink, aten.gelu])
def test_functions_that_differ_at_nan_or_infinity_are_found_out_on_ordinary_data(
    call: Any, shared_cache: Path
) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0] * 16)
    want = call(odd)
    with aoti_eager.register(call):
        for x in (torch.linspace(-2, 2, 64), odd, odd):
            got = call(x)
    assert_close(got, want, equal_nan=True)


def test_sums_that_lose_digits_are_found_out_on_zeros(shared_cache: Path) -> None:
    full = torch.full((1 << 22,), 0.1)
    want = full.sum()
    with aoti_eager.register("aten::sum"):
        torch.zeros(1 << 22).sum()
        got = full.sum()
    assert_close(got, want)
