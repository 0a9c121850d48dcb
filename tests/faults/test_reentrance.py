"""Calls inside of our own work: a finalizer runs wherever the collector does."""

from __future__ import annotations

import contextlib
import threading

import torch

import aoti_eager
from aoti_eager._base import warn_once
from aoti_eager._compile_service import cache_context
from aoti_eager._registration import registry


def test_a_finalizer_that_calls_an_op_inside_of_our_locks_does_not_wait_for_itself() -> None:
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
