"""Keys whose lock another process holds, and does not give back: it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._compile_service import cache_context, queue
from aoti_eager._compile_service.requests import EntryRequest
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._dispatch import resumed
from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._registration import registry
from aoti_eager._store import kept_queue
from aoti_eager._store.kept_queue import read_wanted
from aoti_eager.errors import AotiEagerWarning

aten = torch.ops.aten
X = torch.arange(12.0).reshape(3, 4)

# Says that it has the lock, and is stopped as by Ctrl-Z.
HOLDER = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def hold(cache_dir: Path) -> Iterator[Callable[[str], None]]:
    """A function that has the lock of a key's digest held by a process that is stopped."""
    holders: list[subprocess.Popen[bytes]] = []

    def hold_(digest: str) -> None:
        locks = cache_dir / "locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        command = [sys.executable, "-S", "-c", HOLDER, str(locks / digest[:2])]
        holders.append(subprocess.Popen(command))
        _, status = os.waitpid(holders[-1].pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    yield hold_
    for holder in holders:
        holder.send_signal(signal.SIGKILL)
        holder.wait()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has wanted nothing yet."""
    monkeypatch.setattr(kept_queue, "_records", {})
    monkeypatch.setattr(resumed, "_resumption", resumed.Resumption())
    yield
    assert queue.background.wait(60.0)


def digest() -> str:
    """Return the digest of the key of a call with ``X``."""
    key = aoti_eager.explain("aten::silu", X).key
    assert key is not None
    return key.digest


def kernels() -> KernelCache:
    """Return what is registered for the op."""
    cache = registry.find_cache(aten.silu.default, "CPU")
    assert cache is not None
    return cache


def stats() -> OpStats:
    return aoti_eager.stats()["aten::silu"]


def test_who_waits_for_kernels_does_not_wait_for_a_process_that_is_stopped(
    hold: Callable[[str], None], cache_dir: Path
) -> None:
    with (
        aoti_eager.config.scope(mode="background", compile_after=1, lock_timeout_s=0.6),
        aoti_eager.register("aten::silu"),
    ):
        cache_context.current().store.create()
        hold(digest())
        with pytest.warns(AotiEagerWarning, match="has held the key's lock for 0.6 s"):
            aten.silu(X)
            assert aoti_eager.wait(120.0)
        assert aoti_eager.explain("aten::silu", X).reason == "locked"
        aten.silu(X)
        assert stats() == OpStats(misses=1, declines=1, failures=1, declined={"locked": 1})
        wanted = digest()
    kept_queue._keep_all()  # For a later process: this one has nothing to say of the key.
    assert set(read_wanted(cache_dir)) == {wanted}


def test_a_call_that_waits_for_its_kernel_does_not_wait_for_good(
    hold: Callable[[str], None],
) -> None:
    with (
        aoti_eager.config.scope(mode="sync", lock_timeout_s=0.1),
        aoti_eager.register("aten::silu"),
    ):
        cache_context.current().store.create()
        hold(digest())
        with pytest.warns(AotiEagerWarning, match="another process has been compiling this key"):
            aten.silu(X)
        assert aoti_eager.explain("aten::silu", X).reason == "locked"


def test_a_key_of_an_earlier_process_is_not_asked_for_without_end(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """The longer it is busy the more seldom."""
    asked: list[str] = []

    def publish(service: Any, request: EntryRequest) -> None:
        asked.append(request.code.call.key.digest)

    monkeypatch.setattr(CompileService, "publish", publish)
    with (
        aoti_eager.config.scope(mode="background", compile_after=1, lock_timeout_s=1.75),
        aoti_eager.register("aten::silu"),
    ):
        cache_context.current().store.create()
        with pytest.warns(AotiEagerWarning, match="lock_timeout_s"):
            aten.silu(X)
            assert aoti_eager.wait(120.0)
        # At once, and after 0.25, 0.25, 0.5 and 0.75 s.
        assert asked == [digest()] * 5
    kept_queue._keep_all()
    (kept,) = read_wanted(cache_dir).values()
    asked.clear()
    with (
        aoti_eager.config.scope(mode="background", lock_timeout_s=0.5),
        aoti_eager.register("aten::silu"),
    ):
        cache = kernels()
        left = resumed.Resumed(kept, cache, cache.table, cache_context.current())
        delays = []
        while (delay := left.run()) is not None:
            delays.append(delay)
    assert delays == [0.25, 0.25]
    assert left.outcome is not None
    assert (left.outcome.kind, left.outcome.reason) == ("failed", "locked")


def test_counters_of_keys_that_were_decided_on_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CompileService, "publish", lambda *_, **__: None)
    with (
        aoti_eager.config.scope(mode="background", compile_after=1, lock_timeout_s=1e-9),
        aoti_eager.register("aten::silu"),
        pytest.warns(AotiEagerWarning, match="lock_timeout_s"),
    ):
        for rows in range(1, 21):
            x = torch.ones(rows, 3)
            aten.silu(x)
            assert queue.background.wait(60.0)
            aten.silu(x)
        assert len(kernels().counters._pending) <= 3
        assert (stats().misses, stats().declined) == (20, {"locked": 20})
