"""Which calls share a kernel: the policy, with entries that nobody has compiled."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.op_names import find_overload
from aoti_eager._dispatch import specialisations
from aoti_eager._dispatch.specialisations import Specialisations
from aoti_eager._keys.dynamic_plan import Plan
from aoti_eager._keys.guards import Guards
from aoti_eager._keys.kernel_key import ANY_THREADS, KernelKey, kernel_key
from aoti_eager._keys.pattern import family_of, symbols_in, with_values
from aoti_eager._keys.schema import op_schema
from aoti_eager._store.entry import Status
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager._store.stored_pattern import serves

from ..support.entries import (
    ENVIRONMENT,
    FEATURES,
    OTHER_ENVIRONMENT,
    make_entry,
    publish,
)

pytestmark = pytest.mark.dynamic

SILU, ADD = (op_schema(find_overload(name)) for name in ("aten::silu", "aten::add.Tensor"))
ANY_SIZE = (2, 1 << 62)


def key_of(*sizes: int, dtype: torch.dtype = torch.float32) -> KernelKey:
    return tensor_key(torch.empty(sizes, dtype=dtype))


def tensor_key(tensor: torch.Tensor) -> KernelKey:
    return kernel_key(SILU, "CPU", [tensor])


def dynamic(key: KernelKey, *names: str, **fields: Any) -> StoredEntry:
    """Return a dynamic specialisation of ``key``'s family with these symbols."""
    family = family_of(SILU, key)
    fixed = {name: value for name, value in family.values.items() if name not in names}
    entry = make_entry(
        key=with_values(family.pattern, fixed), guards=Guards(dict.fromkeys(names, ANY_SIZE))
    )
    return StoredEntry(replace(entry, **fields), Path("/nowhere"))


def failed(plan: Plan) -> StoredEntry:
    entry = make_entry(
        status=Status.DECLINED, key=plan.pattern, guards=plan.guards, reason="not_dynamic"
    )
    return StoredEntry(entry, Path("/nowhere"))


def backend_with(*found: StoredEntry) -> Any:
    """Return what ``find`` asks for the store's entries; ``asked`` counts how often it does."""
    backend = SimpleNamespace(environment=ENVIRONMENT, features=FEATURES, tiers=None, asked=0)

    def find_dynamic(op: str, environment: Any, features: Any) -> list[StoredEntry]:
        assert (op, environment, features) == ("aten::silu", ENVIRONMENT, FEATURES)
        backend.asked += 1
        return list(found)

    # Written now: what failed has not lapsed.
    backend.store = SimpleNamespace(
        find_dynamic=find_dynamic, written_at=lambda found: time.time(), read_log=lambda found: ""
    )
    return backend


def forget(key: object) -> None:
    raise AssertionError("so few wait that none is forgotten")


class Op:
    """An op whose misses are decided on as ``_dispatch.miss`` does, but nothing is compiled."""

    def __init__(self, *stored: StoredEntry) -> None:
        self.dynamic = Specialisations()
        self.backend = backend_with(*stored)

    def find(self, key: KernelKey) -> StoredEntry | None:
        return self.dynamic.kernels.find(SILU, key, self.backend)

    def call(self, key: KernelKey) -> str | list[str]:
        """Return "hit", "static", "pass", or the meanings of the sizes that become symbols."""
        if self.find(key) is not None:
            return "hit"
        plan, passes = self.dynamic.plan(SILU, key)
        if passes:
            return "pass"
        if plan is None:
            self.dynamic.start_static(SILU, key)
            return "static"
        self.dynamic.start(plan)
        entry = make_entry(key=plan.pattern, guards=plan.guards)
        self.dynamic.kernels.add(StoredEntry(entry, Path("/nowhere")))
        meanings = family_of(SILU, key).meanings
        return sorted(meanings[name] for name in symbols_in(plan.pattern))

    def plan(self, key: KernelKey) -> Plan | None:
        self.find(key)
        return self.dynamic.plan(SILU, key)[0]


