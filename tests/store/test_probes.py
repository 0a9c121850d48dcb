"""The instruction set is probed once on a machine, not in each worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aoti_eager._store.probes import Probes

from .test_environment import ON_X86

MACHINE = ["2.13.0", "g++ 12", ["avx2", "fma"]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where probes are to be kept; it does not exist yet."""
    return tmp_path / "toolchain" / "probes"


def test_what_succeeded_is_known_to_the_next_process_alone_for_that_machine(
    directory: Path,
) -> None:
    probes = Probes(directory, MACHINE)
    assert not probes.has(["code", "-mavx2"])
    probes.add(["code", "-mavx2"])
    assert probes.has(["code", "-mavx2"])
    again = Probes(directory, MACHINE)
    assert again.has(["code", "-mavx2"])
    assert not again.has(["code", "-mavx512f"])
    for changed in (["2.13.1", *MACHINE[1:]], [*MACHINE[:1], "g++ 13", MACHINE[2]], MACHINE[:2]):
        assert not Probes(directory, changed).has(["code", "-mavx2"])


def test_two_workers_keep_each_others_answers(directory: Path) -> None:
    one, other = Probes(directory, MACHINE), Probes(directory, MACHINE)
    one.add(["a"])
    other.add(["b"])
    both = Probes(directory, MACHINE)
    assert both.has(["a"])
    assert both.has(["b"])
    assert [path.suffix for path in directory.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b'{"succeeded": 5}', b"{}"]
)
def test_a_damaged_file_is_asked_again_and_made_anew(directory: Path, content: bytes) -> None:
    Probes(directory, MACHINE).add(["a"])
    (path,) = directory.iterdir()
    path.write_bytes(content)
    probes = Probes(directory, MACHINE)
    assert not probes.has(["a"])
    probes.add(["a"])
    assert Probes(directory, MACHINE).has(["a"])


def test_a_directory_that_cannot_be_written_costs_the_memory_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    probes = Probes(tmp_path / "file" / "probes", MACHINE)
    probes.add(["a"])
    assert probes.has(["a"])


WORKER = """
import json, subprocess, sys
from pathlib import Path
started = []
sys.addaudithook(
    lambda event, args: started.append(str(args[1])) if event == "subprocess.Popen" else None
)
import torch
from aoti_eager._compile_worker import inductor_compat
from torch._inductor import cpu_vec_isa
inductor_compat.prepare_worker(0)
inductor_compat.remember_probes(Path(sys.argv[1]))
found = str(cpu_vec_isa.pick_vec_isa())
print(json.dumps([found, [one for one in started if "--version" not in one]]))
"""


def ask(directory: Path, tmp_path: Path) -> tuple[str, list[str]]:
    """Return what a new worker finds, and the processes that it starts for that."""
    done = subprocess.run(
        [
            *("env", f"TMPDIR={tmp_path}", f"TORCHINDUCTOR_CACHE_DIR={tmp_path}/inductor"),
            *(sys.executable, "-c", WORKER, str(directory)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found, started = json.loads(done.stdout)
    return found, started


@pytest.mark.full
@ON_X86
@pytest.mark.compiles
def test_the_second_worker_starts_no_probe(directory: Path, tmp_path: Path) -> None:
    first, probed = ask(directory, tmp_path)
    if first == "INVALID_VEC_ISA":
        pytest.skip("this CPU has no vectors of Inductor's")
    assert probed
    second, probed_again = ask(directory, tmp_path)
    assert (second, probed_again) == (first, [])
    # Answers that are lost are asked for again.
    (path,) = directory.iterdir()
    path.write_text("{")
    third, probed_at_last = ask(directory, tmp_path)
    assert third == first
    assert probed_at_last
