"""How many instructions a call takes: the processor stops after each, and its stops are counted.

The clock of a shared machine tells one per cent apart only over minutes, and counters of the
processor are not there in most virtual machines. Steps can be counted on any x86-64, and the same
code takes the same number each time, to a few. They say nothing of what an instruction costs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path


def build(directory: Path) -> Path:
    """Return the library of ``instructions.c``, made in ``directory``."""
    library = directory / "instructions.so"
    source = Path(__file__).with_suffix(".c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-fPIC", "-shared", source, "-o", library], check=True)
    return library


def counter(library: Path) -> Callable[[Callable[[], object]], int]:
    """Return what counts the instructions of one call of a function, in this thread.

    Those of the C library are left out: how far its allocator looks for memory depends on what was
    freed before.
    """
    count = ctypes.PyDLL(str(library)).ae_count_instructions
    count.argtypes = [ctypes.py_object, ctypes.c_ulong, ctypes.c_ulong]
    count.restype = ctypes.c_long
    start, end = _code_of("libc.so")
    return lambda function: int(count(function, start, end))


def _code_of(name: str) -> tuple[int, int]:
    """Return where the code of a loaded library lies."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, *_, path = line.split(maxsplit=5)
        if "x" in access and Path(path).name.startswith(name):
            start, end = (int(number, 16) for number in addresses.split("-"))
            return start, end
    raise LookupError(f"{name} is not loaded")
