"""Random modules, fused, against eager: see ``random_modules`` for the long run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aoti_eager import fuse

from ..support.regions import Policy, inputs, seeded, served
from .random_check import SideBySide, _is_rounding, check, problem
from .random_grammar import RandomModule
from .random_modules import SIZE
from .random_ops import drawn

pytestmark = pytest.mark.native

# Other seeds than those of a long run.
_FIRST = 1_000_000
_BATCHES = 30


@pytest.mark.share(of=10)
@pytest.mark.parametrize("batch", range(_BATCHES))
def test_random_modules_give_what_eager_gives(batch: int) -> None:
    first = _FIRST + SIZE * batch
    outcomes = check(range(first, first + SIZE))
    assert [one for one in outcomes if one.state == "wrong"] == []
    # What no library serves has stopped for a reason; as a rule, modules are served.
    assert all(one.reason for one in outcomes if one.state != "served")
    assert sum(one.state == "served" for one in outcomes) >= SIZE // 2


def test_a_module_depends_on_its_seed_alone() -> None:
    for seed in range(_FIRST, _FIRST + 3):
        first, second = (drawn(seed) for _ in range(2))
        results = [RandomModule(one)(*one.arguments.values()) for one in (first, second)]
        assert first.source() == second.source()
        assert problem(*results) == ""


def test_what_differs_is_found() -> None:
    draw = drawn(_FIRST)
    module = RandomModule(draw)
    given = [one.clone() for one in draw.arguments.values()]
    want, other = module(*given), module(*draw.more_arguments())
    assert problem(want, want) == ""
    assert problem(other, want).startswith("values")
    assert problem([want], want).startswith("containers")


# Their code has vector functions whose arguments are all scalars.
@pytest.mark.full
@pytest.mark.parametrize("seed", [5, 223])
def test_modules_that_a_long_run_found_compile(seed: int) -> None:
    (outcome,) = check([seed])
    if seed == 5:
        # The module calls an embedding and drops the result: eager raises for an index out of
        # range, and the library would not.
        assert (outcome.state, outcome.reason) == ("stopped", "mismatch"), outcome
        assert outcome.message.endswith("takes 3 in 'inputs', which the original refuses")
    else:
        assert outcome.state == "served", outcome


def test_a_library_as_good_as_eager_is_told_from_a_wrong_one() -> None:
    policy, x = seeded(Policy), inputs(4, 5)
    model = SideBySide([policy])
    case: Any = SimpleNamespace(given=[[x]], want=[policy(x)])
    with fuse(model) as report:
        served(report, lambda: model([x]))
        assert _is_rounding(report, [case], 0)
        case.want = [policy(x) + 1.0]
        assert not _is_rounding(report, [case], 0)
