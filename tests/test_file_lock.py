"""Locks among processes, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoti_eager._base.file_lock import FileLock, is_locked, locked
from aoti_eager._base.trusted_files import Directory, open_directory
from aoti_eager.errors import AotiEagerWarning, UntrustedFileError


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
