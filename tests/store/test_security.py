"""Attacks on a cache and faults of a moment, end to end: another user's code never runs.

What each part refuses by itself is in ``test_trusted_files``, ``test_removal`` and
``test_sealed_library``; docs/security.md says what is to hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._compile_service import cache_context
from aoti_eager._store.entry import Library, encode
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager._store.verdict import Verdict, Verdicts
from aoti_eager.errors import AotiEagerWarning, EntryDamagedError, StoreError

from ..conftest import assert_close
from ..support import entries, forked_python, processes
from ..support.toolchains import copy_toolchain
from ..support.workers import Marked, until, work

NEEDS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0, reason="gives files to another user, which root alone can do"
)
OTHER_USER = 65534

aten = torch.ops.aten
X = torch.arange(64.0).reshape(8, 8) / 64


@pytest.fixture
def stored(cache_dir: Path) -> StoredEntry:
    """A kernel of silu in the test's own store."""
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
    (found,) = cache_context.current().store.scan()
    assert isinstance(found, StoredEntry)
    return found


def forge(found: StoredEntry, shout: Path) -> None:
    """Put code of another user in a library's place, with a record that fits it."""
    source = shout.with_suffix(".c")
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void start(void) "
        f'{{ fclose(fopen("{shout}", "w")); }}\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", found.library_path, source], check=True)
    content = found.library_path.read_bytes()
    library = Library(len(content), hashlib.sha256(content).hexdigest())
    entry = dataclasses.replace(found.entry, library=library, checked=True)
    (found.path / "entry.json").write_bytes(encode(entry))


