"""What C++ knows of keys: tables, the libraries that their entries run, and counters."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Sequence

from .._base.data_class import dataclass
from .library import functions

OUTPUT, ARGUMENT, NONE, OUTPUTS = range(4)  # where a result comes from, by csrc/entry.h


class NativeCounter:
    """A count that C++ raises; threads do not write to one cache line."""

    def __init__(self) -> None:
        self._pointer = functions().ae_counter_new()

    @property
    def pointer(self) -> int:
        """Return the address that tables and ops are given."""
        return int(self._pointer)

    @property
    def value(self) -> int:
        """Return how often it was raised."""
        return int(functions().ae_counter_value(self._pointer)) if self._pointer else 0

    def close(self) -> None:
        """Free it; no op and no entry may have it any more."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            functions().ae_counter_delete(pointer)


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


def collect() -> None:
    """Let go of the libraries that no entry has any more."""
    room = 64
    owners = (ctypes.c_uint64 * room)()
    while count := functions().ae_released(owners, room):
        for owner in owners[:count]:
            _owners.pop(owner, None)


class NativeTable:
    """The entries of one op in one cache directory, as C++ finds them."""

    def __init__(self) -> None:
        self._pointer = functions().ae_table_new()

    def __len__(self) -> int:
        return int(functions().ae_table_size(self._pointer))

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
        *,
        looks: bool = False,
    ) -> None:
        """Serve calls of ``key`` by a library.

        Args:
            key: The words of ``native_key``; with a program a name, of as many bytes as words have.
            run: The library.
            results: Kind, index and count of each result of the op.
            program: What calls match that have no entry of their own; see ``pattern_program``.
            numbers: A byte for each argument: whether it is a number that is an input.
            looks: Whether hits are compared with the original once more, at times.
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
        functions().ae_table_put_library(
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
            looks,
        )
        collect()

    def put_decline(self, key: bytes, counter: NativeCounter, program: bytes | None = None) -> None:
        """Send calls of ``key``, or that match ``program``, to the original kernel; count them."""
        count = len(program or b"") // 8
        functions().ae_table_put_decline(
            self._pointer, key, len(key) // 8, counter.pointer, program, count
        )
        collect()

    def remove_pattern(self, name: bytes) -> None:
        """Let Python decide on calls that matched the program put under ``name``."""
        functions().ae_table_remove_pattern(self._pointer, name, len(name) // 8)
        collect()

    def remove(self, key: bytes) -> None:
        """Let Python decide on calls of ``key``."""
        functions().ae_table_remove(self._pointer, key, len(key) // 8)
        collect()

    def clear(self) -> None:
        """Let Python decide on all calls."""
        functions().ae_table_clear(self._pointer)
        collect()

    def close(self) -> None:
        """Free it; no op may have it any more."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            functions().ae_table_delete(pointer)
            collect()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()
