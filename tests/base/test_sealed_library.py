"""What is loaded is what was hashed, whatever becomes of the file, and whatever its name was."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from _ctypes import dlclose
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager._base import sealed_library
from aoti_eager._base.sealed_library import SealedLibrary, copy_for_good, sealed_file
from aoti_eager._compile_service import cache_context
from aoti_eager._runner.kernel_runner import LibraryRunner
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager.errors import EntryDamagedError, UntrustedFileError

from ..support import forked_python, processes
from ..support.entries import publish

aten = torch.ops.aten


def compiled(path: Path, number: int, constructor: str = "") -> bytes:
    """Return a shared object whose ``answer`` gives ``number``."""
    source = path.with_suffix(".c")
    source.write_text(
        f"#include <stdio.h>\nint answer(void) {{ return {number}; }}\n"
        f"__attribute__((constructor)) static void start(void) {{ {constructor} }}\n"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source], check=True)
    content = path.read_bytes()
    path.unlink()
    return content


def answer(library: SealedLibrary) -> int:
    """Open, ask, and close again."""
    opened = ctypes.CDLL(library.name)
    try:
        return int(opened.answer())
    finally:
        dlclose(opened._handle)


@pytest.fixture(params=["memory", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where copies lie: in sealed memory, or where that cannot be, in a private file."""
    if request.param == "file":
        monkeypatch.setattr(sealed_library, "_memory_is_executable", lambda: False)
    elif not sealed_library._memory_is_executable():
        pytest.skip("no executable memory here")
    return str(request.param)


# --- one copy ------------------------------------------------------------------------------------


def test_a_copy_is_opened_and_stays_mapped_when_it_is_closed(tmp_path: Path, kind: str) -> None:
    content = compiled(tmp_path / "one.so", 7)
    before = len(os.listdir("/proc/self/fd"))
    with SealedLibrary(content, tmp_path / "one.so") as library:
        opened = ctypes.CDLL(library.name)
    assert opened.answer() == 7
    assert len(os.listdir("/proc/self/fd")) == before
    if kind == "file":
        assert not os.path.exists(library.name)
    with pytest.raises(OSError, match="cannot open|cannot map|No such"):
        ctypes.CDLL(f"{library.name}x")


def test_nobody_can_change_a_copy(tmp_path: Path) -> None:
    if not sealed_library._memory_is_executable():
        pytest.skip("no executable memory here")
    with SealedLibrary(compiled(tmp_path / "one.so", 7), tmp_path / "one.so") as library:
        for change in (
            lambda: os.pwrite(library._fd, b"x", 0),
            lambda: os.ftruncate(library._fd, 0),
            lambda: os.open(library.name, os.O_RDWR | os.O_TRUNC),
        ):
            with pytest.raises(OSError, match="not permitted|denied|busy"):
                change()
        assert answer(library) == 7


def test_a_private_file_is_for_us_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_library, "_memory_is_executable", lambda: False)
    before = os.umask(0)
    try:
        with SealedLibrary(b"x", tmp_path / "one.so") as library:
            path = Path(library.name)
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert not path.parent.exists()


def test_a_copy_for_a_devices_loader_stays_until_the_process_ends(tmp_path: Path) -> None:
    code = "from aoti_eager._base.sealed_library import copy_for_good; print(copy_for_good(b'x'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).parent.exists()
    assert copy_for_good(b"x").read_bytes() == b"x"


def test_a_file_that_is_another_by_now_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "one.so"
    path.write_bytes(b"another")
    with pytest.raises(UntrustedFileError, match="is not the file that was compiled"):
        sealed_file(path, "0" * 64)


# --- the loader's memory for names ---------------------------------------------------------------


def test_kernels_under_reused_descriptors_each_give_their_own_results(
    shared_cache: Path,
) -> None:
    """The loader matches names first: 500 kernels are loaded, dropped, and loaded again."""
    slope, x = 1234.5, torch.linspace(-2.0, 2.0, 64).reshape(8, 8)
    with aoti_eager.register("aten::leaky_relu.default"):
        aten.leaky_relu(x, slope)
    (entry,) = [
        one
        for one in cache_context.current().store.scan()
        if isinstance(one, StoredEntry)
        and one.entry.key.op == "aten::leaky_relu"
        and dict(one.entry.key.arguments)["negative_slope"] == {"float": slope.hex()}
        and dict(one.entry.key.arguments)["self"]["sizes"] == [8, 8]
    ]
    content = entry.library_path.read_bytes()
    spelled = struct.pack("<f", slope)
    assert spelled in content
    descriptors, names, wrong = set(), set(), []
    for _ in range(2):
        for number in range(1, 501):
            changed = content.replace(spelled, struct.pack("<f", float(number)))
            with SealedLibrary(changed, entry.library_path) as library:
                descriptors.add(library._fd)
                names.add(library.name)
                runner = LibraryRunner(library, calls_aten=False, native=True)
            (got,) = runner.run([x])
            if not torch.equal(got, torch.where(x > 0, x, x * float(number))):
                wrong.append(number)
            del runner
    assert wrong == []
    assert len(names) == 1000
    assert len(descriptors) < 20, "no descriptor was used again, so nothing was tried"


