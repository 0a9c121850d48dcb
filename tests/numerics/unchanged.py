"""Which results of an earlier code version still say what the code of today does.

A new version of generated code leaves most of that code as it was. What is named here was compiled
by both versions to the same source. Results that were against the rule never hold: a mend may have
reached them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rule import faults

# By version: the families whose code it left as the version before had it, and the overloads of
# these that it did change.
_LEFT: dict[int, tuple[frozenset[str], frozenset[str]]] = {
    # Sums of strided softmaxes, norms of other orders, layouts of results that are not contiguous.
    7: (
        frozenset({"unary", "binary", "mixed", "numbers"}),
        frozenset({"aten::copysign.Tensor", "aten::copysign.Scalar"}),
    ),
}


def holds(result: Mapping[str, Any], versions: Mapping[str, Any]) -> bool:
    """Return whether a part's result counts under ``versions``.

    Args:
        result: As ``parts.py`` records it.
        versions: ``Versions.to_json`` of this moment.
    """
    theirs = result["versions"]
    if theirs == versions:
        return True
    if {**theirs, "code": versions["code"]} != versions or theirs["code"] > versions["code"]:
        return False
    if result["outcome"] not in ("done", "refused") or (
        result["outcome"] == "done" and faults(result["measures"])
    ):
        return False
    part = result["part"]
    for version in range(theirs["code"] + 1, versions["code"] + 1):
        families, changed = _LEFT.get(version, (frozenset(), frozenset()))
        if part["family"] not in families or part["op"] in changed:
            return False
    return True
