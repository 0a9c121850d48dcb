"""What importing the package leaves behind."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.in_turn
@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_left_as_it_was(collects: bool) -> None:
    switch = "" if collects else "gc.disable()"
    script = f"import gc, torch; {switch}\nimport aoti_eager; print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(collects), done.stderr


def test_what_a_warm_process_does_not_need_is_not_imported() -> None:
    script = (
        "import sys, torch; before = set(sys.modules)\n"
        "import aoti_eager; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    imported = done.stdout.split()
    assert "aoti_eager" in imported, done.stderr
    theirs = {"tomllib", "tomli", "torch._inductor.config", "sympy"}
    ours = {f"aoti_eager.{name}" for name in ("cache", "_explain", "_runner")}
    assert not (theirs | ours) & {*imported}


def test_every_public_name_is_there() -> None:
    script = (
        "import aoti_eager; listed = dir(aoti_eager)\n"
        "names = {}; exec('from aoti_eager import *', names)\n"
        "lacking = [one for one in aoti_eager.__all__ if one not in names or one not in listed]\n"
        "print(lacking, hasattr(aoti_eager, 'nothing'), aoti_eager.explain.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["[]", "False", "aoti_eager._explain"], done.stderr
