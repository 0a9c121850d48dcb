"""Recheck: calls that a kernel serves are compared with the original once more.

A kernel is compared before it serves, on made-up data and on the data of one call. Its results for
other data are compared while it serves: its calls number 2, 4, 8, ..., 1,024, then each 65,536th,
also run the original (``_native/csrc/looks.h`` counts them on the C++ path). Only short calls with
small tensors are compared, and only so many that they take a thousandth of the process's time.

Longer than 350 lines, because the looks of all kernels draw on one share of time.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from threading import get_ident
from typing import Any

from torch import Tensor

from .._base.determinism import is_deterministic
from .._base.torch_compat.autograd import write_unseen
from .._base.torch_compat.settings import is_profiling
from .._base.warn_once import warn_once
from .._keys.call_template import CallTemplate, fresh_results
from .._native import library as native_library
from .._native import op_kernel
from .._native.passthrough import passthrough
from .._store.entry import Entry
from ..config import config
from ..errors import OriginalKernelError
from .compare import differences
from .kernel import Kernel, call_inputs
from .kernel_request import Cache, KernelRequest
from .live_check import LiveCheck
from .python_kernel import profiled, profiled_name
from .quarantine import quarantine_serving
from .reference import float64_reference
from .tensor_copies import copy_mutated, copy_tensor
from .versions import count_writes

log = logging.getLogger("aoti_eager")

# The limits of the comparison before a kernel serves: longer and larger calls are not run twice.
LIMIT_S = 200e-6
LIMIT_NUMEL = 1 << 16
# After more slow calls than this, no further call of a kernel is compared.
_SLOW_CALLS = 4
# The ratio of the process's whole time to the time that looks may take.
PARTS = 1000
# At most this much time for looks is saved up while there is nothing to look at: a process that has
# run for minutes without hits must not compare each of its next thousands of hits.
_SAVED_NS = 1_000_000

# Until this time no call is compared, because past looks have used up the share of looks until
# then.
_used_until_ns = time.monotonic_ns()
# The value that was published last: reading the settings in each call that is put off would cost
# more than the call.
_rest_until_ns = 0
# Whether C++ was told, too; ``None`` before anybody was.
_published: bool | None = None
# Threads with a call that C++ sent to be compared, and whose kernel Python does not have yet.
_wanting: set[int] = set()
# Threads whose next look is not put off.
_at_once: set[int] = set()


def next_look(number: int) -> int:
    """Return the number of a kernel's next call to be compared, after call ``number``."""
    return 1 << number.bit_length() if number < 1024 else (number // 65536 + 1) * 65536


def put_off(number: int) -> int:
    """Return after how many calls a look is due again, if there was no time at call ``number``.

    The numbers are large: asking whether there is time costs as much as a call, and a kernel that
    is never looked at must not pay for it.
    """
    return min(max(64, number // 16), 4096)


def used_until_ns(before_ns: int, begin_ns: int, taken_ns: int) -> int:
    """Return until when the time is used up, after a look.

    Args:
        before_ns: Until when the time was used up before.
        begin_ns: When the look began; all three times are by ``time.monotonic_ns``.
        taken_ns: How long it took.
    """
    return max(before_ns, begin_ns - PARTS * _SAVED_NS) + PARTS * taken_ns


def rest_until_ns() -> int:
    """Return until when no call is compared, by ``time.monotonic_ns``; forever if off."""
    if not (config.recheck and config.check):
        return (1 << 63) - 1
    return _used_until_ns


def publish() -> None:
    """Tell both hit paths when calls may be compared; after each change of a setting."""
    global _rest_until_ns, _published
    _published = native_library.is_loaded()
    _rest_until_ns = rest_until_ns()
    op_kernel.rest_looks(_rest_until_ns)


def publish_first() -> None:
    """Do as ``publish`` unless both hit paths, as far as they are loaded, were told before."""
    if _published is not native_library.is_loaded():
        publish()


@contextlib.contextmanager
def wanted() -> Iterator[None]:
    """Compare the next call of a kernel that this thread loads in the block."""
    _wanting.add(get_ident())
    try:
        yield
    finally:
        _wanting.discard(get_ident())


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Put off no look of this thread in the block, whatever looks have taken before."""
    _at_once.add(get_ident())
    try:
        yield
    finally:
        _at_once.discard(get_ident())


class Recheck:
    """Compares calls that one kernel serves.

    Args:
        call: The call that the kernel was loaded for.
        entry: The entry of its library.
    """

    __slots__ = ("_call", "_entry", "_number", "_slow_calls")

    def __init__(self, call: KernelRequest, entry: Entry) -> None:
        self._call = call
        self._entry = entry
        self._number = 2  # the number of the call that is due in Python
        self._slow_calls = 0

    def attach(self, kernel: Kernel) -> None:
        """Have ``kernel`` call ``serve`` when a look is due: in its second call, or at once.

        Where each process compares anyhow (``KernelCache.compares_always``), who calls the op says
        when a look is due.
        """
        kernel.look = self.serve
        if self._call.cache.compares_always:
            return  # The caller says when.
        kernel.is_looked_at = True
        kernel.look_after(0 if get_ident() in _wanting else 1)

    def serve(
        self, kernel: Kernel, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the result of a call, which is compared if there is time for that."""
        rests = time.monotonic_ns() < _rest_until_ns and get_ident() not in _at_once
        gap = put_off(self._number) if rests else next_look(self._number) - self._number
        self._number += gap
        kernel.look_after(gap - 1)
        if rests:
            return self._call.cache.python_kernel(keyset, *args, **kwargs)
        begin = time.monotonic_ns()
        try:
            return self._compared(kernel, keyset, args, kwargs)
        finally:
            global _used_until_ns
            _used_until_ns = used_until_ns(_used_until_ns, begin, time.monotonic_ns() - begin)
            publish()

    def _compared(
        self, kernel: Kernel, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        call, cache = self._call, self._call.cache
        try:
            look = self._look(keyset, args, kwargs)
        except Exception as error:  # noqa: BLE001 - no memory for a copy: the call goes on
            self._failed(kernel, error)
            look = None
        if look is None:
            return cache.python_kernel(keyset, *args, **kwargs)
        run = kernel.run
        if is_profiling():
            run = profiled(profiled_name(cache.schema.op), run)
        begin = time.perf_counter()
        try:
            with kernel.lock:
                outputs = run(list(look.inputs))
        except RuntimeError as error:
            return cache.run_failed(error, keyset, args, kwargs)
        if cache.counts_writes:
            slots = call.template.slots
            count_writes(t for slot, t in zip(slots, look.inputs, strict=True) if slot.mutated)
        limit_s = float("inf") if cache.compares_always else LIMIT_S
        if time.perf_counter() - begin > limit_s:
            self._leave_alone(kernel)
            problems = []
        else:
            try:
                problems = look.problems(kernel, outputs, self._entry)
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(kernel, error)
                problems = []
            cache.counters.rechecks.add()
            if look.taken_s > limit_s:
                self._leave_alone(kernel)
        if not problems:
            cache.counters.hits.add()
            return _result(kernel, outputs, args, kwargs)
        message = f"a served call differs from the original: {'; '.join(problems)}"
        quarantine_serving(call, self._entry, message)
        digest = call.template.key.digest
        warn_once(
            f"recheck {digest}",
            f"{cache.schema.op} (key {digest[:16]}): {message}. The original runs from now on",
        )
        look.undo()
        if look.raised is not None:
            raise look.raised
        return _result(kernel, look.expected, args, kwargs)

    def _look(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Look | None:
        """Return what is needed to compare this call; ``None`` if it is not to be compared."""
        cache = self._call.cache
        values = cache.schema.bind(args, kwargs)
        with passthrough():
            inputs = call_inputs(cache.schema, values)
            if cache.function is not None:
                state, constants = cache.function.snapshot()
                if state != self._call.table_key[0]:
                    return None  # Another thread has just changed what the function uses.
                inputs += constants
            is_large = sum(tensor.numel() for tensor in inputs) > LIMIT_NUMEL
            if is_large and not cache.compares_always:
                return None
            return _Look(cache, self._call.template, keyset, args, kwargs, inputs)

    def _leave_alone(self, kernel: Kernel) -> None:
        self._slow_calls += 1
        if self._slow_calls > _SLOW_CALLS:
            kernel.look_after(None)

    def _failed(self, kernel: Kernel, error: Exception) -> None:
        """Compare no further call of this kernel: an error of ours, in a call that is served."""
        op = self._call.cache.schema.op
        log.exception("%s: internal error in a comparison", op)
        warn_once("recheck", f"{op}: a served call could not be compared: {error!r}")
        kernel.look_after(None)


class _Look:
    """One call that is served and compared: its inputs, and the original's results for them."""

    def __init__(
        self,
        cache: Cache,
        template: CallTemplate,
        keyset: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        inputs: list[Tensor],
    ) -> None:
        self._cache = cache
        self._template = template
        self._keyset = keyset
        self._args = args
        self._kwargs = kwargs
        self.inputs = inputs
        self._mutates = any(slot.mutated for slot in template.slots)
        # Copied before the kernel writes to the call's own inputs: for the original, and for a
        # second comparison.
        self._before = copy_mutated(template, inputs)
        self._theirs = copy_mutated(template, inputs) if self._mutates else inputs
        self.expected: list[Tensor] = []
        self.raised: BaseException | None = None
        self.taken_s = 0.0

    def problems(self, kernel: Kernel, outputs: Sequence[Tensor], entry: Entry) -> list[str]:
        """Return the differences between a kernel's run and the original's, each with its values.

        A difference counts only if it shows on copies, too: other threads may write to a call's
        arguments.
        """
        with passthrough():
            try:
                self._run_original(entry)
            except OriginalKernelError:
                return []  # A call of the original says what is wrong.
            except Exception as error:  # noqa: BLE001 - whatever an op raises
                return self._original_raises(error)
            found = self._differences(outputs)
            if not found:
                return []
            live = LiveCheck(
                self._cache.op, self._template, self._cache.original, self._keyset, self._before
            )
            if not live.problems_on_copies(kernel, entry.outputs):
                return []
            return found

    def undo(self) -> None:
        """Give the call's own arguments the values that the original has given its copies."""
        for slot, mine, theirs in zip(self._template.slots, self.inputs, self._theirs, strict=True):
            if slot.mutated:
                with passthrough():
                    write_unseen(mine, theirs)

    def _run_original(self, entry: Entry) -> None:
        args, kwargs = self._args, self._kwargs
        if self._mutates:
            args, kwargs = self._template.arguments(
                self._theirs, as_number=lambda number: number.item()
            )
        begin = time.perf_counter()
        result = self._cache.original(self._keyset, args, kwargs)
        self.taken_s = time.perf_counter() - begin
        self.expected = fresh_results(entry.outputs, result, len(self._template.schema.returns))
        self._outputs = entry.outputs

    def _original_raises(self, error: Exception) -> list[str]:
        if not is_deterministic(error):
            return []  # For example no memory, which says nothing about the kernel.
        self.raised = error
        return [f"the original raises {type(error).__name__}: {str(error).splitlines()[0]}"]

    def _differences(self, outputs: Sequence[Tensor]) -> list[str]:
        def reference() -> Any:
            copies = [copy_tensor(tensor) for tensor in self._before]
            return float64_reference(self._template, copies, self._cache.op, self._outputs)

        return differences(
            self._template,
            self.expected,
            outputs,
            self._theirs,
            self.inputs,
            reference,
            with_values=True,
        )


def _result(
    kernel: Kernel, outputs: list[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    return outputs[0] if kernel.single else kernel.results(outputs, args, kwargs)
