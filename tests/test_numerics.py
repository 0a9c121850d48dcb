"""The numerics laboratory: its rule, its comparison, its parts, and a fixed share of its work."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aoti_eager._environment import cpu_features, cpu_target

from .conftest import make_cache_dir
from .numerics import rule, values
from .numerics.calls import Call, X
from .numerics.certificates import COLUMNS, certificates
from .numerics.compare import Comparison
from .numerics.families import Options, family, names
from .numerics.kernels import Kernels, Versions
from .numerics.laboratory import CHUNK, TAIL, Laboratory
from .numerics.parts import Part, Results, run_parts
from .numerics.report import beyond, rows

VERSIONS = Versions(1, "2.13.0", "g++-0")
PARTS = [Part("aten::sin", "float32", "x86-64-v4", "unary", f"({i})") for i in range(4)]


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


# --- the comparison ------------------------------------------------------------------------------


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


# --- the rule ------------------------------------------------------------------------------------


def result(outcome: str = "done", **changes: Any) -> dict[str, Any]:
    """Return a part's result, of an op that is right."""
    found = {
        **dict.fromkeys(("values", "differing", "nan_mismatches", "inf_mismatches"), 0),
        **dict.fromkeys(("nearer", "zero_signs", "unreferenced", "exact_differing"), 0),
        "max_ulp_eager": 0.5,
        "max_ulp_compiled": 0.7,
        "beyond_regions": 0,
        "beyond": [],
        "beyond_values": 0,
        "examples": {},
        "metadata": [],
        **changes,
    }
    part = PARTS[0].to_json()
    base = {"part": part, "outcome": outcome, "seconds": 1.0, "versions": VERSIONS.to_json()}
    if outcome == "done":
        return {**base, "reference": "float64", "measures": found}
    return {**base, "reason": "because"}


def test_a_row_is_certified_only_if_all_of_its_parts_are_right() -> None:
    assert rule.merged([result(), result(zero_signs=3)])["status"] == "certified"
    for bad in (
        result(nan_mismatches=1),
        result(inf_mismatches=1),
        result(exact_differing=1),
        result(beyond_regions=1),
        result(metadata=["dtype"]),
        result("crashed"),
        result("hung"),
        result("failed"),
    ):
        row = rule.merged([result(), bad])
        assert row["status"] == "uncertified"
        assert row["reason"]
        assert beyond([result(), bad])
    assert not beyond([result()])


def test_what_declines_is_not_certified_and_serves_nothing() -> None:
    declined = rule.merged([result("declined")])
    assert declined["status"] == "uncertified"
    assert not beyond([result("declined")])
    # A variant that declines takes nothing from the others.
    assert rule.merged([result("declined"), result()])["status"] == "certified"
    assert rows([result("refused")]) == []


def test_a_reduction_may_be_half_as_far_off_again_as_eager() -> None:
    assert rule.reduction_allows(10.0, 15.0)
    assert not rule.reduction_allows(10.0, 15.1)
    assert rule.reduction_allows(0.0, 2.0)
    assert not rule.reduction_allows(1.0, 2.1)


def test_certificates_are_one_sorted_document() -> None:
    one, other = result(zero_signs=2), result(nan_mismatches=1)
    other["part"] = {**other["part"], "op": "aten::cos", "dtype": "bfloat16"}
    text = certificates([one, other], VERSIONS, "2026-11-29", "g++ 12")
    assert text == certificates([other, one], VERSIONS, "2026-11-29", "g++ 12")
    document = json.loads(text)
    assert document["format"] == 1
    found = [dict(zip(COLUMNS, row, strict=True)) for row in document["rows"]]
    assert [row["op"] for row in found] == ["aten::cos", "aten::sin"]
    assert [row["status"] for row in found] == ["uncertified", "certified"]
    assert found[1]["zero_signs"] == 2
    assert len(text.splitlines()) == 2 + 4 + 1 + 1


# --- parts ---------------------------------------------------------------------------------------

# A child that answers as its part's variant says; what it has run is in a file.
CHILD = """
import json, os, signal, sys, time
directory, target = sys.argv[-2:]
for line in sys.stdin:
    part = json.loads(line)
    with open(os.path.join(directory, "ran"), "a") as file:
        file.write(part["variant"] + "\\n")
    action = os.environ.get("ACTION_" + part["variant"].strip("()"))
    if action == "die":
        os.abort()
    if action == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "wait":
        print("waiting", file=sys.stderr)
        open(os.path.join(directory, "waits"), "w").write(str(os.getpid()))
        while True:
            time.sleep(60)
    print(json.dumps({"outcome": "refused", "reason": "a test"}), flush=True)
"""
COMMAND = (sys.executable, "-c", CHILD)


