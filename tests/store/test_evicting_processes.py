"""Several processes on a store that is too small for them, and `kill -9` at any moment."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import cache
from aoti_eager._base.trusted_files import open_directory
from aoti_eager._store.held_entries import held_entries, total
from aoti_eager._store.limits import HIGH, Limits
from aoti_eager._store.puts import evict_down
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager._store.usage import account, read_usage

from ..support import forked_python
from ..support.entries import ENVIRONMENT, FEATURES, files_below, make_entry, make_key, publish

REPOSITORY = Path(__file__).parents[2]
# Seconds until a process counts as hanging.
PATIENCE_S = 200


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return forked_python.popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        cwd=REPOSITORY,
    )


def said_by(process: subprocess.Popen[str]) -> str:
    """Return the next line of a process; what it said on standard error if it ended instead."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line.strip()


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Have a process end by closing its standard input, and return what it wrote."""
    try:
        written = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError("a process hangs") from None
    assert process.returncode == 0, written[1]
    return written


def assert_whole(root: Path) -> None:
    """Assert that there is no partial entry, and after an eviction no leftover at all."""
    store = Store(root, lock_timeout_s=1.0)
    for found in store.scan():
        assert isinstance(found, StoredEntry), found
        if found.entry.library is not None:
            store.check_library(found)
    with open_directory(root) as directory:
        evict_down(directory, Limits())
        held = total(held_entries(directory))
        # A process that was killed between the account and the rename has added too much.
        assert read_usage(directory).held == held
    others = [name for name in files_below(root) if not name.startswith(("v1/", "locks/"))]
    assert others == ["CACHEDIR.TAG", "usage"]
    assert list((root / "tmp").iterdir()) == []


# --- killed in the middle of an eviction ---------------------------------------------------------

EVICTS = """
import sys
from pathlib import Path
from aoti_eager import cache
from aoti_eager._base import store_removal
from aoti_eager._store import least_used

root, where, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
module, name = {
    "renamed": (least_used, "remove_work"),
    "file by file": (store_removal, "_unlink"),
    "directories": (store_removal, "_rmdir"),
    "verdicts": (least_used, "_processors"),
    "account": (least_used, "account"),
}[where]
function, calls = getattr(module, name), 0

def stopping(*args, **kwargs):
    global calls
    calls += 1
    if calls == number:
        print("in the middle", flush=True)
        sys.stdin.read()
    return function(*args, **kwargs)

setattr(module, name, stopping)
cache.evict(op="*", cache_dir=root)
"""


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("renamed", 1),
        ("renamed", 3),
        ("file by file", 2),
        ("file by file", 6),
        ("directories", 3),
        ("verdicts", 2),
        ("account", 2),
        ("account", 4),
    ],
)
def test_a_process_that_is_killed_in_an_eviction_leaves_whole_entries(
    root: Path, where: str, number: int
) -> None:
    store = Store(root, lock_timeout_s=1.0, limits=Limits())
    for rows in range(6):
        publish(store, make_entry(key=make_key(rows=rows)), content=b"x" * 1000, log="text")
    process = start(EVICTS, root, where, number)
    assert said_by(process) == "in the middle"
    # Others are not kept waiting, and find what is left.
    publish(store, make_entry(key=make_key(rows=100)), content=b"y" * 1000)
    process.kill()
    process.communicate()
    found = [one for one in store.scan() if isinstance(one, StoredEntry)]
    assert len(found) == len(list(store.scan()))
    assert {len(store.check_library(one).content or b"") for one in found} == {1000}
    assert_whole(root)
    cache.evict(op="*", cache_dir=root)
    assert list(store.scan()) == []
    assert list((root / "v1").iterdir()) == []


# --- one evicts while another loads --------------------------------------------------------------

KEEPS_EVICTING = """
import select, sys
from pathlib import Path
from aoti_eager import cache

root, evicted = Path(sys.argv[1]), 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    evicted += len(cache.evict(op="*", cache_dir=root).entries)
print(evicted)
"""


def test_an_entry_is_loaded_whole_or_missed_while_another_process_evicts(root: Path) -> None:
    store = Store(root, lock_timeout_s=1.0, limits=Limits())
    content = b"library " * 2000
    process = start(KEEPS_EVICTING, root)
    assert said_by(process) == "ready"
    loaded = missed = 0
    while loaded < 30 or missed < 30:
        publish(store, content=content, log="text")
        for _ in range(20):
            try:
                found = store.find(make_key(), ENVIRONMENT, FEATURES)
                if found is None:
                    missed += 1
                    break
                with store.sealed_library(found) as library:
                    assert library.content == content
                loaded += 1
            except FileNotFoundError:
                missed += 1
                break
    out, err = end(process)
    assert int(out) > 0
    assert err == ""
    assert_whole(root)


def test_the_time_of_use_counts_across_processes(root: Path) -> None:
    """What another process has used does not go."""
    store = Store(root, lock_timeout_s=1.0)
    for rows, days in ((1, 9), (2, 8), (3, 7)):
        stored = publish(store, make_entry(key=make_key(rows=rows)))
        at = time.time() - days * 86400
        os.utime(stored.path, (at, at))
    use = """
