"""Ed25519 keys and signatures of bundles, by the package ``cryptography``.

A public key is written ``ed25519:`` and base64. A private key is a PEM file that only its owner can
read.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._base.settings import user_config_file
from .._base.trusted_files import open_directory, read_file
from ..errors import BundleError, SigningError

_PREFIX = "ed25519:"
KEY_FILE = "signing_key.pem"
_KEY_LIMIT = 16 << 10
# What is signed is a bundle's manifest, and cannot be mistaken for anything else.
_CONTEXT = b"aoti_eager bundle 1\n"
_MOST_SIGNATURES = 64


def key_path() -> Path:
    """Return where this user's private key lies.

    Raises:
        SigningError: The user has no home.
    """
    config = user_config_file()
    if config is None:
        raise SigningError("this user has no home directory for a key: name a file")
    return config.parent / KEY_FILE


def make_key(path: Path) -> str:
    """Write a new private key, 0600, and return its public key.

    Raises:
        SigningError: There is a file already, or the key cannot be written.
    """
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives import serialization

    key = ed25519.Ed25519PrivateKey.generate()
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        with open_directory(path.parent, create=True) as directory:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(path.name, flags, 0o600, dir_fd=directory.fd)
            with os.fdopen(file, "wb") as written:
                written.write(content)
    except FileExistsError:
        raise SigningError(
            f"{path}: there is a key already; bundles that it signed stay signed by it: "
            "remove the file to make a new one"
        ) from None
    except OSError as error:
        raise SigningError(f"{path}: cannot be written: {error}") from error
    return public_key(key)


def read_key(path: Path) -> Any:
    """Return the private key in a file.

    Raises:
        SigningError: There is no such key, or others can read it.
    """
    _ed25519()
    from cryptography.hazmat.primitives import serialization

    try:
        content = read_file(path, _KEY_LIMIT)
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        raise SigningError(f"{path}: there is no key; `aoti-eager keygen` makes one") from None
    except OSError as error:
        raise SigningError(f"{path}: cannot be used: {error}") from error
    if mode & 0o077:
        raise SigningError(f"{path}: others can read the key (mode {mode:o}): chmod 600")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise SigningError(f"{path}: is no private key: {error}") from error
    if not isinstance(key, _ed25519().Ed25519PrivateKey):
        raise SigningError(f"{path}: is no Ed25519 key")
    return key


def has_own_key() -> bool:
    """Return whether this user has a key and the package ``cryptography``."""
    with contextlib.suppress(SigningError):
        _ed25519()
        return key_path().exists()
    return False


def own_public_key() -> str | None:
    """Return this user's public key; ``None`` if the user has none that can be used."""
    with contextlib.suppress(SigningError):
        return public_key(read_key(key_path()))
    return None


def public_key(key: Any) -> str:
    """Return the public key of a private key, as text."""
    from cryptography.hazmat.primitives import serialization

    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return _PREFIX + base64.b64encode(raw).decode("ascii")


def signed(manifest: bytes, signatures: bytes | None, key: Any) -> bytes:
    """Return the signatures' document with one more; one of the same key is replaced.

    Args:
        manifest: The manifest's document.
        signatures: The signatures that are there.
        key: A private key, as ``read_key`` gives it.

    Raises:
        BundleError: The signatures that are there cannot be read, or are too many.
    """
    public = public_key(key)
    signature = base64.b64encode(key.sign(_CONTEXT + manifest)).decode("ascii")
    others = [] if signatures is None else [one for one in _decoded(signatures) if one[0] != public]
    if len(others) >= _MOST_SIGNATURES:
        raise BundleError(f"has {len(others)} signatures; at most {_MOST_SIGNATURES}")
    return (json.dumps(sorted([*others, (public, signature)])) + "\n").encode()


def signers(manifest: bytes, signatures: bytes | None) -> tuple[str, ...]:
    """Return the public keys whose signatures are right.

    Raises:
        BundleError: The signatures cannot be read.
        SigningError: The package ``cryptography`` is missing.
    """
    if signatures is None:
        return ()
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    found = []
    for public, signature in _decoded(signatures):
        with contextlib.suppress(InvalidSignature, ValueError):
            key = ed25519.Ed25519PublicKey.from_public_bytes(public_bytes(public))
            key.verify(base64.b64decode(signature, validate=True), _CONTEXT + manifest)
            found.append(public)
    return tuple(found)


def _decoded(signatures: bytes) -> list[tuple[str, str]]:
    try:
        pairs = json.loads(signatures)
        found = [(public, signature) for public, signature in pairs]
        if not all(isinstance(text, str) for pair in found for text in pair):
            raise TypeError("wants pairs of text")
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"its signatures cannot be read: {error}") from error
    if len(found) > _MOST_SIGNATURES:
        raise BundleError(f"has {len(found)} signatures; at most {_MOST_SIGNATURES}")
    return found


def public_bytes(public: str) -> bytes:
    """Return the 32 bytes of a public key.

    Raises:
        ValueError: The text is no public key.
    """
    wanted = f"{public!r} is no public key: wants {_PREFIX} and 44 characters of base64"
    if not public.startswith(_PREFIX):
        raise ValueError(wanted)
    try:
        raw = base64.b64decode(public[len(_PREFIX) :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(wanted) from None
    if len(raw) != 32:
        raise ValueError(wanted)
    return raw


def trusted(found: Iterable[str], trusted_keys: Iterable[str]) -> tuple[str, ...]:
    """Return those of some signers whom this user trusts: by the setting, or the user's own key."""
    keys = set(trusted_keys)
    own = own_public_key()
    return tuple(one for one in found if one in keys or one == own)


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise SigningError(
            "signatures need the package cryptography: pip install 'aoti_eager[signing]'"
        ) from error
    return ed25519
