"""Signatures of bundles: whose bundles are loaded, and what a signature covers."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from aoti_eager import cache, cli
from aoti_eager._bundles import signing
from aoti_eager._bundles.archive import BundleFile, write
from aoti_eager.config import config
from aoti_eager.errors import BundleError, ConfigError, SigningError, UntrustedBundleError

from ..support.entries import files_below


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a key."""
    path = tmp_path / "home"
    monkeypatch.setattr(signing, "user_config_file", lambda: path / "config.toml")
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[Path, str]:
    """Somebody else's key: the file, and the public key."""
    path = tmp_path / "theirs.pem"
    return path, cache.keygen(path)


def test_a_bundle_without_a_signature_is_refused(bundle: Path, there: Path) -> None:
    with pytest.raises(UntrustedBundleError, match="is not signed. Kernels are code") as caught:
        cache.load(bundle, cache_dir=there)
    assert "trust='any' (--trust any)" in str(caught.value)
    assert files_below(there) == []
    with pytest.raises(BundleError, match="got 'all'; wants 'signed' or 'any'"):
        cache.load(bundle, trust="all", cache_dir=there)


def test_a_users_own_bundles_are_loaded(made: Path, there: Path, tmp_path: Path) -> None:
    public = cache.keygen()
    path = tmp_path / "mine"

    report = cache.export(path, cache_dir=made)

    assert report.signed_by == public
    assert cache.load(path, cache_dir=there).signed_by == (public,)
    assert cache.export(path, cache_dir=made, sign=False).signed_by is None
    with pytest.raises(UntrustedBundleError):
        cache.load(path, cache_dir=there)


def test_a_trusted_keys_bundles_are_loaded(
    bundle: Path,
    there: Path,
    theirs: tuple[Path, str],
) -> None:
    key, public = theirs
    assert cache.sign(bundle, key=key) == public
    with pytest.raises(UntrustedBundleError, match="which you do not trust") as caught:
        cache.load(bundle, cache_dir=there)
    assert public in str(caught.value)
    assert cache.verify_signature(bundle) == cache.BundleSignatures((public,), ())
    with config.scope(trusted_keys=[public]):
        assert cache.verify_signature(bundle).trusted == (public,)
        assert cache.load(bundle, cache_dir=there).signed_by == (public,)


def test_signatures_of_others_stay(bundle: Path, theirs: tuple[Path, str]) -> None:
    mine = cache.keygen()
    for _ in range(2):
        cache.sign(bundle, key=theirs[0])
        cache.sign(bundle)
    assert set(cache.verify_signature(bundle).signed_by) == {mine, theirs[1]}
    assert cache.verify_signature(bundle).trusted == (mine,)


def test_a_signature_is_of_one_bundle(
    bundle: Path,
    made: Path,
    there: Path,
    tmp_path: Path,
) -> None:
    cache.keygen()
    cache.sign(bundle)
    other = tmp_path / "other"
    cache.export(other, ops=["aten::silu"], cache_dir=made, sign=False)
    with BundleFile(bundle) as signed, BundleFile(other) as unsigned:
        contents = [content for _, content in unsigned.contents() if content is not None]
        with open(tmp_path / "forged", "wb") as file:
            write(file, unsigned.document, signed.signatures, contents)

    assert cache.verify_signature(tmp_path / "forged").signed_by == ()
    with pytest.raises(UntrustedBundleError):
        cache.load(tmp_path / "forged", cache_dir=there)


@pytest.mark.parametrize("document", [b"[", b"{}", b"[[1, 2]]", b'[["a"]]', b"[" * 60_000])
def test_signatures_that_cannot_be_read_are_an_error(
    bundle: Path,
    there: Path,
    document: bytes,
) -> None:
    with BundleFile(bundle) as opened:
        contents = [content for _, content in opened.contents() if content is not None]
        manifest = opened.document
    with open(bundle, "wb") as file:
        write(file, manifest, document, contents)
    if document == b"{}":
        assert cache.verify_signature(bundle).signed_by == ()
        return
    with pytest.raises(BundleError, match="signatures cannot be read"):
        cache.load(bundle, trust="any", cache_dir=there)


