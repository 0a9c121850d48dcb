"""Parts of the laboratory's work: processes that die, and runs that are resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..numerics import unchanged
from ..numerics.kernels import Versions
from ..numerics.parts import Part, Results, run_parts

VERSIONS = Versions(1, "2.13.0", "g++-0")
PARTS = [Part("aten::sin", "float32", "x86-64-v4", "unary", f"({i})") for i in range(4)]


# A child that answers as its part's variant says; what it has run is in a file.
CHILD = """
import json, os, signal, sys, time
directory, target = sys.argv[-2:]
for line in sys.stdin:
    part = json.loads(line)
    with open(os.path.join(directory, "ran"), "a") as file:
        file.write(part["variant"] + "\\n")
    action = os.environ.get("ACTION_" + part["variant"].strip("()"))
    if action == "die":
        os.abort()
    if action == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "wait":
        print("waiting", file=sys.stderr)
        open(os.path.join(directory, "waits"), "w").write(str(os.getpid()))
        while True:
            time.sleep(60)
    print(json.dumps({"outcome": "refused", "reason": "a test"}), flush=True)
"""
COMMAND = (sys.executable, "-c", CHILD)


def outcomes(directory: Path, **options: Any) -> dict[str, str]:
    """Return the outcome of each part, by its variant."""
    found = run_parts(PARTS, directory, "x86-64-v4", VERSIONS, command=COMMAND, **options)
    return {one["part"]["variant"]: one["outcome"] for one in found}


def ran(directory: Path) -> list[str]:
    """Return which parts were begun, in order."""
    return (directory / "ran").read_text().split()


def test_parts_that_have_a_result_are_not_run_again(tmp_path: Path) -> None:
    assert set(outcomes(tmp_path).values()) == {"refused"}
    assert sorted(ran(tmp_path)) == ["(0)", "(1)", "(2)", "(3)"]
    outcomes(tmp_path)
    assert len(ran(tmp_path)) == 4
    for other in (
        Versions(2, VERSIONS.torch, VERSIONS.compiler),
        Versions(1, "2.13.1", VERSIONS.compiler),
        Versions(1, VERSIONS.torch, "clang"),
    ):
        before = len(ran(tmp_path))
        run_parts(PARTS, tmp_path, "x86-64-v4", other, command=COMMAND)
        assert len(ran(tmp_path)) == before + 4


def test_a_child_that_crashes_marks_its_part_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION_1", "die")
    found = outcomes(tmp_path, jobs=1)
    assert found == {"(0)": "refused", "(1)": "crashed", "(2)": "refused", "(3)": "refused"}
    assert ran(tmp_path).count("(1)") == 1


def test_a_child_that_is_killed_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION_2", "killed")
    assert outcomes(tmp_path, jobs=1)["(2)"] == "crashed"
    assert ran(tmp_path).count("(2)") == 2


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTION_0", "wait")
    found = outcomes(tmp_path, jobs=1, timeout_s=2.0)
    assert found == {"(0)": "hung", "(1)": "refused", "(2)": "refused", "(3)": "refused"}


# A run, to be killed in the middle of its third part.
RUN = """
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tests.laboratory.test_parts import outcomes
outcomes(Path(sys.argv[1]), jobs=1)
"""


def test_a_run_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION_2", "wait")
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)])
    waits = tmp_path / "waits"
    while not waits.exists() or not waits.read_text():
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    os.kill(int(waits.read_text()), signal.SIGKILL)
    assert len(Results(tmp_path, VERSIONS).all()) == 2
    # What a process wrote last may be half a line.
    with open(tmp_path / "results.jsonl", "a", encoding="utf-8") as file:
        file.write('{"part": {"op"')
    monkeypatch.delenv("ACTION_2")
    assert set(outcomes(tmp_path, jobs=1).values()) == {"refused"}
    assert ran(tmp_path) == ["(0)", "(1)", "(2)", "(2)", "(3)"]


RIGHT = {"metadata": [], "nan_mismatches": 0, "inf_mismatches": 0, "beyond_regions": 0}
RIGHT |= {"exact_differing": 0}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"family": "reductions"}, False),  # The new version has other code there.
        ({"op": "aten::changed"}, False),
        ({"torch": "2.14.0"}, False),
        ({"compiler": "g++-1"}, False),
        ({"code": 4}, False),  # Nothing is known of what the version between changed.
        ({"code": 7}, False),
        ({"outcome": "declined"}, False),
        ({"outcome": "died"}, False),
        ({"measures": {**RIGHT, "nan_mismatches": 1}}, False),  # It may have been mended.
    ],
)
def test_a_result_of_an_earlier_version_holds_where_the_code_is_the_same(
    changed: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {6: (frozenset({"unary"}), frozenset({"aten::changed"}))}
    monkeypatch.setattr(unchanged, "_LEFT", left)
    one = {"code": 5, "torch": "2.13.0", "compiler": "g++-0", "op": "aten::sin", "family": "unary"}
    one |= {"outcome": "done", "measures": RIGHT, **changed}
    result = {
        "part": {name: one.pop(name) for name in ("op", "family")},
        "outcome": one.pop("outcome"),
        "measures": one.pop("measures"),
        "versions": one,
    }
    now = {"code": 6, "torch": "2.13.0", "compiler": "g++-0"}
    assert unchanged.holds(result, now) is expected
    assert unchanged.holds(result, one)
