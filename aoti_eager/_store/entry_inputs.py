"""The inputs of an entry's calls in short, for people: ``f32[8,8] f32[s0,8]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._keys.guards import text
from .entry import Entry

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c", "bool": "b8"}
_ODD = "?"


def short_dtype(name: str) -> str:
    """Return ``f32`` for ``float32`` and so on; a name without a short form stays as it is."""
    kind = name.rstrip("0123456789")
    return _SHORT[kind] + name[len(kind) :] if kind in _SHORT else name


def inputs_in_short(entry: Entry) -> str:
    """Return dtypes and sizes of the tensors, and the numbers; symbols for sizes that are open.

    An argument of another form than any call gives, in a record that somebody has edited, is ``?``.
    """
    texts = []
    for _, component in entry.key.arguments:
        listed = component if isinstance(component, tuple | type([])) else [component]
        for one in listed:
            if isinstance(one, dict) and ("dtype" in one or "number" in one):
                texts.append(_in_short(one))
    return " ".join(texts)


def _in_short(component: Mapping[str, Any]) -> str:
    number = component.get("number")
    if number is not None:
        return number if isinstance(number, str) else _ODD
    try:
        sizes = ",".join(map(text, component["sizes"]))
        return f"{short_dtype(component['dtype'])}[{sizes}]"
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return _ODD