@NEEDS_ROOT
@pytest.mark.parametrize("level", ["entry.json", "library.so", "target", "key", "v1"])
def test_what_another_user_put_into_a_directory_that_was_open_once_never_runs(
    stored: StoredEntry, tmp_path: Path, level: str
) -> None:
    """Poisoned, and then closed by ``chmod 700``."""
    shout = tmp_path / "another-users-code-ran"
    forge(stored, shout)
    path = {
        "entry.json": stored.path / "entry.json",
        "library.so": stored.library_path,
        "target": stored.path,
        "key": stored.path.parent,
        "v1": aoti_eager.config.cache_dir / "v1",
    }[level]
    os.chown(path, OTHER_USER, OTHER_USER)
    aoti_eager.config.cache_dir.chmod(0o700)
    with aoti_eager.register("aten::silu"):
        if level == "v1":
            with pytest.warns(AotiEagerWarning, match="v1: belongs to user 65534"):
                got = aten.silu(X)
        else:
            got = aten.silu(X)
    assert_close(got, X * torch.sigmoid(X))
    assert not shout.exists()


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
@pytest.mark.parametrize("name", ["entry.json", "library.so"])
def test_an_entry_that_others_can_write_to_is_made_anew(
    stored: StoredEntry, name: str, mode: int
) -> None:
    """Whoever can write to it could have this process load their code."""
    (stored.path / name).chmod(mode)
    store = cache_context.current().store
    with pytest.raises(EntryDamagedError, match="others can write to it"):
        store.check_library(store.read(stored.path))
    with aoti_eager.register("aten::silu"):
        assert_close(aten.silu(X), X * torch.sigmoid(X))
        aten.silu(X)
        assert aoti_eager.stats()["aten::silu"].hits >= 1
    assert stat.S_IMODE((stored.path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_cache_below_a_directory_that_others_can_write_to_is_not_used(
    tmp_path: Path, mode: int
) -> None:
    """Another user could put a directory of theirs in its place."""
    parent = tmp_path / "shared"
    parent.mkdir()
    parent.chmod(mode)
    with (
        aoti_eager.config.scope(cache_dir=parent / "cache"),
        aoti_eager.register("aten::silu"),
        pytest.warns(AotiEagerWarning, match="set AOTI_EAGER_CACHE_DIR to a new directory") as all_,
    ):
        for _ in range(3):
            assert_close(aten.silu(X), X * torch.sigmoid(X))
    assert len(all_) == 1
    assert list(parent.iterdir()) == []


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def test_a_pipe_or_a_sparse_file_in_an_entrys_place_holds_nothing_up(stored: StoredEntry) -> None:
    """Read as it comes, a pipe hangs the call, and the other file costs three gigabytes."""
    for name in ("entry.json", "library.so"):
        for make in (os.mkfifo, make_sparse):
            with aoti_eager.register("aten::silu"):
                aten.silu(X)  # It is there again.
            (stored.path / name).unlink()
            make(stored.path / name)
            with aoti_eager.register("aten::silu"):
                assert_close(aten.silu(X), X * torch.sigmoid(X))


def test_a_size_that_the_record_does_not_name_is_not_read(
    stored: StoredEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stored.library_path.open("r+b") as file:
        file.truncate(60 << 20)
    read: list[int] = []
    os_read = os.read
    monkeypatch.setattr(os, "read", lambda fd, count: read.append(count) or os_read(fd, count))
    with pytest.raises(EntryDamagedError, match="not the file that was stored"):
        cache_context.current().store.check_library(stored)
    assert sum(read) < 1 << 20


# --- growth --------------------------------------------------------------------------------------


def test_verdicts_go_with_the_entries_that_they_are_on(stored: StoredEntry) -> None:
    """A verdict without its entry is never read again, and would stay for good."""
    verdicts = Verdicts(aoti_eager.config.cache_dir)
    assert stored.entry.library is not None
    mine = Verdict(stored.entry.library.sha256, checked=True)
    verdicts.put(stored.entry.digest, mine)
    verdicts.put("ab" * 32, Verdict("cd" * 32, checked=True))
    assert cache.prune(stale=True).orphans == 1
    assert verdicts.digests() == [stored.entry.digest]
    assert cache.clear() == 1
    assert verdicts.digests() == []
    assert not (aoti_eager.config.cache_dir / "verdicts").exists() or not list(
        (aoti_eager.config.cache_dir / "verdicts").rglob("*.json")
    )


# --- what killed processes leave -----------------------------------------------------------------

COMPILES = """
import torch, aoti_eager
aoti_eager.register("aten::silu")
torch.ops.aten.silu(torch.ones(int(__import__("sys").argv[1]), 8))
print("called", flush=True)
aoti_eager.wait()
print(aoti_eager.stats()["aten::silu"].compiles, flush=True)
"""


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    found = Marked()
    for name, value in found.variables.items():
        monkeypatch.setenv(name, value)
    yield found
    for process in found.processes():
        process.send(signal.SIGKILL)


@pytest.mark.full
@pytest.mark.compiles
def test_what_a_script_and_its_worker_leave_that_are_killed_together_goes_with_the_next(
    cache_dir: Path, marked: Marked
) -> None:
    """Nobody is left who removes their work directories but the next worker."""
    environment = {
        **os.environ,
        "AOTI_EAGER_MODE": "background",
        "AOTI_EAGER_CACHE_DIR": str(cache_dir),
    }
    script = forked_python.popen(
        [sys.executable, "-c", COMPILES, "5"], env=environment, stdout=subprocess.PIPE, text=True
    )
    until(lambda: work(cache_dir) and marked.compiles(), "a kernel is compiled", 120)
    left = list((cache_dir / "tmp").iterdir())
    assert len(left) == 2, "one of the compile, one of the worker"
    for process in sorted(marked.processes(), key=lambda one: one.pid != script.pid):
        process.send(signal.SIGSTOP)  # All at once: who is killed later would tidy up.
    for process in marked.processes():
        process.send(signal.SIGKILL)
    script.wait()
    assert script.stdout is not None
    script.stdout.close()
    assert [path for path in left if path.exists()] == left
    done = forked_python.run(
        [sys.executable, "-c", COMPILES, "6"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["called", "1"]
    assert [path for path in left if path.exists()] == []


@pytest.mark.full
def test_what_a_worker_writes_is_for_us_alone_under_any_umask(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """Under the umask 002, a group mate's object could be linked into the next kernel."""
    path = copy_toolchain(shared_cache_dir, tmp_path / "of-a-group")
    headers = path / "toolchain" / "headers"
    before = os.umask(0o002)
    try:
        processes.run(path, AOTI_EAGER_NATIVE="1")
    finally:
        os.umask(before)
    made = [one for one in path.rglob("*") if headers not in one.parents]
    wrong = [one for one in made if stat.S_IMODE(one.lstat().st_mode) & 0o077]
    assert wrong == []
    assert {one.name for one in made} >= {"entry.json", "library.so", "native.so", "native.json"}


@NEEDS_ROOT
def test_a_cache_of_roots_that_a_user_may_read_is_served_to_the_user() -> None:
    """In an image: baked by root, and made readable by ``chmod -R a+rX``."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        root = Path(place, "cache")
        store = Store(root, lock_timeout_s=1.0)
        published = entries.publish(store, content=b"machine code")
        subprocess.run(["chmod", "-R", "a+rX", str(root)], check=True)
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.setuid(OTHER_USER)
                key, environment = entries.make_key(), entries.ENVIRONMENT
                found = store.find(key, environment, entries.FEATURES)
                assert found == published
                assert store.check_library(found).content == b"machine code"
                with pytest.raises(StoreError, match="denied"):
                    entries.publish(store)
                status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
