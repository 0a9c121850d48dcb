"""One entry as one object: a bundle with a single entry, under a name that its key gives.

    <url>/v1/<environment>/<op>/<static|dynamic>/<digest>/<target>.bundle

An object is a bundle (``_bundles``): its manifest has the digests of record and library, and the
signatures cover the manifest. So an object says nothing that a bundle could not say, and is trusted
by the same rule.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._bundles import archive, manifest
from .._bundles.load import checked_entry, trusted_signers
from .._bundles.signing import signed
from .._store.entry import Entry, Status, encode
from .._store.entry_files import op_path
from ..errors import BundleError, EntryDamagedError

ENDING = ".bundle"
# A record, a library, and the bundle around them.
OBJECT_LIMIT = 80 << 20


def object_path(entry: Entry) -> str:
    """Return the name of an entry's object, relative to the tier's URL."""
    above = op_path(entry.key.op, entry.environment, dynamic=entry.guards is not None)
    return "/".join((*above, entry.digest, entry.target + ENDING))


def pack(entry: Entry, library: bytes, key: Any) -> bytes:
    """Return the object of a kernel.

    Args:
        entry: The entry; that it was checked is not given away, nor a message.
        library: The library's bytes.
        key: The private key to sign with; ``None`` for an unsigned object.
    """
    record = encode(replace(entry, checked=False, message=None))
    members = manifest.EntryMembers(_member(record), _member(library))
    document = manifest.encode(manifest.Manifest({}, (members,), ()))
    file = io.BytesIO()
    archive.write(
        file, document, None if key is None else signed(document, None, key), [record, library]
    )
    return file.getvalue()


def unpack(content: bytes, path: str, trust: str) -> tuple[Entry, bytes]:
    """Return the entry of an object, unchecked, and its library.

    Args:
        content: The object's bytes.
        path: The object's name, relative to the tier's URL.
        trust: ``"signed"`` or ``"any"``; see ``load``.

    Raises:
        UntrustedBundleError: Nobody who is trusted has signed the object.
        BundleError: The object is no bundle of one kernel, or is another one's.
        EntryDamagedError: The kernel is not the one that the object's manifest names.
        CacheFormatError: A newer format wrote the entry.
        SigningError: The package ``cryptography`` is missing.
    """
    with tempfile.NamedTemporaryFile(prefix="aoti_eager-") as file:
        file.write(content)
        file.flush()
        with archive.BundleFile(Path(file.name)) as bundle:
            bundle.path = Path(path)  # For messages.
            trusted_signers(bundle, trust)
            if len(bundle.manifest.entries) != 1 or bundle.manifest.toolchain:
                raise BundleError(f"{path}: is no bundle of one kernel")
            if bundle.manifest.entries[0].library is None:
                raise BundleError(f"{path}: has no kernel")
            (_, record), (_, library) = bundle.contents()
    entry = checked_entry(record, library, has_library=True)
    if library is None or entry.status is not Status.READY:
        raise EntryDamagedError(f"{path}: has no kernel that may be used")
    if object_path(entry) != path:
        raise EntryDamagedError(f"{path}: holds another entry, {object_path(entry)}")
    return entry, library


def _member(content: bytes) -> manifest.Member:
    return manifest.Member(len(content), hashlib.sha256(content).hexdigest())
