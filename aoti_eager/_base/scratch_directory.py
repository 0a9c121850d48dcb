"""Directories for builds of the toolchain; the next build removes what a killed process left.

The name is ``.build-<digest>-<random>``, beside the directory of the result. Only the holder of the
lock for ``<digest>`` makes such a directory. So if the lock is free, the directory belongs to a
dead process; its name is never used again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .store_format import children
from .store_removal import remove
from .trusted_files import Directory

PREFIX = ".build-"


@contextlib.contextmanager
def scratch_directory(directory: Directory, digest: str, *place: str) -> Iterator[Directory]:
    """Give a new directory in ``directory``; it is removed at the end, unless it was renamed.

    First, directories that killed processes have left for the same digest are removed.

    Args:
        directory: An open directory; the caller holds the lock of ``digest`` in it.
        digest: The digest of what is to be built.
        place: Names of the format that lead to ``directory`` in a cache.

    Raises:
        OSError: The new directory cannot be made.
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
