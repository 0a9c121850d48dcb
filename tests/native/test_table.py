"""The lock-free part of the C++ hit path, by the C++ tests of ``native_table.cpp``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from aoti_eager._base.cpp_compiler import compiler_on_path

SOURCE = Path(__file__).with_name("native_table.cpp")
INCLUDE = Path(__file__).parents[2] / "aoti_eager" / "_native" / "csrc"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program for two seconds with sixteen threads."""
    return subprocess.run([*command, "2", "16"], capture_output=True, text=True, check=False)


@pytest.mark.full
@pytest.mark.parametrize(
    ("sanitizer", "options"),
    [("thread", ()), ("thread", ("-DAOTI_EAGER_NO_BARRIER",)), ("address,undefined", ())],
)
def test_sixteen_threads_find_right_entries_and_nothing_is_freed_under_them(
    sanitizer: str, options: Sequence[str], tmp_path: Path
) -> None:
    """ThreadSanitizer sees all of the table: neither torch nor Python is in the process.

    Also as it is where the system has no barrier in all threads.
    """
    program = tmp_path / "native_table"
    command = [
        compiler_on_path() or "c++",
        "-std=c++20",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    subprocess.run(
        [
            *command,
            *options,
            f"-fsanitize={sanitizer}",
            f"-I{INCLUDE}",
            str(SOURCE),
            "-o",
            str(program),
        ],
        check=True,
    )
    done = run(program)
    setarch = shutil.which("setarch")
    if "unexpected memory mapping" in done.stderr and setarch is not None:
        # Old sanitizers want addresses as they were before kernels randomised more of their bits.
        done = run(setarch, "-R", program)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout.splitlines()[-1] == "all right"
