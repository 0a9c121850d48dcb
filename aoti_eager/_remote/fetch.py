"""Takes kernels from a remote tier into the cache directory, and new kernels to the tier."""

from __future__ import annotations

from typing import Any

from .._base.store_format import LIBRARY_FILE
from .._keys.kernel_key import KernelKey
from .._store.entry import Entry, Status
from .._store.entry_files import op_path
from .._store.puts import keep_limits
from .._store.store import Store, StoredEntry
from ..errors import AotiEagerError, StoreError
from .lacking import Lacking
from .packed import ENDING, object_path, pack, unpack
from .remote_store import RemoteStore

# So many dynamic specialisations of an op are taken at once, and so many targets of a key read.
_MOST_DYNAMIC, _MOST_TARGETS = 32, 8


def static_kernel(
    remote: RemoteStore, store: Store, key: KernelKey, note: Lacking
) -> StoredEntry | None:
    """Return a key's kernel, now in the cache directory; ``None`` if the tier has none to use.

    Raises:
        RemoteTierError: The tier gives no answer.
    """
    above = "/".join((*op_path(key.op, note.environment, dynamic=False), key.digest))
    # The best instruction set first, as the store does.
    for path, size in sorted(remote.objects(above).items(), reverse=True)[:_MOST_TARGETS]:
        entry = _fetched(remote, path, size)
        if entry is not None and entry[0].key == key and _fits(entry[0], note):
            return put(remote, store, *entry)
    remote.counts["misses"] += 1
    return None


def dynamic_kernels(remote: RemoteStore, store: Store, op: str, note: Lacking) -> list[StoredEntry]:
    """Return an op's dynamic kernels that the cache directory lacked.

    Raises:
        RemoteTierError: The tier gives no answer.
    """
    taken = []
    above = "/".join(op_path(op, note.environment, dynamic=True))
    for path, size in sorted(remote.objects(above).items(), reverse=True)[:_MOST_DYNAMIC]:
        if is_there(store, path):
            continue
        entry = _fetched(remote, path, size)
        if entry is not None and entry[0].key.op == op and _fits(entry[0], note):
            stored = put(remote, store, *entry)
            taken += [] if stored is None else [stored]
    return taken


def is_there(store: Store, path: str) -> bool:
    """Return whether the cache directory has the entry of an object, of any status."""
    return (store.root / path.removesuffix(ENDING)).exists()


def _fits(entry: Entry, note: Lacking) -> bool:
    return entry.environment == note.environment and entry.requires <= note.features


def _fetched(remote: RemoteStore, path: str, size: int) -> tuple[Entry, bytes] | None:
    """Return what an object holds; ``None`` if nothing may be taken from it.

    Raises:
        RemoteTierError: The tier gives no answer.
    """
    if not path.endswith(ENDING):
        return None
    content = remote.read(path, size)
    if content is None:
        return None
    try:
        return unpack(content, path, remote.name.trust)
    except (AotiEagerError, OSError) as error:
        remote.refused(type(error).__name__, str(error))
        return None


def put(remote: RemoteStore, store: Store, entry: Entry, library: bytes) -> StoredEntry | None:
    """Return a kernel as it lies in the cache directory; ``None`` if it cannot be put there."""
    try:
        with store.workspace() as work:
            file = work / LIBRARY_FILE
            file.write_bytes(library)
            assert entry.library is not None
            stored = store.publish(entry, work, file, "", sha256=entry.library.sha256)
    except OSError as error:
        remote.last_error = str(error)
        return None
    keep_limits(store, stored.path)
    remote.counts["hits"] += 1
    return stored if stored.entry.status is Status.READY else None


def give(remote: RemoteStore, store: Store, found: StoredEntry, key: Any) -> bool:
    """Take a kernel to a tier; return false if the tier has it already.

    Args:
        remote: The tier.
        store: The cache directory's store.
        found: The kernel's entry there.
        key: The private key to sign with; ``None`` for none.

    Raises:
        RemoteTierError: The tier gives no answer.
        StoreError: The kernel cannot be read.
    """
    path = object_path(found.entry)
    if path in remote.objects(path.rpartition("/")[0]):
        return False
    try:
        content = store.check_library(found).content
    except FileNotFoundError as error:  # Evicted meanwhile.
        raise StoreError(str(error)) from error
    assert content is not None
    remote.write(path, pack(found.entry, content, key))
    return True
