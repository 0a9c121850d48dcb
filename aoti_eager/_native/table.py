"""The C++ side of a table: keys, the libraries that entries run, and counters."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Sequence

from .._base.data_class import dataclass
from .library import functions

OUTPUT, ARGUMENT, NONE, OUTPUTS = range(4)  # where a result comes from, by csrc/entry.h


class NativeCounter:
    """A count that C++ raises; threads raise it in different cache lines."""

    def __init__(self) -> None:
        self._pointer = functions().ae_counter_new()

    @property
    def pointer(self) -> int:
        """Return the address, for tables and ops."""
        return int(self._pointer)

    @property
    def value(self) -> int:
        """Return how often C++ has raised the count."""
        return int(functions().ae_counter_value(self._pointer)) if self._pointer else 0

    def close(self) -> None:
        """Free the counter, which no op and no entry may use."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            functions().ae_counter_delete(pointer)


class _LibraryStruct(ctypes.Structure):
    """``Library`` of csrc/entry.h."""

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
    """The addresses in a loaded library that C++ calls, and the object that keeps them valid.

    Attributes:
        borrowing_run: Address of a thin library's ``aoti_eager_run``, or 0.
        container_run: Address of ``AOTInductorModelContainerRunSingleThreaded``, or 0.
        last_error: Address of ``AOTInductorGetLastError``.
        handle: The container.
        outputs: Number of output handles that a run returns.
        calls_aten: Whether the library calls registered ops.
        owner: An object that is kept alive as long as a call may be inside the library.
    """

    borrowing_run: int
    container_run: int
    last_error: int
    handle: int
    outputs: int
    calls_aten: bool
    owner: object


# Objects that keep the libraries of entries open, until C++ says that no reader has the entry.
_owners: dict[int, object] = {}
_next_owner = itertools.count(1)


def collect() -> None:
    """Let go of the libraries whose entries C++ has freed."""
    room = 64
    owners = (ctypes.c_uint64 * room)()
    while count := functions().ae_released(owners, room):
        for owner in owners[:count]:
            _owners.pop(owner, None)


class NativeTable:
    """The entries of one op in one cache directory, for lookups in C++."""

    def __init__(self) -> None:
        self._pointer = functions().ae_table_new()

    def __len__(self) -> int:
        return int(functions().ae_table_size(self._pointer))

    @property
    def pointer(self) -> int:
        """Return the address, for ops."""
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
        """Serve calls of ``key``, or calls that match ``program``, by a library.

        Args:
            key: The words of ``native_key``. With a program, a name for it instead, with the length
                of whole words.
            run: The library.
            results: Kind, index and count of each result of the op.
            program: The program that calls without an entry of their own are matched with; see
                ``pattern_program``.
            numbers: One byte for each argument: whether it is a number that is an input.
            looks: Whether some hits are compared with the original once more.
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
        """Remove the program under ``name``: calls that match it are Python's to decide on."""
        functions().ae_table_remove_pattern(self._pointer, name, len(name) // 8)
        collect()

    def remove(self, key: bytes) -> None:
        """Remove ``key``: its calls are Python's to decide on."""
        functions().ae_table_remove(self._pointer, key, len(key) // 8)
        collect()

    def clear(self) -> None:
        """Remove everything: all calls are Python's to decide on."""
        functions().ae_table_clear(self._pointer)
        collect()

    def close(self) -> None:
        """Free the table, which no op may use."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            functions().ae_table_delete(pointer)
            collect()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()
