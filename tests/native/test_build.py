"""The C++ hit path's library: built once, kept in the store, never in the way.

Where a compiler is needed that can be told from others, or that fails, it is a script; the library
that it gives was built by the real one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import aoti_eager
from aoti_eager._base.cpp_compiler import compiler_on_path
from aoti_eager._base.trusted_files import Directory
from aoti_eager._compile_service import native_path
from aoti_eager._native import build as native_build
from aoti_eager._native import library as native_library_module
from aoti_eager.errors import NativePathError

from ..support import forked_python

pytestmark = pytest.mark.native


@pytest.fixture
def built(shared_cache_dir: Path, native_library: None) -> Path:
    """The library of this run."""
    compiler = compiler_on_path()
    found = native_build.find(shared_cache_dir / "toolchain", compiler)
    assert found is not None
    return found.path


@pytest.fixture
def toolchain(tmp_path: Path) -> Path:
    """A store's toolchain directory without a library."""
    return tmp_path / "store" / "toolchain"


class Compiler:
    """A script in a compiler's place; ``runs`` counts how often it has linked a library.

    It does so at once: what it is told to compile is empty.
    """

    def __init__(self, directory: Path, built: Path, name: str = "g++", before: str = "") -> None:
        directory.mkdir(exist_ok=True)
        self.path = directory / name
        self._log = directory / f"{name}.log"
        self.path.write_text(
            "#!/bin/sh\n"
            'case " $* " in *" -c "*) exit 0;; esac\n'
            f'echo run >> "{self._log}"\n'
            f"{before}\n"
            'while [ "$1" != "-o" ]; do shift; done\n'
            f'cp "{built}" "$2"\n'
        )
        self.path.chmod(0o755)

    @property
    def runs(self) -> int:
        return len(self._log.read_text().splitlines()) if self._log.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, built: Path) -> Compiler:
    return Compiler(tmp_path / "bin", built)


def test_a_build_is_kept_and_found(toolchain: Path, compiler: Compiler) -> None:
    path = str(compiler.path)
    assert native_build.find(toolchain, path) is None
    made = native_build.build(toolchain, path)
    assert native_build.build(toolchain, path) == made == native_build.find(toolchain, path)
    assert compiler.runs == 1
    directory = made.path.parent
    record = json.loads((directory / "native.json").read_text())
    assert record["compiler"] == "g++"
    assert sorted(p.name for p in directory.iterdir()) == ["native.json", "native.so"]
    assert not list(directory.parent.glob(".build-*"))
    assert toolchain.stat().st_mode & 0o777 == 0o700


def test_another_compiler_builds_its_own(toolchain: Path, tmp_path: Path, built: Path) -> None:
    compilers = [Compiler(tmp_path / name, built) for name in ("one", "other")]
    libraries = {native_build.build(toolchain, str(c.path)).path for c in compilers}
    assert len(libraries) == 2
    assert [c.runs for c in compilers] == [1, 1]


def test_a_machine_without_a_compiler_takes_what_another_built(
    toolchain: Path, compiler: Compiler
) -> None:
    assert native_build.find(toolchain, None) is None
    made = native_build.build(toolchain, str(compiler.path))
    moved = toolchain.parent.with_name("elsewhere")
    shutil.move(toolchain.parent, moved)
    found = native_build.find(moved / "toolchain", None)
    assert found is not None
    assert found.path == moved / "toolchain" / made.path.relative_to(toolchain)


@pytest.mark.parametrize("damage", ["garbled", "truncated", "no record", "no library"])
def test_a_damaged_library_is_not_loaded_and_built_anew(
    damage: str, toolchain: Path, compiler: Compiler
) -> None:
    path = str(compiler.path)
    built = native_build.build(toolchain, path)
    made, content = built.path, built.content
    made.unlink()
    if damage != "no library":
        made.write_bytes(
            {"garbled": content[:-1] + b"?", "truncated": content[:-100]}.get(damage, content)
        )
    if damage == "no record":
        (made.parent / "native.json").unlink()
    assert native_build.find(toolchain, path) is None
    assert native_build.find(toolchain, None) is None
    assert native_build.build(toolchain, path) == built
    assert made.read_bytes() == content
    assert compiler.runs == 2


