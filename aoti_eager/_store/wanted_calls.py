"""The kept queue: keys that processes wanted a kernel for and did not get, and how often.

A file of the store, ``wanted``, that a process reads at its first miss and writes at its end. The
first line is a header; each other line is a key::

    <digest> <calls> <tries> <last wanted> <op> {"key": ..., "schema": ..., "plan": ...}

The fields before the document tell which keys are wanted most, so a call pays for reading these
fields only. A document is decoded when its kernel is to be made, with the checks that a workload's
calls get. A document has no user's function: the key has the function's digest, and the process
that has the op brings the function. The file is advice: what cannot be read counts as missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .._base.data_class import dataclass
from .._keys.checked_key import LONGEST_OP, OP, checked_key
from .._keys.dynamic_plan import Plan
from .._keys.kernel_key import KernelKey
from .._keys.pattern import expressions_in
from ..errors import WorkloadError

HEADER = b"aoti_eager wanted 1"


# Limits of the file. So many keys are kept: the most called ones.
MOST_KEYS = 256


# Bytes of one key.
LONGEST_LINE = 1 << 16


# Bytes of all keys together: a call may have to read them.
LARGEST_FILE = 1 << 20


# Seconds that a key is kept since it was last called.
PERIOD_S = 30 * 24 * 3600


# A clock may be wrong by a time zone.
_AHEAD_S = 24 * 3600


# Compiles of a key that were begun and left nothing in the store: cut off, out of memory. After so
# many, no process begins another until the key is called again.
MOST_TRIES = 5


_INDEX = re.compile(
    rb"(?P<digest>[0-9a-f]{64}) (?P<calls>[0-9]{1,15}) (?P<tries>[0-9]{1,6}) (?P<at>[0-9]{1,12}) "
    rb"(?P<op>\S+) (?P<document>\{.*\})"
)


# How the document of a rare key ends.
_RARE_END = b',"rare":true}'


# Errors that ``Wanted.call`` raises for a document that is something else.
NOT_WANTED = (
    WorkloadError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class WantedCall:
    """The call behind a wanted key, without its tensors.

    Attributes:
        key: The key, with the thread count that it was made under.
        schema: The op's schema in words.
        plan: For a kernel for several sizes, of which this is one call: its plan.
        is_rare: Whether no kernel is asked for yet: the key's calls are counted.
    """

    key: KernelKey
    schema: str
    plan: Plan | None = None
    is_rare: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key in the kept queue.

    Attributes:
        digest: The key's digest; with a plan, the digest of the plan's pattern.
        op: The key's op.
        calls: How often the key was called and had no kernel, in all processes.
        tries: How many processes have begun to make its kernel in vain.
        at: When the key was last called, in seconds since 1970.
        document: The call as JSON.
    """

    digest: str
    op: str
    calls: int
    tries: int
    at: int
    document: bytes

    @property
    def is_rare(self) -> bool:
        """Return whether no process has asked for the kernel: the key's calls are only counted."""
        return self.document.endswith(_RARE_END)

    def call(self) -> WantedCall:
        """Return the call that the document describes.

        Raises:
            NOT_WANTED: The document is something else.
        """
        document = json.loads(self.document)
        key, plan = checked_key(document["key"]), document["plan"]
        call = WantedCall(key, str(document["schema"]), None if plan is None else _plan(plan, key))
        if (wanted_digest(call), key.op) != (self.digest, self.op):
            raise ValueError(f"is another call than {self.digest}")
        return call

    def is_call(self) -> bool:
        """Return whether the document describes a call that has this digest."""
        try:
            self.call()
        except NOT_WANTED:
            return False
        return True


def wanted(call: WantedCall, calls: int, tries: int, at: int) -> Wanted:
    """Return a call as a key of the kept queue."""
    plan = None if call.plan is None else call.plan.to_json()
    document: dict[str, Any] = {"key": call.key.to_json(), "schema": call.schema, "plan": plan}
    if call.is_rare:
        document["rare"] = True
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Wanted(wanted_digest(call), call.key.op, calls, tries, at, text.encode())


