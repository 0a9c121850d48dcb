"""One op: its tables, and what happens to a call that is no hit.

Policy is decided in this module, ``asking``, ``miss``, ``pending`` and ``rare`` only.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._base.digest import Component
from .._base.torch_compat import tracing as tracing_compat
from .._base.torch_compat.dispatcher import OpOverload
from .._base.warn_once import warn_once
from .._compile_service import cache_context
from .._compile_service.device_backends import device_backend
from .._compile_service.kernel_compiler import KernelCompiler
from .._keys.declines import op_decline
from .._keys.key_words import argument_kind
from .._keys.schema import op_schema
from .._native import library as native_library
from .._native import op_kernel
from .._native.op_kernel import NativeOp
from .._native.passthrough import passing
from ..config import config
from ..errors import RunnerError
from . import recheck
from .asking_modules import compiling
from .counters import Counter, OpCounters, OpStats
from .kernel import Kernel
from .miss import Miss
from .original import OriginalKernel
from .python_kernel import python_kernel
from .table import (
    COMPILING,
    RARE,
    Decline,
    Table,
    TableKey,
    tell_of_closed,
)
from .versions import leaves_counting_to_others

if TYPE_CHECKING:
    from .._functions.description import Description, PythonFunction

log = logging.getLogger("aoti_eager")


class KernelCache:
    """The kernel that is registered for one overload at one dispatch key.

    Args:
        op: The overload.
        dispatch_key: Name of a Dense backend key, ``CPU``.
        above: Our other kernel for the same op and key, if one is registered already.
        is_composite: Whether the original is made of other ops, each of which autocasts by itself.

    Raises:
        RuntimeError: The op has no kernel at that key.
    """

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
        self._in_flight: dict[TableKey, threading.RLock] = {}
        self._flight_lock = threading.RLock()
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
        self.python_kernel, self.key = python_kernel(self)

    def describe_function(self) -> tuple[Description | None, list[Tensor]]:
        """Return the op's Python function as data, if it has one, and its constants.

        Raises:
            UnsupportedFunctionError: The function uses something that cannot be sent to a worker.
        """
        return (None, []) if self.function is None else self.function.describe()

    def key_context(
        self, toolchain: KernelCompiler, function: Description | None
    ) -> tuple[tuple[str, Component], ...]:
        """Return the components of the key besides arguments and settings."""
        return (*toolchain.context, *(function.context() if function is not None else ()))

    # -- state --

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
        if reason != self.always_declined:
            self._always = None if reason is None else self.counters.declined(reason)
            self.always_declined = reason
        before = self._tables
        self.table = before.setdefault(config.table_token, Table())
        self.lookup = self.table.kernel
        # A library that C++ runs may call this op, and only C++ knows that it is running one.
        self.asks_native = self.native is None and native_library.is_loaded()
        self._tables = {t: v for t, v in before.items() if t in config.table_tokens}
        self.bypassed = not self._enabled or mode == "off" or self._always is not None
        self._counts_bypass = self._enabled and mode != "off" and self._always is not None
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
        self._refresh_native()
        recheck.publish()
        for observer in self.observers:
            observer()
        for token, table in before.items():
            if token not in self._tables:
                table.close()  # The kernels that wait in the queue for this table need not be made.
        tell_of_closed()

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
        self.refresh()

    def detach_native(self) -> None:
        """Let Python serve all calls; the C++ kernel must not be in the dispatcher."""
        with self._refresh_lock:
            native, self.native = self.native, None
            if native is not None:
                native.close()
            self._refresh()

    def set_enabled(self, enabled: bool) -> None:
        """Serve calls, or pass them through. A flag: safe while other threads call."""
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
        self._in_flight = {}
        self._flight_lock = threading.RLock()
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
        return replace(counts, unfinished=self.table.unfinished(), saved_s=saved_s)

    # -- hit: inlined in the Python kernel; what follows is its way out --

    def run_failed(
        self,
        error: RuntimeError,
        keyset: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Return the original's result for a hit that raised, where nothing was mutated.

        Raises:
            RunnerError: The op writes to an argument, and the library may have begun to.
        """
        self.counters.failures.add()
        try:
            key = self.key(*args, **kwargs)
        except RuntimeError:  # As in ``no_key``; C++ reads what Python is not told.
            self.counters.declined("run_failed").add()
        else:
            kernel = self.table.kernel(key)
            words = None if kernel is None else kernel.words
            if kernel is None or kernel.is_dynamic:
                # C++ has served it by a library that it shares with other keys.
                self.table.drop_kernels(lambda one: one.is_dynamic)
            self.decline(key, "run_failed", str(error), words).count.add()
        if self.schema.mutated:
            raise RunnerError(
                f"{self.schema.op}: the kernel library failed after it may have written to an "
                f"argument, so the original cannot run instead: {error}"
            ) from error
        warn_once(
            "run_failed",
            f"{self.schema.op}: a kernel library failed, the original runs from now on: {error}",
        )
        return self.original(keyset, args, kwargs)

    def native_way(self) -> Callable[[Any, Any, Any], Any] | None:
        """Return what takes a call that C++ has sent to Python for a reason, if it has.

        The call's run has failed, or the call is a hit that is to be compared.
        """
        message = None if self.native is None else self.native.take_failure()
        if message is None:
            return None
        return functools.partial(self.run_failed, RuntimeError(message)) if message else self.look

    def look(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the result of a call that C++ would have served, compared with the original's."""
        if self.bypassed:
            return self.bypass(keyset, args, kwargs)
        try:
            key = self.key(*args, **kwargs)
        except RuntimeError as error:
            return self.no_key(error, keyset, args, kwargs)
        kernel = self.lookup(key)
        if kernel is None:
            with recheck.wanted():  # C++ has served it by a library that it shares with other keys.
                return self.python_kernel(keyset, *args, **kwargs)
        if kernel.look is None:
            return self.python_kernel(keyset, *args, **kwargs)
        return kernel.look(kernel, keyset, args, kwargs)

    # -- pass through --

    def bypass(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the original's result: disabled, mode off, in our own work, or never served."""
        if self._counts_bypass and self._always is not None and not self._is_passing():
            self._always.add()
        return self.original(keyset, args, kwargs)

    def _is_passing(self) -> bool:
        return get_ident() in passing or (self.asks_native and op_kernel.is_passing())

    def no_key(
        self,
        error: RuntimeError,
        keyset: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Return the original's result where torch refuses to tell a setting that the key needs."""
        log.info("%s: no key: %s", self.schema.op, error)
        self.counters.declined("no_key").add()
        return self.original(keyset, args, kwargs)

    def decline(
        self, key: TableKey, reason: str, message: str, words: bytes | None = None
    ) -> Decline:
        """Decline calls under ``key`` from now on; ``words`` is the same key in C++."""
        decline = Decline(reason, message, self.counters.declined(reason), words)
        self.table.decline(key, decline)
        log.info("%s: declined (%s): %s", self.schema.op, reason, message)
        return decline

    # -- miss --

    def miss(
        self, key: TableKey, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the call's result and, if possible, put its kernel into the table."""
        table = self.table
        if key in table.candidates and not tracing_compat.is_tracing():
            arrival = table.candidates.pop(key, None)  # Of several calls at once, one gets it.
            if arrival is not None:
                return arrival.serve(keyset, args, kwargs)
        decline = table.declines.get(key)
        if decline is not None:
            decline.count.add()
            return self.original(keyset, args, kwargs)
        if tracing_compat.is_tracing():
            # Not remembered: the same key outside of the trace is worth a kernel.
            self.counters.declined("tracing").add()
            return self.original(keyset, args, kwargs)
        if get_ident() in compiling:
            # A signal handler or a finalizer that runs while this thread waits for the compiler.
            self.counters.declined("reentrant").add()
            return self.original(keyset, args, kwargs)
        flight = self._single_flight(key)
        # Only mode ``sync`` waits for the compiler. And a device's compiler may call the op from
        # its own threads while this key waits for that compiler: such a call must not wait.
        in_sync = config.mode == "sync"
        if not flight.acquire(blocking=in_sync and not self.toolchain.is_portable):
            (self.counters.declined("reentrant") if in_sync else self.counters.misses).add()
            return self.original(keyset, args, kwargs)
        try:
            kernel = self.lookup(key)
            decline = self.table.declines.get(key)
            if kernel is None and decline is None:
                try:
                    return Miss(self, key, keyset, args, kwargs).resolve()
                finally:
                    self._in_flight.pop(key, None)
        finally:
            flight.release()
        if decline is not None:
            decline.count.add()
            return self.original(keyset, args, kwargs)
        # Another thread compiled it meanwhile.
        return self.python_kernel(keyset, *args, **kwargs)

    def _single_flight(self, key: TableKey) -> threading.RLock:
        # One lock for each key: threads that miss together wait for one compile. Re-entrant,
        # because an original may be a Python kernel that calls the op again.
        with self._flight_lock:
            return self._in_flight.setdefault(key, threading.RLock())
