"""The C++ hit path, opened: its ops, tables and counters as Python objects.

``csrc/native.cpp`` is the other side. Calls go through ctypes, which releases the GIL; nothing here
is called on a hit. Who uses an object of this module when the hit path is not loaded has a mistake.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import NativePathError

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_TEXT = ctypes.c_char_p

# name -> result type, argument types
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ae_last_error": (_TEXT, ()),
    "ae_op_new": (_POINTER, (*(_TEXT,) * 5, _SIZE, _POINTER, ctypes.c_int32)),
    "ae_op_install": (ctypes.c_int32, (_POINTER,)),
    "ae_op_uninstall": (None, (_POINTER,)),
    "ae_op_delete": (None, (_POINTER,)),
    "ae_op_set_state": (None, (_POINTER, ctypes.c_int32)),
    "ae_op_set_table": (None, (_POINTER, _POINTER)),
    "ae_op_set_counters": (None, (_POINTER, _POINTER, _POINTER)),
    "ae_gate_new": (_POINTER, (*(_TEXT,) * 6, _SIZE, _SIZE, ctypes.c_int32)),
    "ae_gate_install": (ctypes.c_int32, (_POINTER,)),
    "ae_gate_uninstall": (None, (_POINTER,)),
    "ae_gate_delete": (None, (_POINTER,)),
    "ae_gate_put": (None, (_POINTER, _TEXT, _SIZE, _POINTER)),
    "ae_gate_put_decline": (None, (_POINTER, _TEXT, _SIZE)),
    "ae_gate_nodes": (ctypes.c_int64, (_POINTER,)),
    "ae_gate_clear": (None, (_POINTER,)),
    "ae_table_new": (_POINTER, ()),
    "ae_table_delete": (None, (_POINTER,)),
    "ae_table_put_library": (
        None,
        (
            *(_POINTER, _TEXT, _SIZE, _POINTER, _POINTER, _SIZE, ctypes.c_uint64),
            *(_TEXT, _SIZE, _TEXT, _SIZE),
        ),
    ),
    "ae_table_put_decline": (None, (_POINTER, _TEXT, _SIZE, _POINTER, _TEXT, _SIZE)),
    "ae_table_remove": (None, (_POINTER, _TEXT, _SIZE)),
    "ae_table_remove_pattern": (None, (_POINTER, _TEXT, _SIZE)),
    "ae_matches": (ctypes.c_int32, (_TEXT, _SIZE, _TEXT, _SIZE)),
    "ae_table_clear": (None, (_POINTER,)),
    "ae_table_size": (_SIZE, (_POINTER,)),
    "ae_released": (_SIZE, (_POINTER, _SIZE)),
    "ae_counter_new": (_POINTER, ()),
    "ae_counter_delete": (None, (_POINTER,)),
    "ae_counter_value": (ctypes.c_uint64, (_POINTER,)),
    "ae_passing_add": (None, (ctypes.c_int32,)),
    "ae_passing": (ctypes.c_int32, ()),
    "ae_set_failed": (None, (_POINTER,)),
    "ae_recorded_key": (_SIZE, (_POINTER, _SIZE)),
    "ae_alive": (None, (_POINTER,)),
}

# What an op does with calls, by the numbers of csrc/op.h.
SERVE, PASS, DECLINE, RECORD = range(4)

OUTPUT, ARGUMENT, NONE, OUTPUTS = range(4)  # where a result comes from, likewise

_library: Any = None


def load(path: Path) -> None:
    """Open the hit path's library; it stays open until the process ends.

    Raises:
        NativePathError: It cannot be opened here.
    """
    global _library
    if _library is not None:
        return
    try:
        library = ctypes.CDLL(os.fspath(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativePathError(f"{path}: the native hit path cannot be loaded: {error}") from error
    library.ae_set_failed(_on_failed)
    _library = library


# Thread idents of runs that failed in C++, each with the op and the library's message. The kernel
# that Python has registered for the op is entered next, and looks here first of all.
failures: dict[int, tuple[int, str]] = {}


def _keep_failure(op: int, message: bytes) -> None:
    failures[threading.get_ident()] = op, message.decode(errors="replace")


_on_failed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)(_keep_failure)


def is_loaded() -> bool:
    """Return whether the C++ hit path can be used in this process."""
    return _library is not None


def loaded_path() -> Path | None:
    """Return the hit path's file, if it is open."""
    return None if _library is None else Path(_library._name)


