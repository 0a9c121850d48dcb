from __future__ import annotations

import math
import warnings

import numpy
import pytest
import torch

from aoti_eager._base.op_names import find_overload

from ..numerics import (
    exact_rows,
    hard_data,
    judge,
    losses,
    norms,
    reductions,
)
from ..numerics.hard_calls import Draw
from ..numerics.hard_data import (
    LAYOUTS,
    families,
    laid_out,
    rows,
)
from ..numerics.judge import Verdict

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
)


def _family(name: str, dtype: torch.dtype = torch.float32) -> hard_data.Family:
    return next(one for one in families(dtype) if one.name == name)


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_every_family_and_length_have_the_dtype_and_are_the_same_again(
    dtype: torch.dtype,
) -> None:
    names = [one.name for one in families(dtype)]
    assert len(set(names)) == len(names)
    for family in families(dtype):
        for n in (0, 1, 2, 33):
            made = rows(family, n, dtype)
            assert made.shape == (8, n)
            assert made.dtype == dtype
            assert made.is_contiguous()
            again = rows(family, n, dtype)
            same = (made == again) | (made != made)
            assert bool(same.all())


def test_random_families_give_other_rows_for_other_seeds_and_names() -> None:
    normal = rows(_family("normal"), 33, torch.float32)
    assert not torch.equal(normal, rows(_family("normal"), 33, torch.float32, seed=1))
    assert not torch.equal(normal * 30, rows(_family("wide"), 33, torch.float32))


def test_a_special_value_is_in_one_row_at_its_place() -> None:
    for where, place in (("first", 0), ("middle", 16), ("last", 32)):
        made = rows(_family(f"nan {where}"), 33, torch.float32)
        assert made.isnan().nonzero().tolist() == [[4, place]]
    infinite = rows(_family("-inf last"), 33, torch.bfloat16)
    assert (infinite == -math.inf).nonzero().tolist() == [[4, 32]]


def test_hard_families_are_as_hard_as_they_say() -> None:
    offset = rows(_family("offset 1e+07"), 1025, torch.float32).double()
    assert bool((offset.mean(1) > 1e6 * offset.std(1)).all())
    signs = rows(_family("alternating"), 33, torch.float32).sign()
    assert bool((signs[:, 1:] == -signs[:, :-1]).all())
    over = rows(_family("over the square's limit"), 257, torch.float32)
    assert bool((over * over).isinf().any(1).all())
    assert bool(over.isfinite().all())
    tiny = rows(_family("denormal"), 257, torch.float32).abs()
    assert bool((tiny < torch.finfo(torch.float32).tiny).all())
    large = rows(_family("near the largest", torch.float16), 33, torch.float16)
    assert bool((large > 64000).all())
    assert bool(large.isfinite().all())


def test_integers_reach_both_ends_of_their_type() -> None:
    made = rows(_family("extremes", torch.int64), 33, torch.int64)
    assert {int(made.min()), int(made.max())} == {-(2**63), 2**63 - 1}


def test_layouts_change_strides_and_no_values() -> None:
    values = torch.arange(24.0).view(4, 6)
    strides = {}
    for layout in LAYOUTS:
        made = laid_out(values, layout)
        strides[layout] = (made.stride(), made.storage_offset())
        if layout != "expanded":
            assert torch.equal(made, values)
    assert strides == {
        "contiguous": ((6, 1), 0),
        "transposed": ((1, 4), 0),
        "every second": ((12, 2), 0),
        "offset": ((6, 1), 3),
        "expanded": ((0, 1), 0),
    }
    with pytest.raises(ValueError, match="no such layout"):
        laid_out(values, "diagonal")


# --- exact results -------------------------------------------------------------------------------


def test_exact_results_are_those_of_python_where_it_is_exact() -> None:
    x = rows(_family("alternating", torch.float64), 257, torch.float64)
    wide = exact_rows.wide(x)
    for row, total in zip(x.tolist(), exact_rows.total(wide), strict=True):
        assert float(total) == pytest.approx(math.fsum(row), rel=1e-15)
    # Integers, so that variances have few digits: 1e9 + (0, 1, 2, ...).
    counts = exact_rows.wide(torch.arange(1000, dtype=torch.float64)[None] + 1e9)
    assert float(exact_rows.variance(0)(counts)[0]) == (1000**2 - 1) / 12
    assert float(exact_rows.deviation(1)(counts)[0]) == pytest.approx(
        math.sqrt((1000**2 - 1) / 12 * 1000 / 999), rel=1e-16
    )
    large = torch.tensor([[3e200, 4e200]], dtype=torch.float64)
    assert float(exact_rows.norm(2.0)(exact_rows.wide(large))[0]) == pytest.approx(5e200, rel=1e-15)


@pytest.mark.parametrize("family", ["normal", "wide", "growing", "offset 10000"])
def test_exact_results_agree_with_eager_in_double_precision(family: str) -> None:
    x = rows(_family(family), 33, torch.float32)
    wide, double = exact_rows.wide(x), x.double()
    for mine, theirs in (
        (exact_rows.mean(wide), double.mean(1)),
        (exact_rows.product(wide), double.prod(1)),
        (exact_rows.variance(1)(wide), double.var(1)),
        (exact_rows.log_sum_exp(wide), double.logsumexp(1)),
        (exact_rows.softmax(wide), double.softmax(1)),
        (exact_rows.log_softmax(wide), double.log_softmax(1)),
        (exact_rows.norm(3.0)(wide), torch.linalg.vector_norm(double, 3.0, 1)),
    ):
        assert mine.astype(float) == pytest.approx(theirs.numpy(), rel=1e-9)


