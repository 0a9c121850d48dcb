"""Instruction sets that were found to work with the C++ compiler and this CPU, in the toolchain.

If the instruction set is not pinned, Inductor compiles and loads a small library for each
instruction set that the CPU may have, in every process. That takes seconds before the first kernel.
Only workers use ``Probes``.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from .._base.digest import Component, json_digest
from .._base.trusted_files import open_directory

# Most bytes that are read of a file: it is not checked yet.
PROBES_LIMIT = 1 << 20


class Probes:
    """The probes that succeeded on this machine with this compiler.

    Failed probes are not kept: a probe may have failed because of a full disk, and to keep that
    answer would mean slow code for good.

    Args:
        directory: Where the probes are kept, one file for each ``machine``.
        machine: CPU features, torch and compiler; if one of these changes, everything is probed
            anew.
    """

    def __init__(self, directory: Path, machine: list[Component]) -> None:
        self._directory = directory
        self._name = f"{json_digest(machine)[:24]}.json"
        self._succeeded = self._read()

    def has(self, question: list[Component]) -> bool:
        """Return whether the probe ``question`` is known to succeed."""
        return json_digest(question) in self._succeeded

    def add(self, question: list[Component]) -> None:
        """Note in the file that the probe ``question`` succeeded; if that fails, it runs again."""
        # Read again: another worker may have added other probes.
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
        ValueError: The document is no list of probes.
    """
    try:
        return {str(digest) for digest in json.loads(document)["succeeded"]}
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("is no list of probes") from error