def calls(op: Op, *sizes: Sequence[int]) -> list[Any]:
    return [op.call(key_of(*one)) for one in sizes]


# -- the policy --


def turned(*sizes: int) -> KernelKey:
    return tensor_key(torch.empty(*reversed(sizes)).t())


def sliced(*sizes: int) -> KernelKey:
    return tensor_key(torch.empty(9, 9)[: sizes[0], : sizes[1]])


@pytest.fixture
def varied_op() -> Op:
    """An op that has kernels of their own for two sizes, of a family each."""
    op = Op()
    assert [op.call(key_of(4, 5)), op.call(turned(6, 5))] == ["static", "static"]
    return op


def test_after_kernels_for_two_sizes_a_new_family_begins_with_one_for_all(varied_op: Op) -> None:
    assert varied_op.call(sliced(3, 7)) == ["self.size(0)", "self.size(1)", "self.stride(0)"]
    assert varied_op.call(sliced(2, 3)) == "hit"


def test_a_family_that_is_known_goes_by_its_own_calls(varied_op: Op) -> None:
    assert varied_op.call(key_of(3, 5)) == ["self.size(0)"]


def test_views_of_one_size_have_kernels_of_their_own() -> None:
    op = Op()
    keys = [key_of(4, 5), turned(4, 5), sliced(4, 5), tensor_key(torch.empty(5).expand(4, 5))]
    assert [op.call(key) for key in keys] == ["static"] * 4


def test_other_ranks_and_dtypes_say_nothing(varied_op: Op) -> None:
    assert varied_op.call(key_of(3, 4, 5)) == "static"
    assert varied_op.call(key_of(3, 4, dtype=torch.float64)) == "static"


def test_a_number_that_nobody_has_changed_is_no_symbol_of_it() -> None:
    dynamic = Specialisations()

    def plan_for(*tensors: torch.Tensor) -> Plan | None:
        key = kernel_key(ADD, "CPU", [*tensors, 2.0])
        return dynamic.plan(ADD, key)[0]

    assert plan_for(torch.empty(4, 5), torch.empty(4, 5)) is None
    assert plan_for(torch.empty(5, 6).t(), torch.empty(6, 5)) is None
    plan = plan_for(torch.empty(7, 3).t(), torch.empty(7, 3).t())
    assert plan is not None
    assert plan.numbers == ()


def test_in_the_background_a_family_goes_by_the_calls_that_ask(varied_op: Op) -> None:
    with aoti_eager.config.scope(mode="background"):
        assert varied_op.call(sliced(3, 7)) == "static"


def test_where_such_a_kernel_could_not_be_made_no_further_one_is_tried(varied_op: Op) -> None:
    plan = varied_op.plan(sliced(3, 7))
    assert plan is not None
    varied_op.dynamic.start(plan)
    varied_op.dynamic.kernels.add(failed(plan))
    assert varied_op.call(sliced(3, 7)) == "static"
    assert varied_op.call(tensor_key(torch.empty(5).expand(2, 5))) == "static"


def test_first_static_then_what_changed_then_what_else_changed_then_all() -> None:
    assert calls(
        Op(),
        (4, 5, 6),
        (4, 7, 6),
        (4, 9, 6),
        (3, 9, 6),
        (2, 2, 6),
        (2, 2, 7),
        (3, 4, 5),
    ) == [
        "static",
        ["self.size(1)"],
        "hit",
        ["self.size(0)", "self.size(1)"],
        "hit",
        ["self.size(0)", "self.size(1)", "self.size(2)"],
        "hit",
    ]


def test_sizes_that_change_together_become_symbols_together() -> None:
    assert calls(Op(), (4, 5), (6, 7), (8, 9)) == [
        "static",
        ["self.size(0)", "self.size(1)"],
        "hit",
    ]