def outcomes(directory: Path, **options: Any) -> dict[str, str]:
    """Return the outcome of each part, by its variant."""
    found = run_parts(PARTS, directory, "x86-64-v4", VERSIONS, command=COMMAND, **options)
    return {one["part"]["variant"]: one["outcome"] for one in found}


def ran(directory: Path) -> list[str]:
    """Return which parts were begun, in order."""
    return (directory / "ran").read_text().split()


def test_parts_that_have_a_result_are_not_run_again(tmp_path: Path) -> None:
    assert set(outcomes(tmp_path).values()) == {"refused"}
    assert sorted(ran(tmp_path)) == ["(0)", "(1)", "(2)", "(3)"]
    outcomes(tmp_path)
    assert len(ran(tmp_path)) == 4
    for other in (
        Versions(2, VERSIONS.torch, VERSIONS.compiler),
        Versions(1, "2.13.1", VERSIONS.compiler),
        Versions(1, VERSIONS.torch, "clang"),
    ):
        before = len(ran(tmp_path))
        run_parts(PARTS, tmp_path, "x86-64-v4", other, command=COMMAND)
        assert len(ran(tmp_path)) == before + 4


def test_a_child_that_crashes_marks_its_part_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION_1", "die")
    found = outcomes(tmp_path, jobs=1)
    assert found == {"(0)": "refused", "(1)": "crashed", "(2)": "refused", "(3)": "refused"}
    assert ran(tmp_path).count("(1)") == 1


def test_a_child_that_is_killed_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION_2", "killed")
    assert outcomes(tmp_path, jobs=1)["(2)"] == "crashed"
    assert ran(tmp_path).count("(2)") == 2


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTION_0", "wait")
    found = outcomes(tmp_path, jobs=1, timeout_s=2.0)
    assert found == {"(0)": "hung", "(1)": "refused", "(2)": "refused", "(3)": "refused"}


# A run, to be killed in the middle of its third part.
RUN = """
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tests.test_numerics import outcomes
outcomes(Path(sys.argv[1]), jobs=1)
"""


def test_a_run_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION_2", "wait")
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)])
    waits = tmp_path / "waits"
    while not waits.exists() or not waits.read_text():
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    os.kill(int(waits.read_text()), signal.SIGKILL)
    assert len(Results(tmp_path, VERSIONS).all()) == 2
    # What a process wrote last may be half a line.
    with open(tmp_path / "results.jsonl", "a", encoding="utf-8") as file:
        file.write('{"part": {"op"')
    monkeypatch.delenv("ACTION_2")
    assert set(outcomes(tmp_path, jobs=1).values()) == {"refused"}
    assert ran(tmp_path) == ["(0)", "(1)", "(2)", "(2)", "(3)"]


# --- what is compared ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "int16", "uint8", "bool"])
def test_every_value_of_a_small_dtype_is_compared(name: str) -> None:
    unary: Any = family("unary")
    (part,) = [
        part
        for part in unary.parts(Options("x86-64-v4", (name,)))
        if part.op == "aten::abs" and part.coverage == "exhaustive"
    ]
    from .numerics.unary import _chunks

    size = values.dtype_of(name).itemsize
    kind = {1: torch.uint8, 2: torch.int16}[size]
    seen = torch.cat([chunk.view(kind).unique() for chunk in _chunks(part)]).unique()
    assert len(seen) == (2 if name == "bool" else 1 << (8 * size))


def test_exhaustive_parts_of_float32_are_all_values() -> None:
    unary: Any = family("unary")
    options = Options("x86-64-v4", ("float32",), exhaustive=True)
    parts = [part for part in unary.parts(options) if part.op == "aten::abs"]
    spans = [tuple(map(int, part.span.split("/"))) for part in parts]
    assert spans == [(i, len(parts)) for i in range(len(parts))]
    small = values.bit_chunks("float32", 0, 1 << 18, 1, 5000, torch.zeros(1))
    seen = torch.cat([chunk.view(torch.int32).unique() for chunk in small]).unique()
    assert torch.equal(seen, torch.arange(1 << 18, dtype=torch.int32))


