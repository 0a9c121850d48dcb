"""Which memory tensors touch: held against a count of the addresses themselves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._keys.aliasing import (
    memory_range,
    mutation_overlaps,
    overlaps_itself,
    shares_storage,
    storage_key,
)

property_test = hypothesis_settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

MEMORY = torch.zeros(64, dtype=torch.int32)


def addresses(tensor: torch.Tensor) -> list[int]:
    """Return the address of every element, by index."""
    indices = itertools.product(*map(range, tensor.shape))
    steps = [sum(i * s for i, s in zip(index, tensor.stride(), strict=True)) for index in indices]
    return [tensor.data_ptr() + step * tensor.element_size() for step in steps]


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """Return a view of ``MEMORY`` with any sizes, strides and offset."""
    sizes = draw(st.lists(st.integers(0, 3), max_size=3))
    strides = draw(st.lists(st.integers(0, 6), min_size=len(sizes), max_size=len(sizes)))
    return MEMORY.as_strided(sizes, strides, draw(st.integers(0, 20)))


@given(views())
@property_test
def test_the_range_goes_from_the_first_address_past_the_last(view: torch.Tensor) -> None:
    touched = addresses(view)
    start, end = memory_range(view)
    if not touched:
        assert (start, end) == (0, 0)
    else:
        assert (start, end) == (min(touched), max(touched) + view.element_size())


@given(views(), views())
@property_test
def test_an_overlap_is_found_exactly_where_ranges_meet(
    one: torch.Tensor, other: torch.Tensor
) -> None:
    mine, theirs = addresses(one), addresses(other)
    meet = bool(mine and theirs) and min(mine) <= max(theirs) and min(theirs) <= max(mine)
    assert mutation_overlaps([one], [other]) is meet
    assert mutation_overlaps([one, other], []) is meet
    assert mutation_overlaps([one], [None, 1.0, other, "text"]) is meet
    # What is only read may overlap what else is only read.
    assert mutation_overlaps([torch.zeros(2)], [one, other]) is False
    if set(mine) & set(theirs):
        assert meet


@given(views())
@property_test
def test_a_tensor_whose_elements_share_addresses_overlaps_itself(view: torch.Tensor) -> None:
    touched = addresses(view)
    if len(set(touched)) < len(touched):
        assert overlaps_itself(view.shape, view.stride())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.data())
@property_test
def test_no_permutation_or_slice_of_dense_memory_overlaps_itself(
    sizes: list[int], data: st.DataObject
) -> None:
    dense = torch.zeros(sizes).permute(data.draw(st.permutations(range(len(sizes)))))
    assert not overlaps_itself(dense.shape, dense.stride())
    sliced = dense[..., ::2]
    assert not overlaps_itself(sliced.shape, sliced.stride())


@pytest.mark.parametrize(
    ("sizes", "strides", "overlaps"),
    [
        ((), (), False),
        ((4,), (0,), True),
        ((1,), (0,), False),
        ((2, 3), (0, 1), True),
        ((3, 3), (1, 1), True),
        ((0, 3), (0, 0), False),
        ((2, 2), (2, 1), False),
    ],
)
def test_expanded_tensors_overlap_themselves(
    sizes: tuple[int, ...], strides: tuple[int, ...], overlaps: bool
) -> None:
    assert overlaps_itself(sizes, strides) is overlaps


def test_storages_that_share_memory_overlap() -> None:
    """Two tensors made of one array have two storages."""
    array = np.zeros(4, dtype=np.float32)
    one, other = torch.from_numpy(array), torch.from_numpy(array)
    assert mutation_overlaps([one], [other])
    assert shares_storage([one], [other])


def test_an_absent_mutated_argument_overlaps_nothing() -> None:
    absent: Any = None
    assert not mutation_overlaps([absent, torch.zeros(2)], [torch.zeros(2)])


def test_views_share_storage_and_copies_do_not() -> None:
    base = torch.zeros(4)
    assert shares_storage([base], [torch.zeros(4), base[2:]])
    assert shares_storage([base.view(2, 2)], [base])
    assert not shares_storage([base], [base.clone()])
    assert not shares_storage([], [base])


def test_empty_storages_are_shared_with_nobody() -> None:
    empty = torch.zeros(0)
    assert storage_key(empty) is None
    assert not shares_storage([empty], [empty, torch.zeros(0)])
    # An empty view of memory still has its storage.
    base = torch.zeros(4)
    assert shares_storage([base[:0]], [base])