def test_the_last_kernel_of_a_family_has_all_sizes_as_symbols() -> None:
    sizes = [(4, 5, 6, 7), (3, 5, 6, 7), (3, 4, 6, 7), (3, 4, 5, 7), (3, 4, 5, 6)]
    found = calls(Op(), *sizes)
    assert found[3] == [f"self.size({dim})" for dim in range(4)]
    assert found[4] == "hit"


def test_a_family_that_needs_more_kernels_is_static() -> None:
    op = Op()
    assert calls(op, (4, 5), (6, 5)) == ["static", ["self.size(0)"]]
    op.dynamic.kernels._known = {}  # They are never found: as if their guards did not hold.
    for rows in range(7, 9):
        assert isinstance(calls(op, (rows, 5))[0], list)
        op.dynamic.kernels._known = {}
    assert calls(op, (9, 5), (10, 5)) == ["static", "static"]


def test_sizes_of_one_are_families_of_their_own() -> None:
    assert calls(Op(), (1, 5), (2, 5), (1, 6)) == ["static", "static", ["self.size(1)"]]


@pytest.mark.parametrize(
    "other",
    [
        key_of(9, 8, dtype=torch.float64),
        key_of(9, 8, 2),
        key_of(8, 9).with_threads(97),
        tensor_key(torch.empty(9, 8).t()),
        tensor_key(torch.empty(9, 16)[:, :8]),
        tensor_key(torch.empty(8).expand(9, 8)),
    ],
)
def test_calls_of_another_family_are_static_first(other: KernelKey) -> None:
    op = Op()
    assert op.call(key_of(8, 8)) == "static"
    assert op.call(other) == "static"


def test_a_step_that_changes_makes_all_sizes_of_its_tensor_symbols() -> None:
    op = Op()
    wide = [tensor_key(torch.empty(4, width)[:, :8]) for width in (16, 17, 18)]
    assert op.call(wide[0]) == "static"
    assert op.call(wide[1]) == ["self.size(0)", "self.size(1)", "self.stride(0)"]
    assert op.call(wide[2]) == "hit"


def test_a_size_that_changes_takes_the_steps_of_its_tensor_with_it() -> None:
    op = Op()
    rows = [tensor_key(torch.empty(rows, 16)[:, :8]) for rows in (4, 5, 6)]
    assert op.call(rows[0]) == "static"
    assert op.call(rows[1]) == ["self.size(0)", "self.stride(0)"]
    assert op.call(rows[2]) == "hit"


def test_a_call_that_is_the_same_again_changes_nothing() -> None:
    assert calls(Op(), (4, 5), (4, 5), (4, 5)) == ["static"] * 3


def test_a_call_that_the_stores_static_kernel_served_counts_as_seen() -> None:
    op = Op()
    op.dynamic.note(SILU, key_of(4, 5))
    assert calls(op, (4, 6)) == [["self.size(1)"]]


def test_only_the_last_calls_are_remembered() -> None:
    op = Op()
    op.dynamic.note(SILU, key_of(4, 99))
    for rows in range(100, 132):
        op.dynamic.note(SILU, key_of(rows, 5))
    assert calls(op, (4, 5)) == [["self.size(0)"]]


def test_a_tensor_without_symbols_is_static() -> None:
    assert calls(Op(), (), (1,), (0,), (1, 1)) == ["static"] * 4


# -- settings --


def test_false_plans_and_uses_none() -> None:
    op = Op(dynamic(key_of(4, 5), "s0"))
    with aoti_eager.config.scope(dynamic=False):
        assert calls(op, (4, 5), (6, 5), (7, 8)) == ["static"] * 3
        assert not op.dynamic.wait_for(SILU, key_of(4, 5), (1,), lambda: None, forget)
        op.dynamic.note(SILU, key_of(4, 5))
    assert op.backend.asked == 0
    assert calls(op, (6, 5)) == ["hit"]


def test_true_plans_at_the_first_call_with_all_sizes_as_symbols() -> None:
    with aoti_eager.config.scope(dynamic=True):
        assert calls(Op(), (4, 5), (6, 7)) == [["self.size(0)", "self.size(1)"], "hit"]


