"""What results come to: the rule, rows, and the certificates that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..numerics import rule
from ..numerics.certificates import (
    COLUMNS,
    certain,
    certificates,
    write,
)
from ..numerics.kernels import Versions
from ..numerics.parts import Part
from ..numerics.report import beyond, rows

VERSIONS = Versions(1, "2.13.0", "g++-0")
PARTS = [Part("aten::sin", "float32", "x86-64-v4", "unary", f"({i})") for i in range(4)]


def result(outcome: str = "done", **changes: Any) -> dict[str, Any]:
    """Return a part's result, of an op that is right."""
    found = {
        **dict.fromkeys(("values", "differing", "nan_mismatches", "inf_mismatches"), 0),
        **dict.fromkeys(("nearer", "zero_signs", "unreferenced", "exact_differing"), 0),
        "max_ulp_eager": 0.5,
        "max_ulp_compiled": 0.7,
        "beyond_regions": 0,
        "beyond": [],
        "beyond_values": 0,
        "examples": {},
        "metadata": [],
        **changes,
    }
    part = PARTS[0].to_json()
    base = {"part": part, "outcome": outcome, "seconds": 1.0, "versions": VERSIONS.to_json()}
    if outcome == "done":
        return {**base, "reference": "float64", "measures": found}
    return {**base, "reason": "because"}


def test_a_row_is_certified_only_if_all_of_its_parts_are_right() -> None:
    assert rule.merged([result(), result(zero_signs=3)])["status"] == "certified"
    for bad in (
        result(nan_mismatches=1),
        result(inf_mismatches=1),
        result(exact_differing=1),
        result(beyond_regions=1),
        result(metadata=["dtype"]),
        result("crashed"),
        result("hung"),
        result("failed"),
    ):
        row = rule.merged([result(), bad])
        assert row["status"] == "uncertified"
        assert row["reason"]
        assert beyond([result(), bad])
    assert not beyond([result()])


def test_what_declines_is_not_certified_and_serves_nothing() -> None:
    declined = rule.merged([result("declined")])
    assert declined["status"] == "uncertified"
    assert not beyond([result("declined")])
    # A variant that declines takes nothing from the others.
    assert rule.merged([result("declined"), result()])["status"] == "certified"
    assert rows([result("refused")]) == []


def test_a_reduction_may_be_half_as_far_off_again_as_eager() -> None:
    assert rule.reduction_allows(10.0, 15.0)
    assert not rule.reduction_allows(10.0, 15.1)
    assert rule.reduction_allows(0.0, 2.0)
    assert not rule.reduction_allows(1.0, 2.1)


def test_certificates_are_one_sorted_document() -> None:
    one, other = result(zero_signs=2), result(nan_mismatches=1)
    other["part"] = {**other["part"], "op": "aten::cos", "dtype": "bfloat16"}
    text = certificates(certain([one, other], []), VERSIONS, "2026-11-29", "g++ 12")
    assert text == certificates(certain([other, one], []), VERSIONS, "2026-11-29", "g++ 12")
    document = json.loads(text)
    assert document["format"] == 1
    found = [dict(zip(COLUMNS, row, strict=True)) for row in document["rows"]]
    assert [row["op"] for row in found] == ["aten::cos", "aten::sin"]
    assert [row["status"] for row in found] == ["uncertified", "certified"]
    assert found[1]["zero_signs"] == 2
    assert len(text.splitlines()) == 2 + 4 + 1 + 1


def test_a_certificate_needs_every_part_and_a_fault_needs_one() -> None:
    right, wrong = result(), result(nan_mismatches=1)
    wrong["part"] = {**wrong["part"], "op": "aten::cos"}
    wanted = [Part(**{**one["part"], "variant": "another"}) for one in (right, wrong)]
    assert [row[0] for row in certain([right, wrong], wanted)] == ["aten::cos"]
    whole = [Part(**one["part"]) for one in (right, wrong)]
    assert [row[0] for row in certain([right, wrong], whole)] == ["aten::cos", "aten::sin"]


def test_what_only_declines_has_no_certificate() -> None:
    declined = result("declined")
    assert certain([declined], []) == []
    assert [row[3] for row in certain([declined, result()], [])] == ["certified"]
    row = rule.merged([declined])
    assert row["reason"].startswith(rule.ONLY_DECLINES)


def test_what_was_not_run_anew_keeps_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "certificates.json"
    rows_before = certain([result()], [])
    file.write_text(certificates(rows_before, VERSIONS, "2026-11-29", "g++ 12"))
    assert write([], file, VERSIONS, "g++ 12") == 1
    assert json.loads(file.read_text())["rows"] == [list(row) for row in rows_before]
    other = Versions(VERSIONS.code, "9.9", VERSIONS.compiler)
    assert write([], file, other, "g++ 12") == 0
