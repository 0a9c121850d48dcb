"""``python -m aoti_eager setup``: what is built once a machine, and that scripts find it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aoti_eager._base.cpp_compiler import compiler_on_path
from aoti_eager._native import build as native_build

from ..support import forked_python

pytestmark = pytest.mark.native

# The real compiler, but for what takes long: the C++ path is one that was built before, and the
# precompiled header is none, so that kernels are compiled without.
COMPILER = """#!/bin/sh
echo "$*" >> "{log}"
output() {{ while [ "$1" != -o ]; do shift; done; echo "$2"; }}
case "$*" in
*refuse*) exit 1;;
*_native/csrc*.cpp*) ;;
*native.o*) cp "{built}" "$(output "$@")";;
*c++-header*) {header}; echo none > "$(output "$@")";;
*) exec "{real}" "$@";;
esac
"""

SCRIPT = """
import torch
import aoti_eager
from aoti_eager._native import library as native_library

@aoti_eager.custom_op("setup_test::doubled")
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1

aoti_eager.register("aten::mul.Tensor")
x = torch.ones(8, 8)
for _ in range(3):
    x * x, doubled(x)
hits = {op: counts.hits for op, counts in aoti_eager.stats().items()}
print(native_library.is_loaded(), hits["aten::mul.Tensor"], hits["setup_test::doubled"])
"""


class Machine:
    """A machine on which nothing has been built: a cache, and a compiler that keeps a log."""

    def __init__(self, directory: Path, built: Path, header: str = "true") -> None:
        # Not the name of the cache that each test has, with the toolchain that all share.
        self.cache = directory / "clean"
        self._log = directory / "log"
        self._bin = directory / "bin"
        self._bin.mkdir()
        compiler = self._bin / "g++"
        text = COMPILER.format(log=self._log, built=built, real=compiler_on_path(), header=header)
        compiler.write_text(text)
        compiler.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the settings as they ship, but for what says so."""
        shipped = {k: v for k, v in os.environ.items() if not k.startswith(("AOTI_EAGER", "CXX"))}
        return forked_python.run(
            [sys.executable, *arguments],
            env={
                **shipped,
                "AOTI_EAGER_CACHE_DIR": str(self.cache),
                "PATH": f"{self._bin}:{os.environ['PATH']}",
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def setup(self) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "aoti_eager", "setup")

    @property
    def commands(self) -> list[str]:
        """What the compiler was called with since this was asked last."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.write_text("")
        return lines


@pytest.fixture
def built(shared_cache_dir: Path, native_library: None) -> Path:
    found = native_build.find(shared_cache_dir / "toolchain", compiler_on_path())
    assert found is not None
    return found.path


@pytest.fixture
def clean(tmp_path: Path, built: Path) -> Machine:
    return Machine(tmp_path, built)


@pytest.mark.full
def test_scripts_find_all_that_setup_has_built(clean: Machine, tmp_path: Path) -> None:
    done = clean.setup()
    assert done.stderr == ""
    assert done.returncode == 0
    path, parts, ready = done.stdout.splitlines()
    assert path.startswith("the C++ path of calls: built in ")
    assert parts.startswith("what kernel libraries share: built in ")
    assert ready == f"ready: {clean.cache}"
    commands = clean.commands
    assert sum("native.cpp" in one for one in commands) == 1
    # Ops and functions have flags of their own.
    assert sum("c++-header" in one for one in commands) == 2
    # Calls wait for their kernels, and none is declined: what is looked at is what was compiled.
    (tmp_path / "script.py").write_text(SCRIPT)
    script = clean.run(str(tmp_path / "script.py"), AOTI_EAGER_MODE="sync", AOTI_EAGER_GATE="0")
    assert script.stderr == ""
    assert script.stdout.split() == ["True", "2", "2"]
    commands = clean.commands
    kernels = [one for one in commands if "library.cpp" in one]
    assert len(kernels) >= 2
    assert all("headers/thin-" in one for one in kernels)
    assert not [one for one in commands if "native.cpp" in one or "c++-header" in one]


@pytest.mark.full
def test_a_second_setup_has_nothing_to_do(clean: Machine) -> None:
    clean.setup()
    assert clean.commands
    done = clean.setup()
    assert done.returncode == 0
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()[:2]] == [
        "there already",
        "there already",
    ]
    assert not [one for one in clean.commands if " -o " in one and "--version" not in one]


@pytest.mark.full
def test_a_part_that_cannot_be_made_is_an_error_in_words(tmp_path: Path, built: Path) -> None:
    broken = Machine(tmp_path, built, header="echo 'error: out of luck' >&2; exit 1")
    done = broken.setup()
    assert done.returncode == 2
    assert done.stdout.splitlines()[1] == "what kernel libraries share: failed"
    assert "out of luck" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_compiler_setup_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aoti_eager", "setup"],
        env={"PATH": str(tmp_path), "AOTI_EAGER_CACHE_DIR": str(tmp_path / "clean")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "install g++ or clang++" in done.stderr


def test_a_cache_that_cannot_be_written_is_an_error_in_words(clean: Machine) -> None:
    clean.cache.mkdir(mode=0o700)
    (clean.cache / "somebody's").write_text("file")
    done = clean.setup()
    assert done.returncode == 2
    assert str(clean.cache) in done.stderr
    assert "Traceback" not in done.stderr
