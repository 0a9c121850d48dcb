"""What becomes of a call of one op that the Python kernel does not serve itself."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._base.digest import Component
from .._base.torch_compat import tracing as tracing_compat
from .._base.torch_compat.dispatcher import OpOverload
from .._base.warn_once import warn_once
from .._compile_service.kernel_compiler import KernelCompiler
from .._keys.schema import OpSchema
from .._native import op_kernel
from .._native.op_kernel import NativeOp
from .._native.passthrough import passing
from ..config import config
from ..errors import RunnerError
from . import recheck
from .asking_modules import compiling
from .counters import Counter, OpCounters
from .kernel import Kernel
from .key_state import Decline
from .miss import Miss
from .original import OriginalKernel
from .table import Table, TableKey

if TYPE_CHECKING:
    from .._functions.description import Description, PythonFunction

log = logging.getLogger("aoti_eager")


class UnservedCalls:
    """The calls of one op that are no hits: missed, declined, passed through, or failed.

    ``KernelCache`` keeps the state; a hit is inlined in the generated Python kernel.
    """

    op: OpOverload
    schema: OpSchema
    dispatch_key: str
    function: PythonFunction | None
    counts_writes: bool
    original: OriginalKernel
    counters: OpCounters
    toolchain: KernelCompiler
    table: Table
    lookup: Callable[[TableKey], Kernel | None]
    python_kernel: Callable[..., Any]
    key: Callable[..., TableKey]
    bypassed: bool
    asks_native: bool
    native: NativeOp | None
    compares_always: bool
    _always: Counter | None
    _counts_bypass: bool

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

    def forget_flights(self) -> None:
        """Begin with no call under way: in a new cache, and in a forked child."""
        self._in_flight: dict[TableKey, threading.RLock] = {}
        self._flight_lock = threading.RLock()

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
        if self.schema.mutated:
            _refuse_after_failure(self, error, args, kwargs)
            raise RunnerError(
                f"{self.schema.op}: the kernel library failed after it may have written to an "
                f"argument, so the original cannot run instead: {error}"
            ) from error
        # First: where the original raises, too, the arguments are at fault, and not the library.
        result = self.original(keyset, args, kwargs)
        _refuse_after_failure(self, error, args, kwargs)
        warn_once(
            "run_failed",
            f"{self.schema.op}: a kernel library failed, the original runs from now on: {error}",
        )
        return result

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

    def miss(
        self, key: TableKey, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the call's result and, if possible, put its kernel into the table."""
        table = self.table
        if key in table.candidates and not tracing_compat.is_tracing():
            taker = table.candidates.pop(key, None)  # Of several calls at once, one gets it.
            if taker is not None:
                return taker.serve(keyset, args, kwargs)
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


def _refuse_after_failure(
    cache: UnservedCalls, error: RuntimeError, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Decline the calls of a key whose library has raised in a call."""
    cache.counters.failures.add()
    try:
        key = cache.key(*args, **kwargs)
    except RuntimeError:  # As in ``no_key``; C++ reads what Python is not told.
        cache.counters.declined("run_failed").add()
    else:
        kernel = cache.table.kernel(key)
        words = None if kernel is None else kernel.words
        if kernel is None or kernel.is_dynamic:
            # C++ has served it by a library that it shares with other keys.
            cache.table.drop_kernels(lambda one: one.is_dynamic)
        cache.decline(key, "run_failed", str(error), words).count.add()