def test_past_the_cap_kernels_are_static() -> None:
    op = Op()
    with aoti_eager.config.scope(dynamic_cap=2):
        assert calls(op, (4, 5), (6, 5), (4, 5, 6), (7, 5, 6)) == [
            "static",
            ["self.size(0)"],
            "static",
            ["self.size(0)"],
        ]
        assert op.dynamic.kernels.count == 2
        assert calls(op, (4, 4, 4, 4), (5, 4, 4, 4), (9, 5)) == ["static", "static", "hit"]


def test_what_other_scripts_have_stored_does_not_count() -> None:
    stored = [dynamic(key_of(*[4] * rank), "s0") for rank in range(1, 6)]
    op = Op(*stored)
    with aoti_eager.config.scope(dynamic_cap=2):
        assert calls(op, (9,), (9, 4)) == ["hit", "hit"]
        assert op.dynamic.kernels.count == 0
        op.dynamic.kernels.runner(stored[0].entry, False, object)
        assert op.dynamic.kernels.count == 1
        assert calls(op, (9, 8, 8), (9, 8, 9)) == ["static", ["self.size(2)"]]
        assert calls(op, (9, 8, 8, 8), (9, 8, 8, 9)) == ["static", "static"]


# -- what failed --


def test_a_failed_plan_is_not_tried_again() -> None:
    op = Op()
    op.call(key_of(4, 5))
    plan = op.plan(key_of(6, 5))
    assert plan is not None
    op.dynamic.start(plan)
    op.dynamic.kernels.add(failed(plan))
    assert op.dynamic.kernels.count == 0
    assert calls(op, (6, 5), (7, 5)) == ["static", "static"]
    # With other sizes as symbols it may work.
    assert calls(op, (4, 6)) == [["self.size(0)", "self.size(1)"]]


def test_what_another_process_failed_at_is_not_tried() -> None:
    op = Op()
    op.call(key_of(4, 5))
    plan = op.plan(key_of(6, 5))
    assert plan is not None
    other = Op(failed(plan))
    # As in the process where it failed: the call that asked for it got no kernel.
    assert calls(other, (4, 5), (6, 5), (9, 5), (6, 5)) == ["static", "pass", "static", "static"]


def test_a_plan_that_was_never_begun_does_not_count() -> None:
    op = Op()
    op.call(key_of(4, 5))
    for _ in range(9):  # The queue is full, or the original raises.
        assert op.plan(key_of(6, 5)) is not None
    assert op.call(key_of(6, 5)) == ["self.size(0)"]


def test_what_is_distrusted_serves_no_call_and_is_not_made_again() -> None:
    found = dynamic(key_of(4, 5), "s0")
    op = Op(found)
    assert op.call(key_of(6, 5)) == "hit"
    runner = op.dynamic.kernels.runner(found.entry, False, object)
    op.dynamic.kernels.distrust(found.entry.digest)
    assert not op.dynamic.kernels.is_loaded(found, False)
    assert op.dynamic.kernels.runner(found.entry, False, object) is not runner
    op.dynamic.kernels.look_again()  # The store may not know yet.
    assert calls(op, (6, 5), (7, 5), (8, 5)) == ["static"] * 3


# -- which serves --


def test_of_several_the_one_with_the_fewest_symbols_serves() -> None:
    key = key_of(4, 5, 6)
    some, all_ = dynamic(key, "s1"), dynamic(key, "s0", "s1", "s2")
    for stored in ([some, all_], [all_, some]):
        op = Op(*stored)
        assert op.find(key_of(4, 9, 6)) == some
        assert op.find(key_of(4, 5, 6)) == some
        assert op.find(key_of(3, 9, 6)) == all_
        assert op.find(key_of(4, 9, 1)) is None