def wanted_digest(call: WantedCall) -> str:
    return call.key.digest if call.plan is None else call.plan.pattern.digest


def _plan(document: Mapping[str, Any], key: KernelKey) -> Plan:
    """Return the plan that a document describes, whose kernel is to serve ``key``.

    Raises:
        NOT_WANTED: The document describes no plan, or one for other calls.
    """
    checked_key(document["pattern"])
    plan = Plan.from_json(document)
    if _fixed_parts(plan.pattern) != _fixed_parts(key):
        raise ValueError(f"is a plan for other calls than those of {key.digest}")
    for expression in expressions_in(plan.pattern):
        plan.guards.check(expression)
    return plan


def _fixed_parts(key: KernelKey) -> tuple[object, ...]:
    """Return what a key and its patterns have in common."""
    return key.op, key.dispatch_key, [name for name, _ in key.arguments], dict(key.context)


def decode(content: bytes) -> tuple[dict[str, Wanted], int]:
    """Return the wanted keys of a file by digest, and the number of damaged lines.

    Never raises: a file of another kind or format has no keys and one damaged line.
    """
    lines = content.split(b"\n")
    if lines[0] != HEADER or len(content) > LARGEST_FILE:
        return {}, 1
    found: dict[str, Wanted] = {}
    damaged = 0
    ops: dict[bytes, str | None] = {}  # None for what is no name; each name is checked once
    for line in filter(None, lines[1:]):
        match = _INDEX.fullmatch(line) if len(line) <= LONGEST_LINE else None
        name = b"" if match is None else match["op"]
        if name not in ops:
            text = name.decode("ascii", "replace")
            ops[name] = text if re.fullmatch(OP, text) and len(text) <= LONGEST_OP else None
        op = ops[name]
        if match is None or op is None:
            damaged += 1
            continue
        digest = match["digest"].decode()
        calls, tries, at = map(int, match.group("calls", "tries", "at"))
        found[digest] = Wanted(digest, op, calls, tries, at, match["document"])
    return found, damaged


def encode(keys: Iterable[Wanted], now: int) -> bytes:
    """Return the content of a file with ``keys``, as far as there is room: the most called ones.

    Args:
        keys: The keys, in any order.
        now: The time, in seconds since 1970; keys that are too old are left out.
    """
    lines = [HEADER]
    size = len(HEADER) + 1
    fresh = [one for one in keys if -_AHEAD_S <= now - one.at <= PERIOD_S]
    for one in sorted(fresh, key=_order)[:MOST_KEYS]:
        index = f"{one.digest} {one.calls} {one.tries} {one.at} {one.op} ".encode()
        line = index + one.document
        if len(line) > LONGEST_LINE or size + len(line) + 1 > LARGEST_FILE:
            continue
        lines.append(line)
        size += len(line) + 1
    return b"\n".join([*lines, b""])


def _order(one: Wanted) -> tuple[bool, int, int, str]:
    return one.is_rare, -one.calls, -one.at, one.digest


def merged(
    kept: Mapping[str, Wanted], more: Iterable[Wanted], decided: Iterable[str]
) -> dict[str, Wanted]:
    """Return the wanted keys after a process has called ``more`` and decided on some keys.

    The calls and tries in ``more`` are this process's; they are added to those in ``kept``.
    """
    result = dict(kept)
    for one in more:
        before = result.get(one.digest)
        if before is not None:
            calls, tries = before.calls + one.calls, before.tries + one.tries
            one = replace(one, calls=calls, tries=tries, at=max(before.at, one.at))
            if one.is_rare:  # An earlier process may have asked for the kernel.
                one = replace(one, document=before.document)
        result[one.digest] = one
    for digest in decided:
        result.pop(digest, None)
    return result
