"""The README's example in odd places: it runs, and from its second process on the cache serves.

Kernels are taken whether they win or not (``AOTI_EAGER_GATE=0``): what is asked here is whether
they are compiled, kept, found and loaded, not how busy the machine is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoti_eager._base.store_format import MARKER_FILE

from ..support import forked_python
from ..support.toolchains import share_native

README = Path(__file__).parents[2] / "README.md"
OPS = ("aten::native_layer_norm", "aten::var_mean.correction")

pytestmark = pytest.mark.compiles

# In every Python of the test, as on a file system that has no locks.
NO_LOCKS = """
import errno, fcntl, os
def flock(fd, how):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = flock
"""


def example() -> str:
    """Return the README's example as it stands there."""
    section = README.read_text(encoding="utf-8").partition("## Example")[2]
    return section.partition("```python\n")[2].partition("```")[0]


def run(
    cache: Path | str | None, cwd: Path, *, leaving_out: str = "", **variables: str | None
) -> tuple[dict[str, int], str]:
    """Run the example; return the hits of each op, and what was said on standard error."""
    environment = {**os.environ, "AOTI_EAGER_GATE": "0", "PYTHONWARNINGS": "default"}
    for name in ("AOTI_EAGER_MODE", "AOTI_EAGER_NATIVE", "AOTI_EAGER_DYNAMIC"):
        environment.pop(name, None)  # As a user has them.
    if cache is not None:
        environment["AOTI_EAGER_CACHE_DIR"] = str(cache)
    else:
        environment.pop("AOTI_EAGER_CACHE_DIR", None)
    for name, value in variables.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    script = cwd / "example.py"
    lines = [one for one in example().splitlines() if not leaving_out or leaving_out not in one]
    script.write_text("\n".join(lines), encoding="utf-8")
    done = forked_python.run(
        [sys.executable, str(script)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    counts = r"^(\S+) OpStats\(hits=(\d+), misses=(\d+), declines=(\d+)"
    found = re.findall(counts, done.stdout, re.MULTILINE)
    assert {op: sum(map(int, all_)) for op, *all_ in found} == dict.fromkeys(OPS, 101)
    return {op: int(hits) for op, hits, *_ in found}, done.stderr


def assert_served(hits: dict[str, int], said: str, *, least: int = 90) -> None:
    """All but a few calls of each op were hits, and nothing was complained about."""
    assert set(hits) == set(OPS)
    assert min(hits.values()) >= least, (hits, said)
    assert "AotiEagerWarning" not in said


def share_headers(cache: Path, shared_cache_dir: Path) -> None:
    """Use the run's precompiled headers: they cost 20 s."""
    (cache / "toolchain").mkdir(mode=0o700, parents=True, exist_ok=True)
    cache.chmod(0o700)
    (cache / "toolchain" / "headers").symlink_to(shared_cache_dir / "toolchain" / "headers")


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A working directory of the example."""
    path = tmp_path / "where"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, shared_cache_dir: Path, native_library: None
) -> Path:
    """A cache that the example has filled, for tests to copy."""
    base = tmp_path_factory.mktemp("odd")
    cache = base / "cache"
    share_headers(cache, shared_cache_dir)
    share_native(cache, shared_cache_dir)
    run(cache, base)
    (cache / "toolchain" / "headers").unlink()
    return cache


ODD = "a b 'c' \"d\"\nüñ $LIB $(id) \\ ;&%"


@pytest.mark.full
@pytest.mark.parametrize(
    "name", [pytest.param(ODD, id="odd letters"), pytest.param("x" * 250, id="250 characters")]
)
def test_any_letters_in_the_path(name: str, where: Path, shared_cache_dir: Path) -> None:
    """A space, quotes, a newline, a dollar, letters that are not ASCII; a name of 250 letters."""
    cache = where / name / "cache"
    share_headers(cache, shared_cache_dir)
    run(cache, where)
    assert_served(*run(cache, where))
    assert (cache / MARKER_FILE).exists()
    assert list((cache / "tmp").iterdir()) == []


@pytest.mark.full
def test_the_same_with_a_compiler_that_precompiles_there(where: Path) -> None:
    """The headers lie in the odd place, too."""
    cache = where / "ü b'" / "cache"
    run(cache, where)
    hits, said = run(cache, where)
    assert_served(hits, said)


@pytest.mark.full
def test_a_mount_where_nothing_may_be_executed(
    mount: Callable[[str, str], Path], where: Path, shared_cache_dir: Path
) -> None:
    path = mount("noexec", "noexec,size=64m")
    share_headers(path, shared_cache_dir)
    run(path, where)
    hits, said = run(path, where)
    assert_served(hits, said)


@pytest.mark.full
def test_a_file_system_without_locks(where: Path, tmp_path: Path, shared_cache_dir: Path) -> None:
    cache = where / "cache"
    share_headers(cache, shared_cache_dir)
    (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    _, said = run(cache, where, PYTHONPATH=str(tmp_path))
    assert said.count("has no locks") == 1
    hits, said = run(cache, where, PYTHONPATH=str(tmp_path))
    assert min(hits.values()) >= 90
    assert said.count("AotiEagerWarning") == said.count("has no locks") <= 1


def test_no_home_and_no_name_keeps_no_cache_and_says_so_once(where: Path, tmp_path: Path) -> None:
    """As a user without an entry in /etc/passwd, and without HOME."""
    (tmp_path / "sitecustomize.py").write_text(NO_NAME)
    hits, said = run(
        None, where, HOME=None, XDG_CACHE_HOME=None, XDG_CONFIG_HOME=None, PYTHONPATH=str(tmp_path)
    )
    assert hits == dict.fromkeys(OPS, 0)
    assert said.count("AotiEagerWarning") == 1
    assert "this user has no home directory" in said
    assert sorted(os.listdir(where)) == ["example.py"]


# Before anything asks for the user's home.
NO_NAME = """
import os, pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
os.environ.pop("HOME", None)
"""


def test_no_home_and_a_cache_by_name_is_served(where: Path, tmp_path: Path, filled: Path) -> None:
    cache = where / "cache"
    shutil.copytree(filled, cache)
    (tmp_path / "sitecustomize.py").write_text(NO_NAME)
    hits, said = run(
        cache, where, HOME=None, XDG_CACHE_HOME=None, XDG_CONFIG_HOME=None, PYTHONPATH=str(tmp_path)
    )
    assert_served(hits, said)


@pytest.fixture
def read_only(filled: Path, tmp_path: Path) -> Iterator[Path]:
    """The filled cache on a file system that cannot be written."""
    place = tmp_path / "read-only"
    place.mkdir(mode=0o700)
    for argv in (["--bind", str(filled), str(place)], ["-o", "remount,ro,bind", str(place)]):
        done = subprocess.run(["mount", *argv], capture_output=True)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounts")
def test_a_read_only_cache_is_served(read_only: Path, where: Path) -> None:
    hits, said = run(read_only, where)
    assert_served(hits, said)


# Of the places that Python looks at, only the one that is named: the others cannot be written.
NO_TEMPORARY_DIRECTORY = """
import os, tempfile
tempfile._candidate_tempdir_list = lambda: [os.environ["TMPDIR"]]
"""


@pytest.mark.full
@pytest.mark.parametrize("what", ["somebody's file", "no directory"])
def test_nothing_needs_a_temporary_directory_of_the_system(
    what: str, where: Path, tmp_path: Path, shared_cache_dir: Path
) -> None:
    """Somebody's file lies at the compiler's place in it, or there is none that can be written."""
    cache = where / "cache"
    share_headers(cache, shared_cache_dir)
    temporary = tmp_path / "tmp"
    if what == "somebody's file":
        temporary.mkdir()
        for user in ("root", os.environ.get("USER", "root"), os.environ.get("LOGNAME", "root")):
            (temporary / f"torchinductor_{user}").write_bytes(b"theirs")
    else:
        (tmp_path / "sitecustomize.py").write_text(NO_TEMPORARY_DIRECTORY)
    variables = {"TMPDIR": str(temporary), "PYTHONPATH": str(tmp_path)}
    # To explain a call, torch imports torch._dynamo into the script, which raises there.
    run(cache, where, leaving_out="explain", **variables)
    hits, said = run(cache, where, leaving_out="explain", **variables)
    assert_served(hits, said)
    if what == "somebody's file":
        assert {path.read_bytes() for path in temporary.iterdir()} == {b"theirs"}
