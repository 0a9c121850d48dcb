"""The kept queue: what is kept, added up and forgotten; whatever the file holds, nothing is run."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import aoti_eager
from aoti_eager import cache
from aoti_eager._base.store_format import MARKER_FILE, WANTED_FILE
from aoti_eager._base.store_marker import MARKER
from aoti_eager._keys.dynamic_plan import Plan
from aoti_eager._keys.guards import Guards
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._store import kept_queue, wanted_calls
from aoti_eager._store.kept_queue import (
    Record,
    read_wanted,
    update_wanted,
)
from aoti_eager._store.wanted_calls import (
    HEADER,
    LARGEST_FILE,
    MOST_KEYS,
    PERIOD_S,
    Wanted,
    WantedCall,
    decode,
    encode,
    merged,
    wanted,
)

from ..support import forked_python

NOW = 1_800_000_000
SCHEMA = "aten::silu(Tensor self) -> Tensor"


def key_of(rows: int = 8) -> KernelKey:
    """Return a key as a call of ``silu`` on ``(rows, 8)`` has it."""
    tensor = {"dtype": "float32", "device": "cpu", "sizes": [rows, 8], "strides": [8, 1]}
    context = (
        ("default_dtype", "float32"),
        ("deterministic", False),
        ("float32_matmul_precision", "highest"),
        ("original", "torch"),
        ("threads", 2),
    )
    return KernelKey("aten::silu", "CPU", (("self", tensor),), context)


def call_of(rows: int = 8) -> WantedCall:
    return WantedCall(key_of(rows), SCHEMA)


def kept(rows: int = 8, calls: int = 1, tries: int = 0, at: int = NOW) -> Wanted:
    return wanted(call_of(rows), calls, tries, at)


def by_digest(*keys: Wanted) -> dict[str, Wanted]:
    return {one.digest: one for one in keys}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with nothing in it."""
    path = tmp_path / "store"
    path.mkdir(mode=0o700)
    (path / MARKER_FILE).write_bytes(MARKER)
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time, as the list's only item."""
    times = [NOW]
    monkeypatch.setattr(kept_queue, "time", type("Clock", (), {"time": lambda: times[0]}))
    return times


def put(root: Path, *keys: Wanted) -> None:
    update_wanted(root, lambda before: {**before, **by_digest(*keys)})


# -- the file's form --


def test_what_is_written_is_read_and_describes_its_call() -> None:
    keys = [kept(8, 5, 1), kept(4, 7, 0, NOW - 60)]
    found, damaged = decode(encode(keys, NOW))
    assert (found, damaged) == (by_digest(*keys), 0)
    assert list(found) == [keys[1].digest, keys[0].digest]
    assert found[keys[0].digest].call() == call_of(8)


def plan_of_rows() -> Plan:
    """Return a plan for ``key_of`` with any number of rows."""
    pattern = key_of().to_json()
    pattern["arguments"][0][1]["sizes"][0] = "s0"
    return Plan(
        "family", ((0, 0),), ("alpha",), KernelKey.from_json(pattern), Guards({"s0": (2, 9)})
    )


def test_a_kernel_for_several_sizes_is_kept_with_its_plan() -> None:
    plan = plan_of_rows()
    one = wanted(WantedCall(key_of(), SCHEMA, plan), 3, 0, NOW)
    found, damaged = decode(encode([one], NOW))
    assert damaged == 0
    assert found[plan.pattern.digest].call() == WantedCall(key_of(), SCHEMA, plan)


def plan_for_another_op(plan: dict[str, Any]) -> None:
    plan["pattern"]["op"] = "aten::relu"


def plan_for_another_thread_count(plan: dict[str, Any]) -> None:
    plan["pattern"]["context"][-1][1] = 3


def plan_for_other_arguments(plan: dict[str, Any]) -> None:
    plan["pattern"]["arguments"][0][0] = "other"


