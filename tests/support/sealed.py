"""Copies of libraries for tests, made as the store makes them of its own."""

from __future__ import annotations

from pathlib import Path

from aoti_eager._base.sealed_library import SealedLibrary


def sealed(path: Path) -> SealedLibrary:
    """Return a private copy of the library at ``path``."""
    return SealedLibrary(path.read_bytes(), path)
