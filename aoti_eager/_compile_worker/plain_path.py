"""A path of a cache directory that compilers accept, whatever characters the directory's name has.

Inductor puts paths into command lines as they are, so a space, a quote or a newline in a path
breaks the command. Such a directory is reached by a descriptor of this process. Worker only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .._base.trusted_files import Directory, open_directory

_PLAIN = re.compile(r"[A-Za-z0-9_./@+-]*")

# The descriptors stay open: the compilers that this process starts use them.
_opened: dict[Path, Directory] = {}


def plain_path(root: Path) -> Path:
    """Return a path of the directory ``root`` with plain characters alone.

    The path is ``root`` itself if ``root`` is plain, or if the system has no ``/proc``.

    Raises:
        OSError: The directory cannot be opened, or is not ours.
    """
    if _PLAIN.fullmatch(str(root)) or not os.path.isdir("/proc/self/fd"):
        return root
    directory = _opened.get(root)
    if directory is None or not _is_the_same(directory, root):
        directory = _opened[root] = open_directory(root)
    return Path(f"/proc/{os.getpid()}/fd/{directory.fd}")


def _is_the_same(directory: Directory, root: Path) -> bool:
    """Return whether ``root`` is still the open directory: somebody may have made it anew."""
    try:
        return os.path.samestat(os.fstat(directory.fd), os.stat(root))
    except OSError:
        return False
