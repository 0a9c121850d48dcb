"""Which ops ``enable`` and ``use`` serve: a preset or names, without those that are excluded."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .._base.op_names import find_packet
from .._base.torch_compat.dispatcher import OpOverload, OpOverloadPacket
from .._base.warn_once import log
from .._keys.schema import qualified_name
from .._registration.resolve import Op, resolve
from .._store.verdict import processor
from ..errors import ConfigError, RegistrationError
from . import op_set

# An op, a glob, or a file of names and globs.
Wanted = Op | os.PathLike[str]
_GLOB = re.compile(r"[*?\[]")


def chosen(
    preset: str, include: Wanted | Iterable[Wanted] | None, exclude: Wanted | Iterable[Wanted]
) -> dict[str, OpOverload]:
    """Return the overloads to serve by their names as ``register`` takes them, in a fixed order.

    Args:
        preset: The preset that is served if ``include`` is ``None``.
        include: What is served in place of the preset. A glob stands for the ops of the preset
            ``all`` that it matches.
        exclude: What of that is not served.

    Raises:
        ConfigError: There is no such preset, or a file cannot be read.
        UnknownOpError: There is no op of a name that was given.
        RegistrationError: An op that was given cannot be registered.
    """
    measured = op_set.shipped()
    names = measured.ops(preset, processor())
    found: dict[str, OpOverload] = {}
    if include is None:
        found = _that_can_be_served(names)
    else:
        every = measured.ops("all", processor())
        for one in _listed(include):
            if isinstance(one, str) and _GLOB.search(one):
                found |= _that_can_be_served(name for name in every if _matches(name, one))
            else:
                found |= {full_name(op): op for op in resolve(one, "CPU")[0]}
    patterns = [_pattern(one) for one in _listed(exclude)]
    return {
        name: op
        for name, op in found.items()
        if not any(_matches(name, pattern) for pattern in patterns)
    }


def full_name(op: OpOverload) -> str:
    """Return ``namespace::op.overload``, ``default`` spelled out."""
    name = qualified_name(op)
    return name if "." in name else f"{name}.default"


def _that_can_be_served(names: Iterable[str]) -> dict[str, OpOverload]:
    """Return the ops that this torch has, in the form in which they can be registered."""
    found = {}
    for name in names:
        try:
            (found[name],) = resolve(name, "CPU")[0]
        except RegistrationError as error:
            log.info("%s", error)
    return found


def _matches(name: str, pattern: str) -> bool:
    """Return whether an overload's full name matches a name with or without overload, or a glob."""
    whole = name.partition(".")[0]
    return any(fnmatch.fnmatchcase(one, pattern) for one in (name, whole))


def _pattern(one: Op) -> str:
    """Return the name or glob that an excluded op is matched with.

    Raises:
        RegistrationError: It is no op.
    """
    if isinstance(one, OpOverload):
        return full_name(one)
    if isinstance(one, OpOverloadPacket):
        return str(one._qualified_op_name)
    if not isinstance(one, str):
        raise RegistrationError(
            f"an op to exclude is given as {type(one).__name__}; a name, a glob, a path of a file, "
            "an OpOverload or an OpOverloadPacket is wanted"
        )
    if not _GLOB.search(one):
        find_packet(one.partition(".")[0])  # A name that does not exist is a mistake.
    return one


def _listed(wanted: Wanted | Iterable[Wanted]) -> list[Op]:
    if isinstance(wanted, str | os.PathLike | OpOverload | OpOverloadPacket):
        wanted = [wanted]
    found: list[Op] = []
    for one in wanted:
        if isinstance(one, os.PathLike):
            found += _lines(Path(one))
        else:
            found.append(one)
    return found


def _lines(path: Path) -> list[str]:
    """Return the names and globs of a file: one a line; what follows a ``#`` is a remark."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the file of ops cannot be read: {error}") from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]
