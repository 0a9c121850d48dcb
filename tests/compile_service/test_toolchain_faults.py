"""What compilers have made for all kernels, damaged: the next process compiles, and mends it.

Real compilers. A process that has imported Inductor is forked for each compile, so each begins as a
new worker does; and once with workers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import cache

from ..support import processes, toolchains
from ..support.toolchains import (
    Damage,
    copy_toolchain,
    cut,
    garble,
    let_others_write,
    record_as_it_is,
)

pytestmark = pytest.mark.compiles

KERNEL = """
import json, torch, aoti_eager
aoti_eager.register("aten::silu")
x = torch.randn(ROWS, 8)
torch.testing.assert_close(torch.ops.aten.silu(x), x * torch.sigmoid(x))
s = aoti_eager.stats()["aten::silu"]
print(json.dumps([s.compiles, s.declined]))
"""

# Each line that it reads is a store; a fork compiles a kernel in it.
COMPILES = """
import contextlib, json, os, sys, tempfile
from pathlib import Path
import torch
from aoti_eager._compile_worker import job_context
from aoti_eager._compile_worker import inductor_compat
from aoti_eager._compile_worker import lowering
from aoti_eager._compile_worker import thin_header
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import op_schema
from aoti_eager._keys.call_template import call_template
from aoti_eager.errors import CompileError

torch.set_num_threads(1)
target = cpu_target(cpu_features())
inductor_compat.prepare_worker(target.vector_bits)
options = {"cpp.threads": 2, "aot_inductor.enable_line_tables": False}
if target.march != "native":
    options["cpp.march"] = target.march
silu = torch.ops.aten.silu.default
template = call_template(op_schema(silu), kernel_key(op_schema(silu), "CPU", (torch.ones(9, 8),)))

def compile_in(root, full):
    work = Path(tempfile.mkdtemp(dir=root))
    headers = root / "toolchain" / "headers"
    job_context.use_directories(work, headers)
    calls = []
    run = thin_header.subprocess.run
    def counted(command, **rest):
        calls.append(command)
        return run(command, **rest)
    thin_header.subprocess.run = counted
    if full:
        def refuse(*args):
            raise lowering.NotThinError("full")
        lowering._compile_thin = refuse
    lowered = lowering.lower(silu, template, work, headers, options)
    for build in thin_header._builds.values():
        build.join()
    return {
        "library": lowered.library.stat().st_size,
        "with parts": any("-include" in one and "headers/thin-" in " ".join(one) for one in calls),
    }

for line in sys.stdin:
    root, full = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.umask(0o077)
        try:
            answer = compile_in(Path(root), full)
        except CompileError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the parts that ops of torch's are compiled with, and no others.

    The run's own store may have those for users' functions, too.
    """
    store = tmp_path_factory.mktemp("toolchain") / "store"
    for rows in range(40, 60):  # The first compile leaves them to a thread beside it.
        if list(store.glob("toolchain/headers/thin-*.json")):
            break
        processes.run(store, wrapped(KERNEL, rows), **SYNC)
    assert list(store.glob("toolchain/headers/thin-*.json"))
    return store


SYNC = {"AOTI_EAGER_MODE": "sync", "AOTI_EAGER_GATE": "0", "AOTI_EAGER_NATIVE": "0"}


def wrapped(script: str, rows: int) -> str:
    """Return the script for a key of its own; what it prints as a dictionary."""
    script = script.replace("ROWS", str(rows))
    return script.replace("json.dumps([", 'json.dumps({"compiled": [').replace("]))", "]}))")


class Compiler:
    """Compiles kernels as new workers do."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", COMPILES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, root: Path, *, full: bool = False) -> Any:
        """Compile in a store and return what became of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(root), full]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture(scope="module")
def compile_in() -> Any:
    """A compiler for the tests of this file."""
    compiler = Compiler()
    yield compiler
    compiler.close()


def part(root: Path, pattern: str) -> Path:
    """Return one file of a store's headers."""
    (found,) = (root / "toolchain" / "headers").glob(pattern)
    return found


def digest(path: Path) -> Any:
    """Return what a record says."""
    return json.loads(path.read_text())["files"]