def plan_whose_context_is_missing(plan: dict[str, Any]) -> None:
    plan["pattern"]["context"] = []


def plan_with_a_symbol_without_a_range(plan: dict[str, Any]) -> None:
    plan["pattern"]["arguments"][0][1]["sizes"][0] = "s1"


def plan_with_a_size_that_is_no_expression(plan: dict[str, Any]) -> None:
    plan["pattern"]["arguments"][0][1]["sizes"][0] = ["**", "s0", 2]


@pytest.mark.parametrize(
    "change",
    [
        plan_for_another_op,
        plan_for_another_thread_count,
        plan_for_other_arguments,
        plan_whose_context_is_missing,
        plan_with_a_symbol_without_a_range,
        plan_with_a_size_that_is_no_expression,
    ],
)
def test_a_plan_that_does_not_fit_its_key_is_no_call(
    change: Callable[[dict[str, Any]], None],
) -> None:
    """A worker would compile the plan's pattern, and the kernel would be stored under it."""
    one = wanted(WantedCall(key_of(), SCHEMA, plan_of_rows()), 3, 0, NOW)
    document = json.loads(one.document)
    change(document["plan"])
    digest = KernelKey.from_json(document["plan"]["pattern"]).digest
    changed = replace(one, digest=digest, document=json.dumps(document).encode())
    assert one.is_call()
    assert not changed.is_call()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"aoti_eager wanted 2\n",
        b"#!/bin/sh\nrm -r /\n",
        b"\x7fELF\x00\x01",
        HEADER + b"\n" + b"x" * LARGEST_FILE,
        b"\xff\xfe" * 100,
    ],
)
def test_a_file_of_another_kind_has_nothing(content: bytes) -> None:
    assert decode(content) == ({}, 1)


def line_of(one: Wanted) -> bytes:
    return encode([one], NOW).split(b"\n")[1]


