"""The precompiled header: made beside the first kernels, waited for only where it was cut off."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support import forked_python
from ..support.toolchains import DAMAGES, Damage

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
import json, os, signal, sys
from pathlib import Path
from aoti_eager._compile_worker import thin_header
# Who runs the tests may ignore some, as nohup does, and compilers inherit that.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
fake = Path(os.environ["FAKE"])
command, headers = [os.environ["CXX"], "-O3"], fake / "headers"
answer = {}
def ask(name, command=command):
    parts = thin_header.common_parts(command, headers)
    assert parts is None or parts.header.exists() and parts.interface.exists()
    answer[name] = parts and [parts.header.name, Path(f"{parts.header}.gch").read_text()]
def finish():
    for thread in thin_header._builds.values():
        thread.join()
def held(call):
    # What the call begins is made afterwards, however fast the compiler is.
    (fake / "wait").touch()
    try:
        call()
    finally:
        (fake / "wait").unlink()
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
    done = forked_python.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FAKE": str(fake), "CXX": str(fake / "g++")},
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["begun"] = len((fake / "log").read_text().splitlines())
    return answer


def files(fake: Path) -> dict[str, Path]:
    """Return the parts by their kinds, and what else is there."""
    return {path.name.partition(".")[2]: path for path in (fake / "headers").iterdir()}


@pytest.mark.full
def test_the_first_kernels_do_not_wait_and_later_ones_have_it(fake: Path) -> None:
    answer = run(
        fake,
        "(fake / 'wait').touch()",
        "ask('first'); ask('second')",
        "(fake / 'wait').unlink(); finish()",
        "ask('third'); ask('other flags', [*command, '-mavx2']); finish()",
        "ask('other flags', [*command, '-mavx2'])",
    )
    assert answer["first"] is answer["second"] is None
    assert answer["third"][1] == "precompiled\n"
    assert answer["other flags"][0] != answer["third"][0]
    assert answer["begun"] == 4  # two parts each
    again = run(fake, "ask('first')")
    assert again["first"] == answer["third"]
    assert again["begun"] == 4
    assert set(files(fake)) == {"h", "o", "h.gch", "json", "lock"}
    for path in [fake / "headers", *files(fake).values()]:
        assert path.stat().st_mode & 0o77 == 0, path


@pytest.mark.full
def test_a_header_that_a_process_left_unfinished_is_waited_for_by_the_next(fake: Path) -> None:
    """It was killed: what it has begun is swept by who has the lock next."""
    killed = run(
        fake,
        "import time",
        "(fake / 'wait').touch(); ask('first')",
        "while not (fake / 'log').exists(): time.sleep(0.01)",
        "(next(headers.glob('.build-*')) / 'half.s').touch()",
        "os._exit(0) if print('{}', flush=True) is None else None",
    )
    assert killed["begun"] == 1
    assert list((fake / "headers").glob(".build-*"))
    (fake / "wait").unlink()
    answer = run(fake, "ask('second')")
    assert answer["second"] is not None
    assert set(files(fake)) == {"h", "o", "h.gch", "json", "lock"}


@pytest.mark.full
def test_a_header_that_cannot_be_made_is_done_without(fake: Path) -> None:
    (fake / "fail").touch()
    answer = run(fake, "ask('first'); finish(); ask('second'); finish()")
    assert answer["second"] is None
    assert answer["begun"] == 1, "tried again for each kernel"


@pytest.mark.full
def test_a_directory_that_was_deleted_meanwhile_is_made_again(fake: Path) -> None:
    answer = run(
        fake,
        "import shutil",
        "ask('first'); finish(); ask('second')",
        "shutil.rmtree(headers)",
        "held(lambda: ask('third')); finish(); ask('fourth')",
    )
    assert answer["second"] == answer["fourth"]
    assert answer["second"] is not None
    assert answer["third"] is None


def test_a_process_makes_one_header_at_a_time(fake: Path) -> None:
    """Each takes a core and half a gigabyte."""
    answer = run(
        fake,
        "import time",
        "(fake / 'wait').touch()",
        "ask('first'); ask('other flags', [*command, '-mavx2'])",
        "while not (fake / 'log').exists(): time.sleep(0.01)",
        "answer['at once'] = len((fake / 'log').read_text().split())",
        "(fake / 'wait').unlink(); finish()",
        "ask('other flags', [*command, '-mavx2']); finish()",
        "ask('other flags', [*command, '-mavx2'])",
    )
    assert answer["at once"] == 1
    assert answer["other flags"] is not None


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.share(of=24)
@pytest.mark.parametrize("part", ["h", "h.gch", "o", "json"])
def test_a_part_that_is_not_what_its_record_says_is_made_anew(
    part: str, damage: Damage, fake: Path
) -> None:
    run(fake, "ask('first'); finish()")
    damage(files(fake)[part])
    answer = run(fake, "ask('second')")
    assert answer["second"][1] == "precompiled\n"
    assert answer["begun"] == 4, "it was used as it was"
    for path in files(fake).values():
        assert not path.is_symlink()
        assert path.is_file()
    assert all(kept.read_bytes() for kept in fake.glob("**/kept-*")), "a link was followed"


@pytest.mark.full
def test_parts_without_a_record_are_an_older_version_s_and_are_made_anew_once(fake: Path) -> None:
    run(fake, "ask('first'); finish()")
    files(fake)["json"].unlink()
    files(fake)["h"].with_suffix(".123.tmp").touch()
    assert run(fake, "ask('second')")["begun"] == 4
    assert run(fake, "ask('third')")["begun"] == 4


@pytest.mark.full
def test_parts_are_compared_once_in_a_process_and_again_when_they_change(fake: Path) -> None:
    run(fake, "ask('first'); finish()")
    answer = run(
        fake,
        "from aoti_eager._base import recorded_files",
        "digest, read = recorded_files._digest, []",
        "recorded_files._digest = lambda fd: read.append(fd) or digest(fd)",
        "ask('first'); ask('second'); answer['read'] = len(read)",
        "with next(headers.glob('*.o')).open('r+b') as file: file.write(b'-')",
        "ask('third'); finish(); ask('fourth')",
    )
    assert answer["read"] == 3
    assert answer["first"] == answer["second"] == answer["fourth"]
    assert answer["begun"] == 4


def test_a_directory_that_others_can_write_is_done_without(fake: Path) -> None:
    (fake / "headers").mkdir(mode=0o700)
    (fake / "headers").chmod(0o770)
    answer = run(fake, "ask('first'); finish(); ask('second'); (fake / 'log').touch()")
    assert answer["second"] is None
    assert files(fake) == {}


def test_parts_for_this_very_cpu_are_not_another_cpus(fake: Path) -> None:
    """Machines may share a store, and the interface's code is compiled for a CPU, too."""
    answer = run(
        fake,
        "for flag in ('-march=native', '-march=x86-64-v3'):",
        "    for features in ({'avx2'}, {'avx2', 'avx512f'}):",
        "        thin_header.cpu_features = lambda: features",
        "        ask(f'{flag} {len(features)}', [*command, flag]); finish()",
        "        ask(f'{flag} {len(features)}', [*command, flag])",
    )
    assert answer["-march=native 1"][0] != answer["-march=native 2"][0]
    assert answer["-march=x86-64-v3 1"][0] == answer["-march=x86-64-v3 2"][0]


