"""The laboratory's comparison: whatever differs is found, and by how much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ..numerics import rule, values
from ..numerics.compare import Comparison


@pytest.fixture(scope="session")
def built(run_dir: Path) -> Path:
    """The directory in which the comparison is built, once in a run."""
    path = run_dir / "numerics"
    path.mkdir(exist_ok=True)
    return path


def measures(built: Path, eager: Any, compiled: Any, exact: Any = None, **rest: Any) -> Any:
    """Return what a comparison of one chunk finds."""
    comparison = Comparison(built)
    comparison.add(eager, compiled, exact, **rest)
    return comparison.measures()


@pytest.mark.parametrize("name", values.FLOATS)
@pytest.mark.parametrize("place", [0, 17, 1000])
def test_a_value_that_is_three_ulp_off_is_found(built: Path, name: str, place: int) -> None:
    eager = torch.linspace(1.1, 1.9, 1001, dtype=torch.float64).to(values.dtype_of(name))
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[eager.element_size()]
    compiled = eager.clone()
    compiled.view(kind)[place] += 3
    exact = None if name == "float64" else eager.double()
    found = measures(built, eager, compiled, exact, inputs=[eager])
    assert found["differing"] == 1
    assert found["max_ulp_compiled"] == 3.0
    assert found["max_ulp_eager"] == 0.0
    assert found["beyond_regions"] == found["beyond_values"] == 1
    assert float(found["beyond"][0]["inputs"][0]) == eager[place].item()
    assert rule.faults(found)
    compiled.view(kind)[place] -= 1
    assert not rule.faults(measures(built, eager, compiled, exact))


@pytest.mark.parametrize("name", values.FLOATS)
def test_errors_are_those_of_the_result_s_own_dtype(built: Path, name: str) -> None:
    """Beside an exact value between two of its neighbours, subnormals included."""
    dtype = values.dtype_of(name)
    information = torch.finfo(dtype)
    some = [1.0, 1.5, -2.0, 100.0, information.tiny, information.smallest_normal / 4]
    eager = torch.tensor(some, dtype=dtype)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[eager.element_size()]
    above = (eager.view(kind) + 1).view(dtype)
    wide = np.longdouble
    exact = eager.double().numpy().astype(wide)
    exact += (above.double().numpy().astype(wide) - exact) / 4
    given: Any = exact if name == "float64" else torch.from_numpy(exact.astype(np.float64))
    found = measures(built, eager, above, given)
    assert found["max_ulp_eager"] == 0.25
    assert found["max_ulp_compiled"] == 0.75


@pytest.mark.parametrize("name", values.FLOATS)
def test_one_nan_and_one_infinity_are_found(built: Path, name: str) -> None:
    eager = torch.ones(5000, dtype=values.dtype_of(name))
    eager[7] = math.nan
    eager[8], eager[9] = math.inf, -math.inf
    assert not rule.faults(measures(built, eager, eager.clone()))
    for place, value, what in (
        (4999, math.nan, "nan_mismatches"),
        (7, 1.0, "nan_mismatches"),
        (7, math.inf, "nan_mismatches"),
        (4998, math.inf, "inf_mismatches"),
        (8, -math.inf, "inf_mismatches"),
        (9, 1.0, "inf_mismatches"),
    ):
        compiled = eager.clone()
        compiled[place] = value
        found = measures(built, eager, compiled, inputs=[torch.arange(5000)])
        assert found[what] == 1, (place, value)
        example = found["examples"][what.partition("_")[0]][0]
        assert example["inputs"] == [str(place)]
        assert rule.faults(found)


def test_the_bits_of_a_nan_say_nothing(built: Path) -> None:
    eager = torch.full((10,), math.nan)
    compiled = -eager
    assert eager.view(torch.int32)[0] != compiled.view(torch.int32)[0]
    found = measures(built, eager, compiled)
    assert not rule.faults(found)
    assert found["differing"] == 0


def test_a_sign_of_zero_is_counted_and_is_no_fault(built: Path) -> None:
    eager = torch.tensor([0.0, -0.0, 1.0, -0.0])
    compiled = torch.tensor([0.0, 0.0, 1.0, 0.0])
    found = measures(built, eager, compiled, eager.double())
    assert found["zero_signs"] == 2
    assert not rule.faults(found)


def test_a_zero_instead_of_a_small_number_is_an_error(built: Path) -> None:
    eager = torch.tensor([1e-20])
    found = measures(built, eager, torch.zeros(1), eager.double())
    assert found["max_ulp_compiled"] > 1e6
    assert rule.faults(found)


def test_a_finite_result_where_eager_overflows_is_nearer(built: Path) -> None:
    eager, compiled = torch.tensor([math.inf, math.nan]), torch.tensor([3e38, 2.0])
    exact = torch.tensor([3e38, 2.0]).double()
    found = measures(built, eager, compiled, exact, inputs=[exact])
    assert found["nearer"] == 2
    assert not rule.faults(found)
    found = measures(built, eager[1:], eager[:1], eager[:1].double())
    assert found["nearer"] == 1
    assert not rule.faults(found)
    # Not where the exact value is too large for the dtype, too.
    found = measures(built, eager[:1], compiled[:1], torch.tensor([1e39]).double())
    assert found["inf_mismatches"] == 1


def test_compiled_code_may_be_as_far_off_as_eager_is_in_the_same_binade(built: Path) -> None:
    exact = torch.tensor([1.25, 1.5, 2.5], dtype=torch.float64)
    far = exact.float()
    far[0] += 2**-20  # Eight units, at 1.25.
    eager, compiled = far.clone(), exact.float()
    compiled[1] += 2**-20
    assert not rule.faults(measures(built, eager, compiled, exact))
    compiled[2] += 2**-20  # Four units, in a binade where eager is exact.
    found = measures(built, eager, compiled, exact)
    assert found["beyond_regions"] == 1
    assert found["beyond"][0]["ulp_compiled"] == 4.0
    # A region may be of the input instead, as it is for ops of one tensor.
    same = torch.full((3,), 7.0, dtype=torch.float64)
    assert not rule.faults(measures(built, eager, compiled, exact, keys=same))


@pytest.mark.parametrize("name", values.INTEGERS)
def test_integers_and_booleans_are_compared_exactly(built: Path, name: str) -> None:
    eager = torch.zeros(999, dtype=values.dtype_of(name))
    compiled = eager.clone()
    assert not rule.faults(measures(built, eager, compiled))
    compiled[998] = 1
    found = measures(built, eager, compiled, torch.zeros(999).double())
    assert found["exact_differing"] == 1
    assert rule.faults(found)


def test_complex_results_are_compared_part_by_part(built: Path) -> None:
    eager = torch.full((10,), 1 + 2j, dtype=torch.complex64)
    compiled = eager.clone()
    compiled[3] = complex(1, math.nan)
    exact = eager.to(torch.complex128)
    assert measures(built, eager, compiled, exact)["nan_mismatches"] == 1
    assert not rule.faults(measures(built, eager, eager.clone(), exact))


def test_another_dtype_or_layout_is_a_fault(built: Path) -> None:
    eager = torch.zeros(4, 4)
    for compiled in (eager.double(), eager.t().contiguous().t(), eager[:2]):
        assert rule.faults(measures(built, eager, compiled))
