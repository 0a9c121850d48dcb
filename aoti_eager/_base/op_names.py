"""Turns names of ops into overloads, with suggestions for a name that does not exist."""

from __future__ import annotations

import difflib

import torch

from ..errors import RegistrationError, UnknownOpError
from .torch_compat.dispatcher import (
    OpOverload,
    OpOverloadPacket,
    all_op_names,
    has_op,
    overload_names,
)

# The namespace of the ops that stand for the tapes of regions.
TAPE_NAMESPACE = "aoti_eager_region"


def find_overload(name: str) -> OpOverload:
    """Return the overload with the qualified name ``namespace::op.overload``.

    Raises:
        UnknownOpError: There is no such overload.
    """
    base, _, overload = name.partition(".")
    packet = _packet(base)
    qualified = base if overload in ("", "default") else name
    # torch.ops also has TorchScript's overloads (aten::add.str), which the dispatcher lacks.
    found = getattr(packet, overload or "default", None) if has_op(qualified) else None
    if not isinstance(found, OpOverload):
        raise UnknownOpError(name, suggestions(name))
    return found


def find_packet(name: str) -> OpOverloadPacket:
    """Return all overloads of the op ``namespace::op``.

    Raises:
        UnknownOpError: There is no such op.
    """
    packet = _packet(name)
    if packet is None:
        raise UnknownOpError(name, suggestions(name))
    return packet


def no_op(given: object, also: str = "") -> RegistrationError:
    """Return the error for a value that was given as an op and is none.

    Args:
        given: The value.
        also: What else the caller takes, in words.
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


def suggestions(name: str) -> tuple[str, ...]:
    """Return up to three names of registered ops similar to ``name``, best first."""
    known = set(all_op_names())
    known |= {one.partition(".")[0] for one in known}
    asked = name if "::" in name else f"aten::{name.removeprefix('torch.').removeprefix('aten.')}"
    if asked in known and asked != name:
        return (asked,)
    return tuple(difflib.get_close_matches(asked, sorted(known), n=3, cutoff=0.6))