def test_a_damaged_bundle_is_not_signed(bundle: Path) -> None:
    cache.keygen()
    content = bytearray(bundle.read_bytes())
    place = content.rindex(b"aten::silu" * 10)
    content[place] ^= 1
    bundle.write_bytes(content)
    with pytest.raises(BundleError, match="is damaged"):
        cache.sign(bundle)
    assert bundle.read_bytes() == content


def test_a_key_is_its_owners_alone(home: Path, bundle: Path, made: Path) -> None:
    public = cache.keygen()
    key = home / "signing_key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert public.encode() not in key.read_bytes()
    with pytest.raises(SigningError, match="there is a key already"):
        cache.keygen()
    key.chmod(0o640)
    with pytest.raises(SigningError, match="others can read the key .mode 640.: chmod 600"):
        cache.sign(bundle)
    key.chmod(0o600)
    key.write_text("no key")
    with pytest.raises(SigningError, match="is no private key"):
        cache.sign(bundle)
    with pytest.raises(SigningError, match="is no private key"):
        cache.export(bundle, cache_dir=made)  # A key that cannot be used is not passed over.
    os.unlink(key)
    with pytest.raises(SigningError, match="there is no key; `aoti-eager keygen` makes one"):
        cache.sign(bundle)


@pytest.mark.parametrize("value", ["rsa:AAAA", "ed25519:AAAA", ["ed25519"], 7])
def test_a_wrong_key_in_the_settings_is_an_error(value: object) -> None:
    with pytest.raises(ConfigError, match="wants public keys as keygen prints them"):
        config.trusted_keys = value


def test_without_the_package_a_message_says_what_to_install(
    bundle: Path,
    there: Path,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache.keygen()
    cache.sign(bundle)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    for call in (cache.keygen, lambda: cache.load(bundle, cache_dir=there)):
        with pytest.raises(SigningError, match="pip install 'aoti_eager"):
            call()
    assert cache.export(bundle, cache_dir=made).signed_by is None
    assert cache.load(bundle, trust="any", cache_dir=there).entries == 3


def test_the_verbs(
    made: Path,
    there: Path,
    tmp_path: Path,
    theirs: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        assert cli.main(arguments) == status
        said = capsys.readouterr()
        return said.out if status != 2 else said.err

    path = str(tmp_path / "b")
    store, other = str(made), str(there)
    assert run("export", path, "--sign", status=2).endswith("`aoti-eager keygen` makes one\n")
    said = run("export", path, "--op", "aten::add", "--op", "aten::silu", "--cache-dir", store)
    assert said.startswith("3 entries: ")
    assert said.endswith(f" KiB in {path}, not signed\n")
    said = run("export", path, "--op", "aten::silu", "--cache-dir", store)
    assert said.splitlines()[1] == "left out: other_op 2"
    assert run("verify-signature", path, status=1) == "not signed\n"
    assert "is not signed" in run("load", path, "--cache-dir", other, status=2)
    said = run("load", path, "--trust", "any", "--cache-dir", other)
    assert said.startswith("1 entries taken, 1 of them for this torch")
    public = run("keygen").strip()
    assert run("sign", path).strip() == public
    assert json.loads(run("sign", path, "--key", str(theirs[0]), "--json")) == {
        "public_key": theirs[1]
    }
    lines = sorted(run("verify-signature", path).splitlines())
    assert lines == sorted([f"{public}  trusted", f"{theirs[1]}  not trusted"])
    assert json.loads(run("verify-signature", path, "--json"))["trusted"] == [public]
    document = json.loads(run("load", path, "--json", "--cache-dir", other))
    assert document["skipped"] == {"there_already": 1}
    assert document["signed_by"] == [public]
    document = json.loads(run("export", path, "--json", "--cache-dir", store))
    assert (document["entries"], document["signed_by"], document["path"]) == (3, public, path)
    assert "is no bundle" in run("load", str(theirs[0]), "--cache-dir", other, status=2)
