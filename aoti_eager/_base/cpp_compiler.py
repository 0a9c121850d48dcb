"""Finds the C++ compiler and tells one compiler from another, without starting a process."""

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

# (path, size, time of the last change) -> identity.
_identities: dict[tuple[str, int, int], str] = {}


def compiler_on_path() -> str | None:
    """Return the C++ compiler that Inductor would use, or ``None``.

    The names and their order are those of Inductor's default; Inductor is not imported.
    """
    named = os.environ.get("CXX")
    candidates = [named] if named else []
    candidates += ["clang++"] if sys.platform == "darwin" else ["g++", "clang++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def compiler_identity() -> str | None:
    """Return the name and the SHA-256 of the compiler that ``compiler_on_path`` finds.

    The form is ``g++-<64 hexadecimal digits>``: the name that the compiler is called by, without
    its directory. For a wrapper (ccache) the digest is that of the wrapper's own program only.
    ``None`` means that there is no compiler, or that its program cannot be read.
    """
    compiler = compiler_on_path()
    if compiler is None:
        return None
    program = os.path.realpath(compiler)
    try:
        status = os.stat(program)
        known = (program, status.st_size, status.st_mtime_ns)
        if known not in _identities:
            # Read once in a process: a compiler's program may have a hundred megabytes.
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
