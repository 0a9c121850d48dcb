"""Ops of a user's own through the cache: their tensors are constants, keyed by metadata alone."""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._registration import registry
from aoti_eager.errors import ConstantError, UnknownConstantError, UnsupportedFunctionError

from ..conftest import assert_close
from ..support import forked_python, function_ops
from ..support.function_ops import call, closing_over, op_of

ROOT = Path(__file__).parents[2]


def served(name: str) -> tuple[int, int]:
    """Return how many calls of an op were hits, and how many compiles it took."""
    stats = aoti_eager.stats()[name]
    return stats.hits, stats.compiles


def declined(name: str) -> dict[str, int]:
    return dict(aoti_eager.stats()[name].declined)


@pytest.mark.full
def test_a_function_with_constants_is_compiled_and_follows_their_values(cache_dir: Path) -> None:
    x = torch.linspace(-3, 3, 128).reshape(2, 64)
    weight = torch.linspace(0.5, 2, 64)
    function = closing_over(weight)
    with op_of(function) as name, aoti_eager.register(name):
        op = call(name)
        for _ in range(3):
            assert_close(op(x), function(x))
        assert served(name) == (2, 1)

        weight.mul_(-3)
        assert_close(op(x), function(x))
        assert served(name) == (3, 1), "a change in place needs no compile"

        assert list(aoti_eager.constants(name)) == ["weight"]
        assert aoti_eager.constants(name)["weight"] is weight
        aoti_eager.update_constants(name, {"weight": torch.full((64,), 0.25)})
        assert_close(op(x), torch.tanh(x * 0.25))
        assert served(name) == (4, 1)

        # The same metadata in another tensor, bound to the same name.
        cell = function.__closure__[0]  # type: ignore[index]
        cell.cell_contents = torch.linspace(2, 0, 64)
        assert_close(op(x), torch.tanh(x * torch.linspace(2, 0, 64)))
        assert served(name) == (5, 1)

        # Other metadata: another key.
        cell.cell_contents = torch.tensor(2.0)
        explanation = aoti_eager.explain(name, x)
        assert explanation.verdict == "miss"
        assert explanation.nearest is not None
        assert set(explanation.nearest.differing) == {
            "context.constants[0].sizes",
            "context.constants[0].strides",
        }
        cell.cell_contents = weight

        found = [e for e in aoti_eager.cache.list() if e.op == name]
        assert len(found) == 1
        (inspected,) = aoti_eager.cache.inspect(found[0].digest)
        constants = dict(inspected.entry.key.context)["constants"]
        assert [(c["name"], c["sizes"], c["dtype"]) for c in constants] == [
            ("weight", [64], "float32")
        ]


@pytest.mark.full
def test_the_parameters_of_a_module_are_constants(cache_dir: Path) -> None:
    x = torch.linspace(-3, 3, 128).reshape(2, 64)
    norm = torch.nn.LayerNorm(64)
    function = function_ops.with_module(norm)
    with op_of(function) as name, aoti_eager.register(name):
        op = call(name)
        for _ in range(2):
            assert_close(op(x), function(x).detach())
        with torch.no_grad():
            norm.weight.mul_(5)
            norm.bias.add_(1)
        assert_close(op(x), function(x).detach())
        assert served(name) == (2, 1)
        assert list(aoti_eager.constants(name)) == ["module.weight", "module.bias"]
        norm.weight = torch.nn.Parameter(torch.zeros(64))
        assert_close(op(x), function(x).detach())
        assert served(name) == (3, 1), "a new parameter of the same metadata needs no compile"


SCRIPT = """
import json, sys
import torch
import aoti_eager
from tests.support import function_ops

op = torch.library.custom_op("aoti_eager_tests::scale", function_ops.scale, mutates_args=())
x = torch.linspace(-3, 3, 128).reshape(2, 64)
wrong = 0
with aoti_eager.register("aoti_eager_tests::scale"):
    for step in range(3):
        wrong += not torch.allclose(op(x), function_ops.scale(x), atol=1e-5)
        function_ops.WEIGHT.mul_(1.5)
    function_ops.EPS = float(sys.argv[1])
    for step in range(2):
        wrong += not torch.allclose(op(x), function_ops.scale(x), atol=1e-5)
stats = aoti_eager.stats()["aoti_eager_tests::scale"]
print(json.dumps({
    "wrong": wrong, "hits": stats.hits, "compiles": stats.compiles, "calls": stats.calls,
    "declined": stats.declined,
}))
"""