# --- a race --------------------------------------------------------------------------------------

SWAPPER = """
import itertools, os, sys
path, swaps = sys.argv[1], int(sys.argv[4])
good, evil = (open(name, "rb").read() for name in sys.argv[2:4])
beside = path + ".swap"
print("begun", flush=True)
for count in range(swaps):
    content = (evil, good)[count % 2]
    way = count // 2 % 3
    if way == 0:
        with open(beside, "wb") as file:
            file.write(content)
        os.chmod(beside, 0o600)
        os.replace(beside, path)
    elif way == 1:
        with open(path, "r+b") as file:
            file.write(content)
            file.truncate()
    else:
        os.symlink(sys.argv[3 if count % 2 == 0 else 2], beside)
        os.replace(beside, path)
print("ended", flush=True)
"""


def race(tmp_path: Path, swaps: int) -> tuple[int, int, Path]:
    """Load a library while another process swaps its file; return loads and refusals."""
    shout = tmp_path / "evil-was-here"
    good = compiled(tmp_path / "good.so", 7)
    evil = compiled(tmp_path / "evil.so", 8, f'fclose(fopen("{shout}", "w"));')
    evil += b"\0" * max(0, len(good) - len(evil))  # Its size must not give it away.
    good += b"\0" * max(0, len(evil) - len(good))
    for name, content in (("good", good), ("evil", evil)):
        (tmp_path / name).write_bytes(content)
    store = Store(tmp_path / "store", lock_timeout_s=1.0)
    found = publish(store, content=good)
    loads = refusals = 0
    argv = [str(found.library_path), str(tmp_path / "good"), str(tmp_path / "evil"), str(swaps)]
    with subprocess.Popen(
        [sys.executable, "-S", "-c", SWAPPER, *argv], stdout=subprocess.PIPE, text=True
    ) as swapper:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == "begun\n"
        while swapper.poll() is None:
            try:
                with store.sealed_library(found) as library:
                    assert answer(library) == 7
                    loads += 1
            except EntryDamagedError:
                refusals += 1
        assert swapper.stdout.readline() == "ended\n"
    return loads, refusals, shout


def test_a_file_that_another_process_swaps_is_never_loaded(tmp_path: Path) -> None:
    loads, refusals, shout = race(tmp_path, swaps=10_000)
    assert not shout.exists()
    assert loads > 0
    assert refusals > 0


# --- a running process ---------------------------------------------------------------------------

RUNNING = """
import json, pathlib, sys, torch, aoti_eager
from aoti_eager._native import library as native_library
x = torch.arange(64.0).reshape(8, 8) / 64
aoti_eager.register("aten::silu")
want = torch.nn.functional.silu(x.double()).float()
torch.ops.aten.silu(x); torch.ops.aten.silu(x)
before = aoti_eager.stats()["aten::silu"].hits
libraries = list(pathlib.Path(aoti_eager.config.cache_dir).rglob("*.so"))
for path in libraries:
    path = path.resolve()
    if sys.argv[1] == "truncated":
        with open(path, "r+b") as file:
            file.truncate(0)
    elif sys.argv[1] == "replaced in place":
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
    else:
        path.unlink()
for _ in range(100):
    assert torch.allclose(torch.ops.aten.silu(x), want)
print(json.dumps({
    "native": native_library.is_loaded(),
    "libraries": sorted({path.name for path in libraries}),
    "hits": aoti_eager.stats()["aten::silu"].hits - before,
}))
"""


@pytest.fixture(scope="module")
def warm(
    tmp_path_factory: pytest.TempPathFactory,
    run_dir: Path,
    shared_cache_dir: Path,
    native_library: None,
) -> Iterator[Path]:
    """A store with one kernel and the C++ hit path, which tests copy."""
    import shutil

    from ..support import toolchains

    path = tmp_path_factory.mktemp("sealed") / "cache"
    path.mkdir(mode=0o700)
    (path / "toolchain").mkdir(mode=0o700)
    (path / "toolchain" / "headers").symlink_to(shared_cache_dir / "toolchain" / "headers")
    toolchains.share_native(path, shared_cache_dir)
    script = RUNNING.partition("before =")[0] + "\nprint('{}')"
    kept = {forked_python.REMEMBER_VARIABLE: str(run_dir / "compiled")}
    processes.run(path, script, AOTI_EAGER_NATIVE="1", **kept)
    (path / "toolchain" / "headers").unlink()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("what", ["truncated", "replaced in place", "deleted"])
def test_what_becomes_of_the_files_never_touches_a_running_process(
    warm: Path, tmp_path: Path, what: str
) -> None:
    """A mapped file that is cut short ends the process by SIGBUS (``rsync --inplace``)."""
    import json
    import shutil

    cache = tmp_path / "copy"
    shutil.copytree(warm, cache)
    done = forked_python.run(
        [sys.executable, "-c", RUNNING, what],
        env={
            **os.environ,
            "AOTI_EAGER_CACHE_DIR": str(cache),
            "AOTI_EAGER_MODE": "sync",
            "AOTI_EAGER_GATE": "0",
            "AOTI_EAGER_NATIVE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    said = json.loads(done.stdout)
    assert said == {"native": True, "libraries": ["library.so", "native.so"], "hits": 100}
