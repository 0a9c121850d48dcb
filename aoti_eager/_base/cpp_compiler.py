"""Which C++ compiler there is, and what tells it from another; no process is started for that."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from typing import BinaryIO

NO_COMPILER = (
    "no C++ compiler: kernels that are not in the cache cannot be compiled, and originals run; "
    "install g++ or clang++ (Debian: apt-get install g++; conda: conda install cxx-compiler), or "
    "set CXX to one"
)

# By path, size and time of the last change.
_identities: dict[tuple[str, int, int], str] = {}


def compiler_on_path() -> str | None:
    """Return the C++ compiler that Inductor would use, or ``None``.

    The same names in the same order as Inductor's default, without importing it.
    """
    named = os.environ.get("CXX")
    candidates = [named] if named else []
    candidates += ["clang++"] if sys.platform == "darwin" else ["g++", "clang++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def compiler_identity() -> str | None:
    """Return what tells that compiler from another: its name, and the SHA-256 of its program.

    The name it is called by, not where it lies: ``g++-<64 hexadecimal digits>``. A wrapper
    (ccache) is told from another by its own program only. ``None`` without a compiler, or if its
    program cannot be read: nothing is known then.
    """
    compiler = compiler_on_path()
    if compiler is None:
        return None
    program = os.path.realpath(compiler)
    try:
        status = os.stat(program)
        known = (program, status.st_size, status.st_mtime_ns)
        if known not in _identities:
            # Read once in a process: a compiler may have a hundred megabytes.
            with open(program, "rb") as file:
                _identities[known] = _sha256(file)
    except OSError:
        return None
    return f"{os.path.basename(compiler)}-{_identities[known]}"


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
