"""Names of ops -> overloads, with suggestions for a name that is not there."""

from __future__ import annotations

import difflib

import torch

from ._compat import OpOverload, OpOverloadPacket, all_op_names, overload_names
from .errors import RegistrationError, UnknownOpError


def find_overload(name: str) -> OpOverload:
    """Return the overload with the qualified name ``namespace::op.overload``.

    Raises:
        UnknownOpError: There is none.
    """
    base, _, overload = name.partition(".")
    packet = _packet(base)
    qualified = base if overload in ("", "default") else name
    # torch.ops also has overloads of TorchScript (aten::add.str) that no dispatcher knows.
    found = getattr(packet, overload or "default", None) if _is_registered(qualified) else None
    if not isinstance(found, OpOverload):
        raise UnknownOpError(name, suggestions(name))
    return found


def find_packet(name: str) -> OpOverloadPacket:
    """Return all overloads of the op ``namespace::op``.

    Raises:
        UnknownOpError: There is none.
    """
    packet = _packet(name)
    if packet is None:
        raise UnknownOpError(name, suggestions(name))
    return packet


def no_op(given: object, also: str = "") -> RegistrationError:
    """Return the error of what is given for an op and is none.

    Args:
        given: What was given.
        also: What else would be taken, in words.
    """
    overload = "; its op is one" if isinstance(getattr(given, "op", None), OpOverload) else ""
    return RegistrationError(
        f"an op is given as {type(given).__name__}; a name, an OpOverload or an OpOverloadPacket"
        f"{also} is wanted{overload}"
    )


def overloads_of(packet: OpOverloadPacket) -> list[OpOverload]:
    """Return the overloads of a packet that the dispatcher knows."""
    return [getattr(packet, name) for name in overload_names(packet)]


def overloads_of_name(name: str) -> list[OpOverload]:
    """Return the overloads of the op ``namespace::op``; none if there is no such op."""
    packet = _packet(name)
    return [] if packet is None else overloads_of(packet)


def _packet(name: str) -> OpOverloadPacket | None:
    namespace, separator, base = name.partition("::")
    if not separator or not namespace.isidentifier() or not base.isidentifier():
        return None
    packet = getattr(getattr(torch.ops, namespace, None), base, None)
    return packet if isinstance(packet, OpOverloadPacket) else None


# Listing all names takes milliseconds, so they are kept until one is asked for that is not there.
_registered: set[str] = set()


def _is_registered(name: str) -> bool:
    if name not in _registered:
        _registered.update(all_op_names())
    return name in _registered


def suggestions(name: str) -> tuple[str, ...]:
    """Return up to three names of registered ops near ``name``, best first."""
    known = set(all_op_names())
    known |= {one.partition(".")[0] for one in known}
    asked = name if "::" in name else f"aten::{name.removeprefix('torch.').removeprefix('aten.')}"
    if asked in known and asked != name:
        return (asked,)
    return tuple(difflib.get_close_matches(asked, sorted(known), n=3, cutoff=0.6))
