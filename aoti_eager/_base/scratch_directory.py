"""A directory beside what is being made of the toolchain; a killed process leaves it to the next.

``.build-<digest>-<random>``, made by who holds the lock of what has that digest. So one whose lock
is free is a dead process's: its name is never used again.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from .store_format import children, remove
from .trusted_files import Directory

PREFIX = ".build-"


def is_scratch_of(digest: str, name: str) -> bool:
    """Return whether ``name`` is that of a directory in which what has this digest is made."""
    return name.startswith(f"{PREFIX}{digest}-")


@contextlib.contextmanager
def scratch_directory(directory: Directory, digest: str, *place: str) -> Iterator[Directory]:
    """Give a new directory in ``directory``; it is removed at the end, unless it was renamed.

    Those that killed processes have left for the same digest go first.

    Args:
        directory: Open; its maker holds the lock of ``digest`` in it.
        digest: Of what is to be made.
        place: Names of the format that lead to ``directory`` in a cache.

    Raises:
        OSError: It cannot be made.
    """
    for left in children(directory, *place):
        if is_scratch_of(digest, left):
            remove(directory, left, base=place)
    name = f"{PREFIX}{digest}-{secrets.token_hex(4)}"
    with directory.directory(name, create=True) as work:
        try:
            yield work
        finally:
            with contextlib.suppress(OSError):
                remove(directory, name, base=place)
