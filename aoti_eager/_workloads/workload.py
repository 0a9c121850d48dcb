"""A workload: the calls that a script made, op and metadata without data, and their file.

``run --record`` writes one, ``warm`` compiles it. The file is lines of JSON. The first is a header,
``{"kind": "aoti_eager workload", "format": 1, "written_by": ...}``. Every other line is a call,
``{"key": ..., "function": ..., "schema": ...}``, in the order of the first calls. Lines may be
taken out, and lines of another workload appended; a damaged line costs that line only. The file has
the source of users' functions, which runs where the workload is compiled: a workload is code, as a
script is.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from .._base.data_class import dataclass
from .._base.digest import json_digest
from .._base.output_file import OutputFile
from .._base.torch_compat.dispatcher import OpOverload, raw_schema
from .._base.warn_once import log
from .._dispatch.recorder import set_recorder
from .._keys.checked_key import (
    checked_key,
    wrong,
)
from .._keys.kernel_key import KernelKey
from .._store.environment import CODE_VERSION
from ..errors import WorkloadError

if TYPE_CHECKING:
    from .._functions.description import Description

FORMAT_VERSION = 1
_KIND = "aoti_eager workload"


# Limits, because a file may be a pipe without an end. A call's line is a kilobyte or two.
_LONGEST_LINE = 1 << 20
_LARGEST_FILE = 1 << 30
# A file with more damaged lines is another kind of file with a workload's header.
_MOST_DAMAGED = 10_000

# What reading a document raises if it is something else than a call.
_NOT_A_CALL = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a workload.

    Attributes:
        key: The call's key, with the thread count that it was made under.
        function: The user's function behind the op, as data (``Description.document``); ``None``
            for an op that every process has.
        schema: The op's schema in words.
    """

    key: KernelKey
    function: dict[str, Any] | None
    schema: str


class Recorder:
    """The distinct calls that this process has made since it began to record."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._lock = threading.Lock()

    def add(self, key: KernelKey, function: Description | None, op: OpOverload) -> None:
        """Add a call, unless it was added before."""
        digest = key.digest
        with self._lock:
            if digest not in self._calls:
                document = None if function is None else function.document
                self._calls[digest] = Call(key, document, str(raw_schema(op)))

    def calls(self) -> tuple[Call, ...]:
        """Return the calls, in the order in which they were first made."""
        with self._lock:
            return tuple(self._calls.values())


def start_recording() -> Recorder:
    """Return a new recorder, which is told of each new call from now on.

    Calls of keys that this process has met before are not recorded: begin before ops are called.
    """
    recorder = Recorder()
    set_recorder(recorder)
    return recorder


def stop_recording() -> None:
    """Record no more calls."""
    set_recorder(None)


if hasattr(os, "register_at_fork"):
    # The parent writes the workload; another thread may have held the lock of its recorder.
    os.register_at_fork(after_in_child=stop_recording)


# --- the file ------------------------------------------------------------------------------------


def write_workload(file: OutputFile, calls: Iterable[Call]) -> None:
    """Write ``calls`` to ``file``, each once.

    Raises:
        OutputFileError: It cannot be written.
    """
    written_by = {"aoti_eager": CODE_VERSION, "torch": str(torch.__version__)}
    documents: list[Any] = [{"kind": _KIND, "format": FORMAT_VERSION, "written_by": written_by}]
    documents += [
        {"key": call.key.to_json(), "function": call.function, "schema": call.schema}
        for call in distinct(calls)
    ]
    lines = [json.dumps(one, separators=(",", ":"), allow_nan=False) for one in documents]
    file.write(("\n".join(lines) + "\n").encode())


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line of a workload that is no call.

    Attributes:
        place: The file and the line's number, in words.
        problem: What is wrong with it.
    """

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What a file holds.

    Attributes:
        calls: Its calls, each once, in its order.
        damaged: Its other lines, except empty ones.
    """

    calls: tuple[Call, ...]
    damaged: tuple[DamagedLine, ...] = ()


def read_workload(path: str | os.PathLike[str]) -> tuple[Call, ...]:
    """Return the calls of the workload in a file, each once, in its order.

    A damaged line is passed over; one warning in our log says how many there are and what is wrong
    with the first.

    Args:
        path: The file, which ``run --record`` wrote; a pipe is one, too.

    Raises:
        WorkloadError: The file cannot be read, is no workload, or is too large.
    """
    workload = load_workload(path)
    if workload.damaged:
        count = len(workload.damaged)
        lines = "it is" if count == 1 else f"it and {count - 1} more damaged lines are"
        log.warning("%s; %s passed over", workload.damaged[0], lines)
    return workload.calls


def load_workload(path: str | os.PathLike[str]) -> Workload:
    """Return what a file holds, damaged lines included.

    Raises:
        WorkloadError: The file cannot be read, is no workload, or is too large.
    """
    path = Path(path)
    calls: dict[str, Call] = {}
    damaged: list[DamagedLine] = []
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                if number == 1:
                    _check_header(_document(line))
                elif line is None or line.strip():
                    try:
                        call = _call(_document(line))
                    except WorkloadError as error:
                        damaged.append(DamagedLine(f"{path}, line {number}", str(error)))
                    else:
                        calls.setdefault(call.key.digest, call)
                if len(damaged) > _MOST_DAMAGED:
                    raise WorkloadError(
                        f"{damaged[-1].problem}; more than {_MOST_DAMAGED} lines are damaged, so "
                        "this is no workload; record it again"
                    )
        if number == 0:
            _check_header(_document(b""))
    except OSError as error:
        raise WorkloadError(f"{path}: the workload cannot be read: {error.strerror}") from error
    except WorkloadError as error:
        raise WorkloadError(f"{path}, line {number or 1}: {error}") from error
    return Workload(tuple(calls.values()), tuple(damaged))


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Give each line without its end; ``None`` for one that is too long, which is never held."""
    size = 0
    is_rest = False
    while part := file.readline(_LONGEST_LINE + 1):
        size += len(part)
        if size > _LARGEST_FILE:
            raise WorkloadError(
                f"the file has more than {_LARGEST_FILE} bytes until here; wanted a workload of up "
                "to that size, so divide it into several, each with the header"
            )
        is_whole = part.endswith(b"\n") or len(part) <= _LONGEST_LINE
        if not is_rest:
            yield part.removesuffix(b"\n") if is_whole else None
        is_rest = not is_whole


