"""What ``doctor`` says of tiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aoti_eager import cache, config
from aoti_eager._commands.doctor_tiers import tier_findings
from aoti_eager._remote import remote_store

from ..bundles.conftest import made  # noqa: F401 - a fixture
from ..remote.conftest import home, speak_s3  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("home")


def found(*tiers: str) -> list[tuple[str, str, str]]:
    with config.scope(tiers=tiers):
        return [(one.state, one.message, one.advice) for one in tier_findings()]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than the two seconds of users for a request."""
    options = dict(remote_store.RemoteStore.__init__.__kwdefaults__, timeout_s=60.0)
    monkeypatch.setattr(remote_store.RemoteStore.__init__, "__kwdefaults__", options)


def test_without_tiers_there_is_nothing_to_say() -> None:
    assert tier_findings() == []


def test_directories(made: Path, tmp_path: Path) -> None:  # noqa: F811
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    states = found(
        f"ro:{made}", f"ro:{tmp_path / 'gone'}", f"rw:{tmp_path / 'new'}", f"ro:{open_to_all}",
        f"ro:{empty}",
    )  # fmt: skip
    assert [state for state, _, _ in states] == ["ok", "note", "ok", "problem", "note"]
    assert "there is no such directory" in states[1][1]
    assert "can write to it" in states[3][1]
    assert "no entries of this torch" in states[4][1]
    assert not (tmp_path / "new").exists()


def test_remote_places(
    made: Path,  # noqa: F811
    tmp_path: Path,
    speak_s3: Callable[[str], None],  # noqa: F811
) -> None:
    url = f"file://{tmp_path / 'shared'}"
    cache.push(url, cache_dir=made)
    speak_s3("http://127.0.0.1:9")
    unsigned, trusting, unreachable = found(
        f"ro:{url}", f"ro:{url}2#trust=any", "ro:s3://bucket/cache"
    )
    assert unsigned[0] == "note"
    assert "3 kernels of this torch" in unsigned[1]
    assert "you trust nobody" in unsigned[1]
    assert trusting[0] == "ok"
    assert "0 kernels" in trusting[1]
    assert unreachable[0] == "problem"
    assert "credentials" in unreachable[2]
    cache.keygen()
    assert found(f"ro:{url}")[0][0] == "ok"