DAMAGED = {
    "words": lambda line: b"hello world",
    "cut off": lambda line: line[:100],
    "no number": lambda line: line.replace(b" 7 ", b" seven "),
    "too large a number": lambda line: line.replace(b" 7 ", b" " + b"9" * 40 + b" "),
    "less than nothing": lambda line: line.replace(b" 7 ", b" -7 "),
    "a digest that is none": lambda line: b"../../etc " + line.partition(b" ")[2],
    "an op that is a path": lambda line: line.replace(b" aten::silu ", b" ../aten::silu "),
    "not text": lambda line: line.replace(b" aten::silu ", b" \xff\xfe "),
    "a long one": lambda line: line[:-1] + b" " * (1 << 17) + b"}",
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_line_costs_that_line(how: str) -> None:
    one, other = kept(8, 7), kept(4, 3)
    content = b"\n".join([HEADER, DAMAGED[how](line_of(one)), line_of(other), b""])
    assert decode(content) == (by_digest(other), 1)


DOCUMENTS: dict[str, Any] = {
    "nothing": {},
    "a number": {"key": 7, "schema": SCHEMA, "plan": None},
    "another call": {"key": key_of(5).to_json(), "schema": SCHEMA, "plan": None},
    "a deep one": None,
    "a plan that is none": {"key": key_of().to_json(), "schema": SCHEMA, "plan": {"dims": 7}},
    "no context": {"key": key_of().to_json() | {"context": []}, "schema": SCHEMA, "plan": None},
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_is_no_call_of_the_digest_is_refused(name: str) -> None:
    document = DOCUMENTS[name]
    text = b'{"a":' + b"[" * 50_000 + b"}" if document is None else json.dumps(document).encode()
    one = replace(kept(), document=text)
    assert not one.is_call()
    with pytest.raises(wanted_calls.NOT_WANTED):
        one.call()


# -- bounds --


def test_the_most_called_keys_are_kept_and_of_equal_ones_the_latest() -> None:
    keys = [kept(rows, calls=1 + (rows > 100), at=NOW - rows) for rows in range(1, MOST_KEYS + 60)]
    found, _ = decode(encode(keys, NOW))
    assert len(found) == MOST_KEYS
    left = [one for one in keys if one.digest not in found]
    assert all(one.calls == 1 for one in left)
    assert max(one.at for one in left) < min(one.at for one in found.values() if one.calls == 1)


def test_the_file_has_room_for_what_is_called_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted_calls, "LARGEST_FILE", 2000)
    keys = [kept(rows, calls=rows) for rows in range(1, 20)]
    content = encode(keys, NOW)
    assert len(content) <= 2000
    found, _ = decode(content)
    assert found
    assert set(found) == {one.digest for one in keys[-len(found) :]}


def test_what_nobody_has_called_for_a_month_is_forgotten_and_so_is_what_is_yet_to_be() -> None:
    keys = [kept(1, at=NOW - PERIOD_S - 1), kept(2, at=NOW - 10), kept(3, at=NOW + 10**7)]
    assert list(decode(encode(keys, NOW))[0]) == [keys[1].digest]


def test_calls_and_tries_of_processes_add_up_and_what_is_decided_goes() -> None:
    before = by_digest(kept(8, 5, 1, NOW - 50), kept(4, 9), kept(2, 2))
    after = merged(before, [kept(8, 3, 1, NOW), kept(1, 1)], {key_of(4).digest, "unknown"})
    assert after == by_digest(kept(8, 8, 2, NOW), kept(2, 2), kept(1, 1))
    assert before[key_of(4).digest].calls == 9


# -- the file in a store --


def test_there_is_none_before_the_first(root: Path) -> None:
    assert read_wanted(root) == read_wanted(root / "missing") == read_wanted(None) == {}


def test_two_processes_that_end_at_once_lose_nothing(root: Path, clock: list[int]) -> None:
    records = [Record(root) for _ in range(8)]
    for rows, record in enumerate(records, start=1):
        record.want(call_of(rows), lambda: 2)
        record.want(call_of(99), lambda: 3)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(Record.keep, records))
    found = read_wanted(root)
    assert len(found) == 9
    assert found[key_of(99).digest].calls == 24
    assert sorted(path.name for path in root.iterdir()) == [MARKER_FILE, "locks", WANTED_FILE]
    assert stat.S_IMODE((root / WANTED_FILE).stat().st_mode) == 0o600


def test_a_key_that_is_decided_on_leaves_the_file_and_the_last_one_takes_it_along(
    root: Path, clock: list[int]
) -> None:
    put(root, kept(8, 5), kept(4, 3))
    first, second = Record(root), Record(root)
    first.decided(key_of(8).digest)
    first.keep()
    assert set(read_wanted(root)) == {key_of(4).digest}
    second.decided(key_of(4).digest)
    second.keep()
    assert not (root / WANTED_FILE).exists()


def test_what_is_decided_after_it_was_wanted_is_not_kept_and_may_be_wanted_again(
    root: Path, clock: list[int]
) -> None:
    record = Record(root)
    record.want(call_of(), lambda: 4)
    record.decided(key_of().digest)
    record.keep()
    assert read_wanted(root) == {}
    record.want(call_of(), lambda: 2)
    record.keep()
    assert read_wanted(root)[key_of().digest].calls == 2


def test_calls_are_counted_to_the_end_also_of_a_key_that_is_wanted_twice(
    root: Path, clock: list[int]
) -> None:
    record = Record(root)
    calls = [1]
    record.want(call_of(), lambda: calls[0])
    assert record.is_own(key_of().digest)
    calls[0] = 6
    record.release(key_of().digest)
    calls[0] = 100  # It counts nothing of this key any more.
    record.want(call_of(), lambda: 10)
    record.keep()
    assert read_wanted(root)[key_of().digest].calls == 16