@pytest.mark.full
def test_a_later_process_is_served_and_another_number_is_another_key(cache_dir: Path) -> None:
    def run(eps: str) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "AOTI_EAGER_MODE": "sync"}
        done = forked_python.run(
            [sys.executable, "-c", SCRIPT, eps], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    common = {"wrong": 0, "calls": 5, "declined": {}}
    assert run("1e-06") == {**common, "hits": 4, "compiles": 1}
    assert run("1e-06") == {**common, "hits": 5, "compiles": 0}
    assert run("0.5") == {**common, "hits": 4, "compiles": 1}


def test_a_function_that_writes_to_its_constant_keeps_the_original(cache_dir: Path) -> None:
    counter = torch.zeros(())
    function = function_ops.counting(counter)
    with op_of(function) as name, aoti_eager.register(name):
        for step in range(1, 4):
            assert_close(call(name)(torch.ones(4)), torch.tanh(torch.ones(4)) * step)
    assert declined(name) == {"mutates_constant": 3}
    assert counter.item() == 3


def test_a_function_that_draws_random_numbers_keeps_the_original(cache_dir: Path) -> None:
    with op_of(function_ops.drawing) as name, aoti_eager.register(name):
        for _ in range(2):
            torch.manual_seed(0)
            got = call(name)(torch.zeros(8))
            torch.manual_seed(0)
            assert_close(got, torch.rand(8))
    assert declined(name) == {"random": 2}


def test_a_draw_at_a_rate_of_zero_moves_the_random_stream(cache_dir: Path) -> None:
    with op_of(function_ops.drawing_nothing) as name, aoti_eager.register(name):
        seen = []
        for run in (function_ops.drawing_nothing, call(name), call(name)):
            torch.manual_seed(0)
            run(torch.ones(8))
            seen.append(torch.rand(4))
    assert_close(seen[1], seen[0])
    assert_close(seen[2], seen[0])
    assert declined(name) == {"random": 2}


def test_a_function_that_branches_on_data_keeps_the_original(cache_dir: Path) -> None:
    with op_of(function_ops.branching) as name, aoti_eager.register(name):
        for x in (torch.ones(8), -torch.ones(8), torch.ones(8)):
            assert_close(call(name)(x), function_ops.branching(x))
    assert set(declined(name)) <= {"does_not_trace", "data_dependent_output"}
    assert sum(declined(name).values()) == 3


@pytest.mark.full
def test_a_tensor_that_the_function_makes_is_a_constant_of_the_library(cache_dir: Path) -> None:
    x = torch.linspace(-3, 3, 128).reshape(2, 64)
    with op_of(function_ops.literal) as name, aoti_eager.register(name):
        for _ in range(3):
            assert_close(call(name)(x), function_ops.literal(x))
        assert aoti_eager.constants(name) == {}
    assert served(name) == (2, 1), declined(name)


def test_a_written_argument_that_is_a_constant_too_keeps_the_original(cache_dir: Path) -> None:
    table = torch.linspace(-1, 1, 8)
    function = function_ops.add_into(table)
    with op_of(function, mutates_args=("x",)) as name, aoti_eager.register(name):
        want = table.clone()
        want.add_(torch.tanh(want.flip(0)))
        call(name)(table)
        assert_close(table, want)
    assert declined(name) == {"mutated_argument_overlaps": 1}


def test_what_cannot_be_sent_declines_and_says_why(cache_dir: Path) -> None:
    seen: set[int] = {1}

    def uses_a_set(x: torch.Tensor) -> torch.Tensor:
        return x * len(seen)

    with op_of(uses_a_set) as name, aoti_eager.register(name):
        for _ in range(2):
            assert_close(call(name)(torch.ones(4)), torch.ones(4))
        explanation = aoti_eager.explain(name, torch.ones(4))
        assert explanation.reason == "unsupported_function"
        assert "uses seen, a builtins.set" in explanation.message
        with pytest.raises(UnsupportedFunctionError, match="uses seen"):
            aoti_eager.constants(name)
    assert declined(name) == {"unsupported_function": 2}


def test_updates_that_do_not_fit_are_refused_and_change_nothing() -> None:
    weight, other = torch.zeros(8), torch.zeros(4)

    def both(x: torch.Tensor) -> torch.Tensor:
        return x * weight[0] * other[0]

    with op_of(both) as name:
        with pytest.raises(UnknownConstantError, match="'wieght'; did you mean 'weight'"):
            aoti_eager.update_constants(name, {"other": torch.ones(4), "wieght": torch.ones(8)})
        with pytest.raises(ConstantError, match=r"'weight' is torch.float32 \(8,\), got .* \(9,\)"):
            aoti_eager.update_constants(name, {"other": torch.ones(4), "weight": torch.ones(9)})
        assert not other.any()
        aoti_eager.update_constants(name, {"other": torch.ones(4), "weight": torch.ones(8)})
        assert other.all()
        assert weight.all()


def test_an_op_without_a_python_function_has_no_constants() -> None:
    assert aoti_eager.constants("aten::silu") == {}
    with pytest.raises(UnknownConstantError, match="it has no constants"):
        aoti_eager.update_constants("aten::silu", {"w": torch.ones(1)})


def test_another_override_of_the_op_is_not_its_function(cache_dir: Path) -> None:
    with op_of(closing_over(torch.ones(8))) as name:
        library = torch.library.Library("aoti_eager_tests", "IMPL")
        library.impl(name.partition("::")[2], lambda x: x * 100, "CPU")
        try:
            with aoti_eager.register(name):
                for _ in range(2):
                    assert_close(call(name)(torch.ones(8)), torch.full((8,), 100.0))
            assert served(name)[0] == 0
        finally:
            library._destroy()


def test_a_function_that_keeps_count_keeps_the_original(cache_dir: Path) -> None:
    for function in (function_ops.counting_in_a_dict, function_ops.appending):
        with op_of(function) as name, aoti_eager.register(name):
            got = [call(name)(torch.ones(()))[...].item() for _ in range(4)]
        assert got == [1, 2, 3, 4]
        assert set(declined(name)) <= {"unsupported_function", "mutates_constant"}


def test_a_write_that_the_op_does_not_declare_keeps_the_original(cache_dir: Path) -> None:
    with op_of(function_ops.writing) as name, aoti_eager.register(name):
        x = torch.zeros(4)
        for step in range(1, 4):
            call(name)(x)
            assert_close(x, torch.full((4,), float(step)))
    assert declined(name) == {"mutates_constant": 3}


def test_running_statistics_are_updated_once_a_call(cache_dir: Path) -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    with op_of(function_ops.normalising(mean, var)) as name, aoti_eager.register(name):
        x = torch.ones(4, 3)
        for want in (0.5, 0.75, 0.875):
            call(name)(x)
            assert_close(mean, torch.full((3,), want))
    assert declined(name) == {"mutates_constant": 3}


def test_errors_that_depend_on_data_keep_the_original(cache_dir: Path) -> None:
    function = function_ops.dividing
    with op_of(function) as name, aoti_eager.register(name):
        x = torch.full((4, 4), 3)
        for _ in range(2):
            assert_close(call(name)(x), function(x))
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            call(name)(torch.ones(4, 4, dtype=torch.int64))
    assert set(declined(name)) == {"error_depends_on_data"}


def test_an_index_out_of_range_raises_as_in_eager(cache_dir: Path) -> None:
    function = function_ops.gathering
    with op_of(function) as name, aoti_eager.register(name):
        x, places = torch.rand(4, 4), torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0]])
        for _ in range(3):
            assert_close(call(name)(x, places), function(x, places))
        assert served(name) == (2, 1)
        for number in (4, -1, 1 << 40):
            with pytest.raises(RuntimeError, match="out of bounds for dimension 0"):
                call(name)(x, torch.full_like(places, number))
            assert_close(call(name)(x, places), function(x, places))