@pytest.mark.parametrize("name", [*values.FLOATS, *values.INTEGERS])
def test_structured_values_are_different_and_hold_what_hurts(name: str) -> None:
    found = values.structured(name, 2048)
    assert len(found) == (2 if name == "bool" else 256 if name in ("uint8", "int8") else 2048)
    if name in values.FLOATS:
        assert found.isnan().any()
        for value in (0.0, math.inf, -math.inf, 1.0):
            assert (found == value).any()
        zero = found[found == 0]
        assert zero.signbit().any()
        assert not zero.signbit().all()
    elif name != "bool":
        information = torch.iinfo(found.dtype)
        assert found.min() == information.min
        assert found.max() == information.max


def test_a_call_s_variant_tells_it_from_others() -> None:
    for name in names():
        calls = getattr(family(name), "_calls", {})
        assert all((call.op, call.variant) == place for place, call in calls.items())
    assert Call("aten::sin", (X,)).variant == ""
    assert Call("aten::elu", (X, 0.5)).variant == "(x, 0.5)"


ENUMERATION = """
import json
from tests.numerics.enumeration import compiled_overloads, functional
print(json.dumps(sorted({functional(name) for name in compiled_overloads()})))
"""


def test_every_overload_with_compiled_code_is_compared_or_has_a_reason() -> None:
    from .numerics.elsewhere import ELSEWHERE

    # In a process of its own: it imports the compiler.
    command = [sys.executable, "-W", "ignore", "-c", ENUMERATION]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    enumerated = set(json.loads(done.stdout))
    covered = frozenset().union(*(family(name).ops() for name in names()))
    assert sorted(enumerated - covered - ELSEWHERE.keys()) == []
    assert sorted(covered & ELSEWHERE.keys()) == []
    assert sorted((covered | ELSEWHERE.keys()) - enumerated) == []


# --- a share of the work -------------------------------------------------------------------------

SHARE = [
    *[("aten::exp", "", "float32"), ("aten::sqrt", "", "bfloat16"), ("aten::relu", "", "float16")],
    *[("aten::neg", "", "int8"), ("aten::add.Tensor", "", "bfloat16")],
    *[("aten::where.self", "(x:bool, y, z)", "float32"), ("aten::maximum", "", "float32")],
    *[("aten::bitwise_xor.Tensor", "", "int64"), ("aten::mul.Tensor", "(x, a float)", "float32")],
]


@pytest.mark.compiles
def test_a_share_of_the_ops_is_within_the_rule(tmp_path: Path, shared_cache_dir: Path) -> None:
    make_cache_dir(tmp_path / "store", shared_cache_dir)  # Precompiled headers cost half a minute.
    target = cpu_target(cpu_features()).march
    options = Options(target, tuple({dtype for _, _, dtype in SHARE}), share=9973)
    parts = [
        part
        for name in names()
        for part in family(name).parts(options)
        if (part.op, part.variant, part.dtype) in SHARE
    ]
    assert len(parts) == len(SHARE)
    found = run_parts(parts, tmp_path, target, VERSIONS, jobs=1)
    assert [one for one in found if one["outcome"] != "done"] == []
    assert beyond(found) == []
    assert min(one["measures"]["values"] for one in found) > 100_000


class Wrong:
    """A kernel of ``sin`` whose compiled code is wrong for one value."""

    def __init__(self, error: Callable[[float], float]) -> None:
        self._error = error

    def eager(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        return [torch.sin(inputs[0])]

    def compiled(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        (found,) = self.eager(inputs)
        place = inputs[0] == 0.25
        return [torch.where(place, self._error(math.sin(0.25)), found)]

    def exact(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        return [torch.sin(inputs[0].double())]


@pytest.mark.parametrize("sparse", [False, True])
def test_one_wrong_value_among_millions_is_found(tmp_path: Path, sparse: bool) -> None:
    laboratory = Laboratory(tmp_path, Kernels(tmp_path, "x86-64-v3"))
    bits = torch.tensor(0.25).view(torch.int32).item()
    # In the last of three chunks, where a sparse run looks only at what differs.
    begin, end = bits - 2 * (CHUNK - TAIL) - 1000, bits + 1000

    def faults(error: Callable[[float], float]) -> list[str]:
        chunks = values.bit_chunks("float32", begin, end, 1, CHUNK, torch.ones(1))
        found = laboratory.compared(
            Wrong(error),  # type: ignore[arg-type]
            ([chunk] for chunk in chunks),
            lambda kernel, inputs: kernel.exact(inputs),
            by_input=True,
            sparse=sparse,
        )
        assert found["values"] == 3 * CHUNK
        return rule.faults(found)

    assert not faults(lambda right: right)
    assert "beyond the rule" in faults(lambda right: right + 1e-7)[0]
    assert "NaN differs" in faults(lambda right: math.nan)[0]
    assert "infinity differs" in faults(lambda right: math.inf)[0]