def distinct(calls: Iterable[Call]) -> tuple[Call, ...]:
    """Return ``calls`` without those whose key came before."""
    found: dict[str, Call] = {}
    for call in calls:
        found.setdefault(call.key.digest, call)
    return tuple(found.values())


def _document(line: bytes | None) -> dict[str, Any]:
    wanted = "one JSON object"
    if line is None:
        raise wrong(f"longer than {_LONGEST_LINE} bytes", wanted)
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise wrong(line[:1000].decode(errors="replace"), wanted) from error
    if not isinstance(document, dict):
        raise wrong(document, wanted)
    return document


def _check_header(header: dict[str, Any]) -> None:
    if header.get("kind") != _KIND or type(header.get("format")) is not int:
        raise wrong(header, f'the header of a workload, {{"kind": "{_KIND}", "format": 1}}')
    if not 1 <= header["format"] <= FORMAT_VERSION:
        raise WorkloadError(
            f"has format {header['format']}; this version reads up to {FORMAT_VERSION}, so record "
            "it again, or use the version that wrote it"
        )


def _call(document: dict[str, Any]) -> Call:
    try:
        return _checked_call(document)
    except WorkloadError:
        raise
    except _NOT_A_CALL as error:
        raise WorkloadError(f"is no call: {error!r:.200}") from error


def _checked_call(document: dict[str, Any]) -> Call:
    for name in ("key", "function", "schema"):
        if name not in document:
            raise wrong(document, f"a call, which has {name!r}")
    function, schema = document["function"], document["schema"]
    if function is not None and not isinstance(function, dict):
        raise wrong(function, "a function as an object, or null", "function")
    if not isinstance(schema, str):
        raise wrong(schema, "an op's schema in words", "schema")
    key = checked_key(document["key"])
    # Otherwise a kernel of one function would be stored as another's.
    named = dict(key.context).get("function")
    try:
        digest = None if function is None else json_digest(function)
    except (ValueError, RecursionError) as error:
        raise wrong(function, "a function as JSON without NaN", "function") from error
    if named != digest:
        raise wrong(digest, f"the digest that the key names, {named}", "the function's digest")
    return Call(key, function, schema)
