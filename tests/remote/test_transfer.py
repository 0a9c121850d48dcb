"""``push`` and ``pull``: kernels to a real S3 server and back. Nothing is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import cache, config
from aoti_eager._bundles.signing import key_path
from aoti_eager._remote import packed
from aoti_eager._store.entry import Status
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager.errors import (
    AotiEagerWarning,
    BundleError,
    ConfigError,
    EntryDamagedError,
    RemoteTierError,
    SigningError,
    UntrustedBundleError,
)

from ..bundles.conftest import OPS, made, open_store, put, there  # noqa: F401 - fixtures
from ..support.entries import OTHER_ENVIRONMENT
from .conftest import remote_store, url_of

pytestmark = pytest.mark.usefixtures("home", "patient")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than the two seconds of users for a request."""
    monkeypatch.setattr("aoti_eager._remote.transfer.RemoteStore", _patient)
    monkeypatch.setattr("aoti_eager._remote.transfer._AGAIN_S", (0.0, 0.0))


def _patient(name: Any) -> Any:
    return remote_store(name.text)


def libraries(root: Path) -> dict[str, bytes]:
    store, found = open_store(root), {}
    for one in store.scan():
        assert isinstance(one, StoredEntry)
        content = store.check_library(one).content
        assert content is not None
        found[str(one.path.relative_to(root))] = content
    return found


def test_what_is_pushed_is_pulled_elsewhere(bucket: str, made: Path, there: Path) -> None:  # noqa: F811
    pushed = cache.push(bucket, cache_dir=made)
    assert (pushed.moved, pushed.there_already, pushed.failed) == (3, 0, 0)
    assert pushed.size_bytes > 0
    pulled = cache.pull(bucket, trust="any", cache_dir=there)
    assert (pulled.moved, pulled.there_already, pulled.failed) == (3, 0, 0)
    assert libraries(there) == libraries(made)
    for one in open_store(there).scan():
        assert isinstance(one, StoredEntry)
        assert not one.entry.checked
    assert cache.push(bucket, cache_dir=made).there_already == 3
    assert cache.pull(bucket, trust="any", cache_dir=there).there_already == 3


def test_ops_are_chosen(bucket: str, made: Path, there: Path) -> None:  # noqa: F811
    pushed = cache.push(bucket, ops=["aten::add*"], cache_dir=made)
    assert (pushed.moved, pushed.skipped) == (2, {"other_op": 1})
    pulled = cache.pull(bucket, ops=["aten::add.Scalar"], trust="any", cache_dir=there)
    assert (pulled.moved, pulled.skipped) == (1, {"other_op": 1})


def test_kernels_of_this_environment_alone_are_pushed(tmp_path: Path, bucket: str) -> None:
    store = open_store(tmp_path / "mixed")
    put(store)
    put(store, "aten::add.Scalar", environment=OTHER_ENVIRONMENT)
    put(store, "aten::mul", status=Status.DECLINED, reason="random", content=None)
    report = cache.push(bucket, cache_dir=store.root)
    assert report.moved == 1
    assert report.skipped == {"no_kernel": 1, "other_environment": 1}


def test_nothing_is_taken_from_whom_nobody_trusts(bucket: str, made: Path, there: Path) -> None:  # noqa: F811
    cache.push(bucket, cache_dir=made)
    report = cache.pull(bucket, cache_dir=there)
    assert (report.moved, report.failed) == (0, 3)
    assert "is not signed" in report.problems[0]
    assert not (there / "v1").exists()


def test_a_signature_of_ones_own_is_trusted(bucket: str, made: Path, there: Path) -> None:  # noqa: F811
    public = cache.keygen()
    assert cache.push(bucket, cache_dir=made).moved == 3
    assert cache.pull(bucket, cache_dir=there).moved == 3
    # On another machine, the key is named.
    key_path().unlink()
    other = there.with_name("other")
    assert cache.pull(bucket, cache_dir=other).failed == 3
    with config.scope(trusted_keys=[public]):
        assert cache.pull(bucket, cache_dir=other).moved == 3


def test_a_key_that_cannot_be_used_is_an_error(bucket: str, made: Path) -> None:  # noqa: F811
    cache.keygen()
    key_path().chmod(0o644)
    with pytest.raises(SigningError, match="others can read"):
        cache.push(bucket, cache_dir=made)


def test_the_tier_of_the_setting_is_the_place(tmp_path: Path, made: Path, there: Path) -> None:  # noqa: F811
    url = url_of(tmp_path / "shared")
    with config.scope(tiers=[f"ro:{tmp_path}", f"rw:{url}#trust=any"]):
        assert cache.push(cache_dir=made).moved == 3
        assert cache.pull(cache_dir=there).moved == 3  # As the tier says: any.


