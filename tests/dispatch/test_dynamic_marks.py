"""What users say of sizes and numbers, with real kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager.errors import RegistrationError, UnknownOpError

from ..conftest import assert_close

pytestmark = pytest.mark.dynamic

SILU = "aten::silu"


@pytest.fixture(autouse=True)
def unmarked() -> Iterator[None]:
    yield
    aoti_eager.unmark(SILU)


def inputs() -> set[str]:
    return {entry.inputs for entry in cache.list()}


def call(*shapes: tuple[int, ...]) -> None:
    with aoti_eager.register(SILU):
        for shape in shapes:
            x = torch.randn(shape)
            assert_close(torch.ops.aten.silu(x), x * torch.sigmoid(x))


def test_a_dimension_that_is_marked_dynamic_is_so_from_the_first_call_on(cache_dir: object) -> None:
    aoti_eager.mark_dynamic(SILU, "self", 0)
    call((5, 7), (9, 7), (2, 7))
    assert inputs() == {"f32[s0,7]"}


def test_a_dimension_that_is_marked_static_has_a_kernel_for_each_size(cache_dir: object) -> None:
    aoti_eager.mark_static(SILU, "self", 0)
    call((5, 7), (6, 7))
    assert inputs() == {"f32[5,7]", "f32[6,7]"}


def test_what_is_marked_wrongly_is_refused_with_what_there_is() -> None:
    with pytest.raises(RegistrationError, match="has no argument 'input'; it has.* self"):
        aoti_eager.mark_dynamic(SILU, "input")
    with pytest.raises(RegistrationError, match="wants a dimension from 0 on"):
        aoti_eager.mark_static(SILU, "self", -1)
    with pytest.raises(UnknownOpError):
        aoti_eager.mark_dynamic("aten::silo", "self")