def test_the_store_is_asked_once() -> None:
    op = Op(dynamic(key_of(4, 5), "s0"))
    assert calls(op, (6, 5), (7, 5), (9, 9)) == ["hit", "hit", "static"]
    assert op.backend.asked == 1
    op.dynamic.kernels.forget()
    op.call(key_of(6, 5))
    assert op.backend.asked == 2


def test_a_kernel_for_any_thread_count_serves_each() -> None:
    key = key_of(4, 5)
    threads = dict(key.context)["threads"]
    op = Op(dynamic(key.with_threads(ANY_THREADS), "s0"))
    assert op.find(key_of(6, 5)) is not None
    assert op.find(key_of(6, 5).with_threads(threads + 1)) is not None


@pytest.mark.parametrize(
    "other",
    [
        key_of(6, 5, dtype=torch.float64),
        key_of(6, 5, dtype=torch.int32),
        key_of(6, 5).with_threads(97),
        key_of(6, 6),
        key_of(1, 5),
        key_of(0, 5),
        key_of(6),
        key_of(6, 5, 1),
        tensor_key(torch.empty(5, 6).t()),
        tensor_key(torch.empty(6, 9)[:, :5]),
        replace(key_of(6, 5), context=()),
        replace(key_of(6, 5), op="aten::gelu"),
        replace(key_of(6, 5), dispatch_key="CUDA"),
        replace(
            key_of(6, 5),
            context=tuple(
                (n, "float64" if n == "default_dtype" else v) for n, v in key_of(6, 5).context
            ),
        ),
        replace(
            key_of(6, 5),
            context=tuple(
                (n, "override" if n == "original" else v) for n, v in key_of(6, 5).context
            ),
        ),
    ],
    ids=range(15),
)
def test_a_call_that_differs_in_anything_else_is_not_served(other: KernelKey) -> None:
    found = dynamic(key_of(4, 5), "s0")
    assert serves(SILU, found, key_of(6, 5))
    if "threads" in dict(other.context):
        assert not serves(SILU, found, other)


def test_a_static_entry_serves_nothing_dynamically() -> None:
    assert not serves(SILU, StoredEntry(make_entry(key=key_of(4, 5)), Path()), key_of(4, 5))


@pytest.mark.parametrize("status", [Status.DECLINED, Status.QUARANTINED])
def test_an_entry_without_a_good_library_serves_nothing(status: Status) -> None:
    assert Op(dynamic(key_of(4, 5), "s0", status=status)).find(key_of(6, 5)) is None


# -- on its way --


def planned(op: Op) -> Plan:
    op.call(key_of(4, 5))
    plan = op.plan(key_of(6, 5))
    assert plan is not None
    return plan


def test_calls_of_the_family_wait_for_the_kernel_that_is_being_made() -> None:
    op = Op()
    plan = planned(op)
    declined: list[KernelKey] = []

    def waits(key: KernelKey) -> bool:
        return op.dynamic.wait_for(SILU, key, (key.digest,), lambda: declined.append(key), forget)

    assert not waits(key_of(7, 5))
    op.dynamic.begin(plan)
    assert waits(key_of(7, 5))
    assert waits(key_of(7, 9))
    assert not waits(key_of(7, 5, 3))
    assert declined == [key_of(7, 5), key_of(7, 9)]
    released: list[Any] = []
    op.dynamic.end(plan, released.append)
    assert released == [(key_of(7, 5).digest,), (key_of(7, 9).digest,)]
    assert not waits(key_of(8, 5))
    op.dynamic.end(plan, released.append)
    assert len(released) == 2


def test_a_key_is_declined_before_it_can_be_released() -> None:
    """Else it would stay declined for good."""
    op = Op()
    plan = planned(op)
    op.dynamic.begin(plan)
    happened: list[str] = []
    op.dynamic.wait_for(SILU, key_of(7, 5), (1,), lambda: happened.append("declined"), forget)
    op.dynamic.end(plan, lambda key: happened.append("released"))
    assert happened == ["declined", "released"]