def add_passing(by: int) -> None:
    """Change by how many blocks of ``passthrough`` this thread is in."""
    _library.ae_passing_add(by)


def is_passing() -> bool:
    """Return whether this thread is in a block of ``passthrough``, or in a library's run."""
    return bool(_library.ae_passing())


def alive() -> dict[str, int]:
    """Return how many C++ objects there are of each kind; nothing is alive before ``load``."""
    kinds = ("ops", "kernels", "tables", "entries", "retired", "gates")
    counts = (ctypes.c_int64 * len(kinds))()
    if _library is not None:
        _library.ae_alive(counts)
        _collect()
    return dict(zip(kinds, counts, strict=True))


class NativeCounter:
    """A count that C++ raises; threads do not write to one cache line."""

    def __init__(self) -> None:
        self._pointer = _library.ae_counter_new()

    @property
    def pointer(self) -> int:
        """Return the address that tables and ops are given."""
        return int(self._pointer)

    @property
    def value(self) -> int:
        """Return how often it was raised."""
        return int(_library.ae_counter_value(self._pointer)) if self._pointer else 0

    def close(self) -> None:
        """Free it; no op and no entry may have it any more."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            _library.ae_counter_delete(pointer)


class _LibraryStruct(ctypes.Structure):
    """``Library`` of csrc/op.h."""

    _fields_ = (
        ("borrowing_run", ctypes.c_void_p),
        ("container_run", ctypes.c_void_p),
        ("last_error", ctypes.c_void_p),
        ("handle", ctypes.c_void_p),
        ("outputs", ctypes.c_uint32),
        ("calls_aten", ctypes.c_bool),
    )


@dataclass(frozen=True, slots=True)
class NativeRun:
    """What C++ calls of a loaded library: addresses, and what keeps them good.

    Attributes:
        borrowing_run: Address of a thin library's ``aoti_eager_run``, or 0.
        container_run: Address of ``AOTInductorModelContainerRunSingleThreaded``, or 0.
        last_error: Address of ``AOTInductorGetLastError``.
        handle: The container.
        outputs: Number of output handles that a run gives.
        calls_aten: Whether the library calls registered ops.
        owner: Kept alive as long as a call may be inside of the library.
    """

    borrowing_run: int
    container_run: int
    last_error: int
    handle: int
    outputs: int
    calls_aten: bool
    owner: object


# What keeps the libraries of entries open, until C++ says that no reader has the entry any more.
_owners: dict[int, object] = {}
_next_owner = itertools.count(1)


def _collect() -> None:
    """Let go of the libraries that no entry has any more."""
    room = 64
    owners = (ctypes.c_uint64 * room)()
    while count := _library.ae_released(owners, room):
        for owner in owners[:count]:
            _owners.pop(owner, None)


class NativeTable:
    """The entries of one op in one cache directory, as C++ finds them."""

    def __init__(self) -> None:
        self._pointer = _library.ae_table_new()

    def __len__(self) -> int:
        return int(_library.ae_table_size(self._pointer))

    @property
    def pointer(self) -> int:
        """Return the address that ops are given."""
        return int(self._pointer)

    def put(
        self,
        key: bytes,
        run: NativeRun,
        results: Sequence[tuple[int, int, int]],
        program: bytes | None = None,
        numbers: bytes = b"",
    ) -> None:
        """Serve calls of ``key`` by a library.

        Args:
            key: The words of ``native_key``; with a program a name, of as many bytes as words have.
            run: The library.
            results: Kind, index and count of each result of the op.
            program: What calls match that have no entry of their own; see ``pattern_program``.
            numbers: A byte for each argument: whether it is a number that is an input.
        """
        library = _LibraryStruct(
            run.borrowing_run or None,
            run.container_run or None,
            run.last_error,
            run.handle,
            run.outputs,
            run.calls_aten,
        )
        plan = (ctypes.c_int32 * (3 * len(results)))(*itertools.chain.from_iterable(results))
        owner = next(_next_owner)
        _owners[owner] = run.owner
        _library.ae_table_put_library(
            self._pointer,
            key,
            len(key) // 8,
            ctypes.addressof(library),
            ctypes.addressof(plan),
            len(results),
            owner,
            program,
            len(program or b"") // 8,
            numbers,
            len(numbers),
        )
        _collect()

    def put_decline(self, key: bytes, counter: NativeCounter, program: bytes | None = None) -> None:
        """Send calls of ``key``, or that match ``program``, to the original kernel; count them."""
        count = len(program or b"") // 8
        _library.ae_table_put_decline(
            self._pointer, key, len(key) // 8, counter.pointer, program, count
        )
        _collect()

    def remove_pattern(self, name: bytes) -> None:
        """Let Python decide on calls that matched the program put under ``name``."""
        _library.ae_table_remove_pattern(self._pointer, name, len(name) // 8)
        _collect()

    def remove(self, key: bytes) -> None:
        """Let Python decide on calls of ``key``."""
        _library.ae_table_remove(self._pointer, key, len(key) // 8)
        _collect()

    def clear(self) -> None:
        """Let Python decide on all calls."""
        _library.ae_table_clear(self._pointer)
        _collect()

    def close(self) -> None:
        """Free it; no op may have it any more."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            _library.ae_table_delete(pointer)
            _collect()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


