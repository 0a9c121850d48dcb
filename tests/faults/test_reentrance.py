"""Calls inside of our own work, by finalizers and signal handlers."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager._base import warn_once
from aoti_eager._compile_service import cache_context
from aoti_eager._registration import registry

from ..support.processes import run_script


def test_a_finalizer_that_calls_an_op_inside_of_our_locks_does_not_wait_for_itself() -> None:
    """A finalizer runs wherever the garbage collector does."""
    with aoti_eager.register("aten::silu") as registration:
        (cache,) = [c for c in registry.caches() if c.schema.op == "aten::silu"]

        def call() -> None:
            locks = (cache.counters._lock, cache._flight_lock, cache_context._lock, warn_once._lock)
            with contextlib.ExitStack() as held:
                for lock in locks:
                    held.enter_context(lock)
                with aoti_eager.config.scope(mode="cache_only"):
                    torch.ops.aten.silu(torch.ones(3))

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(30.0)
        assert not thread.is_alive()
        assert registration.ops
        assert cache.counters.declined("not_in_cache").value == 1


@pytest.mark.full
@pytest.mark.compiles  # The handler comes during the compile.
@pytest.mark.both_paths(costly=True)
def test_a_signal_handler_may_call_registered_ops_during_a_compile_and_a_hit(
    shared_cache_dir: Path, cache_dir: Path
) -> None:
    done = run_script(
        """
        import signal, torch, aoti_eager
        x, calls = torch.randn(8, 24), []
        def handler(*_):
            calls.append(torch.ops.aten.silu(x[0]))
            calls.append(torch.ops.aten.silu(x))
        signal.signal(signal.SIGALRM, handler)
        with aoti_eager.register("aten::silu"):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            torch.ops.aten.silu(x)
            assert calls, "the compile was too quick for the test"
            assert aoti_eager.stats()["aten::silu"].declined == {"reentrant": 2}
            signal.signal(signal.SIGALRM, lambda *_: torch.ops.aten.silu(x))
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
            for _ in range(20_000):
                torch.ops.aten.silu(x)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert aoti_eager.stats()["aten::silu"].hits > 20_000
        """,
        cache_dir,
    )
    assert done.returncode == 0, done.stderr
