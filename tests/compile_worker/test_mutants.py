"""A share of the mutants: faults in real kernels, compiled with the worker's flags.

``python -m tests.mutants`` does the same for hundreds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aoti_eager._compile_worker.library_runs import trial_server

from ..mutants.built import (
    FOUND,
    MISSED,
    NO_CODE,
    SAME,
    judged,
)
from ..mutants.calls import all_cases
from ..mutants.captured import capture, captured
from ..mutants.mutate import drawn, mutants

CASES = ("softmax float32", "huber", "clamp int64")
COUNT = 12


@pytest.mark.full
@pytest.mark.compiles
def test_the_trial_finds_mutants_of_real_kernels(tmp_path: Path) -> None:
    cases = [all_cases()[name] for name in CASES]
    capture(cases, tmp_path / "kernels")
    kernels = [one for case in cases for one in captured(case, tmp_path / "kernels")]
    server = trial_server()
    try:
        outcomes = [
            (mutant, judged(kernels[at], mutant, tmp_path / "mutants", server, "now"))
            for at, mutant in drawn([kernel.source for kernel in kernels], COUNT, seed=1)
        ]
    finally:
        server.close()
    verdicts = [outcome.verdict for _, outcome in outcomes]
    assert [(mutant, o.message) for mutant, o in outcomes if o.verdict == MISSED] == []
    assert verdicts.count(FOUND) >= COUNT / 2
    assert set(verdicts) <= {FOUND, SAME, NO_CODE}


def test_a_mutant_is_one_changed_line_and_always_the_same() -> None:
    source = """
{
    for(int64_t x0=static_cast<int64_t>(0L); x0<static_cast<int64_t>(64L); x0++)
    {
        auto tmp0 = at::vec::Vectorized<float>::loadu(in_ptr0 + (x0 + 64L*x1), 16);
        auto tmp1 = static_cast<float>(0.5);
        auto tmp2 = tmp0 * tmp1;
        tmp_acc0_vec = tmp_acc0_vec + tmp2;
        tmp2.store(out_ptr0 + static_cast<int64_t>(x0), static_cast<int64_t>(16));
    }
}
"""
    found = mutants(source)
    assert {one.kind for one in found} == {
        *("operator", "constant", "bound", "accumulation", "special value"),
    }
    assert found == mutants(source)
    for one in found:
        changed = one.source(source).split("\n")
        assert sum(a != b for a, b in zip(changed, source.split("\n"), strict=True)) == 1
    assert drawn([source], 5) == drawn([source], 5)