def test_what_waited_counts_as_seen() -> None:
    op = Op()
    plan = planned(op)
    op.dynamic.begin(plan)
    op.dynamic.wait_for(SILU, key_of(4, 6), (1,), lambda: None, forget)
    op.dynamic.end(plan, lambda key: None)
    assert calls(op, (4, 7)) == [["self.size(0)", "self.size(1)"]]


def test_after_a_fork_nothing_is_on_its_way() -> None:
    op = Op()
    plan = planned(op)
    op.dynamic.begin(plan)
    op.dynamic.wait_for(SILU, key_of(7, 5), (1,), lambda: None, forget)
    op.dynamic.after_fork()
    assert not op.dynamic.wait_for(SILU, key_of(8, 5), (2,), lambda: None, forget)
    released: list[Any] = []
    op.dynamic.end(plan, released.append)
    assert released == []


def test_calls_share_a_loaded_library() -> None:
    op, found = Op(), dynamic(key_of(4, 5), "s0")
    assert not op.dynamic.kernels.is_loaded(found, False)
    small = op.dynamic.kernels.runner(found.entry, False, object)
    assert op.dynamic.kernels.runner(found.entry, False, object) is small
    assert op.dynamic.kernels.is_loaded(found, False)
    # One that gives up the GIL is opened anew, and its file looked at before.
    assert not op.dynamic.kernels.is_loaded(found, True)
    assert op.dynamic.kernels.runner(found.entry, True, object) is not small


# -- in words --


def test_what_kept_changing_has_the_arguments_names() -> None:
    dynamic = Specialisations()

    def add_key(rows: int, columns: int) -> KernelKey:
        x = torch.empty(rows, columns)
        return kernel_key(ADD, "CPU", ADD.bind((x, torch.empty(columns)), {}))

    assert dynamic.changing(ADD, add_key(4, 5)) == []
    dynamic.note(ADD, add_key(4, 5))
    assert dynamic.changing(ADD, add_key(4, 5)) == []
    assert dynamic.changing(ADD, add_key(3, 5)) == ["self.size(0)"]
    assert dynamic.changing(ADD, add_key(4, 6)) == ["other.size(0)", "self.size(1)"]


def test_a_plan_says_what_a_worker_is_to_do() -> None:
    document = planned(Op()).to_json()
    assert document["dims"] == [[0, 0]]
    assert document["guards"] == {"ranges": {"s0": list(ANY_SIZE)}, "conditions": []}
    pattern = KernelKey.from_json(document["pattern"])
    assert dict(pattern.arguments)["self"]["sizes"] == ["s0", 5]


# -- in the store --


def stored_dynamic(store: Store, **fields: Any) -> StoredEntry:
    return publish(store, dynamic(key_of(4, 5), "s0", **fields).entry)


def found_in(store: Store, op: str = "aten::silu") -> list[StoredEntry]:
    return store.find_dynamic(op, ENVIRONMENT, FEATURES)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", lock_timeout_s=1.0)


def test_an_absent_store_has_none(store: Store) -> None:
    assert found_in(store) == []


def test_dynamic_entries_lie_beside_the_static_ones(store: Store) -> None:
    stored = stored_dynamic(store)
    publish(store, make_entry(key=key_of(4, 5)))
    assert stored.path.parts[-4:-2] == ("aten.silu", "dynamic")
    assert found_in(store) == [stored]
    assert found_in(store, "aten::gelu") == []
    assert len(list(store.scan())) == 2


@pytest.mark.parametrize(
    "fields",
    [{"environment": OTHER_ENVIRONMENT}, {"requires": frozenset({"avx1024"})}],
    ids=["environment", "cpu"],
)
def test_what_is_not_for_here_is_not_found(store: Store, fields: Any) -> None:
    stored_dynamic(store, **fields)
    assert found_in(store) == []


def test_the_best_instruction_set_is_found(store: Store) -> None:
    stored_dynamic(store, target="cpu-x86-64-v3")
    best = stored_dynamic(store, target="cpu-x86-64-v4")
    assert found_in(store) == [best]


