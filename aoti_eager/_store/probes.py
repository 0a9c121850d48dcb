"""What the C++ compiler and this CPU are known to do together, kept in the store's toolchain.

Where the instruction set is not pinned, Inductor compiles and loads a small library for each one
that the CPU may have, in every process: seconds before the first kernel. Worker only.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from .._base.digest import Component, json_digest
from .._base.trusted_files import open_directory

# Bytes that are read of a file before anything of it is believed.
PROBES_LIMIT = 1 << 20


class Probes:
    """The probes that succeeded on this machine with this compiler.

    Only these are kept: a probe that failed may have met a full disk, and its answer would be
    slow code for good.

    Args:
        directory: Where they are kept, one file for each ``machine``.
        machine: CPU features, torch and compiler; with another of these, everything is asked anew.
    """

    def __init__(self, directory: Path, machine: list[Component]) -> None:
        self._directory = directory
        self._name = f"{json_digest(machine)[:24]}.json"
        self._succeeded = self._read()

    def has(self, question: list[Component]) -> bool:
        """Return whether the probe ``question`` is known to succeed."""
        return json_digest(question) in self._succeeded

    def add(self, question: list[Component]) -> None:
        """Write down that the probe ``question`` succeeded; where that fails, it is asked again."""
        # Read again: another worker may have asked something else.
        self._succeeded |= {*self._read(), json_digest(question)}
        content = json.dumps({"succeeded": sorted(self._succeeded)}).encode()
        with contextlib.suppress(OSError), open_directory(self._directory, create=True) as opened:
            opened.write(self._name, content)

    def _read(self) -> set[str]:
        try:
            with open_directory(self._directory) as opened:
                return decode_probes(opened.read(self._name, PROBES_LIMIT))
        except (OSError, ValueError):
            return set()  # None yet, or a damaged file: probe again.


def decode_probes(document: bytes) -> set[str]:
    """Return the digests of the questions in a file.

    Raises:
        ValueError: It is something else.
    """
    try:
        return {str(digest) for digest in json.loads(document)["succeeded"]}
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("is no list of probes") from error
