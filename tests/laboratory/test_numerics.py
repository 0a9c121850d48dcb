"""The numerics laboratory: what it compares, and a fixed share of its work."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from aoti_eager._base.cpu import cpu_features, cpu_target

from ..numerics import rule, values
from ..numerics.calls import Call, X
from ..numerics.families import Options, family, names
from ..numerics.kernels import Kernels, Versions
from ..numerics.laboratory import CHUNK, TAIL, Laboratory
from ..numerics.parts import run_parts
from ..numerics.report import beyond
from ..support.kept_builds import make_cache_dir

VERSIONS = Versions(1, "2.13.0", "g++-0")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "int16", "uint8", "bool"])
def test_every_value_of_a_small_dtype_is_compared(name: str) -> None:
    unary: Any = family("unary")
    (part,) = [
        part
        for part in unary.parts(Options("x86-64-v4", (name,)))
        if part.op == "aten::abs" and part.coverage == "exhaustive"
    ]
    from ..numerics.unary import _chunks

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
    for name in ("unary", "binary", "mixed"):
        calls = family(name)._calls
        assert all((call.op, call.variant) == place for place, call in calls.items())
    assert Call("aten::sin", (X,)).variant == ""
    assert Call("aten::elu", (X, 0.5)).variant == "(x, 0.5)"


ENUMERATION = """
import json
from aoti_eager._keys.functional_overload import functional_overload
from tests.numerics.enumeration import compiled_overloads
print(json.dumps(sorted({functional_overload(name) for name in compiled_overloads()})))
"""


@pytest.mark.full
def test_every_overload_with_compiled_code_is_compared_or_has_a_reason() -> None:
    from ..numerics.elsewhere import ELSEWHERE

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


@pytest.mark.full
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
    refusing = Wrong(lambda right: right)
    refusing.eager = lambda inputs: torch.zeros(2) @ torch.zeros(3)  # type: ignore
    measures = laboratory.compared(refusing, [[torch.ones(5)]], None)  # type: ignore[arg-type]
    assert "eager raises" in rule.faults(measures)[0]
    assert "beyond the rule" in faults(lambda right: right + 1e-7)[0]
    assert "NaN differs" in faults(lambda right: math.nan)[0]
    assert "infinity differs" in faults(lambda right: math.inf)[0]
