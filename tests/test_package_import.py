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
    assert not {"tomllib", "tomli", "torch._inductor.config", "sympy"} & {*imported}
