"""Who owns a file and who can write to it: the rule for one file or directory.

The owner must be this user or root, who can do everything anyway, and nobody else may write to it.
"""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

from ..errors import UntrustedFileError


def check_regular(
    path: Path, status: os.stat_result, *, private_group: bool = False, any_mode: bool = False
) -> None:
    """Refuse a file that is not regular, or that another user owns or can write to.

    Args:
        path: The file's name in the message.
        status: The status of the open file.
        private_group: Whether the user's own group may write to it.
        any_mode: Whether anybody may write to it.

    Raises:
        UntrustedFileError: The file is refused.
    """
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(path, "is no regular file")
    check_status(path, status, private_group=private_group, any_mode=any_mode)


def check_status(
    path: Path, status: os.stat_result, *, private_group: bool = False, any_mode: bool = False
) -> None:
    """Refuse what another user owns or can write to; see ``check_regular`` for the arguments."""
    if not is_ours(status.st_uid):
        raise UntrustedFileError(
            path,
            f"belongs to user {status.st_uid}, not to us ({os.geteuid()}), and may hold "
            "another's code",
        )
    shared = 0 if any_mode else status.st_mode & 0o022
    if shared == 0o020 and private_group and status.st_gid == private_group_of(os.geteuid()):
        return
    if shared:
        raise UntrustedFileError(
            path,
            f"others can write to it (mode {stat.S_IMODE(status.st_mode):o}), and it may hold "
            "their code",
        )


def is_ours(uid: int) -> bool:
    """Return whether a file's owner is this user, or root, who can do everything anyway."""
    return uid in (0, os.geteuid())


def is_unmapped_root(uid: int) -> bool:
    """Return whether ``uid`` may be the machine's root, seen from a container without a root.

    In a user namespace that maps this user alone (Apptainer, for example), the machine's own
    directories belong to the overflow user.
    """
    return uid == _overflow_uid() and not _root_is_mapped()


@functools.cache
def _overflow_uid() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1


@functools.cache
def _root_is_mapped() -> bool:
    try:
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
        return any(int(line.split()[0]) == 0 for line in lines)
    except (OSError, ValueError, IndexError):
        return True


@functools.cache
def private_group_of(uid: int) -> int | None:
    """Return the group whose only member is the user ``uid``, if there is one.

    Many distributions give each user a group of the same name, and with it the umask 002: then
    ``~/.cache`` is group-writable, and still nobody but its owner can write to it. Root's group
    does not count, because containers put other users into it.
    """
    if uid == 0:
        return None
    # Imported only here: few machines need it, and on some the answer comes over the network.
    import grp
    import pwd

    try:
        user = pwd.getpwuid(uid)
        group = grp.getgrgid(user.pw_gid)
    except KeyError:
        return None
    is_private = group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    return group.gr_gid if is_private and group.gr_gid != 0 else None


def has_access_list(path: Path) -> bool:
    """Return whether a file has an access control list, by which more users may write to it.

    With such a list, the mode's bits for the group are the list's mask and do not describe the
    group's rights.
    """
    try:
        os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)
    except (AttributeError, OSError):
        return False
    return True
