"""One op: its kernel compiler, its tables, and what the settings decide.

``unserved_calls`` has the calls; this module, the state that decides on all calls at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .._base.torch_compat.dispatcher import OpOverload
from .._compile_service import cache_context, this_torch
from .._compile_service.device_backends import device_backend
from .._compile_service.kernel_compiler import KernelCompiler
from .._keys.declines import op_decline
from .._keys.key_words import argument_kind
from .._keys.schema import op_schema
from .._native import library as native_library
from .._native import op_kernel
from .._native.op_kernel import NativeOp
from ..config import config
from . import recheck
from .counters import Counter, OpCounters, OpStats
from .kernel import Kernel
from .key_state import COMPILING, RARE, Decline
from .original import OriginalKernel
from .python_kernel import Kernels, late_python_kernel, python_kernel
from .table import Table, TableKey, tell_of_closed
from .unserved_calls import UnservedCalls
from .versions import leaves_counting_to_others

if TYPE_CHECKING:
    from .._functions.description import PythonFunction

log = logging.getLogger("aoti_eager")


class KernelCache(UnservedCalls):
    """The kernel that is registered for one overload at one dispatch key.

    Args:
        op: The overload.
        dispatch_key: Name of a Dense backend key, ``CPU``.
        above: Our other kernel for the same op and key, if one is registered already.
        is_composite: Whether the original is made of other ops, each of which autocasts by itself.

    Attributes:
        compares_always: Whether each process compares a library with the original before the
            library serves, however long a call takes and whatever other processes have found.

    Raises:
        RuntimeError: The op has no kernel at that key.

    More than 12 methods, because each applies one kind of change to the state that all calls read.
    """

    compares_always = False

    def __init__(
        self,
        op: OpOverload,
        dispatch_key: str,
        *,
        above: KernelCache | None = None,
        is_composite: bool = False,
    ) -> None:
        self.is_composite = is_composite
        self.op = op
        self.schema = op_schema(op)
        self.dispatch_key = dispatch_key
        fallback = None if above is None else above.original
        self.original: OriginalKernel = OriginalKernel(op, self.schema, dispatch_key, fallback)
        # A property of the op: what was found before our first kernel was registered holds for the
        # second, too.
        self.counts_writes: bool = (
            above.counts_writes
            if above is not None
            else leaves_counting_to_others(
                self.schema, dispatch_key, overridden=self.original.overridden
            )
        )
        self.counters = OpCounters()
        self.function: PythonFunction | None = None
        if dispatch_key == "CPU" and self.original.is_python_function:
            # Imported here: few ops have a Python function, and other ops should not wait for the
            # import.
            from .._functions.op_functions import function_of

            self.function = function_of(op, dispatch_key)
        self.forget_flights()
        self._refresh_lock = threading.RLock()
        self._enabled = True
        self._op_decline = op_decline(op, self.schema)
        self.toolchain = KernelCompiler(op, None)
        self.lookup: Callable[[TableKey], Kernel | None]
        self.bypassed: bool
        self.asks_native: bool
        self.always_declined: str | None = None
        self._always: Counter | None = None
        self.native: NativeOp | None = None
        self._tables: dict[object, Table] = {}
        self.observers: list[Callable[[], None]] = []  # told of every change of state
        self.refresh()
        self._is_generated = False
        self.python_kernel, self.key = late_python_kernel(self, self._put_kernels)

    def generate(self) -> None:
        """Generate the Python kernel before it is registered: it is to serve the hits."""
        if not self._is_generated:
            self._put_kernels(python_kernel(self))

    def _put_kernels(self, kernels: Kernels) -> None:
        self._is_generated = True
        self.python_kernel, self.key = kernels

    def refresh(self) -> None:
        """Apply the current settings; called after every change of a setting, by any thread."""
        with self._refresh_lock:
            self._refresh()

    def _refresh(self) -> None:
        mode = config.mode
        device_type = cache_context.device_type(self.dispatch_key)
        context = device_backend(device_type)
        self.toolchain = KernelCompiler(self.op, context, is_native=self.native is not None)
        reason = self._op_decline
        if reason is None and device_type != "cpu" and context is None:
            reason = "unsupported_device"
        if reason is None and this_torch.is_refused():
            reason = this_torch.REASON
        if reason != self.always_declined:
            self._always = None if reason is None else self.counters.declined(reason)
            self.always_declined = reason
        before, token = self._tables, config.table_token
        self.table = before[token] if token in before else Table()
        self.lookup = self.table.kernel
        # A library that C++ runs may call this op, and only C++ knows that it is running one.
        self.asks_native = self.native is None and native_library.is_loaded()
        self._tables = {token: self.table}
        if before:
            self._tables |= {t: v for t, v in before.items() if t in config.table_tokens}
        self.bypassed = not self._enabled or mode == "off" or self._always is not None
        self._counts_bypass = self._enabled and mode != "off" and self._always is not None
        if before:
            self._apply_to_table(mode)
            recheck.publish()
        else:
            recheck.publish_first()
        self._refresh_native()
        for observer in self.observers:
            observer()
        for other, table in before.items():
            if other not in self._tables:
                table.close()  # The kernels that wait in the queue for this table need not be made.
        if before:
            tell_of_closed()

    def _apply_to_table(self, mode: str) -> None:
        """Let the keys be decided on again that other settings may decide on otherwise."""
        if mode not in ("cache_only", "off"):
            self.table.forget_declines("not_in_cache")  # These keys may be compiled now.
        if mode == "sync":
            self.table.forget_declines(COMPILING)  # The next call waits for the kernel.
            self.table.forget_declines(RARE)
        if config.certified:
            self.table.drop_kernels(lambda kernel: not kernel.certified)
        else:
            self.table.forget_declines("uncertified")
        if config.gate:
            self.table.drop_kernels(lambda kernel: not kernel.gated)
        else:
            self.table.forget_declines("slower")
            self.table.forget_declines("unmeasured")
        if config.dynamic is False:
            self.table.leave_dynamic()

    def _refresh_native(self) -> None:
        native = self.native
        if native is None:
            return
        always = self._always.native if self._always is not None else None
        native.set_counters(self.counters.hits.native, always)
        native.set_table(self.table.attach())
        if self._counts_bypass:
            native.set_state(op_kernel.DECLINE)
        else:
            native.set_state(op_kernel.PASS if self.bypassed else op_kernel.SERVE)

    def attach_native(self, above: KernelCache | None) -> None:
        """Make a C++ kernel for this op, to be installed above the Python one, if C++ can serve it.

        Call it while the original is registered, or our other kernel ``above``.

        Raises:
            NativePathError: C++ cannot take the op over.
        """
        if above is not None and above.native is None:
            return
        if self.function is not None and not self.function.is_constant:
            # What a Python function refers to is a part of its key, and only Python can look that
            # up.
            return
        if device_backend(cache_context.device_type(self.dispatch_key)) is not None:
            return  # The runner of such a library is Python's.
        self.native = NativeOp(
            self.schema.op,
            self.dispatch_key,
            [argument_kind(argument) for argument in self.schema.arguments],
            [argument.mutated for argument in self.schema.arguments],
            above.native if above is not None else None,
            is_function=self.function is not None or self.is_composite,
            counts_writes=self.counts_writes,
        )
        for reason in ("slower", "unmeasured"):  # Decided for Python's hit path; C++'s is faster.
            self.table.forget_declines(reason)
        with self._refresh_lock:
            self.toolchain = KernelCompiler(self.op, None, is_native=True)
            self.asks_native = False
            self._refresh_native()
            for observer in self.observers:
                observer()

    def detach_native(self) -> None:
        """Let Python serve all calls; the C++ kernel must not be in the dispatcher."""
        with self._refresh_lock:
            native, self.native = self.native, None
            if native is not None:
                native.close()
            self._refresh()

    def set_enabled(self, enabled: bool) -> None:
        """Serve calls, or pass them through. A flag: safe while other threads call."""
        if enabled != self._enabled:
            self._enabled = enabled
            self.refresh()

    def close(self) -> None:
        """Release all libraries: torch keeps the Python kernel of an op that is destroyed."""
        with self._refresh_lock:  # against a setting that changes meanwhile
            self._enabled = False
            self.detach_native()
            for table in self._tables.values():
                table.close()
            tell_of_closed()
            self.counters.close()

    def after_fork(self) -> None:
        """Forget what threads of the parent held: these threads are not in this process."""
        self.forget_flights()
        self._refresh_lock = threading.RLock()
        self.counters.after_fork()
        for table in self._tables.values():
            table.after_fork()
            for key, decline in list(table.declines.items()):
                if decline.reason in (COMPILING, RARE):
                    # The queue and its threads stayed with the parent.
                    count = self.counters.declined("forked")
                    message = "the compile workers are the parent's"
                    table.decline(key, Decline("forked", message, count, decline.words))
            for key, kernel in list(table.kernels.items()):
                kernel.lock = threading.RLock()
                if kernel.parallel:
                    # OpenMP's threads stayed with the parent, and a region would wait for them.
                    count = self.counters.declined("forked")
                    message = "the process was forked"
                    table.decline(
                        key,
                        Decline(
                            "forked",
                            message,
                            count,
                            kernel.words,
                            kernel.is_dynamic,
                            kernel.pattern,
                        ),
                    )

    def state_of(self, key: TableKey) -> Kernel | Decline | None:
        """Return what the tables hold under ``key``, for ``explain``; nothing is counted."""
        return self.table.kernel(key) or self.table.declines.get(key)

    def stats(self) -> OpStats:
        """Return the current counts, the states of unfinished keys, and the time saved."""
        counts = self.counters.snapshot()
        saves = [kernel.saves_us for kernel in list(self.table.kernels.values())]
        saved_s = counts.hits * 1e-6 * sum(saves) / len(saves) if saves else 0.0
        table = self.table
        unfinished, steps = table.unfinished(), table.steps()
        return replace(counts, unfinished=unfinished, saved_s=saved_s, steps=steps)
