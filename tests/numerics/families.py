"""The families of ops that the laboratory compares, by name.

A new family is a class with ``name``, ``ops``, ``parts`` and ``run``; it is listed in ``_modules``.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .laboratory import Laboratory
    from .parts import Part


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for on the command line.

    Attributes:
        target: The instruction set.
        dtypes: Names of dtypes.
        exhaustive: Every value, or as many as the issue asks for.
        share: Of a dtype with too many values, every so many-th is taken otherwise.
    """

    target: str
    dtypes: tuple[str, ...]
    exhaustive: bool = False
    share: int = 61


class Family(Protocol):
    """Compares some overloads, in parts."""

    name: str

    def ops(self) -> frozenset[str]:
        """Return the functional overloads that this family compares."""

    def parts(self, options: Options) -> list[Part]:
        """Return what is to be compared under these options."""

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return ``reference`` (a word) and ``measures`` (``Comparison.measures``) of a part.

        Raises:
            DeclinedError: The package declines the call.
            RefusedError: Eager refuses it.
        """


# Module and class of each family; they are imported when they are asked for.
_modules = {
    "unary": ("unary", "Unary"),
    "reductions": ("hard_families", "Reductions"),
    "norms": ("hard_families", "Norms"),
    "losses": ("hard_families", "Losses"),
    "samples": ("samples", "Samples"),
    "binary": ("binary", "Binary"),
    "mixed": ("binary", "Mixed"),
    "strided": ("strided", "Strided"),
    "numbers": ("numbers", "Numbers"),
}


def names() -> tuple[str, ...]:
    """Return the names of all families."""
    return tuple(_modules)


@functools.cache
def family(name: str) -> Family:
    """Return the family of a name."""
    module, kind = _modules[name]
    found: Family = getattr(importlib.import_module(f".{module}", __package__), kind)()
    return found
