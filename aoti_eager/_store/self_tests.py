"""The answers of self-tests: whether a torch that was not checked may serve on this machine.

The last answer holds: a failure replaces an earlier pass, and a pass an earlier failure.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from .._base.data_class import dataclass
from .._base.digest import Component, json_digest
from .._base.trusted_files import open_directory

# Most bytes that are read of a file: it is not checked yet.
ANSWER_LIMIT = 1 << 14


@dataclass(frozen=True, slots=True)
class Answer:
    """What a self-test has found.

    Attributes:
        passed: Whether calls may be served.
        path: The hit path that was tested: ``"C++"``, which the Python path lies under, or
            ``"Python"`` alone.
        message: What was found, in words.
    """

    passed: bool
    path: str
    message: str


def read_answer(directory: Path, machine: list[Component]) -> Answer | None:
    """Return the last answer for a machine, torch and compiler; ``None`` if there is none."""
    try:
        with open_directory(directory) as opened:
            return decode_answer(opened.read(_name(machine), ANSWER_LIMIT))
    except (OSError, ValueError):
        return None  # None yet, or a damaged file: the test runs again.


def write_answer(directory: Path, machine: list[Component], answer: Answer) -> None:
    """Keep an answer in place of the last one; if that fails, the test runs again."""
    fields = {"passed": answer.passed, "path": answer.path, "message": answer.message}
    content = json.dumps(fields).encode()
    with contextlib.suppress(OSError), open_directory(directory, create=True) as opened:
        opened.write(_name(machine), content)


def decode_answer(document: bytes) -> Answer:
    """Return the answer in a file.

    Raises:
        ValueError: The document is no answer.
    """
    try:
        found = json.loads(document)
        passed, path, message = found["passed"], found["path"], found["message"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("is no answer of a self-test") from error
    if not isinstance(passed, bool) or path not in ("C++", "Python") or type(message) is not str:
        raise ValueError("is no answer of a self-test")
    return Answer(passed, path, message)


def _name(machine: list[Component]) -> str:
    return f"{json_digest(machine)[:24]}.json"
