"""Calls with a remote tier: no call waits, and what comes is found by the key's next calls.

The mode is the background's, as it ships, with the gate off, so that what comes serves.
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

import aoti_eager
from aoti_eager import cache
from aoti_eager._compile_service import cache_context
from aoti_eager._remote import courier as courier_module
from aoti_eager._remote import remote_store
from aoti_eager._remote.courier import Courier, courier_of
from aoti_eager.errors import AotiEagerWarning

from ..conftest import assert_close
from ..remote.conftest import bucket, home, s3_server, speak_s3  # noqa: F401 - fixtures
from ..support.kept_builds import make_cache_dir
from .test_tiers import WANT, X, registered, the_entry

pytestmark = pytest.mark.usefixtures("home")

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A busy machine may take longer than the two seconds of users for a request."""
    monkeypatch.setattr(
        remote_store.RemoteStore.__init__, "__kwdefaults__", {"timeout_s": 60.0, "clock": CLOCK}
    )
    yield
    assert courier_module.wait(60)
    courier_module._couriers.clear()


CLOCK = remote_store.RemoteStore.__init__.__kwdefaults__["clock"]


def the_courier() -> Courier:
    context = cache_context.current()
    assert context.tiers is not None
    return courier_of(context.store, context.tiers.remote)


def remote_counts() -> dict[str, int]:
    return cache.tiers()[-1].counts


def call() -> None:
    assert_close(aten.silu(X), WANT)


@pytest.fixture
def pushed(tmp_path: Path, shared_cache_dir: Path) -> str:
    """The URL of a shared directory with a kernel for ``silu``."""
    path = make_cache_dir(tmp_path / "made", shared_cache_dir)
    with aoti_eager.config.scope(cache_dir=path), registered() as counted:
        call()
        assert counted.counts["compiles"] == 1
    url = f"file://{tmp_path / 'shared'}"
    assert cache.push(url, cache_dir=path).moved == 1
    return url


def test_a_kernel_comes_from_a_real_server(
    pushed: str,
    bucket: str,  # noqa: F811
    tmp_path: Path,
    cache_dir: Path,
    no_compiles: None,
) -> None:
    assert cache.push(bucket, cache_dir=tmp_path / "made").moved == 1
    with (
        aoti_eager.config.scope(tiers=f"ro:{bucket}#trust=any", mode="cache_only"),
        registered() as counted,
    ):
        call()
        assert the_courier().wait(120)
        assert not the_entry(cache_dir).entry.checked
        call()  # A worker tries the library.
        assert counted.counts["hits"] == 0
        call()  # Compared in this call.
        call()
        assert counted.counts == {"hits": 1, "compiles": 0, "not_in_cache": 1}
        assert remote_counts()["hits"] == 1


def test_a_key_that_is_counted_gets_the_kernel(pushed: str, no_compiles: None) -> None:
    with (
        aoti_eager.config.scope(tiers=f"ro:{pushed}#trust=any", mode="background"),
        registered() as counted,
    ):
        call()
        assert the_courier().wait(120)
        for _ in range(4):
            call()
            found = counted.counts
        assert found["hits"] >= 1