# --- the rule ------------------------------------------------------------------------------------

ONE = torch.ones(8)
UP = torch.nextafter(ONE, torch.tensor(2.0))


def _judge(
    eager: torch.Tensor, compiled: torch.Tensor, exact: numpy.ndarray | float = 1.0
) -> Verdict:
    return judge.judge("here", eager, compiled, numpy.broadcast_to(exact, 8).copy())


def _steps(count: int) -> torch.Tensor:
    made = ONE.clone()
    made[3] = 1 + count * 2.0**-23
    return made


def test_two_ulp_pass_and_three_do_not() -> None:
    assert _judge(ONE, _steps(2)).is_right
    found = _judge(ONE, _steps(3))
    assert not found.is_right
    assert found.max_ulp_compiled == 3
    assert found.measures()["beyond_regions"] == 1
    assert "1 of 8 beyond the rule" in found.failures[0]


def test_half_again_eagers_error_passes_and_more_does_not() -> None:
    assert _judge(_steps(10), _steps(15)).is_right
    assert not _judge(_steps(10), _steps(16)).is_right


def test_one_nan_in_one_place_is_found() -> None:
    compiled = ONE.clone()
    compiled[5] = math.nan
    found = _judge(ONE, compiled)
    assert found.nan_mismatches == 1
    assert "(5,)" in found.failures[0]
    assert _judge(compiled, compiled).is_right
    assert _judge(compiled, ONE, math.nan).nan_mismatches == 1


def test_an_infinity_of_the_other_sign_is_found() -> None:
    found = _judge(ONE * math.inf, ONE * -math.inf, math.inf)
    assert found.inf_mismatches == 8


def test_a_finite_result_may_stand_where_eager_overflows_and_the_exact_value_does_not() -> None:
    overflown = ONE.clone()
    overflown[2] = math.inf
    found = _judge(overflown, ONE)
    assert found.is_right
    assert found.nearer == 1
    assert not _judge(overflown, _steps(0) * 1.5).is_right
    assert _judge(ONE, overflown).inf_mismatches == 1


def test_an_infinity_may_stand_where_eager_has_a_nan_and_the_exact_value_is_infinite() -> None:
    """A product of an infinity and numbers that underflow on the way."""
    assert _judge(ONE * math.nan, ONE * math.inf, math.inf).nearer == 8
    assert _judge(ONE * math.nan, ONE * math.inf, -math.inf).nan_mismatches == 8
    assert _judge(ONE * math.inf, ONE * math.nan, math.inf).nan_mismatches == 8


def test_lost_signs_of_zero_are_counted_and_refused_where_bits_are_wanted() -> None:
    zeros = torch.zeros(8)
    found = _judge(-zeros, zeros, 0.0)
    assert found.is_right
    assert found.zero_signs == 8
    assert not judge.judge("here", -zeros, zeros, None, signs_count=True).is_right
    assert judge.judge("here", -zeros, zeros, None).is_right


def test_without_an_exact_value_one_ulp_is_too_much() -> None:
    assert judge.judge("here", ONE, UP, None).exact_differing == 8


def test_integers_dtypes_and_sizes_must_be_eagers() -> None:
    counts = torch.arange(4)
    assert judge.judge("here", counts, counts + 1, None).exact_differing == 4
    assert judge.judge("here", counts, counts.int(), None).metadata
    assert judge.judge("here", counts, counts[:3], None).metadata


def test_each_part_of_a_complex_result_is_judged() -> None:
    eager = torch.complex(ONE, -torch.zeros(8))
    compiled = torch.complex(ONE, torch.full((8,), math.nan))
    found = judge.judge("here", eager, compiled, numpy.ones(8) + 0j)
    assert found.nan_mismatches == 8
    assert found.values == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ulp_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    values = torch.tensor([1.0, 1.5, 1000.0, tiny, tiny / 8, 0.0], dtype=dtype)
    following = torch.nextafter(values, torch.tensor(math.inf, dtype=dtype))
    wanted = following.double() - values.double()
    assert judge.ulp(values.double().numpy(), dtype).tolist() == wanted.tolist()


def test_what_several_regions_say_adds_up() -> None:
    total = Verdict()
    total.add(_judge(ONE, _steps(3)))
    total.add(_judge(ONE, ONE * math.nan))
    measures = total.measures()
    assert (measures["values"], measures["nan_mismatches"]) == (16, 8)
    assert (measures["beyond_regions"], measures["max_ulp_compiled"]) == (1, 3)


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [reductions.OPS, norms.OPS, losses.OPS], ids=["r", "n", "l"])
def test_eager_takes_the_calls_of_every_op(table: dict[str, losses.Calls]) -> None:
    draw = Draw(_family("probabilities"), torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A variance of one number, and names that are deprecated.
        for op, calls in table.items():
            made = list(calls("default"))
            assert {call.op for call in made} == {op}
            assert len({call.label for call in made}) == len(made), op
            # By the end of the list shapes are not degenerate any more.
            args, kwargs = made[-1 if len(made) < 5 else 4].arguments(draw)
            find_overload(op)(*args, **kwargs)
