"""THE RULE: when compiled code may serve an op on a dtype.

- NaN, infinities, integers, booleans and what eager's metadata is: exactly as eager. Only where the
  exact value, rounded to the dtype, is finite or an infinity and eager gives something else, the
  compiled code may give what the exact value is: it is nearer to the truth, and the row says so.
- Eager's own code for whole vectors and its code for what is behind them disagree on some NaN and
  infinities: there, the compiled code gives one of the two, and the row counts these results.
- Signs of zero: as eager's, or counted in the certificate.
- Finite results: in each region, the largest error of compiled code is at most the largest error of
  eager, or ``FLOOR_ULP`` units in the last place, whichever is larger. The exact value decides the
  unit. A region is a binade: elements whose key has one sign and one exponent. The key is the input
  for ops of one tensor, and the exact result for the others.

For a reduction a region is the whole of one data set, and eager's error counts ``REDUCTION_FACTOR``
times: ``reduction_allows``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .compare import FLOOR_ULP

CERTIFIED, UNCERTIFIED = "certified", "uncertified"
# How the reason begins where the package declines every call.
ONLY_DECLINES = "declines:"
REDUCTION_FACTOR = 1.5


def reduction_allows(ulp_eager: float, ulp_compiled: float) -> bool:
    """Return whether a reduction's error is within the rule, on the same data as eager's."""
    return ulp_compiled <= max(REDUCTION_FACTOR * ulp_eager, FLOOR_ULP)


def faults(measures: Mapping[str, Any]) -> list[str]:
    """Return what of a comparison's ``measures`` is against the rule, in words."""
    found = list(measures["metadata"])
    if measures["nan_mismatches"]:
        found.append(f"NaN differs in {measures['nan_mismatches']} values")
    if measures["inf_mismatches"]:
        found.append(f"infinity differs in {measures['inf_mismatches']} values")
    if measures["beyond_regions"]:
        worst = measures["beyond"][0] if measures["beyond"] else {}
        found.append(
            f"{measures['beyond_regions']} binades beyond the rule, worst "
            f"{spelled(worst.get('ulp_compiled'))} ulp where eager has "
            f"{spelled(worst.get('ulp_eager'))}"
        )
    if measures["exact_differing"]:
        found.append(f"integers or booleans differ in {measures['exact_differing']} values")
    return found


def spelled(value: Any) -> str:
    """Return an error for people: three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def merged(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row of what several parts of one overload, dtype and target say.

    Args:
        results: Results of parts as ``parts.py`` records them.
    """
    row: dict[str, Any] = {
        "status": CERTIFIED,
        "reason": "",
        "max_ulp_eager": 0.0,
        "max_ulp_compiled": 0.0,
        "zero_signs": 0,
        "nearer": 0,
        "elsewhere": 0,
        "values": 0,
        "coverage": "",
        "reference": "",
        "example": None,
    }
    reasons: list[str] = []
    notes: list[str] = []
    coverage: set[str] = set()
    references: set[str] = set()
    declined: list[str] = []
    served = 0
    for result in results:
        where = result["part"].get("variant") or ""
        prefix = f"{where}: " if where else ""
        if result["outcome"] == "declined":
            declined.append(prefix + result["reason"])
            continue
        if result["outcome"] == "refused":  # Eager takes no such call: there is nothing to serve.
            continue
        coverage.add(result["part"]["coverage"])
        if result["outcome"] != "done":
            reasons.append(f"{prefix}{result['outcome']}: {result['reason']}")
            continue
        served += 1
        measures = result["measures"]
        references.add(result["reference"])
        found = faults(measures)
        reasons += [prefix + one for one in found]
        if found and row["example"] is None:
            row["example"] = _example(measures)
        for name in ("max_ulp_eager", "max_ulp_compiled"):
            row[name] = _larger(row[name], measures[name])
        for name in ("zero_signs", "nearer", "values"):
            row[name] += measures[name]
        row["elsewhere"] += measures.get("elsewhere", 0)  # Reductions have no other place.
        if measures["nearer"]:
            example = measures["examples"]["nearer"][0]
            notes.append(
                f"{prefix}finite or infinite as the exact value is, where eager is not: "
                f"{measures['nearer']} values, e.g. {', '.join(example['inputs'])}"
            )
    if declined and not served and not reasons:
        row["status"] = UNCERTIFIED
        reasons = [f"{ONLY_DECLINES} {', '.join(sorted(set(declined)))}"]
    elif reasons:
        row["status"] = UNCERTIFIED
    elif not served:
        row["status"] = UNCERTIFIED
        reasons = ["eager takes no such call"]
    if row["status"] == CERTIFIED and row["elsewhere"]:
        notes.append(
            f"eager's vector and scalar code disagree on NaN or infinities: {row['elsewhere']} "
            "values, in which compiled code gives what one of them gives"
        )
    if row["status"] == CERTIFIED and row["zero_signs"]:
        notes.append(f"signs of zero differ in {row['zero_signs']} values")
    row["reason"] = "; ".join(sorted(set(reasons or notes)))
    row["coverage"] = "+".join(sorted(coverage))
    row["reference"] = "+".join(sorted(references))
    return row


def serves(results: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the package would serve any of these: they were not declined."""
    return any(result["outcome"] not in ("declined", "refused") for result in results)


def _example(measures: Mapping[str, Any]) -> Any:
    for name in ("nan", "inf"):
        if measures[f"{name}_mismatches"] and measures["examples"].get(name):
            return measures["examples"][name][0]
    if measures["beyond"]:
        return measures["beyond"][0]
    shown = measures["examples"].get("exact")
    return shown[0] if shown else None


def _larger(a: Any, b: Any) -> Any:
    return a if float(a) >= float(b) else b
