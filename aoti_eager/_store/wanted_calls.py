"""The kept queue: keys that processes wanted a kernel for and did not get, and how often.

A file of the store, ``wanted``, that a process reads at its first miss and writes at its end. The
first line is a header; each other line is a key::

    <digest> <calls> <tries> <last wanted> <op> {"key": ..., "schema": ..., "plan": ...}

What comes before the document is enough to know which keys are wanted most, so that a call pays for
no more than that. A document is looked at when its kernel is to be made, by then as one of a
workload would be. It has no function of the user's: its digest is in the key, and the process that
has the op brings the function. The file is advice: what cannot be read is not there.
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
from .._keys.guards import Guards
from .._keys.kernel_key import KernelKey
from ..errors import WorkloadError

HEADER = b"aoti_eager wanted 1"


# What is kept: so many keys, the most called ones; so many bytes of each and of all together, which
# is what a call may have to read; and for so long since it was last called.
MOST_KEYS = 256


LONGEST_LINE = 1 << 16


LARGEST_FILE = 1 << 20


PERIOD_S = 30 * 24 * 3600


# A clock may be wrong by a time zone.
_AHEAD_S = 24 * 3600


# Compiles that were begun and came to nothing that the store remembers: cut off, out of memory.
# After so many, nobody begins another until the key is called again.
MOST_TRIES = 5


_INDEX = re.compile(
    rb"(?P<digest>[0-9a-f]{64}) (?P<calls>[0-9]{1,15}) (?P<tries>[0-9]{1,6}) (?P<at>[0-9]{1,12}) "
    rb"(?P<op>\S+) (?P<document>\{.*\})"
)


# How the document of a rare key ends.
_RARE_END = b',"rare":true}'


# What is raised of a document that is something else.
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
        key: With the thread count that it was made under.
        schema: The op's schema in words.
        plan: For a kernel for several sizes, of which this is one call.
        is_rare: Whether no kernel is asked for yet: its calls are counted.
    """

    key: KernelKey
    schema: str
    plan: Plan | None = None
    is_rare: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key in the kept queue.

    Attributes:
        digest: The key's; with a plan, that of the plan's pattern.
        op: Its op.
        calls: How often it was called and had no kernel, in all processes.
        tries: How many of them have begun to make its kernel in vain.
        at: When it was last called, seconds since 1970.
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
        """Return whether no process has asked for its kernel: only its calls are counted."""
        return self.document.endswith(_RARE_END)

    def call(self) -> WantedCall:
        """Return the call that the document describes.

        Raises:
            NOT_WANTED: It is something else.
        """
        document = json.loads(self.document)
        key, plan = checked_key(document["key"]), document["plan"]
        call = WantedCall(key, str(document["schema"]), None if plan is None else _plan(plan))
        if (wanted_digest(call), key.op) != (self.digest, self.op):
            raise ValueError(f"is another call than {self.digest}")
        return call

    def is_call(self) -> bool:
        """Return whether the document describes a call, and that of the digest."""
        try:
            self.call()
        except NOT_WANTED:
            return False
        return True


def wanted(call: WantedCall, calls: int, tries: int, at: int) -> Wanted:
    """Return a call as a key of the kept queue."""
    plan = None if call.plan is None else call.plan.to_json() | {"family": call.plan.family}
    document: dict[str, Any] = {"key": call.key.to_json(), "schema": call.schema, "plan": plan}
    if call.is_rare:
        document["rare"] = True
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Wanted(wanted_digest(call), call.key.op, calls, tries, at, text.encode())


def wanted_digest(call: WantedCall) -> str:
    return call.key.digest if call.plan is None else call.plan.pattern.digest


def _plan(document: Mapping[str, Any]) -> Plan:
    return Plan(
        str(document["family"]),
        tuple((int(slot), int(dim)) for slot, dim in document["dims"]),
        tuple(map(str, document["numbers"])),
        KernelKey.from_json(document["pattern"]),
        Guards.from_json(document["guards"]),
    )


def decode(content: bytes) -> tuple[dict[str, Wanted], int]:
    """Return the wanted keys of a file by digest, and how many of its lines are none.

    Nothing is raised: a file of another kind or format has none, and one line that is damaged.
    """
    lines = content.split(b"\n")
    if lines[0] != HEADER or len(content) > LARGEST_FILE:
        return {}, 1
    found: dict[str, Wanted] = {}
    damaged = 0
    ops: dict[bytes, str | None] = {}  # None for what is no name: each is looked at once
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
    """Return the file that keeps ``keys``, as far as there is room: the most called ones.

    Args:
        keys: In any order.
        now: The time, seconds since 1970; what is too old is left out.
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
    """Return what is wanted after a process has called ``more`` and decided on some keys.

    Calls and tries are those of this process, and are added to what is kept.
    """
    result = dict(kept)
    for one in more:
        before = result.get(one.digest)
        if before is not None:
            calls, tries = before.calls + one.calls, before.tries + one.tries
            one = replace(one, calls=calls, tries=tries, at=max(before.at, one.at))
            if one.is_rare:  # An earlier process may have asked for its kernel.
                one = replace(one, document=before.document)
        result[one.digest] = one
    for digest in decided:
        result.pop(digest, None)
    return result