import sys
from pathlib import Path
from aoti_eager._store.store import Store
from tests.support.entries import ENVIRONMENT, FEATURES, make_key
store = Store(Path(sys.argv[1]), lock_timeout_s=1.0)
store.note_use(store.find(make_key(rows=1), ENVIRONMENT, FEATURES))
"""
    end(start(use, root))
    report = cache.trim(max_entries=1, cache_dir=root)
    assert [one.digest for one in report.entries] == [make_key(rows=rows).digest for rows in (2, 3)]


# --- many that put, and are killed ---------------------------------------------------------------

PUTS = """
import hashlib, json, random, select, sys
from pathlib import Path
from aoti_eager._store import puts, usage
from aoti_eager._store.limits import Limits
from aoti_eager._store.store import Store
from aoti_eager.errors import AotiEagerError
from tests.support.entries import ENVIRONMENT, FEATURES, make_entry, make_key, publish

root, cap, keys, seed = Path(sys.argv[1]), *map(int, sys.argv[2:5])
# On a busy machine, a put that does not wait to the end would pass the cap, as it is meant to.
puts.LONGEST_WAIT_S = puts.TIMEOUT_S = usage.TIMEOUT_S = 1000.0
store = Store(root, lock_timeout_s=100.0, limits=Limits(cap, None))
chance = random.Random(seed)
wrong = []

def content_of(rows):
    return (b"library of %d " % rows) * (100 + rows)

while not select.select([sys.stdin], [], [], 0)[0]:
    rows = chance.randrange(keys)
    try:
        found = store.find(make_key(rows=rows), ENVIRONMENT, FEATURES)
        if found is not None:
            with store.sealed_library(found) as library:
                if library.content != content_of(rows):
                    wrong.append(f"{rows}: another library")
        else:
            publish(store, make_entry(key=make_key(rows=rows)), content=content_of(rows))
            print("put", flush=True)
    except FileNotFoundError:
        pass
    except AotiEagerError as error:
        wrong.append(f"{rows}: {error!r}")
print(json.dumps(wrong), flush=True)
"""


class Crowd:
    """Processes that put entries into one store, and are killed and replaced."""

    def __init__(self, root: Path, *, processes: int, cap: int, keys: int) -> None:
        self.root, self.cap, self.keys = root, cap, keys
        self.chance = random.Random(7)
        self.running: list[subprocess.Popen[str]] = []
        self.puts = self.kills = 0
        self.largest = 0
        for _ in range(processes):
            self._start()

    def _start(self) -> None:
        seed = self.chance.randrange(1 << 30)
        self.running.append(start(PUTS, self.root, self.cap, self.keys, seed))

    def wait_for_puts(self, number: int) -> None:
        """Wait until so many entries were put; those of killed processes may not be told."""
        until = self.puts + number
        while self.puts < until:
            pipes = {one.stdout: one for one in self.running}
            ready = select.select(list(pipes), [], [], PATIENCE_S)[0]
            assert ready, "no process puts anything: a deadlock"
            for pipe in ready:
                said_by(pipes[pipe])
                self.puts += 1

    def kill_one(self) -> None:
        """Kill one of the processes, wherever it is, and start another one."""
        victim = self.running.pop(self.chance.randrange(len(self.running)))
        victim.kill()
        victim.communicate()
        self.kills += 1
        self._start()

    def look(self) -> None:
        """Note how large the store is; under the account's lock, so that nothing comes meanwhile.

        Each file is looked at once, so that what goes meanwhile makes the sum only smaller.
        """
        with open_directory(self.root) as directory, account(directory, PATIENCE_S):
            size = 0
            for place, _, names in os.walk(self.root / "v1"):
                for name in names:
                    try:
                        size += os.stat(os.path.join(place, name)).st_size
                    except FileNotFoundError:
                        continue
        self.largest = max(self.largest, size)

    def end(self) -> list[str]:
        """End all processes, and return what went wrong in them."""
        wrong: list[str] = []
        for process in self.running:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for process in self.running:
            out, err = end(process)
            answer: Any = json.loads(out.splitlines()[-1])
            wrong += answer + ([err] if err else [])
        return wrong


def crowd_ends_well(crowd: Crowd) -> None:
    assert crowd.end() == []
    crowd.look()
    assert crowd.largest <= HIGH * crowd.cap, f"{crowd.largest / crowd.cap:.3f} of the cap"
    assert crowd.largest > 0.85 * crowd.cap, "the cap was never reached"
    assert_whole(crowd.root)


def test_eight_processes_keep_the_cap_and_leave_nothing_when_they_are_killed(root: Path) -> None:
    crowd = Crowd(root, processes=8, cap=150_000, keys=100)
    for _ in range(12):
        crowd.wait_for_puts(crowd.chance.randrange(5, 25))
        crowd.look()
        crowd.kill_one()
    crowd.wait_for_puts(40)
    crowd_ends_well(crowd)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_thirty_two_processes_for_a_minute(root: Path) -> None:
    """The length is what is asked for: 32 processes, 200 keys, `kill -9` for 60 s."""
    crowd = Crowd(root, processes=32, cap=300_000, keys=200)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        crowd.wait_for_puts(crowd.chance.randrange(1, 30))
        crowd.look()
        crowd.kill_one()
    assert crowd.kills > 10
    crowd_ends_well(crowd)
