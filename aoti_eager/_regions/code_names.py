"""What code mentions and writes to, read from the code objects that have run; needs no torch."""

from __future__ import annotations

import dis
import types
from collections.abc import Collection

# To a global name, or a variable that functions share; writes to a variable of the function's own
# have other names.
_WRITES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"})
_OPCODES = frozenset(dis.opmap[name] for name in _WRITES)
_MATCH_CLASS = dis.opmap["MATCH_CLASS"]
_GLOBAL = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})


def mentioned_names(codes: Collection[types.CodeType]) -> frozenset[str]:
    """Return the names that code mentions, those included that reach ``getattr`` as text."""
    found: set[str] = set()
    for code in codes:
        found.update(code.co_names)
        waiting = list(code.co_consts)
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                found.add(one)
            elif isinstance(one, tuple | frozenset):  # Of a loop over names, of a ``case``.
                waiting += one
        if _MATCH_CLASS in code.co_code[::2]:  # Names of attributes are found at run time.
            found.add("__match_args__")
    return frozenset(found)


def outer_write(code: types.CodeType, ran: Collection[types.CodeType]) -> str:
    """Return a name outside of a call that code of the call writes to; empty if there is none.

    Args:
        code: The code.
        ran: All code that ran in the call. A variable of a function that ran is inside of the call.
    """
    # Units are two bytes, and the first is the opcode. Caches and arguments can only add opcodes
    # here, so that most code is passed over by a look at the bytes.
    if _OPCODES.isdisjoint(code.co_code[::2]):
        return ""
    for one in dis.get_instructions(code):
        if one.opname not in _WRITES:
            continue
        name = str(one.argval)
        if one.opname in _GLOBAL or (name in code.co_freevars and not _is_inner(code, name, ran)):
            return f"{name} in {code.co_name}"
    return ""


def _is_inner(code: types.CodeType, name: str, ran: Collection[types.CodeType]) -> bool:
    """Return whether a variable belongs to a function around ``code`` that ran in the call."""
    return any(name in one.co_cellvars and _holds(one, code, name) for one in ran)


def _holds(outer: types.CodeType, code: types.CodeType, name: str) -> bool:
    """Return whether ``code`` stands within ``outer``, and takes the variable from there."""
    for one in outer.co_consts:
        if one is code:
            return True
        # A function between the two that has a variable of this name has the one that is meant.
        if isinstance(one, types.CodeType) and name in one.co_freevars and _holds(one, code, name):
            return True
    return False
