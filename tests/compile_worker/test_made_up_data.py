"""Made-up arguments: which values meet, how many runs there are, what a layout holds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._compile_worker.made_up_data import data_sets, made_up_input
from aoti_eager._compile_worker.made_up_values import float_values, int_values
from aoti_eager._compile_worker.slot_filler import WIDE
from aoti_eager._keys.call_template import TensorSlot, call_template
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import parsed_schema

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def slots(*args: Tensor) -> tuple[TensorSlot, ...]:
    names = ", ".join(f"Tensor a{i}" for i in range(len(args)))
    schema = parsed_schema(f"aetest::function({names}) -> Tensor")
    return call_template(schema, kernel_key(schema, "CPU", schema.bind(args, {}))).slots


def crossed(*args: Tensor) -> list[list[Tensor]]:
    """Return the inputs of each run of the cross."""
    found = [d for d in data_sets(slots(*args), (), mixes=False) if d.name == "crossed"]
    (data,) = found
    return [data.make(run, WIDE) for run in range(data.runs)]


def names(value: Tensor) -> list[str]:
    return [str(one) for one in value.reshape(-1).tolist()]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", [(64, 64), (5, 7), ()])
def test_any_two_structured_values_meet_in_any_two_arguments(
    dtype: torch.dtype, sizes: tuple[int, ...]
) -> None:
    x = torch.ones(sizes, dtype=dtype)
    met: list[set[tuple[str, str]]] = [set(), set(), set()]
    for inputs in crossed(x, x, x):
        for place, (a, b) in enumerate(itertools.combinations(inputs, 2)):
            met[place] |= set(zip(names(a), names(b), strict=True))
    values = [str(one) for one in float_values(dtype)]
    assert len(values) >= 40
    assert all(set(itertools.product(values, values)) <= one for one in met)


def test_integers_are_crossed_too() -> None:
    x = torch.ones(64, 64, dtype=torch.int32)
    met = {pair for a, b in crossed(x, x) for pair in zip(names(a), names(b), strict=True)}
    values = [str(one) for one in int_values(torch.int32)]
    assert set(itertools.product(values, values)) <= met


def test_most_pairs_meet_where_one_argument_is_broadcast() -> None:
    x, row = torch.ones(16, 64), torch.ones(64)
    met: set[tuple[str, str]] = set()
    for a, b in crossed(x, row):
        met |= set(zip(names(a), names(b.expand(16, 64)), strict=True))
    count = len(float_values(torch.float32))
    assert len(met) > 0.9 * count * count


@pytest.mark.parametrize("dtype", FLOATS)
def test_all_magnitudes_of_a_dtype_occur(dtype: torch.dtype) -> None:
    fi = torch.finfo(dtype)
    seen: set[int] = set()
    x = torch.ones(128, 128, dtype=dtype)
    for data in data_sets(slots(x), (), mixes=False):
        (values,) = data.make(0, WIDE)
        known = values[values.isfinite() & (values != 0)].double().abs()
        seen |= set(torch.log2(known).floor().int().tolist())
    low = math.floor(math.log2(fi.smallest_normal * fi.eps))
    missing = set(range(low, math.floor(math.log2(fi.max)) + 1)) - seen
    # Of float64's two thousand binades a few are not drawn.
    assert len(missing) < 0.05 * len(seen) + 1


def test_one_special_value_stands_in_a_row_and_others_have_none() -> None:
    x = torch.ones(64, 32)
    sparse = [d for d in data_sets(slots(x), (), mixes=True) if d.name.startswith("one special")]
    assert sparse
    for data in sparse:
        (values,) = data.make(0, WIDE)
        odd = (~values.isfinite()).sum(1)
        assert odd.max() <= 1
        assert (odd == 0).any()
    rows = torch.cat([d.make(0, WIDE)[0] for d in sparse])
    assert rows.isnan().any()
    assert rows.isinf().any()


def test_numbers_in_tensor_slots_take_several_values() -> None:
    schema = parsed_schema("aetest::function(Tensor a, Tensor b) -> Tensor")
    key = kernel_key(schema, "CPU", schema.bind((torch.ones(8, 8), 2.5), {}))
    found: set[str] = set()
    for data in data_sets(call_template(schema, key).slots, (), mixes=False):
        found |= {str(data.make(run, WIDE)[1].item()) for run in range(min(data.runs, 16))}
    assert len(found) > 8


def test_thresholds_of_the_call_get_values_on_both_sides() -> None:
    values = float_values(torch.float32, (0.7391,))
    exact = torch.tensor(0.7391).item()
    assert exact in values
    assert any(0 < exact - one < 1e-6 for one in values)
    assert any(0 < one - exact < 1e-6 for one in values)


def test_large_tensors_get_few_runs_and_small_ones_many() -> None:
    def runs(x: Tensor) -> dict[str, int]:
        return {d.name: d.runs for d in data_sets(slots(x, x), (), mixes=False)}

    assert runs(torch.ones(()))["crossed"] > 1000
    assert runs(torch.ones(64, 64))["crossed"] <= 2
    # What is made for each call, and the first of the others.
    assert set(runs(torch.ones(1).expand(1 << 23).contiguous())) == {
        *("normal", "positive", "special", "mixed"),
    }


LAYOUTS: list[Any] = [
    torch.ones(4, 6).t(),
    torch.ones(6)[::2],
    torch.ones(6).expand(3, 6),
    torch.ones(0, 3),
    torch.ones(()),
    torch.ones(4, dtype=torch.complex64),
    torch.ones(4, dtype=torch.bool),
]


@pytest.mark.parametrize("like", LAYOUTS)
@pytest.mark.parametrize("mixes", [True, False])
def test_inputs_have_the_layout_and_dtype_of_the_key(like: Tensor, mixes: bool) -> None:
    for data in data_sets(slots(like), (), mixes=mixes):
        (made,) = data.make(0, WIDE)
        assert (made.shape, made.stride(), made.dtype) == (like.shape, like.stride(), like.dtype)
    (slot,) = slots(like)
    assert made_up_input(slot, "normal", 3).shape == like.shape


def test_the_same_data_are_made_each_time() -> None:
    x = torch.ones(16, 16)
    for one, other in zip(
        data_sets(slots(x, x), (), mixes=False),
        data_sets(slots(x, x), (), mixes=False),
        strict=True,
    ):
        for a, b in zip(one.make(0, WIDE), other.make(0, WIDE), strict=True):
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
