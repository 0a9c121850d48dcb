"""Who could have written a file: what is opened, and what is refused."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoti_eager._base import ownership, trusted_files, trusted_path
from aoti_eager._base.trusted_files import Directory, open_directory, read_file
from aoti_eager.errors import UntrustedFileError

NEEDS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0, reason="gives files to another user, which root alone can do"
)
OTHER_USER = 65534


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory three levels below one of ours."""
    path = tmp_path / "above" / "between" / "place"
    path.mkdir(parents=True)
    for one in (path, path.parent, path.parent.parent):
        one.chmod(0o755)
    return path


@pytest.fixture
def directory(place: Path) -> Iterator[Directory]:
    with open_directory(place) as opened:
        yield opened


def _have_private_group(monkeypatch: pytest.MonkeyPatch, gid: int) -> None:
    for module in (ownership, trusted_path):
        monkeypatch.setattr(module, "private_group_of", lambda uid: gid)


# --- the way to a directory ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o722])
@pytest.mark.parametrize("level", ["between", "above"])
def test_a_directory_below_one_that_others_can_write_to_is_refused(
    place: Path, level: str, mode: int
) -> None:
    above = next(one for one in place.parents if one.name == level)
    above.chmod(mode)
    with pytest.raises(UntrustedFileError, match=f"{above}.*put another directory in its place"):
        open_directory(place)
    above.chmod(0o755)
    open_directory(place).close()


def test_a_sticky_directory_may_stand_on_the_way_and_not_at_its_end(place: Path) -> None:
    place.parent.chmod(0o1777)
    open_directory(place).close()
    place.chmod(0o1777)
    with pytest.raises(UntrustedFileError, match="others can write to it"):
        open_directory(place)


@NEEDS_ROOT
@pytest.mark.parametrize("level", ["between", "place"])
def test_a_directory_of_another_user_is_refused_wherever_it_stands(place: Path, level: str) -> None:
    one = next(one for one in (place, *place.parents) if one.name == level)
    os.chown(one, OTHER_USER, OTHER_USER)
    with pytest.raises(UntrustedFileError, match=f"belongs to user {OTHER_USER}"):
        open_directory(place)


def test_a_link_of_ours_is_followed_and_what_it_leads_to_is_checked(
    place: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(place.parent)
    (place / "file").write_bytes(b"x")
    with open_directory(link / "place") as opened:
        assert opened.names() == ["file"]
    relative = tmp_path / "relative"
    relative.symlink_to("above/../above/between")
    open_directory(relative / "place").close()
    place.parent.chmod(0o777)
    with pytest.raises(UntrustedFileError, match="above it"):
        open_directory(link / "place")


@NEEDS_ROOT
def test_a_link_that_another_user_made_is_not_followed(place: Path, tmp_path: Path) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "link").symlink_to(place)
    os.lchown(sticky / "link", OTHER_USER, OTHER_USER)
    with pytest.raises(UntrustedFileError, match=f"is a link of user {OTHER_USER}"):
        open_directory(sticky / "link")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        open_directory(tmp_path / "a")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_what_is_missing_is_made_for_us_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with open_directory(tmp_path / "a" / "b" / "c", create=True) as opened:
            opened.descend("d", "e", create=True).close()
            opened.write("file", b"x")
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "a").rglob("*") if path.is_dir()]
    assert len(made) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "a", *made]} == {0o700}
    assert stat.S_IMODE((tmp_path / "a" / "b" / "c" / "file").stat().st_mode) == 0o600


def test_nothing_is_made_below_a_directory_that_others_can_write_to(place: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(UntrustedFileError):
        open_directory(place / "new" / "newer", create=True)
    assert not (place / "new" / "newer").exists()


def test_a_path_that_depends_on_the_current_directory_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="an absolute path"):
        open_directory(Path("relative"))


@NEEDS_ROOT
def test_a_directory_that_may_only_be_searched_may_stand_on_the_way() -> None:
    """Homes often lie in one: what is in it cannot be listed."""
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o711)
        place = Path(above, "place")
        place.mkdir(mode=0o700)
        os.chown(place, OTHER_USER, OTHER_USER)
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.setuid(OTHER_USER)
                with open_directory(place) as opened:
                    opened.write("file", b"x")
                status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (place / "file").read_bytes() == b"x"


