"""The op set: its file, its rule, and merging figures into it. Nothing compiles."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aoti_eager._base.op_names import find_overload
from aoti_eager._enable.op_set import (
    LEAST_SPEED,
    Figure,
    Run,
    merged,
    op_set_text,
    read_op_set,
    shipped,
)
from aoti_eager.errors import ConfigError

RUN = Run("a processor", 2, "2026-01-01", "2.13.0", "")
SILU = Figure("aten::silu.default", 0, "float32", "512x512", 30.0, 10.0, None)
BACKWARD = replace(SILU, op="aten::silu_backward.default")
LOSES = replace(SILU, op="aten::mul.Tensor", served_us=30.0, declined="slower")


def test_an_op_that_a_kernel_serves_faster_is_in_the_set() -> None:
    found = merged(None, RUN, [SILU, BACKWARD, LOSES])
    assert found.ops("training", RUN.processor) == (SILU.op, BACKWARD.op)
    assert found.ops("inference", RUN.processor) == (SILU.op,)
    assert found.ops("all", RUN.processor) == (LOSES.op, SILU.op, BACKWARD.op)
    with pytest.raises(ConfigError, match="preset 'most'"):
        found.ops("most", RUN.processor)


@pytest.mark.parametrize(
    ("figure", "wins"),
    [
        (replace(SILU, served_us=30 / LEAST_SPEED), True),
        (replace(SILU, served_us=30 / (LEAST_SPEED - 0.01)), False),
        (replace(SILU, declined="slower"), False),  # Noise: no kernel has served it.
    ],
)
def test_a_win_is_a_served_call_that_pays(figure: Figure, wins: bool) -> None:
    assert figure.wins is wins


def test_one_size_is_enough() -> None:
    found = merged(None, RUN, [replace(LOSES, op=SILU.op, size="4x512"), SILU])
    assert found.ops("training", RUN.processor) == (SILU.op,)


def test_figures_of_this_processor_go_before_those_of_others() -> None:
    other = replace(RUN, processor="another")
    found = merged(merged(None, RUN, [SILU]), other, [replace(LOSES, op=SILU.op), BACKWARD])
    assert found.ops("training", RUN.processor) == (SILU.op,)
    assert found.ops("training", "another") == (BACKWARD.op,)
    assert found.ops("training", "a third") == (SILU.op, BACKWARD.op)


def test_a_run_that_goes_on_replaces_its_own_figures_only() -> None:
    found = merged(None, RUN, [SILU])
    later = replace(RUN, date="2026-01-02")
    found = merged(found, later, [replace(SILU, served_us=20.0), LOSES])
    assert found.runs == (later,)
    assert {one.op: one.served_us for one in found.figures} == {SILU.op: 20.0, LOSES.op: 30.0}
    busy = replace(later, note="busy")
    found = merged(found, busy, [SILU])
    assert found.runs == (later, busy)
    assert [one.served_us for one in found.figures if one.op == SILU.op] == [20.0, 10.0]


def test_the_file_holds_what_was_measured() -> None:
    found = merged(None, RUN, [SILU, BACKWARD, LOSES])
    text = op_set_text(found)
    assert read_op_set(text) == found
    assert len(text.splitlines()) == 2 + 1 + 2 + 3 + 1, "a line for each run and figure"
    document = json.loads(text)
    document["format"] = 2
    with pytest.raises(ValueError, match="format 2"):
        read_op_set(json.dumps(document))


def test_the_shipped_file_is_as_the_command_writes_it() -> None:
    found = shipped()
    assert found.runs
    assert {one.run for one in found.figures} <= set(range(len(found.runs)))
    assert op_set_text(read_op_set(op_set_text(found))) == op_set_text(found)
    for op in found.ops("all", ""):
        find_overload(op)
    assert found.ops("training", "a processor that was not measured")