def test_autocast_runs_the_original(cache_dir: Path) -> None:
    weight = torch.randn(8, 8)

    def multiplied(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ weight) + 1

    with op_of(multiplied) as name, aoti_eager.register(name):
        x = torch.randn(8, 8)
        for _ in range(2):
            assert call(name)(x).dtype is torch.float32
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert call(name)(x).dtype is multiplied(x).dtype is torch.bfloat16


def test_an_op_that_is_made_again_is_what_it_is_now(cache_dir: Path) -> None:
    def first(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 2

    def second(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 3

    name = "aoti_eager_tests::made_again"
    x = torch.linspace(-1, 1, 8)
    op = torch.library.custom_op(name, first, mutates_args=())
    with aoti_eager.register(name):
        assert_close(op(x), first(x))
        op = torch.library.custom_op(name, second, mutates_args=())
        for _ in range(3):
            assert_close(op(x), second(x))


def test_what_is_closed_over_is_not_kept_alive(cache_dir: Path) -> None:
    class Thing:
        pass

    thing = Thing()

    def with_thing(x: torch.Tensor) -> torch.Tensor:
        return x * (1 if thing else 2)

    with op_of(with_thing) as name, aoti_eager.register(name):
        call(name)(torch.ones(2))
        gone = weakref.ref(thing)
        thing = Thing()
        gc.collect()
        assert gone() is None


def test_much_that_is_closed_over_is_looked_at_once(cache_dir: Path) -> None:
    table = {str(i): float(i) for i in range(100_000)}

    def looked_up(x: torch.Tensor) -> torch.Tensor:
        return x * table["7"]

    with op_of(looked_up) as name, aoti_eager.register(name):
        for _ in range(3):
            assert_close(call(name)(torch.ones(2)), torch.full((2,), 7.0))
        (cache,) = [c for c in registry.caches() if c.schema.op == name]
        assert cache.function is not None
        assert cache.function.snapshot() == (("refused",), [])
    assert declined(name) == {"unsupported_function": 3}


def test_objects_that_raise_when_looked_at_run_the_original(cache_dir: Path) -> None:
    class Grumpy(dict[str, float]):
        def items(self) -> Any:
            raise LookupError("not now")

    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)

    def with_nested(x: torch.Tensor) -> torch.Tensor:
        return x * nested[0]

    with op_of(with_nested) as name, aoti_eager.register(name):
        assert_close(call(name)(torch.ones(2)), torch.ones(2))
    assert set(declined(name)) == {"unsupported_function"}