def test_a_group_that_is_the_users_alone_is_nobody_else(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many distributions give each user a group of the same name, and the umask 002."""
    gid = place.stat().st_gid
    place.parent.chmod(0o775)
    _have_private_group(monkeypatch, gid)
    open_directory(place).close()
    place.parent.chmod(0o777)
    with pytest.raises(UntrustedFileError):
        open_directory(place)
    place.parent.chmod(0o755)
    place.chmod(0o775)  # The cache itself is never shared with any group.
    with pytest.raises(UntrustedFileError):
        open_directory(place)


def test_an_access_list_gives_more_users_than_the_group_has(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.parent.chmod(0o775)
    _have_private_group(monkeypatch, place.stat().st_gid)
    open_directory(place).close()
    monkeypatch.setattr(trusted_path, "has_access_list", lambda path: True)
    with pytest.raises(UntrustedFileError):
        open_directory(place)


def test_roots_group_is_not_roots_alone() -> None:
    """Containers put users without a name into it."""
    assert ownership.private_group_of(0) is None


# --- one file ------------------------------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.with_name("target").write_bytes(b"x")
    path.symlink_to("target")


def make_directory(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # A socket's path has at most 108 bytes.
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def make_writable(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0o664)


@pytest.mark.parametrize(
    "make",
    [make_pipe, make_link, make_directory, make_socket, make_sparse, make_writable],
    ids=lambda make: make.__name__,
)
def test_what_is_no_file_of_ours_is_refused_at_once(
    directory: Directory, make: Callable[[Path], None]
) -> None:
    """A pipe would be waited for, and three gigabytes of nothing be read."""
    make(directory.path / "file")
    with pytest.raises(UntrustedFileError):
        directory.read("file", 1 << 20)


@NEEDS_ROOT
def test_a_file_of_another_user_is_refused(directory: Directory) -> None:
    path = directory.path / "file"
    path.write_bytes(b"x")
    os.chown(path, OTHER_USER, OTHER_USER)
    path.chmod(0o600)
    with pytest.raises(UntrustedFileError, match=f"belongs to user {OTHER_USER}"):
        directory.read("file", 10)


def test_a_file_is_read_up_to_its_limit(directory: Directory) -> None:
    directory.write("file", b"x" * 100)
    assert directory.read("file", 100) == b"x" * 100
    with pytest.raises(UntrustedFileError, match="has 100 bytes; at most 99 are read"):
        directory.read("file", 99)


def test_a_file_that_grows_without_end_is_not_read_without_end() -> None:
    """It says that it is empty."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(UntrustedFileError, match="grows while it is read"):
            trusted_files.read_bounded(fd, 1 << 16, Path("/dev/zero"))
    finally:
        os.close(fd)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write("file", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space"):
                directory.write("file", b"new")
    assert directory.names() == ["file"]
    assert directory.read("file", 10) == b"old"


def test_a_link_in_a_files_place_is_replaced_and_not_written_through(directory: Directory) -> None:
    victim = directory.path.parent / "victim"
    victim.write_bytes(b"precious")
    (directory.path / "file").symlink_to(victim)
    directory.write("file", b"new")
    assert victim.read_bytes() == b"precious"
    assert directory.read("file", 10) == b"new"


def test_a_directory_swapped_after_it_was_opened_is_still_the_one_that_was_checked(
    place: Path,
) -> None:
    with open_directory(place) as opened:
        opened.write("file", b"ours")
        place.rename(place.with_name("moved"))
        place.mkdir()
        (place / "file").write_bytes(b"another's")
        assert opened.read("file", 10) == b"ours"


# --- what a user writes by hand ------------------------------------------------------------------


def test_a_config_file_may_be_writable_by_the_users_own_group_and_nobody_else(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "config.toml"
    path.write_bytes(b"mode = 'off'")
    path.chmod(0o664)
    with pytest.raises(UntrustedFileError):
        read_file(path, 100)
    _have_private_group(monkeypatch, path.stat().st_gid)
    assert read_file(path, 100) == b"mode = 'off'"
    path.chmod(0o666)
    with pytest.raises(UntrustedFileError):
        read_file(path, 100)
