"""A share of ``python -m tests.fuzz_dynamic``, and what it draws."""

from __future__ import annotations

import warnings

import pytest
import torch

from .. import fuzz_dynamic
from ..fuzz_dynamic import (
    LAYOUTS,
    LAYOUTS_OF,
    OPS,
    draw,
    fuzz,
    overload_of,
    problem_of,
)

pytestmark = [pytest.mark.compiles, pytest.mark.dynamic]


# In each run of the suite, of three ops or four; the long run makes 500,000.
CALLS = 7_000


@pytest.mark.full
@pytest.mark.native
@pytest.mark.share(of=8)
@pytest.mark.parametrize("op", OPS)
def test_kernels_give_what_eager_gives(op: str) -> None:
    # Few kernels: each takes a second or two.
    found = fuzz([op], CALLS, 0, static_cap=2, dynamic_cap=8)
    assert found.mismatches == []
    assert found.share > 0.6, found.table()
    assert all(not tally.failures for tally in found.tallies.values())


@pytest.mark.parametrize("op", OPS)
def test_every_layout_occurs_for_every_op_and_most_calls_are_valid(op: str) -> None:
    seen, raised = set(), 0
    for number in range(150):
        call = draw(op, number, 0)
        assert call.to_json() == draw(op, number, 0).to_json()
        seen |= {spec.layout for spec in call.specs()}
        made = call.make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.run(overload_of(op))
        raised += made.error is not None
    taken = set(LAYOUTS_OF.get(op, LAYOUTS))
    if any(spec.mutated for spec in call.specs()):
        taken -= fuzz_dynamic.SHARED
    assert taken <= seen
    assert raised < 30


def test_a_wrong_result_is_a_problem() -> None:
    call = draw("aten::silu", 0, 0)
    made = [call.make() for _ in range(5)]
    for one in made:
        one.run(torch.ops.aten.silu.default)
    right, value, strides, written, error = made
    value.result = right.result + 1e-3
    strides.result = torch.cat([right.result, right.result])
    written.buffers[0][-1] = 1.0
    error.error = IndexError("none")
    assert problem_of(call, right, right) is None
    for wrong in (value, strides, written, error):
        assert problem_of(call, right, wrong) is not None
