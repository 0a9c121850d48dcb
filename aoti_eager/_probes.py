"""What the C++ compiler and this CPU are known to do together, kept in the store's toolchain.

Where the instruction set is not pinned, Inductor compiles and loads a small library for each one
that the CPU may have, in every process: seconds before the first kernel. Worker only.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from ._key import Component, json_digest


class Probes:
    """The probes that succeeded on this machine with this compiler.

    Only these are kept: a probe that failed may have met a full disk, and its answer would be
    slow code for good.

    Args:
        directory: Where they are kept, one file for each ``machine``.
        machine: CPU features, torch and compiler; with another of these, everything is asked anew.
    """

    def __init__(self, directory: Path, machine: list[Component]) -> None:
        self._path = directory / f"{json_digest(machine)[:24]}.json"
        self._succeeded = self._read()

    def has(self, question: list[Component]) -> bool:
        """Return whether the probe ``question`` is known to succeed."""
        return json_digest(question) in self._succeeded

    def add(self, question: list[Component]) -> None:
        """Write down that the probe ``question`` succeeded; where that fails, it is asked again."""
        # Read again: another worker may have asked something else.
        self._succeeded |= {*self._read(), json_digest(question)}
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"succeeded": sorted(self._succeeded)}))
            # Renamed last: a reader must never see half a file.
            temporary.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _read(self) -> set[str]:
        try:
            document = json.loads(self._path.read_bytes())
            return {str(digest) for digest in document["succeeded"]}
        except (OSError, ValueError, KeyError, TypeError):
            return set()  # None yet, or a damaged file: probe again.
