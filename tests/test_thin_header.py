"""The precompiled header: made beside the first kernels, waited for only where it was cut off."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Says its version; precompiles when it is let; fails when it is told to.
COMPILER = """#!/bin/sh
case "$1" in --version) echo "fake 1"; exit 0;; esac
for out; do :; done
echo begun >> "$FAKE/log"
while [ -e "$FAKE/wait" ]; do sleep 0.01; done
[ -e "$FAKE/fail" ] && exit 1
echo precompiled > "$out"
"""

# Inductor is imported in a process of its own: it changes what later tests see.
PROGRAM = """
import json, os, sys
from pathlib import Path
from aoti_eager import _thin_header
fake = Path(os.environ["FAKE"])
command, headers = [os.environ["CXX"], "-O3"], fake / "headers"
answer = {}
def ask(name, command=command):
    header, interface = _thin_header.common_parts(command, headers)
    precompiled = header.with_suffix(".h.gch").exists()
    assert interface is not None or not precompiled
    answer[name] = [header.name, header.exists(), precompiled]
def finish():
    for thread in _thin_header._builds.values():
        thread.join()
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A directory with a compiler; ``log`` has a line for each header that it began."""
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER)
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def run(fake: Path, *statements: str) -> dict[str, Any]:
    program = "\n".join([PROGRAM, *statements, "print(json.dumps(answer))"])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FAKE": str(fake), "CXX": str(fake / "g++")},
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["begun"] = len((fake / "log").read_text().splitlines())
    return answer


@pytest.mark.in_turn
def test_the_first_kernels_do_not_wait_and_later_ones_have_it(fake: Path) -> None:
    answer = run(
        fake,
        "(fake / 'wait').touch()",
        "ask('first'); ask('second')",
        "(fake / 'wait').unlink(); finish()",
        "ask('third'); ask('other flags', [*command, '-mavx2']); finish()",
    )
    assert answer["first"] == answer["second"]
    assert answer["first"][1:] == [True, False]
    assert answer["third"] == [answer["first"][0], True, True]
    assert answer["other flags"][0] != answer["first"][0]
    assert answer["begun"] == 4  # two parts each
    again = run(fake, "ask('first')")
    assert again["first"] == answer["third"]
    assert again["begun"] == 4
    left = {path.suffix for path in (fake / "headers").iterdir()}
    assert left <= {".h", ".o", ".gch", ".lock"}


@pytest.mark.in_turn
def test_a_header_that_a_process_left_unfinished_is_waited_for_by_the_next(fake: Path) -> None:
    run(
        fake,
        "import time",
        "(fake / 'wait').touch(); ask('first')",
        "while not (fake / 'log').exists(): time.sleep(0.01)",
        "next((fake / 'headers').glob('*.h')).with_suffix('.99.tmp').touch()",
        "os._exit(0) if print('{}', flush=True) is None else None",
    )
    (fake / "wait").unlink()
    answer = run(fake, "ask('second')")
    assert answer["second"][1:] == [True, True]
    assert list((fake / "headers").glob("*.tmp")) == []


@pytest.mark.in_turn
def test_a_header_that_cannot_be_made_is_done_without(fake: Path) -> None:
    (fake / "fail").touch()
    answer = run(fake, "ask('first'); finish(); ask('second'); finish()")
    assert answer["second"][1:] == [True, False]
    assert answer["begun"] == 1, "tried again for each kernel"


@pytest.mark.in_turn
def test_a_directory_that_was_deleted_meanwhile_is_made_again(fake: Path) -> None:
    answer = run(
        fake,
        "import shutil",
        "ask('first'); finish(); ask('second')",
        "shutil.rmtree(headers)",
        "ask('third'); finish(); ask('fourth')",
    )
    assert answer["second"] == answer["fourth"]
    assert answer["third"][1:] == [True, False]
    assert answer["fourth"][2]


def test_parts_for_this_very_cpu_are_not_another_cpus(fake: Path) -> None:
    """Requirement 5: a store may be shared by machines, and the interface has code of its own."""
    answer = run(
        fake,
        "for flag in ('-march=native', '-march=x86-64-v3'):",
        "    for features in ({'avx2'}, {'avx2', 'avx512f'}):",
        "        _thin_header.cpu_features = lambda: features",
        "        ask(f'{flag} {len(features)}', [*command, flag])",
        "finish()",
    )
    assert answer["-march=native 1"][0] != answer["-march=native 2"][0]
    assert answer["-march=x86-64-v3 1"][0] == answer["-march=x86-64-v3 2"][0]