def test_a_try_that_came_to_nothing_is_counted(root: Path, clock: list[int]) -> None:
    digest = key_of().digest
    for _ in range(2):
        record = Record(root)
        record.want(call_of(), lambda: 1)
        record.tried(digest)
        record.keep()
    ended = Record(root)
    ended.want(call_of(), lambda: 1)
    ended.tried(digest)
    ended.tried(digest, -1)
    ended.keep()
    found = read_wanted(root)[digest]
    assert (found.calls, found.tries) == (3, 2)


def test_a_try_that_ends_after_its_key_was_decided_on_makes_no_try_fewer(
    root: Path, clock: list[int]
) -> None:
    """Another thread may decide on it, and a call may want it anew, meanwhile."""
    record = Record(root)
    call = call_of(1)
    record.want(call, lambda: 1)
    record.tried(call.key.digest)
    record.decided(call.key.digest)
    record.want(call, lambda: 1)
    record.tried(call.key.digest, -1)
    record.keep()
    assert [one.tries for one in read_wanted(root).values()] == [0]


def test_decided_keys_without_end_take_no_more_memory(
    root: Path, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_queue, "_MOST_HERE", 8)
    put(root, kept(1), kept(2))
    record = Record(root)
    for number in range(100):
        record.decided(f"{number:064}")
    record.decided(kept(1).digest)
    assert len(record._decided) <= 10
    record.keep()
    assert set(read_wanted(root)) == {kept(2).digest}


def test_a_key_that_was_only_gone_on_with_is_no_younger_for_it(
    root: Path, clock: list[int]
) -> None:
    put(root, kept(8, 5, at=NOW - 1000))
    record = Record(root)
    record.want(call_of())
    assert not record.is_own(key_of().digest)
    record.tried(key_of().digest)
    record.keep()
    assert read_wanted(root) == by_digest(kept(8, 5, 1, NOW - 1000))


def test_calls_before_are_those_of_earlier_processes(root: Path, clock: list[int]) -> None:
    put(root, kept(8, 5))
    with aoti_eager.config.scope(cache_dir=root):
        digest = key_of(8).digest
        assert kept_queue.calls_before("aten::silu", digest) == 5
        assert kept_queue.calls_before("aten::gelu", digest) == 0
        assert kept_queue.calls_before("aten::silu", key_of(9).digest) == 0
        put(root, kept(9, 5))  # It is read once.
        assert kept_queue.calls_before("aten::silu", key_of(9).digest) == 0


def test_nothing_is_written_where_nothing_is_wanted(root: Path) -> None:
    record = Record(root)
    record.decided(key_of().digest)
    record.keep()
    assert [path.name for path in root.iterdir()] == [MARKER_FILE]


# -- faults --


def test_a_directory_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("mine")
    before = set(tmp_path.iterdir())
    record = Record(tmp_path)
    record.want(call_of(), lambda: 1)
    record.keep()
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"locks"}
    assert not (tmp_path / WANTED_FILE).exists()


def spoil(root: Path, how: str) -> None:
    """Make something of the file that is not to be believed."""
    path = root / WANTED_FILE
    put(root, kept(8, 5))
    if how == "others can write to it":
        path.chmod(0o666)
    elif how == "a link":
        path.rename(root.with_name("elsewhere"))
        path.symlink_to(root.with_name("elsewhere"))
    elif how == "a directory":
        path.unlink()
        path.mkdir()
    elif how == "huge":
        with path.open("ab") as file:
            file.truncate(LARGEST_FILE + 1)
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(b"\x00" * 4096)


SPOILS = ["others can write to it", "a link", "a directory", "huge", "a pipe", "corrupt"]


@pytest.mark.parametrize("how", SPOILS)
def test_a_file_that_is_not_to_be_believed_counts_as_none(
    how: str, root: Path, clock: list[int]
) -> None:
    spoil(root, how)
    assert read_wanted(root) == {}
    assert Record(root).calls_before("aten::silu", key_of().digest) == 0