@pytest.mark.full
@pytest.mark.parametrize("damage", [cut, garble])
@pytest.mark.parametrize("name", ["thin-*.h.gch", "thin-*.o", "stub/libtorch_cpu.so"])
def test_a_part_that_the_compiler_cannot_take_is_done_without_and_made_anew(
    name: str, damage: Damage, shared: Path, tmp_path: Path, compile_in: Compiler
) -> None:
    """Its record says that it is whole, as where the disk lost what was written."""
    root = copy_toolchain(shared, tmp_path / "store")
    record = part(root, "stub/*.json" if "stub" in name else "thin-*.json")
    whole = digest(record)
    damage(part(root, name))
    record_as_it_is(record)
    damaged = digest(record)
    assert damaged != whole
    compile_in(root)
    again = compile_in(root)
    assert again["with parts"]
    assert digest(record) != damaged
    for one in ("thin-*.h.gch", "thin-*.o", "stub/libtorch_cpu.so"):
        assert part(root, one).stat().st_mode & 0o777 == 0o600
    assert compile_in(root)["with parts"]
    assert cache.verify(repair=False, cache_dir=root).damaged == ()


@pytest.mark.full
@pytest.mark.parametrize("damage", [cut, let_others_write])
@pytest.mark.parametrize("name", ["thin-*.h.gch", "thin-*.o", "stub/libtorch_cpu.so"])
def test_a_part_that_is_not_as_recorded_is_never_linked(
    name: str, damage: Damage, shared: Path, tmp_path: Path, compile_in: Compiler
) -> None:
    root = copy_toolchain(shared, tmp_path / "store")
    damage(part(root, name))
    assert compile_in(root)["with parts"]
    assert part(root, name).stat().st_mode & 0o777 == 0o600
    assert cache.verify(repair=False, cache_dir=root).damaged == ()


@pytest.mark.full
def test_workers_compile_with_a_toolchain_that_is_damaged_and_mend_it(
    shared: Path, tmp_path: Path
) -> None:
    root = copy_toolchain(shared, tmp_path / "store")
    for name in ("thin-*.h.gch", "thin-*.o", "stub/libtorch_cpu.so"):
        cut(part(root, name))
    for name in ("thin-*.json", "stub/*.json"):
        record_as_it_is(part(root, name))
    for rows in (7, 8):
        done = processes.run(root, wrapped(KERNEL, rows), **SYNC)
        assert done["compiled"] == [1, {}], done
    part(root, "thin-*.json")
    report = cache.verify(repair=False, cache_dir=root)
    assert (report.damaged, report.residue) == ((), 0)


# --- Inductor's own, for full libraries ----------------------------------------------------------


@pytest.fixture(scope="module")
def full(shared: Path, tmp_path_factory: pytest.TempPathFactory, compile_in: Compiler) -> Path:
    """A store in which a full library was compiled."""
    root = copy_toolchain(shared, tmp_path_factory.mktemp("full") / "store")
    # Those that other tests have needed, too: this compile makes its own.
    for path in (root / "toolchain" / "headers").iterdir():
        if path.is_file():
            path.unlink()
    compile_in(root, full=True)
    return root


def own_headers(root: Path) -> list[Path]:
    """Return Inductor's precompiled headers."""
    return sorted((root / "toolchain" / "headers").glob("*.gch"))


@pytest.mark.full
def test_inductors_own_headers_are_used_as_recorded_alone(
    full: Path, tmp_path: Path, compile_in: Compiler
) -> None:
    headers = own_headers(full)
    assert headers
    for path in headers:
        record = Path(f"{path}.json")
        assert set(digest(record)) == {path.name, path.stem}
        assert path.stat().st_mode & 0o777 == record.stat().st_mode & 0o777 == 0o600
    assert cache.verify(repair=False, cache_dir=full).damaged == ()

    # Half a file, of a compiler that was killed; then one that matches its record.
    root = tmp_path / "store"
    shutil.copytree(full, root, copy_function=shutil.copy)
    root.chmod(0o700)
    cut(own_headers(root)[0])
    Path(f"{own_headers(root)[0]}.json").unlink()
    assert len(cache.verify(repair=False, cache_dir=root).damaged) == 2  # and what it was made of
    compile_in(root, full=True)
    assert [p.name for p in own_headers(root)] == [p.name for p in headers]
    assert cache.verify(repair=False, cache_dir=root).damaged == ()
    for path in own_headers(root):
        garble(path)
        record_as_it_is(Path(f"{path}.json"))
    compile_in(root, full=True)
    assert own_headers(root) == []
    compile_in(root, full=True)
    assert [p.name for p in own_headers(root)] == [p.name for p in headers]


def test_the_copies_are_of_what_a_run_shares(shared: Path, tmp_path: Path) -> None:
    """Or these tests would test nothing."""
    root = copy_toolchain(shared, tmp_path / "store")
    assert cache.verify(repair=False, cache_dir=root).damaged == ()
    assert toolchains.DAMAGES
