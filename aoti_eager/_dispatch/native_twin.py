"""The C++ twin of a table: the part of the table's decisions that C++ can carry out."""

from __future__ import annotations

from .._native.table import NativeTable
from .kernel import Kernel
from .key_state import Decline


class NativeTwin:
    """Keeps a C++ table like the table in Python; does nothing while there is none.

    Attributes:
        table: The C++ table, if the C++ path is in use.
    """

    def __init__(self) -> None:
        self.table: NativeTable | None = None

    def put(self, kernel: Kernel) -> None:
        """Serve the calls of a kernel's key, or of its pattern, if C++ can."""
        if self.table is None or kernel.words is None or kernel.native_results is None:
            return
        run = kernel.native()
        if run is None:
            return
        if kernel.pattern is None:
            if not kernel.numbers:
                looks = kernel.is_looked_at
                self.table.put(kernel.words, run, kernel.native_results, looks=looks)
            return
        name, program = kernel.pattern.name, kernel.pattern.program
        self.table.put(
            name,
            run,
            kernel.native_results,
            program,
            kernel.numbers,
            looks=kernel.is_looked_at,
        )
        self.table.remove(kernel.words)  # A key's own entry would come first.

    def decline(self, decline: Decline) -> None:
        """Pass the calls of a declined key, or of its pattern."""
        if self.table is None or decline.words is None or decline.is_counted_in_python:
            return
        if decline.pattern is None:
            self.table.put_decline(decline.words, decline.count.native)
            return
        name, program = decline.pattern.name, decline.pattern.program
        self.table.put_decline(name, decline.count.native, program)
        self.table.remove(decline.words)

    def leave_pattern(self, before: Kernel | None, successor: Kernel | Decline) -> None:
        """Remove the pattern of the key's kernel from C++: it could not be removed afterwards."""
        if self.table is None or before is None or before.pattern is None:
            return
        if successor.pattern is None or successor.pattern.name != before.pattern.name:
            self.table.remove_pattern(before.pattern.name)

    def remove(self, held: Kernel | Decline) -> None:
        """Send the calls of a key to Python."""
        if self.table is None or held.words is None:
            return
        self.table.remove(held.words)
        if held.pattern is not None:
            self.table.remove_pattern(held.pattern.name)
