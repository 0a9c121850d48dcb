"""The values that a trial gives to a region's inputs, and the region's float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._compile_worker.input_ranges import (
    InputRanges,
    integer_ranges,
    matrix_scales,
)
from aoti_eager._compile_worker.made_up_data import data_sets
from aoti_eager._dispatch.reference import float64_reference
from aoti_eager._functions.rebuilt import RebuiltTape
from aoti_eager._functions.tape import SCHEMA, op_name
from aoti_eager._keys.call_template import CallTemplate, call_template
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import parsed_schema

from ..conftest import assert_close
from ..support.tapes import Recorded, tape_of

WORDS, PLACES = torch.randn(40, 16), torch.randn(9, 16)
ONE_WORD = torch.randn(1, 16)


def template_of(one: Recorded) -> CallTemplate:
    schema = parsed_schema(op_name(one.tape) + SCHEMA)
    return call_template(schema, kernel_key(schema, "CPU", [one.inputs]))


def takes(one: Recorded) -> Callable[[Sequence[Tensor]], bool]:
    def accepts(inputs: Sequence[Tensor]) -> bool:
        try:
            one.tape.replay(inputs)
        except Exception:  # noqa: BLE001 - the original refuses the data
            return False
        return True

    return accepts


def mixed(words: Tensor, places: Tensor, counts: Tensor) -> Tensor:
    x = torch.embedding(WORDS, words + 1) + torch.embedding(PLACES, places)
    return x * counts[:, None]


def test_integers_are_as_large_as_the_original_takes() -> None:
    given = [torch.zeros(4, dtype=torch.int64) for _ in range(3)]
    one = tape_of(mixed, given, [WORDS, PLACES])
    template = template_of(one)
    assert integer_ranges(template.slots, one.inputs, takes(one)) == ({0: 38, 1: 8}, {0: (-1,)})


def test_integers_outside_of_the_range_that_the_original_takes_are_found() -> None:
    def wraps(places: Tensor) -> Tensor:
        return PLACES[places]

    def ignores(target: Tensor) -> Tensor:
        return torch.nn.functional.nll_loss(PLACES, target, ignore_index=-7)

    places = torch.zeros(9, dtype=torch.int64)
    for function, own, further in ((wraps, (), (-9, -1)), (ignores, (0.5, -7.0, 3.0), (-7,))):
        one = tape_of(function, [places], [PLACES])
        found = integer_ranges(template_of(one).slots, one.inputs, takes(one), own)
        assert found == ({0: 8 if function is wraps else 15}, {0: further})


def test_the_only_place_of_a_dimension_of_size_one_is_found() -> None:
    def one_row(words: Tensor) -> Tensor:
        return torch.embedding(ONE_WORD, words)

    one = tape_of(one_row, [torch.zeros(4, dtype=torch.int64)], [ONE_WORD])
    ordinary = [torch.ones(4, dtype=torch.int64), *one.inputs[1:]]
    assert integer_ranges(template_of(one).slots, ordinary, takes(one)) == ({0: 0}, {})


def test_the_data_of_a_region_are_within_the_ranges() -> None:
    given = [torch.zeros(64, dtype=torch.int64) for _ in range(3)]
    one = tape_of(mixed, given, [WORDS, PLACES])
    ranges = InputRanges(most={0: 38, 1: 8}, is_region=True)
    slots = template_of(one).slots
    largest = [0, 0]
    for data in data_sets(slots, (), mixes=True, ranges=ranges):
        for run in range(data.runs):
            inputs = data.make(run, "wide")
            assert takes(one)(inputs)
            largest = [max(n, int(t.max())) for n, t in zip(largest, inputs, strict=False)]
    assert largest == [38, 8]


def test_special_values_are_in_one_input_at_a_time() -> None:
    one = tape_of(torch.addmm, [torch.randn(4), torch.randn(4, 4), torch.randn(4, 4)])
    slots = template_of(one).slots
    (special,) = (
        data
        for data in data_sets(slots, (), mixes=True, ranges=InputRanges(is_region=True))
        if data.name == "special"
    )
    assert special.runs == 3
    for run in range(special.runs):
        odd = [not bool(one.isfinite().all()) for one in special.make(run, "wide")]
        assert sum(odd) <= 1
        assert odd[run] is (run != 2)  # The third special value is a zero.


def test_matrices_keep_numbers_of_size_one() -> None:
    weight, square, kernel = torch.randn(8, 16), torch.randn(8, 8), torch.randn(6, 6, 3, 3)

    def function(x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.nn.functional.linear(torch.embedding(WORDS, x), weight)
        return torch.mm(y, square), torch.conv2d(image, kernel)

    arguments: list[Any] = [torch.zeros(4, dtype=torch.int64), torch.randn(1, 6, 8, 8)]
    one = tape_of(function, arguments, [WORDS, weight, square, kernel])
    scales = matrix_scales(one.tape, template_of(one).slots)
    # In the order of inputs: tokens, image, words, weight, square, kernel.
    assert scales == {
        3: pytest.approx(1 / 4),
        4: pytest.approx(1 / math.sqrt(8)),
        5: pytest.approx(1 / math.sqrt(54)),
    }


def test_a_replay_in_double_leaves_casts_to_lower_precision_out() -> None:
    def normed(x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (wide * scale).to(torch.bfloat16) * x

    x = torch.randn(4, 16).to(torch.bfloat16)
    one = tape_of(normed, [x])
    found = float64_reference(
        template_of(one), one.inputs, RebuiltTape(one.tape), [{"outputs": [0]}]
    )
    assert found is not None
    exact = x.double()
    exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-6) * exact
    assert found[0][0].dtype is torch.float64
    assert_close(found[0][0], exact, rtol=1e-12, atol=1e-12)


def test_large_inputs_share_numbers_and_are_never_alike() -> None:
    """An element at the wrong place shows, and so does another input at the right place."""
    one = tape_of(torch.addmm, [torch.randn(90), torch.randn(70, 80), torch.randn(80, 90)])
    slots, ranges = template_of(one).slots, InputRanges(scales={2: 0.1}, is_region=True)
    sets = {data.name: data for data in data_sets(slots, (), mixes=True, ranges=ranges)}
    makes = [(sets["normal"], 0), (sets["special"], 0), (sets["special"], 1)]
    made = [data.make(run, "wide") for data, run in makes]
    for _, left, right in made:
        for each in (left, right):
            numbers = each[each.isfinite()]
            assert len(numbers.double().unique()) > 0.999 * len(numbers)
        rows = min(len(left), len(right))
        assert float((left[:rows, :80] == right[:rows, :80]).double().mean()) < 0.01
    for one_run, other in ((0, 1), (0, 2), (1, 2)):
        for place in (1, 2):
            same = made[one_run][place] == made[other][place]
            assert float(same.double().mean()) < 0.01
    assert 0.09 < float(made[0][2].std()) < 0.11
    # What is written to an input is not in another one, nor in the next run.
    made[0][1].fill_(7.0)
    again = sets["normal"].make(0, "wide")
    assert not bool((again[1] == 7.0).any())
    assert torch.equal(again[2], made[0][2])