@pytest.mark.parametrize(
    ("chosen", "url", "text"),
    [
        ((), None, "has 0 writable remote tiers"),
        (("ro:s3://a",), None, "has 0 writable remote tiers"),
        (("rw:s3://a", "rw:s3://b"), None, "has 2 writable remote tiers"),
        ((), "/opt/kernels", "wants a URL"),
        ((), "kernels", "neither an absolute path nor a URL"),
    ],
)
def test_a_place_that_is_not_clear_is_an_error(
    chosen: tuple[str, ...], url: str | None, text: str
) -> None:
    with config.scope(tiers=chosen), pytest.raises(ConfigError, match=text):
        cache.push(url)


def test_a_place_without_an_answer_is_an_error(
    speak_s3: Callable[[str], None],
    made: Path,  # noqa: F811
    there: Path,  # noqa: F811
) -> None:
    speak_s3("http://127.0.0.1:9")
    with pytest.raises(RemoteTierError), pytest.warns(AotiEagerWarning):
        cache.pull("s3://bucket/cache", cache_dir=there)
    report = cache.push("s3://bucket/cache", cache_dir=made)
    assert (report.moved, report.failed) == (0, 3)


# -- objects that lie --


def objects(root: Path) -> list[Path]:
    return sorted(root.rglob("*.bundle"))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "lie", ["cut off", "a bit of the library", "another kernel's", "no bundle", "empty"]
)
def test_wrong_bytes_under_a_right_name_are_not_taken(
    tmp_path: Path,
    made: Path,  # noqa: F811
    there: Path,  # noqa: F811
    lie: str,
) -> None:
    shared = tmp_path / "shared"
    cache.push(url_of(shared), cache_dir=made)
    first, second, _ = objects(shared)
    whole = first.read_bytes()
    first.write_bytes(
        {
            "cut off": whole[: len(whole) // 2],
            "a bit of the library": flipped(whole, whole.index(b"aten::add") + 3),
            "another kernel's": second.read_bytes(),
            "no bundle": b"<html>sign in</html>" * 100,
            "empty": b"",
        }[lie]
    )
    for _ in range(2):
        cache.pull(url_of(shared), trust="any", cache_dir=there)
    taken = libraries(there)
    assert len(taken) == 2
    assert taken.items() <= libraries(made).items()


def test_a_signed_object_that_was_changed_is_not_taken(
    tmp_path: Path,
    made: Path,  # noqa: F811
    there: Path,  # noqa: F811
) -> None:
    cache.keygen()
    shared = tmp_path / "shared"
    cache.push(url_of(shared), cache_dir=made)
    path = objects(shared)[0]
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(flipped(whole, place))
        cache.pull(url_of(shared), cache_dir=there)
        for name, content in libraries(there).items():
            assert content == libraries(made)[name]


def entry_of(root: Path) -> tuple[StoredEntry, bytes]:
    store = Store(root, lock_timeout_s=1.0)
    found = next(iter(store.scan()))
    assert isinstance(found, StoredEntry)
    content = store.check_library(found).content
    assert content is not None
    return found, content


def test_what_an_object_must_be(made: Path) -> None:  # noqa: F811
    found, library = entry_of(made)
    path = packed.object_path(found.entry)
    content = packed.pack(found.entry, library, None)
    entry, same = packed.unpack(content, path, "any")
    assert same == library
    assert entry == replace(found.entry, checked=False)
    with pytest.raises(UntrustedBundleError, match="not signed"):
        packed.unpack(content, path, "signed")
    with pytest.raises(EntryDamagedError, match="another entry"):
        packed.unpack(content, path.replace("static", "dynamic"), "any")
    quarantined = replace(found.entry, status=Status.QUARANTINED, reason="mismatch")
    with pytest.raises(EntryDamagedError, match="no kernel that may be used"):
        packed.unpack(packed.pack(quarantined, library, None), path, "any")
    with pytest.raises(BundleError):
        packed.unpack(b"", path, "any")


# -- on the command line --


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aoti_eager", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


def test_the_verbs(tmp_path: Path, made: Path, there: Path) -> None:  # noqa: F811
    url = url_of(tmp_path / "shared")
    done = run("push", url, "--cache-dir", str(made))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 kernels (")
    assert done.stdout.rstrip().endswith(f"to {url}; 0 were there")
    refused = run("pull", url, "--cache-dir", str(there))
    assert refused.returncode == 1
    assert "3 kernels could not be moved" in refused.stdout
    done = run("pull", url, "--trust", "any", "--cache-dir", str(there), "--json")
    assert json.loads(done.stdout)["moved"] == 3
    shown = run("tiers", AOTI_EAGER_TIERS=f"ro:{made},rw:{url}#trust=any")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["ro", "there"], ["rw", "unused"]]
    assert rows[2][2:] == [url, "trust=any"]
    wrong = run("push")
    assert wrong.returncode != 0
    assert "Traceback" not in wrong.stderr
    assert "has 0 writable remote tiers" in wrong.stderr