def test_unsigned_kernels_are_refused_with_one_warning(pushed: str, cache_dir: Path) -> None:
    with (
        aoti_eager.config.scope(tiers=f"ro:{pushed}", mode="cache_only"),
        registered() as counted,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for rows in (8, 8, 9):
            aten.silu(torch.ones(rows, 8))
            assert the_courier().wait(120)
        assert counted.counts["hits"] == 0
        assert remote_counts()["refused"] == 1
    assert len(caught) == 1, [str(one.message) for one in caught]
    assert "is not signed" in str(caught[0].message)
    assert not (cache_dir / "v1").exists()


def test_nobody_is_asked_where_a_nearer_store_has_the_kernel(pushed: str, tmp_path: Path) -> None:
    for chosen in (
        {"cache_dir": tmp_path / "made", "tiers": pushed},
        {"tiers": [str(tmp_path / "made"), pushed]},
    ):
        with aoti_eager.config.scope(**chosen, mode="cache_only"), registered() as counted:  # type: ignore[arg-type]
            call()
            call()
            assert counted.counts["hits"] >= 1
            assert the_courier().wait(120)
            assert cache.tiers()[-1].state == "unused"


def test_a_key_is_asked_for_once(pushed: str) -> None:
    with (
        aoti_eager.config.scope(tiers=pushed, mode="cache_only"),
        registered(),
    ):
        for _ in range(3):
            aten.silu(torch.ones(3, 3))
            assert the_courier().wait(120)
        assert remote_counts()["requests"] == 2  # Its key for any thread count, and for this one.
        assert remote_counts()["misses"] == 2


def test_new_kernels_are_given(tmp_path: Path, cache_dir: Path) -> None:
    cache.keygen()
    url = f"file://{tmp_path / 'shared'}"
    with aoti_eager.config.scope(tiers=f"rw:{url}"), registered() as counted:
        call()
        assert counted.counts["compiles"] == 1
        assert the_courier().wait(120)
        assert remote_counts()["given"] == 1
    there = tmp_path / "there"
    assert cache.pull(url, cache_dir=there).moved == 1
    assert the_entry(there).entry.library == the_entry(cache_dir).entry.library


def test_calls_go_on_while_a_server_hangs(
    speak_s3: Callable[[str], None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        remote_store.RemoteStore.__init__, "__kwdefaults__", {"timeout_s": 2.0, "clock": CLOCK}
    )
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        speak_s3(f"http://127.0.0.1:{server.getsockname()[1]}")
        with (
            warnings.catch_warnings(record=True) as caught,
            aoti_eager.config.scope(tiers="ro:s3://bucket/cache", mode="cache_only"),
            registered(),
        ):
            warnings.simplefilter("always")
            call()
            connected = server.accept()  # The request is under way, and stays so.
            calls = 0
            for rows in range(1, 200):  # New keys, and a key that is known.
                aten.silu(torch.ones(rows, 3))
                call()
                calls += 2
            assert calls == 398
            assert the_courier().wait(120)
            connected[0].close()
    found = [one for one in caught if issubclass(one.category, AotiEagerWarning)]
    assert len(found) == 1, [str(one.message) for one in found]
    assert "s3://bucket/cache" in str(found[0].message)


def test_a_forked_child_has_no_courier(pushed: str) -> None:
    with aoti_eager.config.scope(tiers=pushed, mode="cache_only"), registered():
        call()
        assert the_courier().wait(120)
        pid = os.fork()
        if not pid:
            try:
                assert courier_module._couriers == {}
                aten.silu(torch.ones(5, 5))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0


def test_a_place_that_comes_back_is_asked_again(
    pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note whose tier failed is tried again, and the failure is not taken for an answer."""
    monkeypatch.setattr(courier_module, "_AGAIN_S", (0.0, 0.0))
    failing = [OSError(errno.ESTALE, "Stale file handle")] * 2
    real = LocalFileSystem.find

    def find(files: LocalFileSystem, *args: Any, **kwargs: Any) -> Any:
        if failing:
            raise failing.pop()
        return real(files, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "find", find)
    with (
        pytest.warns(AotiEagerWarning, match="Stale file handle"),
        aoti_eager.config.scope(tiers=f"ro:{pushed}#trust=any", mode="cache_only"),
        registered(),
    ):
        call()
        assert the_courier().wait(120)
        assert remote_counts()["errors"] == 2
        assert remote_counts()["hits"] == 1


def test_a_note_that_had_no_room_is_left_by_a_later_call(
    pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        aoti_eager.config.scope(tiers=f"ro:{pushed}#trust=any", mode="cache_only"),
        registered(),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(courier_module, "MOST_NOTES", 0)
            call()
            assert the_courier().wait(120)
        assert cache.tiers()[-1].state == "unused"
        with aoti_eager.config.scope(mode="sync"):  # A change of the mode forgets declines.
            pass
        call()
        assert the_courier().wait(120)
        assert remote_counts()["hits"] == 1
