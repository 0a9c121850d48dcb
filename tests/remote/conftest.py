"""A server that speaks S3, in a process of its own, and stores with made-up kernels."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoti_eager._base.tier_names import TierName, tier_name
from aoti_eager._remote.remote_store import RemoteStore


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a running server."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:  # Ends with the test's time limit, if the server does not start.
            assert server.poll() is None, "the server has ended"
            try:
                asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                asked.request("GET", "/moto-api/")
                asked.getresponse()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def speak_s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have fsspec's s3:// go to a server, by the variables that users have for it."""

    def speak(url: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    return speak


@pytest.fixture
def bucket(s3_server: str, speak_s3: Callable[[str], None]) -> str:
    """The URL of an empty bucket."""
    import s3fs

    speak_s3(s3_server)
    name = f"kernels-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    return f"s3://{name}/cache"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, without a signing key."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path / "config"))
    monkeypatch.setenv("HOME", str(path))
    return path


def url_of(directory: Path) -> str:
    return f"file://{directory}"


def remote_store(url: str, **options: float) -> RemoteStore:
    # A busy machine may take longer than the two seconds of users for a request.
    return RemoteStore(name_of(url), **{"timeout_s": 60.0, **options})  # type: ignore[arg-type]


def name_of(url: str) -> TierName:
    return tier_name(url if url[:3] in ("ro:", "rw:") else f"rw:{url}")


def proxies() -> list[str]:
    return [name for name in os.environ if name.lower().endswith("_proxy")]
