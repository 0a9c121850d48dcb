"""Names of ops -> overloads, with suggestions for a name that is not there."""

from __future__ import annotations

import difflib

import torch

from ._compat import OpOverload, OpOverloadPacket, all_op_names, overload_names
from .errors import UnknownOpError


def find_overload(name: str) -> OpOverload:
    """Return the overload with the qualified name ``namespace::op.overload``.

    Raises:
        UnknownOpError: There is none.
    """
    base, _, overload = name.partition(".")
    packet = find_packet(base)
    if (overload or "default") not in overload_names(packet):
        raise UnknownOpError(name, suggestions(name))
    found = getattr(packet, overload or "default")
    assert isinstance(found, OpOverload)
    return found


def find_packet(name: str) -> OpOverloadPacket:
    """Return all overloads of the op ``namespace::op``.

    Raises:
        UnknownOpError: There is none.
    """
    namespace, separator, base = name.partition("::")
    try:
        if not separator or not namespace.isidentifier() or not base.isidentifier():
            raise AttributeError(name)
        packet = getattr(getattr(torch.ops, namespace), base)
    except AttributeError:
        raise UnknownOpError(name, suggestions(name)) from None
    if not isinstance(packet, OpOverloadPacket):
        raise UnknownOpError(name, suggestions(name))
    return packet


def suggestions(name: str) -> tuple[str, ...]:
    """Return up to three names of registered ops near ``name``, best first."""
    known = set(all_op_names())
    known |= {one.partition(".")[0] for one in known}
    asked = name if "::" in name else f"aten::{name.removeprefix('torch.').removeprefix('aten.')}"
    if asked in known and asked != name:
        return (asked,)
    return tuple(difflib.get_close_matches(asked, sorted(known), n=3, cutoff=0.6))
