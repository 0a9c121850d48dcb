"""A library that a call compares with the original before the library serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._compile_service import queue
from .._compile_service.cache_context import CacheContext
from .._native.passthrough import passthrough
from ..config import config
from .decision import put, refusal_of
from .gate import Gate, Judged
from .kernel import Kernel, call_inputs
from .kernel_request import KernelRequest
from .live_check import LiveCheck
from .quarantine import quarantine

# A call that takes longer, or has more elements, is not run a second time in the caller's thread:
# the comparison in the worker, on made-up data, must do.
LIVE_CHECK_LIMIT_S = 200e-6
LIVE_CHECK_LIMIT_NUMEL = 1 << 16
# A call that takes that long by chance (a cold cache, a busy core) leaves the comparison to the
# next call. After so many slow calls, no further call is waited for.
_SLOW_CALLS = 4


class Candidate:
    """A loaded library that the key's next call compares with the original before it serves.

    Args:
        call: The call that the library was made or found for.
        judged: The library's entry, with what is known of it here.
        kernel: The loaded library.
        context: The context of the key: by the time of a call, the settings may name another store.
    """

    def __init__(
        self, call: KernelRequest, judged: Judged, kernel: Kernel, context: CacheContext
    ) -> None:
        self._call = call
        self._judged = judged
        self._kernel = kernel
        # Whether the comparison on made-up data counts: not if somebody has overridden the op.
        self._is_compared = judged.verdict.compared and not call.cache.original.overridden
        self._slow_calls = 0
        self._context = context
        self._is_used = False

    def compare(self, live: LiveCheck, result: Any, before: list[Tensor]) -> None:
        """Decide on the library by a call that has its result, in the calling thread.

        Args:
            live: The comparison for the call.
            result: What the original returned.
            before: What ``LiveCheck.copies`` returned before the original ran.
        """
        self._check(live, result, before, at_once=True)

    def serve(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the original's result, and decide on the library, or leave that to a later call.

        Only the call that has taken the candidate out of the table calls this.
        """
        call = self._call
        if self._is_used:
            return self._served(keyset, args, kwargs)
        call.cache.counters.misses.add()
        result = nothing = object()
        raised: BaseException | None = None

        def original() -> Any:
            nonlocal result, raised
            try:
                result = call.cache.original(keyset, args, kwargs)
            except BaseException as error:
                raised = error
                raise
            return result

        try:
            return self._decided(original, keyset, args, kwargs)
        except Exception as error:
            if error is raised or config.strict:
                call.table.forget_decline(call.table_key)  # Nothing is known: another call tries.
                raise
            # An error of ours (no memory for a copy, say), in a call that PyTorch would have run.
            refusal = refusal_of(call.key.op, error)
            call.decline(refusal.reason, refusal.message)
            return original() if result is nothing else result
        except BaseException:
            call.table.forget_decline(call.table_key)  # Ctrl-C: a later call tries again.
            raise

    def _served(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the kernel's result from a run by Python; C++ serves the next call."""
        self._put()
        try:
            return self._call.cache.python_kernel(keyset, *args, **kwargs)
        finally:
            if self._kernel.native() is not None:
                self._put()

    def _decided(
        self,
        original: Callable[[], Any],
        keyset: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        call = self._call
        elsewhere = call.toolchain.works_in_background and not call.cache.compares_always
        if Gate(call).is_on and not self._kernel.gated:
            call.table.forget_decline(call.table_key)  # The library has to be measured first.
            return original()
        if elsewhere and call.numel > LIVE_CHECK_LIMIT_NUMEL:
            self._unchecked()
            return original()
        with passthrough():
            inputs, same = self._inputs(args, kwargs)
            live = LiveCheck(call.cache.op, call.template, call.cache.original, keyset, inputs)
            before = live.copies()
        if not same:
            # Another thread has just changed what the op's function uses.
            call.table.forget_decline(call.table_key)
            return original()
        sizes_before = [(tensor.shape, tensor.stride()) for tensor in inputs]
        start = time.perf_counter()
        result = original()
        taken = time.perf_counter() - start
        if sizes_before != [(tensor.shape, tensor.stride()) for tensor in inputs]:
            call.decline("out_resized", f"{call.key.op}: the original resized an argument")
        elif elsewhere and taken > LIVE_CHECK_LIMIT_S:
            self._took_long()
        else:
            self._check(live, result, before, at_once=False)
        return result

    def _check(self, live: LiveCheck, result: Any, before: list[Tensor], *, at_once: bool) -> None:
        """Use or quarantine the library; ``at_once`` if the call waits for what is written."""
        found = self._judged.found
        problems = live.problems(self._kernel, found.entry.outputs, result, before)
        if problems:
            quarantine(self._call, found, problems, self._context, at_once=at_once)
            return
        self._put()
        if at_once:
            Gate(self._call).keep_check(self._judged, self._context)
        else:
            queue.background.run_background_write(
                lambda: Gate(self._call).keep_check(self._judged, self._context)
            )

    def _took_long(self) -> None:
        """Leave the comparison to the next call if calls of this key are usually short."""
        self._slow_calls += 1
        times = self._judged.verdict.times.values()
        measured = [taken.original_us for taken in times]
        is_short = not measured or min(measured) <= 1e6 * LIVE_CHECK_LIMIT_S
        if is_short and self._slow_calls <= _SLOW_CALLS:
            self._call.table.offer(self._call.table_key, self)
        else:
            self._unchecked()

    def _unchecked(self) -> None:
        """Decide by what was compared outside of this process."""
        table = self._call.table
        if not self._is_compared:
            self._call.decline("unchecked", "too long a call to be compared in the caller's thread")
        elif table.dynamic.kernels.is_distrusted(self._judged.found.entry):
            # The library's results were wrong for another size meanwhile.
            table.forget_decline(self._call.table_key)
        elif self._kernel.native() is None and table.native is not None:
            self._is_used = True  # C++ takes some kernels after their first run only.
            table.offer(self._call.table_key, self)
        else:
            self._put()

    def _put(self) -> None:
        put(self._call, self._kernel)

    def _inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], bool]:
        """Return the call's inputs, and whether its function is what it was at the miss."""
        cache = self._call.cache
        values = cache.schema.bind(args, kwargs)
        inputs = call_inputs(cache.schema, values)
        if cache.function is None:
            return inputs, True
        state, constants = cache.function.snapshot()
        return [*inputs, *constants], state == self._call.table_key[0]