# Compiles what it is told to; a library of "bad" code, or with parts, fails as it is told to.
LINKER = """#!/bin/sh
case "$1" in --version) echo "fake 1"; exit 0;; esac
for out; do :; done
case "$*" in
*library.cpp*)
  echo "$*" >> "$FAKE/linked"
  grep -q bad "$FAKE/library.cpp" && exit 1
  case "$*" in *headers/thin-*) [ -e "$FAKE/refuse" ] && kill -$(cat "$FAKE/refuse") $$;; esac
  touch "$FAKE/library.so";;
*) echo begun >> "$FAKE/log"
   case "$*" in *-shared*) ;; *) while [ -e "$FAKE/wait" ]; do sleep 0.01; done;; esac
   while [ $# -gt 1 ]; do [ "$1" = -o ] && echo made > "$2"; shift; done
   [ "$out" = made ] || echo precompiled > "$out";;
esac
"""

LINK = """
from aoti_eager._compile_worker import thin_codegen
from aoti_eager._compile_worker.inductor_compat import CppCompileError
answer["linked"] = []
def link(source="good"):
    log = fake / "linked"
    log.write_text("")
    try:
        held(lambda: thin_codegen._compile(source, command, fake, headers))
        done = "done"
    except CppCompileError:
        done = "failed"
    tries = ["headers/thin-" in line for line in log.read_text().splitlines()]
    answer["linked"].append([done, tries])
    finish()
"""


@pytest.fixture
def linker(fake: Path) -> Path:
    """The directory of a compiler that links, too."""
    (fake / "g++").write_text(LINKER)
    return fake


def test_a_compile_that_fails_with_the_parts_is_tried_without_and_they_go(linker: Path) -> None:
    """Made anew twice in a process, and then no more: it may be the compiler's own way."""
    (linker / "refuse").write_text("SEGV")
    answer = run(linker, LINK, "for i in range(6): link()")
    with_parts, without = ["done", [True, False]], ["done", [False]]
    assert answer["linked"] == [without, with_parts, without, with_parts, without, without]
    assert "json" not in files(linker)


def test_code_that_does_not_compile_fails_and_the_parts_stay(linker: Path) -> None:
    answer = run(linker, LINK, "link(); link('bad'); link()")
    assert answer["linked"] == [["done", [False]], ["failed", [True, False]], ["done", [True]]]


@pytest.mark.share(of=3)
@pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "HUP"])
def test_a_compiler_that_was_ended_is_not_started_again(name: str, linker: Path) -> None:
    """The worker is ending, or there is no memory: that says nothing about the parts."""
    (linker / "refuse").write_text(name)
    answer = run(linker, LINK, "link(); link()")
    assert answer["linked"] == [["done", [False]], ["failed", [True]]]
    assert "json" in files(linker)
