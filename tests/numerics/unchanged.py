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
    # Norms over rows and channels; single numbers' erfc and lgamma, and what has them inside;
    # numbers that are inputs of ops with a way of our own; signalling NaN.
    8: (
        frozenset(
            {"unary", "binary", "mixed", "numbers", "strided", "reductions", "norms", "losses"}
        ),
        frozenset(
            f"aten::{name}"
            for name in (
                *("layer_norm", "native_layer_norm", "native_layer_norm_backward"),
                *("group_norm", "native_group_norm", "native_group_norm_backward"),
                *("native_batch_norm", "native_batch_norm_backward", "instance_norm"),
                *("_native_batch_norm_legit.no_stats", "_native_batch_norm_legit_no_training"),
                *("erfc", "special_erfc", "gelu", "gelu_backward", "special_erfcx"),
                *("special_ndtr", "special_log_ndtr", "special_erfinv", "erfinv"),
                *("lgamma", "special_gammaln", "mvlgamma", "special_multigammaln"),
                *("logaddexp", "logaddexp2", "fmax", "fmin"),
                *("copysign.Tensor", "copysign.Scalar"),
                *("special_xlog1py", "special_xlog1py.self_scalar"),
                "special_xlog1py.other_scalar",
            )
        ),
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
