"""Families and patterns: what several calls have in common, and which calls a pattern serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._base.op_names import find_overload
from aoti_eager._keys.guards import INT64_MAX, Guards, match
from aoti_eager._keys.kernel_key import KernelKey, float_bits, kernel_key
from aoti_eager._keys.key_words import key_words, pattern_words
from aoti_eager._keys.pattern import (
    Family,
    expressions_in,
    family_of,
    float_text,
    guard_texts,
    is_pattern,
    number_arguments,
    number_range,
    symbols_in,
    varied,
    with_values,
)
from aoti_eager._keys.pattern_instances import (
    instances,
    size_class,
)
from aoti_eager._keys.schema import OpSchema, op_schema

property_test = hypothesis_settings(deadline=None, max_examples=300)

SILU, ADD, MUL, CAT, CLAMP, ELU, NORM, GROUP_NORM = (
    op_schema(find_overload(f"aten::{name}"))
    for name in (
        "silu",
        "add.Tensor",
        "mul.Tensor",
        "cat",
        "clamp.Tensor",
        "elu",
        "native_layer_norm",
        "native_group_norm",
    )
)


def key_of(schema: OpSchema, *args: Any, **kwargs: Any) -> KernelKey:
    return kernel_key(schema, "CPU", schema.bind(args, kwargs))


def shape_of(family: Family, argument: str) -> tuple[list[Any], list[Any]]:
    """Return the sizes and strides of one argument of a family."""
    component = dict(family.pattern.arguments)[argument]
    return component["sizes"], component["strides"]


def wide(family: Family) -> Guards:
    return Guards(dict.fromkeys(family.values, (2, INT64_MAX)))


def strided(sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    return torch.empty_strided(sizes, strides)


# -- what becomes a symbol --


@pytest.mark.parametrize(
    ("tensor", "sizes", "strides"),
    [
        (torch.empty(3, 5), ["s0", "s1"], ["s1", 1]),
        (torch.empty(3, 5).t(), ["s0", "s1"], [1, "s0"]),
        (torch.empty(3, 4, 5), ["s0", "s1", "s2"], [["*", "s2", "s1"], "s2", 1]),
        (
            torch.empty(2, 3, 4, 5, 6),
            ["s0", "s1", "s2", "s3", "s4"],
            [
                ["*", "s4", "s3", "s2", "s1"],
                ["*", "s4", "s3", "s2"],
                ["*", "s4", "s3"],
                "s4",
                1,
            ],
        ),
        (
            torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
            ["s0", "s1", "s2", "s3"],
            [["*", "s1", "s3", "s2"], 1, ["*", "s1", "s3"], "s1"],
        ),
        # Rows of a wider buffer, and every second column.
        (torch.empty(3, 9)[:, :5], ["s0", "s1"], ["t0", 1]),
        (torch.empty(3, 10)[:, ::2], ["s0", "s1"], [["*", "t0", "s1"], "t0"]),
        (torch.empty(3, 11)[:, ::2][:, :5], ["s0", "s1"], ["t1", "t0"]),
        (torch.empty(4, 3, 9)[:, :, :5], ["s0", "s1", "s2"], [["*", "t0", "s1"], "t0", 1]),
        # Expanded: a stride of 0 is what it is.
        (torch.empty(3, 1).expand(3, 5), ["s0", "s1"], [1, 0]),
        (torch.empty(5).expand(3, 5), ["s0", "s1"], [0, 1]),
        (torch.empty(()).expand(3, 5), ["s0", "s1"], [0, 0]),
        # Sizes of 0 and 1 never are symbols.
        (torch.empty(1, 5), [1, "s0"], ["s0", 1]),
        (torch.empty(5, 1), ["s0", 1], [1, 1]),
        (torch.empty(3, 1, 5), ["s0", 1, "s1"], ["s1", "s1", 1]),
        (torch.empty(1, 1), [1, 1], [1, 1]),
        (torch.empty(0, 5), [0, "s0"], [5, 1]),
        (torch.empty(3, 0), ["s0", 0], [1, 1]),
        (torch.empty(0), [0], [1]),
        (torch.empty(()), [], []),
        (torch.empty(7), ["s0"], [1]),
        (torch.empty(14)[::2], ["s0"], ["t0"]),
        (strided((3, 3), (1, 1)), ["s0", "s1"], ["t0", 1]),
        # One row or column of a tensor with more.
        (torch.empty(4, 9)[:1, :5], [1, "s0"], ["t0", 1]),
        (torch.empty(4, 9)[:, :1], ["s0", 1], ["t0", 1]),
        (torch.empty(4, 3, 9)[:, :1, :5], ["s0", 1, "s1"], ["t1", "t0", 1]),
    ],
)
def test_sizes_and_strides_of_a_tensor(
    tensor: torch.Tensor, sizes: list[Any], strides: list[Any]
) -> None:
    key = key_of(SILU, tensor)
    family = family_of(SILU, key)
    assert shape_of(family, "self") == (sizes, strides)
    assert with_values(family.pattern, family.values) == key


def test_each_symbol_has_a_meaning_and_a_place() -> None:
    family = family_of(ADD, key_of(ADD, torch.empty(3, 9)[:, :5], torch.empty(5)))
    assert family.values == {"s0": 3, "s1": 5, "t0": 9, "s2": 5}
    assert family.meanings == {
        "s0": "self.size(0)",
        "s1": "self.size(1)",
        "t0": "self.stride(0)",
        "s2": "other.size(0)",
    }
    assert family.places == {"s0": (0, 0), "s1": (0, 1), "t0": (0, 0), "s2": (1, 0)}


def test_equal_sizes_have_symbols_of_their_own() -> None:
    family = family_of(ADD, key_of(ADD, torch.empty(5, 5), torch.empty(5, 5)))
    assert len(set(family.values)) == 4


def test_the_tensors_of_a_list_are_counted_as_the_kernel_takes_them() -> None:
    family = family_of(CAT, key_of(CAT, [torch.empty(3, 5), torch.empty(4, 5)], 0))
    assert family.meanings["s2"] == "tensors[1].size(0)"
    assert family.places == {"s0": (0, 0), "s1": (0, 1), "s2": (1, 0), "s3": (1, 1)}
    longer = family_of(CAT, key_of(CAT, [torch.empty(3, 5)] * 3, 0))
    assert longer.pattern != family.pattern


def test_absent_tensors_take_no_place() -> None:
    x, high = torch.empty(3, 5), torch.empty(3, 5)
    family = family_of(CLAMP, key_of(CLAMP, x, None, high))
    assert dict(family.pattern.arguments)["min"] is None
    assert {slot for slot, _ in family.places.values()} == {0, 1}
    assert family.meanings["s2"] == "max.size(0)"


def test_a_number_in_a_tensor_slot_takes_one() -> None:
    family = family_of(MUL, key_of(MUL, 2.0, torch.empty(3, 5)))
    assert dict(family.pattern.arguments)["self"] == {"number": "float"}
    assert {slot for slot, _ in family.places.values()} == {1}


def test_numbers_are_symbols_where_that_is_asked_for() -> None:
    key = key_of(ELU, torch.empty(3), 2.5, -1e-3, 7)
    family = family_of(ELU, key)
    arguments = dict(family.pattern.arguments)
    assert arguments["alpha"] == {"float": {"symbol": "v0"}}
    assert arguments["input_scale"] == {"int": 7}
    assert family.meanings["v1"] == "scale"
    assert family.values["v0"] == float_bits((2.5).hex())
    assert "v0" not in family.places
    assert symbols_in(family.pattern) == {"s0", "v0", "v1"}
    assert number_arguments(family.pattern) == ("alpha", "scale")
    assert with_values(family.pattern, family.values) == key


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 1e300])
def test_a_number_with_a_meaning_of_its_own_stays(value: float) -> None:
    key = key_of(ELU, torch.empty(3), value)
    family = family_of(ELU, key)
    assert dict(family.pattern.arguments)["alpha"] == {"float": value.hex()}
    assert with_values(family.pattern, family.values) == key


@given(st.floats(2.0**-100, 2.0**100), st.floats(2.0**-100, 2.0**100), st.booleans())
def test_numbers_of_one_sign_share_a_kernel(one: float, other: float, negative: bool) -> None:
    sign = -1 if negative else 1
    bounds = number_range(float_bits((sign * one).hex()))
    assert bounds is not None
    assert bounds[0] <= float_bits((sign * other).hex()) <= bounds[1]
    assert not bounds[0] <= float_bits((-sign * other).hex()) <= bounds[1]


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(3, dtype=torch.float16),
        torch.empty(3, dtype=torch.bfloat16),
        torch.empty(3, dtype=torch.int64),
        torch.empty(3, dtype=torch.complex64),
    ],
)
def test_numbers_stay_where_the_results_dtype_or_rounding_depends_on_them(x: torch.Tensor) -> None:
    assert set(family_of(ELU, key_of(ELU, x, 2.5)).values) == {"s0"}


def test_numbers_stay_where_the_op_computes_some_in_ways_of_their_own() -> None:
    power = op_schema(find_overload("aten::pow.Tensor_Scalar"))
    assert set(family_of(power, key_of(power, torch.empty(3), 2.5)).values) == {"s0"}


def test_a_float_argument_stays_and_a_list_of_sizes_is_symbols() -> None:
    key = key_of(NORM, torch.empty(3, 5), [5], None, None, 1e-5)
    family = family_of(NORM, key)
    assert dict(family.pattern.arguments)["eps"] == dict(key.arguments)["eps"]
    assert dict(family.pattern.arguments)["normalized_shape"] == [{"size": "s1"}]
    assert with_values(family.pattern, family.values) == key


@pytest.mark.parametrize("alpha", [1, True, 3 + 4j])
def test_other_numbers_than_floats_stay(alpha: Any) -> None:
    key = key_of(ADD, torch.empty(3), torch.empty(3), alpha=alpha)
    family = family_of(ADD, key)
    assert dict(family.pattern.arguments)["alpha"] == dict(key.arguments)["alpha"]


@pytest.mark.parametrize(
    ("sizes", "ints", "expected"),
    [
        ((4, 8, 32), (4, 8, 32), ["s0", "s1", "s2"]),
        ((8, 8, 8), (8, 8, 8), ["s0", "s1", "s2"]),
        ((4, 8, 3, 5), (4, 8, 15), ["s0", "s1", ["*", "s2", "s3"]]),
        ((4, 8, 15, 1), (4, 8, 15), ["s0", "s1", "s2"]),
        ((1, 8, 32), (1, 8, 32), [1, "s0", "s1"]),
        ((4, 8, 32), (2, 16, 33), [2, 16, 33]),
        ((6, 8, 32), (3, 8, 64), [3, "s1", 64]),
    ],
)
def test_an_int_that_repeats_a_size_is_that(
    sizes: tuple[int, ...], ints: tuple[int, ...], expected: list[Any]
) -> None:
    key = key_of(GROUP_NORM, torch.empty(sizes), None, None, *ints, 2, 1e-5)
    family = family_of(GROUP_NORM, key)
    arguments = dict(family.pattern.arguments)
    found = [arguments[name] for name in ("N", "C", "HxW")]
    assert found == [one if isinstance(one, int) else {"size": one} for one in expected]
    assert arguments["group"] == 2  # No SymInt in the schema.
    assert with_values(family.pattern, family.values) == key
    partly = with_values(family.pattern, {"s0": family.values["s0"]})
    assert with_values(partly, family.values) == key


def test_words_of_ints_that_repeat_sizes_follow_the_sizes() -> None:
    def words(*sizes: int) -> list[int]:
        n, c, h, w = sizes
        key = key_of(GROUP_NORM, torch.empty(sizes), None, None, n, c, h * w, 2, 1e-5)
        found = key_words(GROUP_NORM, key)
        assert found is not None
        return found

    x = torch.empty(4, 8, 3, 5)
    family = family_of(GROUP_NORM, key_of(GROUP_NORM, x, None, None, 4, 8, 15, 2, 1e-5))
    pattern = pattern_words(GROUP_NORM, family.pattern)
    assert pattern is not None
    values = match(words(7, 6, 4, 9), pattern, wide(family))
    assert values is not None
    assert {name: values[name] for name in ("s0", "s1", "s2", "s3")} == {
        "s0": 7,
        "s1": 6,
        "s2": 4,
        "s3": 9,
    }
    key = key_of(GROUP_NORM, torch.empty(7, 6, 4, 9), None, None, 7, 6, 35, 2, 1e-5)
    other = key_words(GROUP_NORM, key)
    assert other is not None
    assert match(other, pattern, wide(family)) is None


@given(st.floats())
def test_a_float_survives_its_bits(value: float) -> None:
    assert float_text(float_bits(value.hex())) == value.hex()


def test_a_tensor_that_is_not_strided_stays_as_it_is() -> None:
    key = key_of(SILU, torch.empty(3, 5).to_sparse())
    family = family_of(SILU, key)
    assert family.values == {}
    assert with_values(family.pattern, family.values) == key


# -- any tensors --

SIZES = st.integers(0, 6)


@st.composite
def tensors(draw: st.DrawFn, sizes: st.SearchStrategy[int] = SIZES) -> torch.Tensor:
    """Draw a view of a buffer: permuted, sliced, stepped, expanded."""
    rank = draw(st.integers(0, 4))
    shape = draw(st.lists(sizes, min_size=rank, max_size=rank))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=rank, max_size=rank))
    more = draw(st.lists(st.sampled_from([0, 0, 1, 3]), min_size=rank, max_size=rank))
    x = torch.empty([n * step + rest for n, step, rest in zip(shape, steps, more, strict=True)])
    for dim, (n, step) in enumerate(zip(shape, steps, strict=True)):
        x = x.narrow(dim, 0, n * step)[(slice(None),) * dim + (slice(None, None, step),)]
    x = x.permute(draw(st.permutations(range(rank))))
    if draw(st.booleans()):
        x = x.expand(draw(sizes), *x.shape)
    return x


@given(tensors(), tensors())
@example(torch.empty(1, 1, 3)[:, :, ::2], torch.empty(2, 1).expand(2, 3))
@property_test
def test_a_family_with_its_values_is_the_key(x: torch.Tensor, y: torch.Tensor) -> None:
    key = key_of(ADD, x, y)
    family = family_of(ADD, key)
    assert with_values(family.pattern, family.values) == key
    assert not any(isinstance(one, str) for one in expressions_in(key))
    assert is_pattern(family.pattern) is bool(family.values)
    assert symbols_in(family.pattern) == set(family.values) == set(family.meanings)
    assert all(value >= 2 for name, value in family.values.items() if name.startswith("s"))


@given(tensors(), tensors())
@property_test
def test_a_key_is_an_instance_of_its_family(x: torch.Tensor, y: torch.Tensor) -> None:
    key = key_of(ADD, x, y)
    family = family_of(ADD, key)
    words, general = key_words(ADD, key), pattern_words(ADD, family.pattern)
    assert words is not None
    assert general is not None
    guards = Guards(dict.fromkeys(family.values, (1, INT64_MAX)))
    assert match(words, general, guards) == family.values


@given(tensors(), st.data())
@property_test
def test_some_values_may_be_filled_in_before_others(x: torch.Tensor, data: st.DataObject) -> None:
    key = key_of(SILU, x)
    family = family_of(SILU, key)
    names = data.draw(st.sets(st.sampled_from(sorted(family.values)))) if family.values else set()
    first = {name: family.values[name] for name in names}
    partly = with_values(family.pattern, first)
    assert symbols_in(partly) == set(family.values) - names
    assert with_values(partly, family.values) == key


@given(tensors(st.integers(2, 6)), st.data())
@property_test
def test_other_values_make_another_key_of_the_same_family(
    x: torch.Tensor, data: st.DataObject
) -> None:
    family = family_of(SILU, key_of(SILU, x))
    sizes = st.integers(2, 9)
    values = {
        name: data.draw(sizes) if name.startswith("s") else value
        for name, value in family.values.items()
    }
    key = with_values(family.pattern, values)
    component = dict(key.arguments)["self"]
    other = key_of(SILU, strided(component["sizes"], component["strides"]))
    assert other == key
    again = family_of(SILU, other)
    # With other sizes, rows may lie in another order, or follow from one another by chance.
    assume(again.pattern == family.pattern)
    assert again.values == values
    assert again.meanings == family.meanings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.empty(3, 5), torch.empty(3, 1)),
        (torch.empty(3, 5), torch.empty(3, 0)),
        (torch.empty(3, 5), torch.empty(5, 3).t()),
        (torch.empty(3, 5), torch.empty(3, 9)[:, :5]),
        (torch.empty(3, 5), torch.empty(3, 5, dtype=torch.float64)),
        (torch.empty(3, 5), torch.empty(3, 5, 2)),
        (torch.empty(3, 5), torch.empty(5).expand(3, 5)),
    ],
)
def test_another_layout_is_another_family(one: torch.Tensor, other: torch.Tensor) -> None:
    families = [family_of(SILU, key_of(SILU, x)).pattern for x in (one, other)]
    assert families[0] != families[1]


def test_another_setting_or_thread_count_is_another_family() -> None:
    key = key_of(SILU, torch.empty(3, 5))
    pattern = family_of(SILU, key).pattern
    assert family_of(SILU, key.with_threads(97)).pattern != pattern


def test_what_varies() -> None:
    assert varied([]) == set()
    assert varied([{"s0": 3, "s1": 5}]) == set()
    assert varied([{"s0": 3, "s1": 5}, {"s0": 4, "s1": 5}, {"s0": 3, "s1": 5}]) == {"s0"}
    assert varied([{"s0": 3}, {"s0": 4}, {"s0": 4}]) == {"s0"}


# -- classes of sizes --


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_calls_of_one_size_class_differ_by_less_than_four_times(one: int, other: int) -> None:
    def size(numel: int) -> int:
        pattern = family_of(SILU, key_of(SILU, torch.empty(7))).pattern
        return size_class(with_values(pattern, {"s0": numel}))

    if size(one) == size(other):
        assert max(one, other) < 4 * min(one, other)
    assert (size(one) <= size(other)) or one > other


def test_the_size_of_a_call_is_that_of_all_its_tensors() -> None:
    one = size_class(key_of(SILU, torch.empty(64)))
    assert size_class(key_of(CAT, [torch.empty(16)] * 4, 0)) == one
    assert size_class(key_of(ADD, torch.empty(8, 4), torch.empty(8, 4))) == one
    assert size_class(key_of(MUL, torch.empty(8, 8), 2.0)) == one
    assert size_class(key_of(SILU, torch.empty(0))) == 0


# -- other calls that a pattern serves --


def instances_of(
    x: torch.Tensor, *conditions: Any, most_elements: int = 1 << 20, high: int = INT64_MAX
) -> list[list[int]]:
    key = key_of(SILU, x)
    family = family_of(SILU, key)
    guards = Guards(dict.fromkeys(family.values, (2, high)), conditions)
    found = instances(family.pattern, guards, family.values, most_elements=most_elements)
    return [dict(one.arguments)["self"]["sizes"] for one in found]


def test_instances_are_smaller_and_larger() -> None:
    assert instances_of(torch.empty(10, 20)) == [[2, 2], [3, 3], [5, 10], [9, 19], [21, 41]]


def test_instances_keep_within_the_guards() -> None:
    assert instances_of(torch.empty(10), high=10) == [[2], [3], [5], [9]]
    assert instances_of(torch.empty(10), ["==", ["%", "s0", 2], 0]) == [[2]]
    assert instances_of(torch.empty(10), ["<", 10, "s0"]) == [[21]]


def test_instances_are_no_larger_than_allowed() -> None:
    assert instances_of(torch.empty(10), most_elements=9) == [[2], [3], [5], [9]]
    assert instances_of(torch.empty(10), most_elements=1) == []


def test_the_known_call_is_none_of_its_other_instances() -> None:
    assert instances_of(torch.empty(2)) == [[3], [5]]
    assert instances_of(torch.empty(3)) == [[2], [7]]


def test_views_of_a_buffer_do_not_grow_in_it() -> None:
    assert instances_of(torch.empty(10, 40)[:, :20]) == [[2, 2], [3, 3], [5, 10], [9, 19]]


@given(tensors(st.integers(1, 40)), st.integers(1, 5000), st.integers(3, 60))
@property_test
def test_a_pattern_serves_its_instances(x: torch.Tensor, most: int, high: int) -> None:
    key = key_of(SILU, x)
    family = family_of(SILU, key)
    guards = Guards(
        {name: (2, high) if name.startswith("s") else (1, INT64_MAX) for name in family.values},
        (["not", ["==", ["%", "s0", 7], 0]],) if "s0" in family.values else (),
    )
    general = pattern_words(SILU, family.pattern)
    assert general is not None
    found = instances(family.pattern, guards, family.values, most_elements=most)
    assert len({one.digest for one in found} | {key.digest}) == len(found) + 1
    for one in found:
        words = key_words(SILU, one)
        assert words is not None
        values = match(words, general, guards)
        assert values is not None
        assert with_values(family.pattern, values) == one
        assert math.prod(dict(one.arguments)["self"]["sizes"]) <= most


def test_guards_in_words() -> None:
    low, high = (float_bits(value.hex()) for value in (0.5, 8.0))
    negative = tuple(float_bits((-value).hex()) for value in (0.5, 8.0))
    guards = Guards(
        {"s1": (4097, INT64_MAX), "s0": (2, 4096), "v0": (low, high), "v1": negative},
        (["==", ["%", "s0", 8], 0],),
    )
    assert guard_texts(guards) == [
        "2 <= s0 <= 4096",
        "4097 <= s1",
        "0.5 <= v0 <= 8",
        "-8 <= v1 <= -0.5",
        "((s0 % 8) == 0)",
    ]
