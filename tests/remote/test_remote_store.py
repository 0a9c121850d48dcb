"""One remote place: its requests, against servers that answer, hang, fail and lie."""

from __future__ import annotations

import http.server
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aoti_eager._base.tier_names import tier_name, tiers
from aoti_eager._remote import remote_store as module
from aoti_eager._remote.packed import OBJECT_LIMIT
from aoti_eager.errors import AotiEagerWarning, RemoteTierError

from .conftest import remote_store, url_of

PATH = "v1/e/op/static/d/t.bundle"


def test_what_is_written_is_listed_and_read(bucket: str, tmp_path: Path) -> None:
    for url in (bucket, url_of(tmp_path / "shared")):
        remote = remote_store(url)
        assert remote.objects("v1") == {}
        content = bytes(range(256)) * 10_000  # More than one piece.
        remote.write(PATH, content)
        assert remote.objects("v1") == {PATH: len(content)}
        assert remote.read(PATH, len(content)) == content
        assert remote.objects("v2") == {}
        # What others write meanwhile is seen: nothing is remembered.
        other = remote_store(url)
        other.write(f"{PATH}2", b"two")
        assert set(remote.objects("v1")) == {PATH, f"{PATH}2"}
        assert remote.counts["given"] == 1


def test_an_object_that_is_gone_or_half_written_is_no_error(bucket: str, tmp_path: Path) -> None:
    for url in (bucket, url_of(tmp_path)):
        remote = remote_store(url)
        assert remote.read(PATH, 10) is None
        remote.write(PATH, b"12345")
        assert remote.read(PATH, 10) is None
        assert remote.counts["errors"] == 0
        assert remote.breaker.state == "closed"


def test_a_directory_has_no_half_written_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that dies in between leaves a part, which no reader takes for an object."""
    from fsspec.implementations.local import LocalFileSystem

    remote = remote_store(url_of(tmp_path))

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalFileSystem, "mv", killed)
    with pytest.raises(RemoteTierError), pytest.warns(AotiEagerWarning):
        remote.write(PATH, b"12345")
    assert not (tmp_path / PATH).exists()
    assert [name.endswith(".part") for name in remote.objects("v1")] == [True]


def test_an_object_past_the_limit_is_not_read(tmp_path: Path) -> None:
    remote = remote_store(url_of(tmp_path))
    with pytest.warns(AotiEagerWarning, match="at most"):
        assert remote.read(PATH, OBJECT_LIMIT + 1) is None
    assert remote.counts["requests"] == 0
    assert remote.counts["refused"] == 1


# -- servers --


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that accepts connections, and never says anything."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def failing() -> Iterator[str]:
    """A server that answers everything with an error of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_hangs_is_given_up_and_then_left_alone(
    hanging: str, speak_s3: Callable[[str], None]
) -> None:
    speak_s3(hanging)
    remote = remote_store("s3://bucket/cache", timeout_s=0.2)
    remote._has_answered = True  # The first request has more time.
    with pytest.warns(AotiEagerWarning, match=r"no answer within 0\.2 s") as caught:
        with pytest.raises(RemoteTierError, match="no answer"):
            remote.objects("v1")
        with pytest.raises(RemoteTierError, match="has not ended yet"):
            remote.objects("v1")
    assert len(caught) == 1
    assert remote.counts["requests"] == 1


def test_a_server_with_errors_opens_the_breaker(
    failing: str, speak_s3: Callable[[str], None]
) -> None:
    speak_s3(failing)
    remote = remote_store("s3://bucket/cache")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            with pytest.raises(RemoteTierError):
                remote.objects("v1")
    assert len([one for one in caught if issubclass(one.category, AotiEagerWarning)]) == 1
    assert remote.counts["requests"] == 3
    assert remote.breaker.state == "open"
    assert "cannot be listed" in remote.last_error


def test_no_server_is_an_error(speak_s3: Callable[[str], None]) -> None:
    speak_s3("http://127.0.0.1:9")
    with pytest.raises(RemoteTierError), pytest.warns(AotiEagerWarning):
        remote_store("s3://bucket/cache").objects("v1")


def test_a_protocol_that_there_is_not_is_an_error() -> None:
    with (
        pytest.raises(RemoteTierError, match="nonsense"),
        pytest.warns(AotiEagerWarning, match="nonsense"),
    ):
        remote_store("nonsense://bucket").objects("v1")


def test_users_have_two_seconds_after_the_first_request(tmp_path: Path) -> None:
    remote = module.RemoteStore(tier_name(f"ro:{url_of(tmp_path)}"))
    assert not remote._has_answered
    remote.objects("v1")
    assert remote._has_answered
    assert module.TIMEOUT_S <= 2.0
    assert module.RemoteStore(tier_name("ro:memory://x"))._timeout_s == module.TIMEOUT_S


# -- names --


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", ()),
        ("/opt/kernels", ("ro:/opt/kernels",)),
        ("ro:/a,rw:/b, s3://c/d/ ,", ("ro:/a", "rw:/b", "ro:s3://c/d")),
        (["rw:gs://c"], ("rw:gs://c",)),
        ("s3://c#trust=any", ("ro:s3://c#trust=any",)),
        ("s3://c#trust=signed", ("ro:s3://c",)),
    ],
)
def test_tiers_have_these_names(text: Any, want: tuple[str, ...]) -> None:
    assert tiers(text) == want
    assert tiers(list(want)) == want


@pytest.mark.parametrize(
    "value",
    ["kernels", "ro:kernels", "s3://", "s3://c#trust=me", "/a,/a", "/a,rw:/a", 7, [7], None],
)
def test_these_are_no_tiers(value: Any) -> None:
    with pytest.raises(ValueError, match="wants stores behind the cache directory"):
        tiers(value)