class NativeOp:
    """The boxed C++ kernel of one op at one dispatch key.

    Made before the Python kernel is registered: what is registered at that moment is the original.

    Args:
        op: Qualified name, ``aten::mul.Tensor``.
        dispatch_key: Name of the dispatch key.
        kinds: For each argument the number of ``argument_kind``.
        mutated: For each argument whether the op writes to it.
        above: A kernel of ours that is registered for the same op and key already.
        is_function: Whether the original is a function of ops that autocast each for itself.

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
    ) -> None:
        name, _, overload = op.partition(".")
        self._name = op
        self._pointer: int | None = _library.ae_op_new(
            name.encode(),
            overload.encode(),
            dispatch_key.encode(),
            bytes(kinds),
            bytes(mutated),
            len(kinds),
            above._pointer if above is not None else None,
            is_function,
        )
        if not self._pointer:
            raise self._error("cannot be taken over")

    def install(self) -> None:
        """Register the C++ kernel; what is registered now gets the calls that are no hits.

        Raises:
            NativePathError: It cannot be registered.
        """
        if _library.ae_op_install(self._pointer):
            raise self._error("cannot be registered")

    def set_counters(self, hits: NativeCounter, always_declined: NativeCounter | None) -> None:
        """Count hits, and calls in the state ``DECLINE``."""
        always = always_declined.pointer if always_declined is not None else None
        if self._pointer:
            _library.ae_op_set_counters(self._pointer, hits.pointer, always)

    def set_state(self, state: int) -> None:
        """Say what becomes of calls: ``SERVE``, ``PASS``, ``DECLINE`` or ``RECORD``."""
        if self._pointer:
            _library.ae_op_set_state(self._pointer, state)

    def set_table(self, table: NativeTable | None) -> None:
        """Look calls up in ``table`` from now on."""
        if self._pointer:
            _library.ae_op_set_table(self._pointer, None if table is None else table.pointer)

    def take_failure(self) -> str | None:
        """Return why a run of this op led this thread into the Python kernel, if one did."""
        op, message = failures.pop(threading.get_ident(), (None, ""))
        return message if op == self._pointer else None

    def uninstall(self) -> None:
        """Take the C++ kernel out of the dispatcher; no call of the op may run."""
        if self._pointer:
            _library.ae_op_uninstall(self._pointer)

    def close(self) -> None:
        """Free it; it must be uninstalled."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            _library.ae_op_delete(pointer)

    def _error(self, what: str) -> NativePathError:
        return _failed(self._name, what)