@pytest.mark.parametrize("how", [one for one in SPOILS if one != "a directory"])
def test_it_is_damaged_for_verify_which_removes_it(how: str, root: Path, clock: list[int]) -> None:
    spoil(root, how)
    found = cache.verify(repair=False, cache_dir=root)
    assert [path.name for path, _ in found.damaged] == [WANTED_FILE]
    cache.verify(cache_dir=root)
    assert not os.path.lexists(root / WANTED_FILE)
    assert cache.verify(cache_dir=root).damaged == ()


def test_a_file_that_is_sound_is_not_damaged_and_one_with_another_call_is(
    root: Path, clock: list[int]
) -> None:
    put(root, kept(8, 5))
    assert cache.verify(cache_dir=root).damaged == ()
    put(root, replace(kept(8, 5), document=kept(4).document))
    ((path, problem),) = cache.verify(cache_dir=root).damaged
    assert (path.name, problem) == (WANTED_FILE, "has 1 lines that are no wanted keys")


def test_a_file_that_is_not_to_be_believed_is_replaced(root: Path, clock: list[int]) -> None:
    spoil(root, "corrupt")
    record = Record(root)
    record.want(call_of(4), lambda: 1)
    record.keep()
    assert read_wanted(root) == by_digest(kept(4))


def test_clear_takes_it_along(root: Path, clock: list[int]) -> None:
    put(root, kept(8, 5))
    cache.clear(cache_dir=root)
    assert read_wanted(root) == {}
    assert not (root / WANTED_FILE).exists()


def test_prune_has_what_was_begun_in_vain_begun_again(root: Path, clock: list[int]) -> None:
    put(root, kept(8, 5, 5), kept(4, 3))
    cache.prune(stale=True, cache_dir=root)
    assert read_wanted(root)[key_of(8).digest].tries == 5
    cache.prune(declined=True, cache_dir=root)
    assert read_wanted(root) == by_digest(kept(8, 5), kept(4, 3))


def test_a_store_that_cannot_be_written_is_an_os_error_and_keeps_what_it_has(
    mount: Any, clock: list[int]
) -> None:
    path = mount("full", "size=16k")
    (path / MARKER_FILE).write_bytes(MARKER)
    put(path, kept(8, 5))
    with (path / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    record = Record(path)
    for rows in range(1, 20):
        record.want(call_of(rows), lambda: 1)
    with pytest.raises(OSError, match="space"):
        record.keep()
    assert read_wanted(path) == by_digest(kept(8, 5))
    assert sorted(one.name for one in path.iterdir()) == [
        MARKER_FILE,
        "filler",
        "locks",
        WANTED_FILE,
    ]


ENDS = """
import os, sys
from pathlib import Path
from aoti_eager._store import kept_queue
from tests.store.test_kept_queue import call_of

root = Path(sys.argv[1])
record = kept_queue.record_of(root)
record.want(call_of(1), lambda: 1)
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        kept_queue.record_of(root).want(call_of(2), lambda: 1)
        sys.exit()  # through atexit
    assert os.waitpid(child, 0)[1] == 0
elif sys.argv[2] == "read-only":
    os.chmod(root, 0o500)
    os.chmod(root / "locks", 0o500)
elif sys.argv[2] == "gone":
    import shutil
    shutil.rmtree(root)
"""


@pytest.mark.share(of=2)
@pytest.mark.parametrize("how", ["as usual", "fork", "read-only", "gone"])
def test_the_end_of_a_process_is_quiet_whatever_it_finds(how: str, root: Path) -> None:
    (root / "locks").mkdir(mode=0o700)
    done = forked_python.run(
        [sys.executable, "-W", "error", "-c", ENDS, str(root), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if how == "gone":
        assert not root.exists()
        return
    os.chmod(root, 0o700)
    wants = set() if how == "read-only" and os.geteuid() else {key_of(1).digest}
    assert set(read_wanted(root)) == wants
