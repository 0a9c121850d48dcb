"""Locks among processes, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import aoti_eager
from aoti_eager import cache
from aoti_eager._base.file_lock import FileLock, is_locked, locked
from aoti_eager._base.trusted_files import Directory, open_directory
from aoti_eager._dispatch.counters import OpStats, add_totals, read_totals
from aoti_eager._native import build as native_build
from aoti_eager._store.kept_queue import (
    read_wanted,
    update_wanted,
)
from aoti_eager._store.store import Store
from aoti_eager._store.wanted_calls import (
    WantedCall,
    wanted,
)
from aoti_eager.errors import AotiEagerWarning, UntrustedFileError

from ..support import processes
from ..support.child_patches import patch_children
from ..support.entries import make_key, publish


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    (tmp_path / "locks").mkdir(mode=0o700)
    with open_directory(tmp_path / "locks") as opened:
        yield opened


def test_a_lock_keeps_others_out_until_it_is_given_back(directory: Directory) -> None:
    with locked(directory, "ab", 0.0) as lock:
        assert lock.held
        with pytest.raises(TimeoutError), locked(directory, "ab", 0.01):
            raise AssertionError("held twice")
        with locked(directory, "cd", 0.0):
            pass
    with locked(directory, "ab", 0.0) as lock:
        assert lock.existed
    assert stat.S_IMODE((directory.path / "ab").stat().st_mode) == 0o600


HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_lock_dies_with_its_holder(directory: Directory) -> None:
    path = directory.path / "ab"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError), locked(directory, "ab", 0.01):
            raise AssertionError("held twice")
        holder.kill()
        holder.wait()
        with locked(directory, "ab", 10.0):
            pass


def test_a_lock_of_a_forked_child_is_given_back_by_its_parent(directory: Directory) -> None:
    """The child has the file open, too."""
    with locked(directory, "ab", 0.0):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
    with locked(directory, "ab", 0.0):
        pass
    os.close(write)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_work_goes_on_after_one_warning(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(AotiEagerWarning, match="has no locks") as given:
        for name in ("ab", "ab", "cd"):
            with locked(directory, name, 60.0):
                pass
    assert len(given) == 1
    fd = os.open(directory.path, os.O_RDONLY)
    assert is_locked(fd) is None
    os.close(fd)


def test_a_link_or_a_pipe_in_a_locks_place_is_refused(directory: Directory) -> None:
    victim = directory.path.parent / "victim"
    victim.write_bytes(b"precious")
    (directory.path / "ab").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        FileLock(directory, "ab")
    os.mkfifo(directory.path / "cd")
    with pytest.raises(UntrustedFileError, match="no regular file"):
        FileLock(directory, "cd")
    assert victim.read_bytes() == b"precious"


# -- who locks --


def test_nobody_else_locks() -> None:
    """So that what is said here of file systems without locks holds for all."""
    package = Path(aoti_eager.__file__).parent
    locks = re.compile(r"\.(flock|lockf)\b|^\s*(from|import) (filelock|msvcrt|portalocker)\b", re.M)
    files = [path for path in package.rglob("*.py") if locks.search(path.read_text())]
    assert [path.relative_to(package).as_posix() for path in files] == ["_base/file_lock.py"]


@pytest.fixture(params=["ENOSYS", "ENOLCK"])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system whose files cannot be locked."""
    number = getattr(errno, request.param)

    def flock(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


COMPILER = """#!/bin/sh
while [ "$1" != "-o" ]; do shift; done
echo built > "$2"
"""


@pytest.mark.usefixtures("no_locks")
def test_all_that_lock_do_their_work_without_locks(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = Store(root, lock_timeout_s=0.05)
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o700)
    one = wanted(WantedCall(make_key(), "silu(Tensor self) -> Tensor"), 1, 0, int(time.time()))
    with pytest.warns(AotiEagerWarning, match="has no locks") as given:
        for _ in range(2):
            with store.locked(make_key()), store.locked(make_key()):
                published = publish(store)
        add_totals(root, {"aten::silu": OpStats(hits=1)})
        add_totals(root, {"aten::silu": OpStats(hits=1)})
        update_wanted(root, lambda kept: {one.digest: one})
        native = native_build.build(root / "toolchain", str(compiler))
    assert len(given) == 1
    assert store.read(published.path) == published
    assert read_totals(root) == {"aten::silu": OpStats(hits=2)}
    assert read_wanted(root) == {one.digest: one}
    assert native.content == b"built\n"
    with store.workspace() as work:
        # Nobody takes it for a dead process's.
        assert store.stale_work() == []
        assert work.is_dir()
    assert list((root / "tmp").iterdir()) == []


SCRIPT = """
import json, torch, aoti_eager
x = torch.arange(12.0).reshape(3, 4)
with aoti_eager.register("aten::silu"):
    for _ in range(2):
        assert torch.allclose(torch.ops.aten.silu(x), x * x.sigmoid())
        assert aoti_eager.wait(300)
    torch.ops.aten.silu(x)
    stats = aoti_eager.stats()["aten::silu"]
print(json.dumps({"hits": stats.hits, "compiles": stats.compiles, "declined": stats.declined}))
"""
NO_LOCKS = """
import types
def _flock(fd, how):
    raise OSError({number}, os.strerror({number}))
fcntl = types.SimpleNamespace(**{{**vars(fcntl), "flock": _flock}})
"""


@pytest.mark.full
@pytest.mark.compiles
@pytest.mark.parametrize(("mode", "name"), [("sync", "ENOSYS"), ("background", "ENOLCK")])
def test_a_script_has_its_kernels_without_locks(
    mode: str, name: str, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do its workers."""
    patch = NO_LOCKS.format(number=getattr(errno, name))
    patch_children(monkeypatch, tmp_path, {"aoti_eager._base.file_lock": patch})
    done = processes.run(cache_dir, SCRIPT, AOTI_EAGER_MODE=mode)
    assert (done["compiles"], done["declined"]) == (1, {})
    assert done["hits"] >= 1
    assert done["stderr"].count("has no locks") == 1
    (entry,) = cache.list()
    assert entry.status == "ready"
    assert read_totals(cache_dir)["aten::silu"].hits == done["hits"]