def _failed(name: str, what: str) -> NativePathError:
    message = (_library.ae_last_error() or b"").decode(errors="replace")
    return NativePathError(f"{name}: {what} by the native hit path: {message}")


class NativeGate:
    """The boxed C++ kernel of one op at the autograd key; see ``csrc/gradient.h``.

    Args:
        op: Qualified name.
        backward: That of the op of its gradient.
        function: That of an op that runs what the op consists of.
        kinds: For each argument the number of ``argument_kind``; none is written to.
        results: How many tensors the op returns.
        decomposes: Whether traces, transforms and autocast see what the op consists of.

    Raises:
        NativePathError: There are no such ops.
    """

    def __init__(
        self,
        op: str,
        backward: str,
        function: str,
        kinds: Sequence[int],
        results: int,
        *,
        decomposes: bool = False,
    ) -> None:
        name, _, overload = op.partition(".")
        self._name = op
        self._pointer: int | None = _library.ae_gate_new(
            name.encode(),
            overload.encode(),
            backward.encode(),
            function.encode(),
            bytes(kinds),
            bytes(len(kinds)),
            len(kinds),
            results,
            decomposes,
        )
        if not self._pointer:
            raise _failed(op, "cannot be differentiated")

    def install(self) -> None:
        """Register the C++ kernel; what is registered now gets the calls that are not known.

        Raises:
            NativePathError: It cannot be registered.
        """
        if _library.ae_gate_install(self._pointer):
            raise _failed(self._name, "cannot be registered at the autograd key")

    def put(self, key: bytes, layouts: Sequence[int]) -> None:
        """Join forward and backward of calls of ``key``.

        Args:
            key: The words of ``native_key`` and one with a bit for each tensor's gradient.
            layouts: For each result whether it is differentiable, its dimensions, sizes, strides.
        """
        numbers = (ctypes.c_int64 * len(layouts))(*layouts)
        if self._pointer:
            _library.ae_gate_put(self._pointer, key, len(key) // 8, ctypes.addressof(numbers))

    @property
    def nodes(self) -> int:
        """Return how many nodes of autograd's there are that call the backward op yet."""
        return int(_library.ae_gate_nodes(self._pointer)) if self._pointer else 0

    def put_decline(self, key: bytes) -> None:
        """Send calls of ``key`` to the op's function."""
        if self._pointer:
            _library.ae_gate_put_decline(self._pointer, key, len(key) // 8)

    def clear(self) -> None:
        """Let Python decide on all calls."""
        if self._pointer:
            _library.ae_gate_clear(self._pointer)

    def close(self) -> None:
        """Take it out of the dispatcher and free it; no call of the op may run."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            _library.ae_gate_uninstall(pointer)
            _library.ae_gate_delete(pointer)


def matches(program: bytes, words: bytes) -> bool:
    """Return whether C++ says that a call's words match a program of ``pattern_program``."""
    return bool(_library.ae_matches(program, len(program) // 8, words, len(words) // 8))


def recorded_key() -> bytes:
    """Return the words of this thread's last call of an op in the state ``RECORD``, which raises.

    Empty if C++ has no key for that call.
    """
    room = 4096
    words = (ctypes.c_uint64 * room)()
    count = _library.ae_recorded_key(words, room)
    return bytes(words)[: 8 * count]
