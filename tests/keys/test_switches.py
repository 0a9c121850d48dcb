"""Switches of a process that change numbers: in the key, or the original runs; both hit paths."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._keys.kernel_key import call_context, is_usual_float_mode, kernel_key
from aoti_eager._keys.key_words import native_key
from aoti_eager._keys.schema import op_schema

from ..conftest import assert_close

pytestmark = pytest.mark.both_paths

aten = torch.ops.aten
X = torch.linspace(-1, 1, 24).reshape(4, 6)
# Half of the smallest normal number.
DENORMALS = torch.full((4, 6), 2.0**-127)

ROUNDINGS = {"down": 0x400, "up": 0x800, "zero": 0xC00}  # fenv.h of x86-64


def stats(op: str = "aten::mul.Tensor") -> OpStats:
    return aoti_eager.stats().get(op, OpStats())


@contextlib.contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def rounding(direction: str) -> Iterator[None]:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("the numbers of fenv.h are x86-64's")
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    assert libm.fesetround(ROUNDINGS[direction]) == 0
    try:
        yield
    finally:
        libm.fesetround(0)


@contextlib.contextmanager
def register_bit(bit: int) -> Iterator[None]:
    """Set one bit of the register alone, which ``torch.set_flush_denormal`` never does."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("the register is x86-64's")
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    before = (ctypes.c_uint32 * 8)()
    assert libm.fegetenv(before) == 0
    changed = type(before)(*before)
    changed[7] |= bit  # MXCSR, after 28 bytes of the x87
    assert libm.fesetenv(changed) == 0
    try:
        yield
    finally:
        libm.fesetenv(before)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "flush": flushing,
    "flush arguments": lambda: register_bit(0x40),
    "flush results": lambda: register_bit(0x8000),
    **{name: lambda name=name: rounding(name) for name in ROUNDINGS},  # type: ignore[misc]
}


@pytest.mark.parametrize("mode", MODES)
def test_a_thread_in_another_float_mode_gets_the_originals_numbers(mode: str) -> None:
    with aoti_eager.register("aten::mul.Tensor"):
        half = torch.full_like(X, 0.5)
        torch.mul(X, half), torch.mul(X, half)
        before = stats()
        assert before.hits >= 1
        with MODES[mode]():
            for _ in range(3):
                torch.mul(X, half)
                torch.mul(DENORMALS, half)
        after = stats()
        assert after.hits == before.hits
        assert after.declined["float_mode"] - before.declined.get("float_mode", 0) == 6
        torch.mul(X, half)
        assert stats().hits == after.hits + 1


def test_denormals_are_flushed_as_eager_does() -> None:
    half = torch.full_like(X, 0.5)
    with aoti_eager.register("aten::mul.Tensor"):
        assert (torch.mul(DENORMALS, half) == 2.0**-128).all()
        assert (torch.mul(DENORMALS, half) == 2.0**-128).all()
        with flushing():
            assert (torch.mul(DENORMALS, half) == 0).all()
        assert (torch.mul(DENORMALS, half) == 2.0**-128).all()


def test_the_mode_is_each_threads_own() -> None:
    """The register belongs to a thread; who has set it declines, the others are served."""
    half = torch.full_like(X, 0.5)
    with aoti_eager.register("aten::mul.Tensor"):
        torch.mul(X, half), torch.mul(X, half)
        before = stats()
        is_set, is_done = threading.Event(), threading.Event()

        def other() -> None:
            with flushing():
                torch.mul(X, half)
                is_set.set()
                is_done.wait(60)

        thread = threading.Thread(target=other)
        thread.start()
        assert is_set.wait(60)
        torch.mul(X, half)
        is_done.set()
        thread.join()
        after = stats()
        assert after.hits - before.hits == 1
        assert after.declines - before.declines == 1


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_is_in_both_keys(mode: str) -> None:
    schema = op_schema(aten.silu.default)

    def keys() -> tuple[Any, ...]:
        key = kernel_key(schema, "CPU", [X])
        return key.digest, native_key(schema, key), call_context()

    before = keys()
    assert is_usual_float_mode()
    with MODES[mode]():
        assert not is_usual_float_mode()
        changed = keys()
    assert all(one != other for one, other in zip(before, changed, strict=True))
    assert keys() == before


PRECISIONS = (torch.backends.mkldnn.matmul, torch.backends.mkldnn, torch.backends)


@pytest.fixture
def unset_precisions() -> Iterator[None]:
    """No precision of matmul: one that an earlier test set would hide those above it."""
    before = [where.fp32_precision for where in PRECISIONS]
    for where in PRECISIONS:
        where.fp32_precision = "none"
    yield
    # Not by monkeypatch, which these settings refuse to let delete what it has set.
    for where, precision in zip(PRECISIONS, before, strict=True):
        where.fp32_precision = precision


def test_a_matmul_precision_by_the_newer_settings_is_no_key(unset_precisions: None) -> None:
    with aoti_eager.register("aten::mul.Tensor"):
        torch.mul(X, X), torch.mul(X, X)
        for where in PRECISIONS:
            before = stats()
            was = where.fp32_precision
            where.fp32_precision = "bf16"
            try:
                torch.mul(X, X)
            finally:
                where.fp32_precision = was
            after = stats()
            assert after.hits == before.hits
            assert after.declined["no_key"] - before.declined.get("no_key", 0) == 1
        torch.mul(X, X)
        assert stats().hits == after.hits + 1


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_matmul_precision_is_a_key_of_its_own(precision: str) -> None:
    with aoti_eager.register("aten::mul.Tensor"):
        torch.mul(X, X), torch.mul(X, X)
        before, was = stats(), torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            torch.mul(X, X), torch.mul(X, X), torch.mul(X, X)
        finally:
            torch.set_float32_matmul_precision(was)
        after = stats()
        assert after.misses - before.misses == 1
        assert after.hits - before.hits == 2
        torch.mul(X, X)
        assert stats().hits == after.hits + 1


OF_ATENS_OWN: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
    "mkldnn deterministic": lambda: torch.backends.mkldnn.flags(
        enabled=True, deterministic=True, allow_tf32=None
    ),
    "nnpack": lambda: torch.backends.nnpack.flags(enabled=False),
}


@pytest.mark.parametrize("switch", OF_ATENS_OWN)
def test_switches_that_only_atens_own_kernels_read_change_no_number(switch: str) -> None:
    """Generated code reads none of them; what it calls of ATen reads them when it is called."""
    with aoti_eager.register("aten::mul.Tensor"):
        torch.mul(X, X), torch.mul(X, X)
        before = stats()
        with OF_ATENS_OWN[switch]():
            assert_close(torch.mul(X, X), X.clone().pow(2))
        assert stats().hits == before.hits + 1