def test_other_sources_or_another_torch_have_another_directory(
    toolchain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = native_build.build_directory(toolchain)
    with monkeypatch.context() as patched:
        patched.setattr("torch.__version__", "2.13.9")
        assert native_build.build_directory(toolchain) != directory
    with monkeypatch.context() as patched:
        patched.setattr(native_build, "_FLAGS", (*native_build._FLAGS, "-O3"))
        assert native_build.build_directory(toolchain) != directory
    assert native_build.build_directory(toolchain) == directory


def test_the_library_and_its_record_name_nothing_of_this_machine(
    built: Path, tmp_path: Path
) -> None:
    """It is shipped: no path of ours, and libraries by their names alone."""
    content = built.read_bytes()
    assert str(Path(native_build.__file__).parent).encode() not in content
    said = subprocess.run(["readelf", "-d", built], capture_output=True, text=True, check=True)
    assert "RUNPATH" not in said.stdout
    assert "RPATH" not in said.stdout
    assert "[libtorch_cpu.so]" in said.stdout


def test_a_compiler_that_fails_is_an_error_with_its_words(toolchain: Path, tmp_path: Path) -> None:
    bad = tmp_path / "g++"
    bad.write_text("#!/bin/sh\necho 'key.h:1: error: out of luck' >&2\nexit 3\n")
    bad.chmod(0o755)
    with pytest.raises(NativePathError, match=r"exit status 3.*out of luck"):
        native_build.build(toolchain, str(bad))
    assert not list(toolchain.rglob("native.so"))
    assert not list(toolchain.rglob(".build-*"))


def test_a_compiler_that_takes_too_long_is_killed(
    toolchain: Path, tmp_path: Path, built: Path
) -> None:
    pid = tmp_path / "pid"
    slow = Compiler(tmp_path / "bin", built, before=f'echo $$ > "{pid}"; sleep 60')
    with pytest.raises(NativePathError, match="after 0.5 s"):
        native_build.build(toolchain, str(slow.path), timeout_s=0.5)
    assert not is_running(int(pid.read_text()))


@pytest.mark.parametrize("failing", native_build._UNITS)
def test_a_unit_that_fails_is_an_error_and_the_other_has_ended(
    failing: str, toolchain: Path, tmp_path: Path
) -> None:
    """The other is held until the failing one has ended: nothing may outlive the build."""
    bad = tmp_path / "g++"
    bad.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *{failing}.cpp*) echo "error: out of luck" >&2; echo > "{tmp_path}/failed"; '
        "exit 3;; esac\n"
        f'while [ ! -e "{tmp_path}/failed" ]; do sleep 0.1; done\n'
        f'echo > "{tmp_path}/ended"\n'
    )
    bad.chmod(0o755)
    with pytest.raises(NativePathError, match=r"exit status 3.*out of luck"):
        native_build.build(toolchain, str(bad))
    assert (tmp_path / "ended").exists()
    assert not list(toolchain.rglob("*.o"))


def test_all_compilers_are_killed_after_the_time(toolchain: Path, tmp_path: Path) -> None:
    slow = tmp_path / "g++"
    slow.write_text(f'#!/bin/sh\necho $$ > "{tmp_path}/$$.pid"\nsleep 60\n')
    slow.chmod(0o755)

    class Started(subprocess.Popen[bytes]):
        def communicate(self, *_: object, timeout: float | None = None, **__: object) -> Any:
            while timeout and len(list(tmp_path.glob("*.pid"))) < len(native_build._UNITS):
                time.sleep(0.01)
            return super().communicate(timeout=timeout and 0.0)

    with pytest.raises(NativePathError, match="is not compiled after"):
        native_build.build(toolchain, str(slow), start=Started)
    assert not any(is_running(int(path.stem)) for path in tmp_path.glob("*.pid"))


def test_no_right_to_write_is_an_error_that_names_the_place(toolchain: Path, built: Path) -> None:
    toolchain.parent.mkdir()
    toolchain.write_text("a file")
    with pytest.raises(NativePathError, match="cannot be kept"):
        native_build.build(toolchain, "/usr/bin/true")


