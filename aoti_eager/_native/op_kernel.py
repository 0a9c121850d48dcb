"""The C++ hit path as Python sees it: the C++ kernels of ops, and questions about their state."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

from .library import (
    failures,
    functions,
    is_loaded,
    last_error,
)
from .table import NativeCounter, NativeTable, collect

# The states of an op, which decide what becomes of its calls; the numbers are those of csrc/op.h.
SERVE, PASS, DECLINE, RECORD = range(4)


def add_passing(by: int) -> None:
    """Add ``by`` to the number of ``passthrough`` blocks that this thread is in."""
    functions().ae_passing_add(by)


def is_passing() -> bool:
    """Return whether this thread is in a block of ``passthrough``, or in a library's run."""
    return bool(functions().ae_passing())


def alive() -> dict[str, int]:
    """Return how many C++ objects there are of each kind; none before ``library.load``."""
    kinds = ("ops", "kernels", "tables", "entries", "retired", "autograd_kernels")
    counts = (ctypes.c_int64 * len(kinds))()
    if is_loaded():
        functions().ae_alive(counts)
        collect()
    return dict(zip(kinds, counts, strict=True))


class NativeOp:
    """The C++ kernel of one op at one dispatch key: for boxed calls, and perhaps for typed ones.

    Make it before the Python kernel is registered: the kernel that is registered at that moment
    becomes the original.

    Args:
        op: Qualified name, ``aten::mul.Tensor``.
        dispatch_key: Name of the dispatch key.
        kinds: For each argument, the number from ``argument_kind``.
        mutated: For each argument, whether the op writes to it.
        above: A C++ kernel of this package that is already registered for the same op and key; the
            new one has the same original.
        is_function: Whether the original is a function of ops that each apply autocast themselves.
        counts_writes: Whether a hit counts its writes in tensors' versions; see
            ``_dispatch.versions``.

    Raises:
        NativePathError: There is no such op, or no kernel at that key.
    """

    def __init__(
        self,
        op: str,
        dispatch_key: str,
        kinds: Sequence[int],
        mutated: Sequence[bool],
        above: NativeOp | None = None,
        *,
        is_function: bool = False,
        counts_writes: bool = False,
    ) -> None:
        name, _, overload = op.partition(".")
        self._name = op
        self._pointer: int | None = functions().ae_op_new(
            name.encode(),
            overload.encode(),
            dispatch_key.encode(),
            bytes(kinds),
            bytes(mutated),
            len(kinds),
            above._pointer if above is not None else None,
            is_function,
            counts_writes,
        )
        if not self._pointer:
            raise last_error(self._name, "cannot be taken over")

    def install(self) -> None:
        """Register the C++ kernel; the kernel registered before gets calls that C++ does not take.

        Raises:
            NativePathError: The kernel cannot be registered.
        """
        if functions().ae_op_install(self._pointer):
            raise last_error(self._name, "cannot be registered")

    @property
    def is_typed(self) -> bool:
        """Return whether calls with C++ values reach the kernel unboxed, once it is installed."""
        return bool(self._pointer and functions().ae_op_is_typed(self._pointer))

    def set_counters(self, hits: NativeCounter, always_declined: NativeCounter | None) -> None:
        """Count hits in ``hits``, and calls in the state ``DECLINE`` in ``always_declined``."""
        always = always_declined.pointer if always_declined is not None else None
        if self._pointer:
            functions().ae_op_set_counters(self._pointer, hits.pointer, always)

    def set_state(self, state: int) -> None:
        """Set what becomes of calls: ``SERVE``, ``PASS``, ``DECLINE`` or ``RECORD``."""
        if self._pointer:
            functions().ae_op_set_state(self._pointer, state)

    def set_table(self, table: NativeTable | None) -> None:
        """Look calls up in ``table`` from now on."""
        if self._pointer:
            functions().ae_op_set_table(self._pointer, None if table is None else table.pointer)

    def take_failure(self) -> str | None:
        """Return the message with which C++ entered the Python kernel in this thread, or ``None``.

        The message is why a run of this op failed. An empty message says that the call is to be
        compared with the original.
        """
        op, message = failures.pop(threading.get_ident(), (None, ""))
        return message if op == self._pointer else None

    def uninstall(self) -> None:
        """Take the C++ kernel out of the dispatcher; no call of the op may be running."""
        if self._pointer:
            functions().ae_op_uninstall(self._pointer)

    def close(self) -> None:
        """Free the kernel, which must be uninstalled."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            functions().ae_op_delete(pointer)


def rest_looks(until_ns: int) -> None:
    """Compare no hit with the original until ``time.monotonic_ns`` reaches ``until_ns``."""
    if is_loaded():
        functions().ae_rest_looks(until_ns)


def matches(program: bytes, words: bytes) -> bool:
    """Return whether a call's words match a program of ``pattern_program``, by C++."""
    return bool(functions().ae_matches(program, len(program) // 8, words, len(words) // 8))


def recorded_key() -> bytes:
    """Return the words of this thread's last call of an op in the state ``RECORD``, which raises.

    The result is empty if C++ has no key for that call.
    """
    room = 4096
    words = (ctypes.c_uint64 * room)()
    count = functions().ae_recorded_key(words, room)
    return bytes(words)[: 8 * count]


def recorded_by_typed() -> bool:
    """Return whether the call of ``recorded_key`` came with C++ values, and not boxed."""
    return bool(functions().ae_recorded_by_typed())