def test_libraries_with_the_same_pattern_and_other_guards_are_two_entries(store: Store) -> None:
    """Short rows are reduced by other code than long ones: 4096 is in the guards alone."""
    ranges = {"s0": (2, 4096)}, {"s0": (4097, 1 << 40)}
    short, long = (stored_dynamic(store, guards=Guards(one)) for one in ranges)
    assert short.entry.key == long.entry.key
    assert short.entry.digest != long.entry.digest
    assert sorted(one.path for one in found_in(store)) == sorted([short.path, long.path])
    op = Op(short, long)
    assert op.find(key_of(4096, 5)) == short
    assert op.find(key_of(4097, 5)) == long
    runners = [op.dynamic.kernels.runner(one.entry, False, object) for one in (short, long)]
    assert runners[0] is not runners[1]
    op.dynamic.kernels.distrust(short.entry.digest)
    assert op.find(key_of(4096, 5)) is None
    assert op.find(key_of(4097, 5)) == long


def test_a_failed_one_is_found_so_that_it_is_not_tried_again(store: Store) -> None:
    entry = dynamic(key_of(4, 5), "s0", status=Status.DECLINED, reason="not_dynamic").entry
    publish(store, entry, content=None)
    assert [one.entry.status for one in found_in(store)] == [Status.DECLINED]


def test_a_damaged_one_is_passed_over_and_left_for_verify(store: Store) -> None:
    damaged = stored_dynamic(store)
    good = publish(store, dynamic(key_of(4, 5, 6), "s0").entry)
    (damaged.path / "entry.json").write_text("{")
    assert found_in(store) == [good]
    assert damaged.path.exists()


def test_one_that_was_moved_is_none(store: Store) -> None:
    stored = stored_dynamic(store)
    elsewhere = stored.path.parent.with_name("0" * 64)
    stored.path.parent.rename(elsewhere)
    assert found_in(store) == []


# -- what waits, and what is read --


def test_calls_that_wait_for_a_kernel_are_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has waited the longest asks again with its next call."""
    monkeypatch.setattr(specialisations, "_WAITING", 3)
    op = Op()
    op.call(key_of(4, 5))
    plan = op.plan(key_of(3, 5))
    assert plan is not None
    op.dynamic.begin(plan)
    declined: set[tuple[int, ...]] = set()
    for rows in range(10, 15):
        place = (rows,)
        assert op.dynamic.wait_for(
            SILU,
            key_of(rows, 5),
            place,
            lambda place=place: declined.add(place),
            declined.remove,
        )
    assert declined == {(12,), (13,), (14,)}
    op.dynamic.end(plan, declined.remove)
    assert declined == set()


def test_the_store_is_read_under_no_lock() -> None:
    op = Op(dynamic(key_of(4, 5), "s0"))
    find_dynamic = op.backend.store.find_dynamic
    counts = []

    def read(*args: Any) -> list[StoredEntry]:
        other = threading.Thread(
            target=lambda: counts.append(op.dynamic.kernels.count), daemon=True
        )
        other.start()
        other.join(60)
        return find_dynamic(*args)

    op.backend.store.find_dynamic = read
    assert op.find(key_of(4, 5)) is not None
    assert counts == [0]


def test_what_comes_while_the_store_is_read_is_not_lost() -> None:
    op = Op()
    find_dynamic = op.backend.store.find_dynamic
    coming = [dynamic(key_of(4, 5), "s0")]

    def read(*args: Any) -> list[StoredEntry]:
        found = [*find_dynamic(*args), *op.backend.published]
        if coming:
            op.backend.published = [coming.pop()]
            op.dynamic.kernels.add(op.backend.published[0])
        return found

    op.backend.published = []
    op.backend.store.find_dynamic = read
    assert op.find(key_of(4, 5)) is not None
    assert op.backend.asked == 2