@pytest.mark.parametrize("file", ["native.so", "native.json"])
def test_no_space_is_an_error_and_leaves_nothing(
    file: str, toolchain: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if file == "native.so":
        monkeypatch.setattr(native_build, "_compile", full)
    else:
        monkeypatch.setattr(Directory, "write", full)
    with pytest.raises(NativePathError, match="cannot be kept: No space left"):
        native_build.build(toolchain, str(compiler.path))
    monkeypatch.undo()
    assert not list(toolchain.rglob("native.*"))
    assert not list(toolchain.rglob(".build-*"))
    assert native_build.build(toolchain, str(compiler.path)).content


@pytest.mark.parametrize("which", ["library", "record", "directory"])
def test_what_another_user_can_write_to_is_not_loaded(
    which: str, toolchain: Path, compiler: Compiler
) -> None:
    path = native_build.build(toolchain, str(compiler.path)).path
    place = {"library": path, "record": path.with_name("native.json"), "directory": path.parent}
    place[which].chmod(0o777)
    assert native_build.find(toolchain, str(compiler.path)) is None
    assert native_build.find(toolchain, None) is None


# --- in processes ---------------------------------------------------------------------------------

SCRIPT = """
import sys, time, warnings
warnings.simplefilter("always")
import torch
import aoti_eager
from aoti_eager._native import op_kernel
from aoti_eager._native import library as native_library

x = torch.ones(2, 2)
registration = aoti_eager.register("aten::mul.Tensor")
print("registered", native_library.is_loaded(), flush=True)
x * x, x * x
print("served", aoti_eager.stats()["aten::mul.Tensor"].hits > 0, flush=True)
if "wait" in sys.argv:
    print("waited", aoti_eager.wait(), native_library.is_loaded(), flush=True)
    before = aoti_eager.stats()["aten::mul.Tensor"].hits
    x * x
    print("hit", aoti_eager.stats()["aten::mul.Tensor"].hits == before + 1, flush=True)
    print("kernels", op_kernel.alive()["kernels"], flush=True)
"""


def run(
    cache_dir: Path,
    compiler: Path,
    native: str,
    *arguments: str,
    before: str = "",
    after: str = "",
) -> subprocess.CompletedProcess[str]:
    return forked_python.run(
        [sys.executable, "-c", f"{before}\n{SCRIPT}\n{after}", *arguments],
        env=environment(cache_dir, compiler, native),
        capture_output=True,
        text=True,
        check=True,
    )


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie, which an init process may never collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def environment(cache_dir: Path, compiler: Path, native: str) -> dict[str, str]:
    return {
        **os.environ,
        "AOTI_EAGER_CACHE_DIR": str(cache_dir),
        "AOTI_EAGER_MODE": "sync",
        "AOTI_EAGER_NATIVE": native,
        "PATH": f"{compiler.parent}:{os.environ['PATH']}",
    }


@pytest.fixture
def store(tmp_path: Path, shared_cache_dir: Path) -> Path:
    """A store with kernels of its own, precompiled headers, and no hit path yet."""
    path = tmp_path / "cache"
    if not path.exists():
        path.mkdir(mode=0o700)
    toolchain = path / "toolchain"
    if toolchain.is_symlink():
        toolchain.unlink()
    toolchain.mkdir(mode=0o700)
    headers = shared_cache_dir / "toolchain" / "headers"
    headers.mkdir(mode=0o700, exist_ok=True)
    (toolchain / "headers").symlink_to(headers)
    return path


@pytest.fixture
def warm(store: Path) -> Path:
    """The same, with the script's kernel."""
    import torch

    with aoti_eager.config.scope(cache_dir=store), aoti_eager.register("aten::mul.Tensor"):
        x = torch.ones(2, 2)
        x * x
    return store


@pytest.mark.full
def test_python_serves_until_the_build_is_done_and_wait_switches(
    warm: Path, tmp_path: Path, built: Path
) -> None:
    compiler = Compiler(tmp_path / "bin", built, before="sleep 2")
    done = run(warm, compiler.path, "background", "wait")
    assert done.stdout.splitlines() == [
        "registered False",
        "served True",
        "waited True True",
        "hit True",
        "kernels 1",
    ]
    assert done.stderr == ""
    again = run(warm, compiler.path, "auto")
    assert again.stdout.splitlines()[0] == "registered True"
    assert again.stderr == ""
    assert compiler.runs == 1


# As long as it takes, however busy the machine is.
PATIENT = """
from aoti_eager._compile_service import native_path
native_path.FOREGROUND_S = 300.0
"""

# The time is over when the compiler is known to run.
TIRED = """
import os, sys, time
from pathlib import Path
import aoti_eager
from aoti_eager._compile_service import native_path

here = Path(sys.argv.pop(1))

def join(self, seconds):
    assert seconds == 10.0
    while not (here / "pid").exists():
        time.sleep(0.05)
    self._give_way()

native_path._Build.join = join
"""

THEN = """
from aoti_eager._base import scheduling
pid = int((here / "pid").read_text())
mine = os.getpriority(os.PRIO_PROCESS, 0)
nice = scheduling.LOWEST if scheduling.has_groups() else min(19, mine + 10)
print("nice", os.getpriority(os.PRIO_PROCESS, pid) == nice)
aoti_eager.register("aten::neg.default")  # It does not wait a second time.
print("again", aoti_eager.wait(0.0), native_library.is_loaded())
(here / "go").touch()
print("waited", aoti_eager.wait(), native_library.is_loaded())
"""


def held_compiler(tmp_path: Path, built: Path) -> Compiler:
    """A compiler that says that it runs, and ends when it is told to."""
    wait = f'echo $$ > "{tmp_path}/new"; mv "{tmp_path}/new" "{tmp_path}/pid"'
    wait += f'; while [ ! -e "{tmp_path}/go" ]; do sleep 0.1; done'
    return Compiler(tmp_path / "bin", built, before=wait)


@pytest.mark.full
def test_the_first_script_of_a_machine_waits_for_the_build_and_says_so(
    warm: Path, compiler: Compiler
) -> None:
    done = run(warm, compiler.path, "auto", before=PATIENT)
    assert done.stdout.splitlines() == ["registered True", "served True"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("aoti_eager: building the C++ path of this machine's calls, once;")
    assert "AOTI_EAGER_NATIVE=background" in line
    again = run(warm, compiler.path, "auto")
    assert again.stdout == done.stdout
    assert again.stderr == ""
    assert compiler.runs == 1


@pytest.mark.full
def test_a_build_that_takes_long_goes_on_beside_the_script(
    warm: Path, tmp_path: Path, built: Path
) -> None:
    compiler = held_compiler(tmp_path, built)
    done = run(warm, compiler.path, "auto", str(tmp_path), before=TIRED, after=THEN)
    assert done.stdout.splitlines() == [
        "registered False",
        "served True",
        "nice True",
        "again False False",
        "waited True True",
    ]
    assert len(done.stderr.splitlines()) == 1
    assert compiler.runs == 1


def test_a_script_does_not_wait_where_an_earlier_one_has_waited_in_vain(
    warm: Path, tmp_path: Path, built: Path
) -> None:
    """Scripts that end before the build does would each wait, and never have it."""
    compiler = held_compiler(tmp_path, built)
    run(warm, compiler.path, "auto", str(tmp_path), before=TIRED)
    (tmp_path / "pid").unlink()
    (lock,) = warm.rglob("native/*/*.lock")
    os.utime(lock, (time.time() - 60, time.time() - 60))
    never = "from aoti_eager._compile_service import native_path\nnative_path._Build.join = None\n"
    done = run(warm, compiler.path, "auto", before=never)
    assert done.stdout.splitlines() == ["registered False", "served True"]
    assert done.stderr == ""


def test_a_signal_handler_may_register_during_the_build(
    warm: Path, tmp_path: Path, built: Path
) -> None:
    handler = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: aoti_eager.register("aten::neg.default"))

def join(self, seconds, join=join):
    join(self, seconds)
    signal.raise_signal(signal.SIGUSR1)

native_path._Build.join = join
"""
    compiler = held_compiler(tmp_path, built)
    done = run(warm, compiler.path, "auto", str(tmp_path), before=TIRED + handler, after=THEN)
    assert done.stdout.splitlines()[-1] == "waited True True"


@pytest.mark.parametrize("native", ["1", "auto", "background"])
def test_a_build_that_fails_is_one_warning_and_the_python_path(
    native: str, warm: Path, tmp_path: Path, built: Path
) -> None:
    compiler = Compiler(tmp_path / "bin", built, before="echo 'error: out of luck' >&2; exit 1")
    done = run(warm, compiler.path, native, "wait", before=PATIENT)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["registered False", "served True", "waited True False"]
    assert lines[3] == "hit True"
    assert done.stderr.count("AotiEagerWarning") == 1
    assert "out of luck" in done.stderr
    assert "Python hit path serves instead" in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("native", ["1", "auto"])
def test_many_processes_build_once(native: str, warm: Path, tmp_path: Path, built: Path) -> None:
    compiler = Compiler(tmp_path / "bin", built, before="sleep 1")
    processes = [
        forked_python.popen(
            [sys.executable, "-c", PATIENT + SCRIPT, "wait"],
            env=environment(warm, compiler.path, native),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert [lines[0] for lines in outputs] == ["registered True"] * 8
    assert compiler.runs == 1


def test_a_script_that_ends_during_the_build_does_not_wait_for_it(
    warm: Path, tmp_path: Path, built: Path
) -> None:
    pid = tmp_path / "pid"
    compiler = Compiler(tmp_path / "bin", built, before=f'echo $$ > "{pid}"; sleep 60')
    begun = time.monotonic()
    run(warm, compiler.path, "background")
    assert time.monotonic() - begun < 50
    assert not pid.exists() or not is_running(int(pid.read_text()))


@pytest.mark.full
def test_a_killed_build_leaves_nothing_that_the_next_one_does_not_clear(
    warm: Path, tmp_path: Path, built: Path
) -> None:
    pid = tmp_path / "pid"
    slow = Compiler(tmp_path / "bin", built, before=f'echo $$ > "{pid}"; sleep 5')
    process = forked_python.popen(
        [sys.executable, "-c", SCRIPT, "wait"],
        env=environment(warm, slow.path, "1"),
        stdout=subprocess.DEVNULL,
    )
    while not pid.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((warm / "toolchain").rglob(".build-*"))
    done = run(warm, slow.path, "1")
    assert done.stdout.splitlines()[0] == "registered True"
    assert not list((warm / "toolchain").rglob(".build-*"))


def test_cache_only_builds_nothing(warm: Path, compiler: Compiler) -> None:
    done = forked_python.run(
        [sys.executable, "-c", SCRIPT, "wait"],
        env={**environment(warm, compiler.path, "auto"), "AOTI_EAGER_MODE": "cache_only"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[2] == "waited True False"
    assert compiler.runs == 0


# --- in this process ------------------------------------------------------------------------------


def test_a_hit_path_that_cannot_be_loaded_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = native_library_module.NativeFile(tmp_path / "native.so", "", b"no library")
    monkeypatch.setattr(native_library_module, "_library", None)
    with pytest.raises(NativePathError, match="native.so"):
        native_library_module.load(file)
    monkeypatch.setattr(native_build, "find", lambda toolchain, compiler: file)
    aoti_eager.config.cache_dir.mkdir(exist_ok=True)
    with pytest.warns(aoti_eager.errors.AotiEagerWarning, match="serves instead"):
        assert native_path.prepare() is False
    assert native_path.prepare() is False
    with aoti_eager.config.scope(strict=True), pytest.raises(NativePathError):
        native_path.prepare()


def test_a_change_of_any_source_is_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of older sources would count looks and floating-point modes as they did."""
    copy = tmp_path / "csrc"
    shutil.copytree(native_build._SOURCES, copy)
    monkeypatch.setattr(native_build, "_SOURCES", copy)
    included, seen = [f"{name}.cpp" for name in native_build._UNITS], set()
    while included:
        name = included.pop()
        seen.add(name)
        lines = (copy / name).read_text().splitlines()
        wanted = [line.split('"')[1] for line in lines if line.startswith('#include "')]
        included += [one for one in wanted if one not in seen]
    assert len(seen) >= 12
    directories = {native_build.build_directory(tmp_path)}
    for name in sorted(seen):
        with (copy / name).open("a") as file:
            file.write("\n")
        directories.add(native_build.build_directory(tmp_path))
    assert len(directories) == 1 + len(seen)
