"""A directory beside what is being made of the toolchain; a killed process leaves it to the next.

``.build-<digest>-<random>``, made by who holds the lock of what has that digest. So one whose lock
is free is a dead process's: its name is never used again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .store_format import children, remove
from .trusted_files import Directory

PREFIX = ".build-"


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
    prefix = f"{PREFIX}{digest}-"
    for left in children(directory, *place):
        if left.startswith(prefix):
            remove(directory, left, base=place)
    name = prefix + os.urandom(4).hex()
    with directory.directory(name, create=True) as work:
        try:
            yield work
        finally:
            with contextlib.suppress(OSError):
                remove(directory, name, base=place)
