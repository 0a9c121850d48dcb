"""Counters: exact under threads, added up by reason, and kept over processes."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from aoti_eager._dispatch.counters import (
    TOTALS_FILE,
    Counter,
    OpCounters,
    OpStats,
    add_totals,
    read_totals,
)

SILU = OpStats(hits=5, misses=2, declines=3, compiles=1, failures=1, declined={"random": 3})
GELU = OpStats(hits=1)


def test_a_counter_tells_how_often_it_was_raised() -> None:
    counter = Counter()
    assert counter.value == 0
    for _ in range(12):
        counter.add()
    assert counter.value == counter.value == 12


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Let threads interrupt each other as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("many_switches")
def test_no_count_is_lost_between_threads() -> None:
    counters = OpCounters()

    def work() -> None:
        for _ in range(2000):
            counters.hits.add()
            counters.declined("random").add()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot() == OpStats(hits=16000, declines=16000, declined={"random": 16000})


def test_declines_are_the_sum_of_their_reasons() -> None:
    counters = OpCounters()
    for _ in range(3):
        counters.declined("random").add()
    counters.declined("mismatch").add()
    counters.declined("never_counted")
    counters.misses.add()
    counters.compiles.add()
    counters.failures.add()
    stats = counters.snapshot()
    assert stats.declined == {"random": 3, "mismatch": 1}
    assert stats.declines == sum(stats.declined.values())
    assert (stats.hits, stats.misses, stats.compiles, stats.failures) == (0, 1, 1, 1)


def test_a_snapshot_does_not_change_afterwards() -> None:
    counters = OpCounters()
    before = counters.snapshot()
    counters.hits.add()
    counters.declined("random").add()
    assert before == OpStats()
    assert counters.snapshot() == OpStats(hits=1, declines=1, declined={"random": 1})


def test_stats_add_up_reason_by_reason() -> None:
    other = OpStats(hits=1, declines=3, declined={"random": 1, "mismatch": 2})
    total = OpStats(
        hits=6,
        misses=2,
        declines=6,
        compiles=1,
        failures=1,
        declined={"random": 4, "mismatch": 2},
    )
    assert SILU + other == other + SILU == total
    assert SILU.declined == {"random": 3}


def test_what_is_unfinished_and_saved_adds_up_and_is_no_part_of_what_is_equal() -> None:
    one = OpStats(hits=1, unfinished={"queued": 1}, saved_s=0.5, steps=("tracing",))
    other = OpStats(hits=1, unfinished={"queued": 2, "measuring": 1}, saved_s=0.25)
    total = one + other
    assert total == OpStats(hits=2)
    assert total.unfinished == {"queued": 3, "measuring": 1}
    assert total.saved_s == 0.75
    assert total.steps == ("tracing",)


def test_counters_of_undecided_keys_go_from_key_to_key() -> None:
    """As many as there are such keys at a time, and nothing that they have counted is lost."""
    counters = OpCounters()
    for lend in (counters.pending, counters.counting):
        for key in range(100):
            one, other = lend(), lend()
            assert (one.value, other.value) == (0, 0)
            for _ in range(key):
                one.add()
            other.add()
            assert (one.value, other.value) == (key, 1)
            add = one.add
            del one, other
            add()  # A call that has found it in time.
    assert len(counters._pending) == len(counters._counting) == 2
    stats = counters.snapshot()
    assert (stats.misses, stats.rare) == (2 * (4950 + 200), 4950 + 200)


@pytest.mark.native
def test_a_counter_that_is_closed_goes_on_with_what_it_has() -> None:
    counters = OpCounters()
    kept, lent, add = counters.hits, counters.pending(), counters.hits.add
    for counter in (kept, lent):
        counter.add()
        assert counter.native.pointer
    counters.close()
    for counter in (kept, lent):
        counter.add()
        assert counter.value == 2
    add()  # The hit path has it bound.
    assert kept.value == 3


# --- totals --------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def test_there_are_no_totals_before_the_first(root: Path) -> None:
    assert read_totals(root) == {}
    assert read_totals(root / "missing") == {}


def test_totals_add_up_over_processes(root: Path) -> None:
    add_totals(root, {"aten::silu": SILU})
    add_totals(root, {"aten::silu": SILU, "aten::gelu": GELU})
    assert read_totals(root) == {"aten::silu": SILU + SILU, "aten::gelu": GELU}
    assert sorted(os.listdir(root)) == ["locks", TOTALS_FILE]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "null",
        '{"aten::silu": 5}',
        '{"aten::silu": {"hits": "five"}}',
        '{"aten::silu": {"hits": null}}',
        '{"aten::silu": {"unknown": 5}}',
        '{"aten::silu": {"declined": null}}',
        '{"aten::silu": {"declined": {"random": "x"}}}',
        "[" * 100_000,
        "\udc80",
    ],
)
def test_damaged_totals_count_as_none_and_are_replaced(root: Path, text: str) -> None:
    """A damaged file is no error: it is written anew."""
    (root / TOTALS_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_totals(root) == {}
    add_totals(root, {"aten::silu": SILU})
    assert read_totals(root) == {"aten::silu": SILU}


def test_totals_keep_what_was_saved_and_not_what_was_true_of_a_moment(root: Path) -> None:
    one = OpStats(hits=1, unfinished={"queued": 1}, saved_s=0.5, steps=("tracing",))
    for _ in range(2):
        add_totals(root, {"aten::silu": one})
    found = read_totals(root)["aten::silu"]
    assert (found.saved_s, found.unfinished, found.steps) == (1.0, {}, ())


def test_totals_are_json_for_a_reader(root: Path) -> None:
    add_totals(root, {"aten::silu": SILU})
    values = json.loads((root / TOTALS_FILE).read_text())
    assert values["aten::silu"]["declined"] == {"random": 3}


def test_totals_that_cannot_be_written_are_an_os_error(root: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        add_totals(root / "missing", {"aten::silu": SILU})
    (root / TOTALS_FILE).mkdir()
    with pytest.raises(OSError, match="directory"):
        add_totals(root, {"aten::silu": SILU})
    assert sorted(os.listdir(root)) == ["locks", TOTALS_FILE]


def test_the_lock_of_the_totals_is_free_after_an_error(root: Path) -> None:
    (root / TOTALS_FILE).mkdir()
    with pytest.raises(OSError, match="directory"):
        add_totals(root, {"aten::silu": SILU})
    with filelock.FileLock(root / "locks" / "totals", timeout=0):
        pass
