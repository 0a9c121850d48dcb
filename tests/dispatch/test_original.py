"""Reaching the kernel that was there before us, numbers in Tensor slots included."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

import aoti_eager

pytestmark = pytest.mark.both_paths

X = torch.tensor([3.0, -4.0, 0.5])
I64 = torch.tensor([3, 4])

CALLS: list[tuple[str, Callable[[], object]]] = [
    ("aten::mul.Tensor", lambda: X * 2.5),
    ("aten::mul.Tensor", lambda: I64 * 2.5),
    ("aten::mul.Tensor", lambda: torch.ones((), dtype=torch.float16) * 2.1),
    ("aten::mul.Tensor", lambda: X * 2.5j),
    ("aten::mul.Tensor", lambda: (X > 0) * True),
    ("aten::remainder.Tensor", lambda: I64 % 2),
    ("aten::remainder.Tensor", lambda: X % -2.0),
    ("aten::fmod.Tensor", lambda: X.fmod(2)),
    ("aten::copysign.Tensor", lambda: torch.copysign(X, -0.0)),
    ("aten::copysign.Tensor", lambda: torch.copysign(X, 0.0)),
    ("aten::xlogy.Tensor", lambda: torch.xlogy(X, 2.0)),
    ("aten::bitwise_and.Tensor", lambda: I64 & 6),
    ("aten::_to_copy", lambda: torch.isfinite(X)),
    ("aten::copy_", lambda: X.clone().copy_(torch.tensor(1.5))),
    ("aten::add.Tensor", lambda: X + float("nan")),
]


@pytest.fixture(autouse=True)
def never_compile(settings: None, no_compiles: None) -> Iterator[None]:
    with aoti_eager.config.scope(mode="cache_only"):
        yield


@pytest.mark.parametrize(("op", "call"), CALLS)
def test_a_number_in_a_tensor_slot_reaches_the_original_as_a_number(
    op: str, call: Callable[[], torch.Tensor]
) -> None:
    want = call()
    with aoti_eager.register(f"{op}.default" if "." not in op else op):
        for _ in range(2):
            got = call()
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
            assert (
                torch.equal(torch.signbit(got.real), torch.signbit(want.real)) or want.isnan().any()
            )


def test_it_does_so_in_inference_mode_under_grad_and_in_other_threads() -> None:
    results: list[torch.Tensor] = []
    with aoti_eager.register("aten::mul.Tensor"):
        with torch.inference_mode():
            torch.testing.assert_close(X * 7.5, torch.tensor([22.5, -30.0, 3.75]))
        leaf = X.clone().requires_grad_()
        (leaf * 7.5).sum().backward()
        thread = threading.Thread(target=lambda: results.append(X * 7.5))
        thread.start()
        thread.join()
    torch.testing.assert_close(leaf.grad, torch.full((3,), 7.5))
    torch.testing.assert_close(results[0], torch.tensor([22.5, -30.0, 3.75]))


def test_an_exception_of_the_original_comes_through_with_a_number_too() -> None:
    with pytest.raises(RuntimeError) as plain:
        torch.remainder(I64, 0)
    with aoti_eager.register("aten::remainder.Tensor"), pytest.raises(RuntimeError) as served:
        torch.remainder(I64, 0)
    assert str(served.value) == str(plain.value)
