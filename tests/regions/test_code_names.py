"""What is read from code objects is right on each version of Python, and needs no torch.

``python tests/regions/test_code_names.py`` checks the same by an interpreter without torch.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "aoti_eager" / "_regions" / "code_names.py"


def _loaded() -> Any:
    """Return the module by its file: this interpreter may lack what the package imports."""
    spec = importlib.util.spec_from_file_location("code_names", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


code_names = _loaded()

# More than 256 names and constants: their numbers have prefixes in the code.
MANY = "\n".join(f"    x.a{n} = {n}.5" for n in range(600))
CELLS = ", ".join(f"c{n}" for n in range(300))
SCRIPT = f"""
def keeps(x):
    y = x + 1
    def inner():
        nonlocal y
        y += 1
    inner()
    return y

def sets(x):
    global kept
    kept = x

def deletes(x):
    global kept
    del kept

def sets_after_many(x):
    global kept
{MANY}
    kept = x

def many(x):
{MANY}

def make():
    count = 0
    def step(x=None):
        nonlocal count
        count += 1
    def drop(x=None):
        nonlocal count
        del count
    def between(x=None):
        def deep():
            nonlocal count
            count = 5
        deep()
    return step, drop, between

step, drop, between = make()[0], make()[1], make()[2]

def makes_and_calls(x):
    make()[2]()

def shadows(x):
    count = 1
    def other():
        nonlocal count
        count = 2
    other()
    step()

def walrus(x):
    [last := one for one in "ab"]
    return last

def make_many():
    {CELLS.replace(",", " =")} = 0
    def write(x=None):
        nonlocal {CELLS}
        c299 = 1
    return write

write = make_many()

def makes_many(x):
    make_many()()

def sets_attribute(x):
    x.kept = 1
"""
WANTED = {
    "keeps": [],
    "sets": ["kept in sets"],
    "deletes": ["kept in deletes"],
    "sets_after_many": ["kept in sets_after_many"],
    "many": [],
    "step": ["count in step"],
    "drop": ["count in drop"],
    "between": ["count in deep"],
    "makes_and_calls": [],
    "shadows": ["count in step"],
    "walrus": [],
    "write": ["c299 in write"],
    "makes_many": [],
    "sets_attribute": [],
}


class Thing:
    """Has attributes."""

    def __add__(self, other: int) -> int:
        return other


def _that_ran(call: Callable[[], Any]) -> set[types.CodeType]:
    found = set()

    def see(frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def _written(name: str) -> list[str]:
    space: dict[str, Any] = {"kept": 1}
    exec(SCRIPT, space)  # noqa: S102 - the code is what is looked at
    gc.disable()  # Callbacks of collections would run, too: other tests' tools have some.
    try:
        ran = _that_ran(lambda: space[name](Thing()))
    finally:
        gc.enable()
    return sorted(filter(None, (code_names.outer_write(one, ran) for one in ran)))


def test_writes_to_outer_names_are_found() -> None:
    assert {name: _written(name) for name in WANTED} == WANTED


def test_names_and_texts_are_mentioned() -> None:
    def reads(x: Any) -> Any:
        return getattr(x.first, "second")  # noqa: B009 - a name as a text is what is looked for

    assert {"first", "getattr", "second"} <= code_names.mentioned_names({reads.__code__})


if __name__ == "__main__":
    test_writes_to_outer_names_are_found()
    test_names_and_texts_are_mentioned()
    print(f"Python {sys.version.split()[0]}: all right")
