"""A name of a cache directory that compilers can take, whatever characters its path has.

Inductor puts paths into command lines as they are, so a space, a quote or a newline in one breaks
them. Such a directory is reached by a descriptor of this process. Worker only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .._base.trusted_files import Directory, open_directory

_PLAIN = re.compile(r"[A-Za-z0-9_./@+-]*")

# They stay open: the compilers that this process starts go through them.
_opened: dict[Path, Directory] = {}


def plain_path(root: Path) -> Path:
    """Return a path of the directory ``root`` with plain characters alone.

    It is ``root`` itself where that is plain, or where the system has no ``/proc``.

    Raises:
        OSError: It cannot be opened, or is not ours.
    """
    if _PLAIN.fullmatch(str(root)) or not os.path.isdir("/proc/self/fd"):
        return root
    directory = _opened.get(root)
    if directory is None or not _is_the_same(directory, root):
        directory = _opened[root] = open_directory(root)
    return Path(f"/proc/{os.getpid()}/fd/{directory.fd}")


def _is_the_same(directory: Directory, root: Path) -> bool:
    """Return whether ``root`` is still the directory that is open: it may be made anew."""
    try:
        return os.path.samestat(os.fstat(directory.fd), os.stat(root))
    except OSError:
        return False
