"""Which ops ``run`` does not register, because all of their kernels lose, and when it looks again.

Verdicts say which kernels lose, but only for keys that were met, and no call of a left-out op is
seen. So an op is left out only of a script that has been run before with all ops registered, with
the same text, arguments, environment, processor and thread count. Each eighth run of such a script
registers all ops again. The file ``runs`` of the store counts these runs. The file is advice: if it
cannot be read, it counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from .._base.digest import json_digest
from .._base.file_lock import locked
from .._base.store_format import RUNS_FILE
from .._base.store_marker import is_marked
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory
from .._base.warn_once import log
from .._compile_service.cache_context import CacheContext
from .._keys.kernel_key import ANY_THREADS
from .._store.entry import Entry, Status
from .._store.kept_queue import (
    read_wanted,
)
from .._store.store import StoredEntry
from .._store.stored_failures import still_holds
from .._store.verdict import Verdicts, processor
from .._store.wanted_calls import (
    MOST_TRIES,
    NOT_WANTED,
    Wanted,
)
from ..config import config
from ..errors import AotiEagerError

# One in so many runs of a script registers all ops.
LOOKS_AGAIN = 8
# How many scripts are kept, the last ones that ran; and how many bytes are read.
_MOST_RUNS = 256
_LARGEST_FILE = 1 << 16
# Short: this runs at exit, and a lost count is better than a late end.
_TIMEOUT_S = 2.0

# The ops that this process has left out.
left_out: tuple[str, ...] = ()


def leave_out(ops: Iterable[str], run: str, context: CacheContext) -> None:
    """Set ``left_out`` to those of ``ops`` that a run with this digest need not register.

    Args:
        ops: Names of overloads, as ``register`` takes them.
        run: See ``run_digest``.
        context: The current cache context.
    """
    global left_out
    left_out = ()
    if config.mode != "off" and _was_looked_at(run, config.cache_dir):
        left_out = tuple(losing(ops, context))


def losing(ops: Iterable[str], context: CacheContext) -> list[str]:
    """Return the ``ops`` all of whose kernels lose here, on this processor and thread count.

    For such an op, the store has a verdict for this thread count, no kernel without a verdict, no
    kernel that wins at any thread count, and no key that waits for a kernel.

    Args:
        ops: Names of overloads, as ``register`` takes them.
        context: The current cache context.
    """
    if not config.gate or not context.store.is_trusted():
        return []
    threads = torch.get_num_threads()
    kept = read_wanted(context.store.root)
    waiting = {one.op for one in kept.values() if _waits(one)}
    try:
        return [
            op
            for op in ops
            if (name := op.removesuffix(".default")) not in waiting
            and _loses(name, context, threads)
        ]
    except (AotiEagerError, OSError) as error:
        log.info("%s", error)  # A miss will warn.
        return []


def _waits(one: Wanted) -> bool:
    """Return whether a kept key may get a kernel; a script may set its thread count itself."""
    try:
        one.call()
    except NOT_WANTED:
        return False
    return one.tries < MOST_TRIES


def _loses(op: str, context: CacheContext, threads: int) -> bool:
    """Return whether a kernel of ``op`` loses here, and all others lose or could not be made."""
    found_losing = False
    for found in context.store.of_op(op, context.environment):
        if not isinstance(found, StoredEntry):
            return False  # The entry is damaged, and is made again.
        entry = found.entry
        if not entry.requires <= context.features:
            continue
        is_ours = dict(entry.key.context).get("threads") in (threads, ANY_THREADS)
        if entry.status is not Status.READY:
            if is_ours and not still_holds(context.store, found):
                return False
            continue
        wins = _wins(entry, context.verdicts, threads)
        if wins or (is_ours and wins is None):
            return False
        found_losing = found_losing or is_ours
    return found_losing


def _wins(entry: Entry, verdicts: Verdicts, threads: int) -> bool | None:
    """Return whether an entry's kernel wins: in any size class, with any number of threads.

    ``None`` if the kernel does not win, and was not measured on this hit path with ``threads``.
    """
    path = "python" if config.native == "0" else "native"
    if entry.library is None:
        return None
    times = verdicts.get(entry.digest, entry.library.sha256).times
    if any(time.wins for time in times.values()):
        return True
    is_measured = any(name.split("/")[:2] == [path, str(threads)] for name in times)
    return False if is_measured else None


# --- the scripts that were looked at -------------------------------------------------------------


def run_digest(script: bytes, arguments: Sequence[str], context: CacheContext) -> str:
    """Return a digest that tells a script's run from runs that may make other calls.

    Args:
        script: The script's text.
        arguments: Its arguments.
        context: The current cache context.
    """
    parts = [hashlib.sha256(script).hexdigest(), *arguments]
    here = [context.environment.digest, processor(), torch.get_num_threads()]
    return json_digest([parts, here])


def _was_looked_at(run: str, root: Path | None) -> bool:
    """Return whether a run with this digest has registered all ops recently enough."""
    if root is None:  # The user has no home directory.
        return False
    try:
        with open_directory(root) as directory:
            found = _read(directory).get(run)
    except OSError:
        return False
    return found is not None and found[0] < LOOKS_AGAIN - 1


def note_run(run: str, root: Path, *, looked: bool) -> None:
    """Count a run that has ended; ``looked`` if all ops were registered in it.

    A directory that is not marked as a cache is left alone.

    Raises:
        OSError: The store cannot be written.
    """
    with (
        open_directory(root) as directory,
        directory.directory("locks", create=True) as locks,
        locked(locks, "runs", _TIMEOUT_S),
    ):
        if not is_marked(directory):
            return
        runs = dict(_read(directory))
        count = 0 if looked else runs.get(run, (0, 0))[0] + 1
        runs[run] = count, int(time.time())
        last = sorted(runs.items(), key=lambda item: (item[0] == run, item[1][1]))[-_MOST_RUNS:]
        directory.write(RUNS_FILE, json.dumps(dict(last)).encode())


def forget_runs(root: Directory) -> None:
    """Remove what an open store knows about runs.

    Raises:
        OSError: The store cannot be written.
    """
    remove(root, RUNS_FILE)


def _read(directory: Directory) -> Mapping[str, tuple[int, int]]:
    """Return how many runs there were since a look, and when the last run ended, by digest."""
    try:
        document = json.loads(directory.read(RUNS_FILE, _LARGEST_FILE))
        return {str(run): (int(count), int(at)) for run, (count, at) in document.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
