"""Makes keys, signs bundles that are there, and says who has signed one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .._base.data_class import dataclass
from .._base.output_file import OutputFile
from ..config import config
from ..errors import BundleError
from .archive import BundleFile, write
from .signing import key_path, make_key, public_key, read_key, signed, signers, trusted


@dataclass(frozen=True, slots=True)
class BundleSignatures:
    """Who has signed a bundle.

    Attributes:
        signed_by: Public keys whose signatures are right.
        trusted: Those of them that this user trusts: the user's own, and the setting
            ``trusted_keys``.
    """

    signed_by: tuple[str, ...]
    trusted: tuple[str, ...]


def keygen(path: str | os.PathLike[str] | None = None) -> str:
    """Make a key to sign bundles with, and return its public key, ``ed25519:...``.

    Args:
        path: The private key's file, 0600; by default, this user's, with which ``export`` signs.

    Raises:
        SigningError: There is a key already, or it cannot be written.
    """
    return make_key(key_path() if path is None else Path(path).expanduser().absolute())


def sign(path: str | os.PathLike[str], *, key: str | os.PathLike[str] | None = None) -> str:
    """Sign a bundle, and return the public key; signatures of other keys stay.

    Args:
        path: The bundle; replaced in one piece.
        key: The private key's file; by default, this user's.

    Raises:
        BundleError: The file is no bundle, or is damaged.
        SigningError: There is no key, or others can read it.
        OutputFileError: The file cannot be written.
    """
    private = read_key(key_path() if key is None else Path(key).expanduser().absolute())
    output = OutputFile(path)
    with BundleFile(Path(path)) as bundle:
        signatures = signed(bundle.document, bundle.signatures, private)
        with output.stream() as file:
            write(file, bundle.document, signatures, _whole(bundle))
    return public_key(private)


def _whole(bundle: BundleFile) -> Iterator[bytes]:
    for number, (_, content) in enumerate(bundle.contents()):
        if content is None:
            raise BundleError(
                f"{bundle.path}: file {number} is damaged: not the one that the manifest names"
            )
        yield content


def verify_signature(path: str | os.PathLike[str]) -> BundleSignatures:
    """Read a whole bundle, and return who has signed it.

    Args:
        path: The bundle.

    Raises:
        BundleError: The file is no bundle, or is damaged.
        SigningError: The package ``cryptography`` is missing.
    """
    with BundleFile(Path(path)) as bundle:
        found = signers(bundle.document, bundle.signatures)
        for _ in _whole(bundle):
            pass
    return BundleSignatures(found, trusted(found, config.trusted_keys))
