"""Calls that hardly repeat: how many kernels they ask for (``benchmarks.random_calls``)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.op_names import find_overload
from aoti_eager._dispatch import asking, rare
from aoti_eager._dispatch.key_state import COMPILING
from aoti_eager._dispatch.payback import Payback
from aoti_eager._dispatch.rare import Rares
from aoti_eager._dispatch.specialisations import Specialisations
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.pattern_instances import (
    size_class,
)
from aoti_eager._keys.schema import op_schema
from aoti_eager._store.store import StoredEntry

from ..benchmarks import random_calls
from ..benchmarks.random_calls import BARS, calls
from ..support.entries import ENVIRONMENT, FEATURES, make_entry

pytestmark = pytest.mark.dynamic


def test_the_calls_of_a_seed_are_the_same_again_and_hardly_repeat() -> None:
    one, other = ([results(call()) for call in calls(50)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({tuple(call.arguments[0].stride()) for call in calls(50)}) > 20


def results(value: Any) -> torch.Tensor:
    return torch.cat([one.flatten() for one in random_calls.results(value)])


@pytest.mark.both_paths
def test_in_the_background_they_ask_for_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 ms a call they take 0.5 s in all, a hundred times what a kernel is asked for."""
    asked: list[Any] = []

    def compile_later(call: Any, found: None, plan: Any, backend: Any, calls: int) -> bool:
        if plan is not None:
            call.table.dynamic.begin(plan)
        call.decline(COMPILING, "asked", is_dynamic=plan is not None)
        asked.append(plan)
        return True

    now = iter(range(1 << 30))
    clock = SimpleNamespace(thread_time=lambda: next(now) * 1e-3, sleep=lambda s: None)
    monkeypatch.setattr("aoti_eager._dispatch.miss.time", clock)
    monkeypatch.setattr("aoti_eager._dispatch.rare.time", clock)
    monkeypatch.setattr(rare, "payback", Payback())
    monkeypatch.setattr(rare, "rares", Rares(lambda: 0.0, has_thread=False))
    monkeypatch.setattr(asking, "compile_later", compile_later)
    made = list(calls(500))
    with (
        aoti_eager.config.scope(mode="background"),
        aoti_eager.register(sorted({call.op for call in made})),
    ):
        for call in made:
            call()
    assert 0 < len(asked) <= BARS["background"][0]
    assert asked.count(None) < len(asked) // 4  # Hardly a key comes again: what pays is shared.


class Op:
    """An op in mode ``sync`` whose kernels are only noted down: each serves what its plan says."""

    def __init__(self, name: str) -> None:
        self._schema = op_schema(find_overload(name))
        self._specialised = Specialisations()
        self._decided: set[str] = set()
        self._compared: set[tuple[str, int]] = set()  # in each size class once
        self.hits = self.compiles = 0
        self._backend: Any = SimpleNamespace(
            environment=ENVIRONMENT,
            features=FEATURES,
            store=SimpleNamespace(find_dynamic=lambda *rest: []),
            tiers=None,
        )

    def call(self, arguments: tuple[Any, ...]) -> None:
        schema, dynamic = self._schema, self._specialised
        key = kernel_key(schema, "CPU", schema.bind(arguments, {}))
        found = dynamic.kernels.find(schema, key, self._backend)
        if key.digest in self._decided:
            self.hits += 1
            return
        if found is not None:
            compared = found.entry.digest, size_class(key)
            self.hits += compared in self._compared
            self._compared.add(compared)
            return
        plan, _ = dynamic.plan(schema, key)
        if plan is not None:
            dynamic.start(plan)
            entry = make_entry(key=plan.pattern, guards=plan.guards)
            dynamic.kernels.add(StoredEntry(entry, Path("/nowhere")))
            self._compared.add((entry.digest, size_class(key)))
        elif dynamic.refusal(schema, key, len(self._decided)) is not None:
            return
        else:
            dynamic.start_static(schema, key)
            self._decided.add(key.digest)
        self.compiles += 1


def test_in_sync_most_of_them_hit_what_others_have_asked_for() -> None:
    ops = {name: Op(name) for name in random_calls.OPS}
    for call in calls():
        ops[call.op].call(call.arguments)
    most, least = BARS["sync"]
    assert sum(op.compiles for op in ops.values()) <= most
    # Real kernels serve sizes of 1, too, where they were tried: there are more hits.
    assert sum(op.hits for op in ops.values()) >= (least - 0.03) * random_calls.CALLS


@pytest.mark.full
def test_a_small_run_is_right() -> None:
    made = list(calls(40, ops=("aten::tanh",), sizes=(2, 5, 9)))
    found = random_calls.run("sync", made)
    assert found["mismatches"] == found["failures"] == 0
    assert found["calls"] == len(made)
    assert found["compiles"] <= 10  # of five layouts and three sizes
    assert found["hits"] >= 0.5  # All else are compiles, and comparisons in each size class.
