"""Results of the laboratory -> one document for the package, one line a row.

``python -m tests.numerics certificates --work DIR FILE`` writes it. Rows are of functional
overloads: in-place, ``out=`` and foreach overloads have the same code and share them.

A row that certifies needs every part of its overload, dtype and target; one part that is beyond the
rule is enough for a row that does not. Where every part was declined there is no row: it would give
another reason than that for which such calls decline.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .families import Options, family, names
from .kernels import Versions
from .parts import Part, Results
from .report import rows
from .rule import CERTIFIED, ONLY_DECLINES

FORMAT = 1

# What a row holds, in this order.
COLUMNS = (
    "op",
    "dtype",
    "target",
    "status",
    "max_ulp_eager",
    "max_ulp_compiled",
    "zero_signs",
    "coverage",
    "reason",
)


def certificates(
    found: Iterable[Sequence[Any]], versions: Versions, made: str, compiler: str
) -> str:
    """Return the document of these rows, as text; the same rows give the same text.

    Args:
        found: Rows of ``COLUMNS``.
        versions: Under which they were made.
        made: The date, ``2026-11-29``.
        compiler: The compiler's name and version, for people.
    """
    lines = [json.dumps(list(row), ensure_ascii=True) for row in found]
    head = {"format": FORMAT, "torch": versions.torch, "compiler": compiler, "made": made}
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    body = ",\n".join(sorted(lines))
    return "{" + ",\n".join([*fields, f'"rows": [\n{body}\n]']) + "}\n"


def certain(results: Iterable[Mapping[str, Any]], wanted: Iterable[Part]) -> list[list[Any]]:
    """Return the rows that can be told from these results.

    Args:
        results: Of parts, as ``Results.all`` gives them.
        wanted: The parts that make an overload's certificate, of all overloads.
    """
    results = list(results)
    missing: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
    for part in wanted:
        place = part.op, part.dtype, part.target
        missing.setdefault(place, set()).add((part.family, part.variant))
    for result in results:
        part = Part(**result["part"])
        missing.get((part.op, part.dtype, part.target), set()).discard((part.family, part.variant))
    return [
        [_short(row[name]) for name in COLUMNS]
        for row in rows(results)
        if row["serves"]
        and (
            row["status"] != CERTIFIED or not missing.get((row["op"], row["dtype"], row["target"]))
        )
    ]


def _short(value: Any) -> Any:
    """Return a number with the digits that mean anything."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write(works: Sequence[Path], file: Path, versions: Versions, compiler: str) -> int:
    """Write the certificates of all results in ``works`` to ``file``; return how many rows it has.

    Args:
        works: Directories of results, as ``--work`` names them; where two have a part, the later.
        file: Its rows of other overloads, dtypes and targets stay, if they are of this torch.
        versions: Results of others are left out.
        compiler: See ``certificates``.
    """
    latest = {
        Part(**one["part"]).name: one for work in works for one in Results(work, versions).all()
    }
    found = certain(latest.values(), _wanted(latest.values()))
    new = {tuple(row[:3]) for row in found}
    made = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    text = certificates(
        [*found, *(row for row in _kept(file, versions) if tuple(row[:3]) not in new)],
        versions,
        made,
        compiler,
    )
    staged = file.with_name(f"{file.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(file)
    return len(json.loads(text)["rows"])


def _wanted(results: Iterable[Mapping[str, Any]]) -> list[Part]:
    """Return the parts of all families, in the dtypes and for the targets of these results."""
    targets: dict[str, set[str]] = {}
    for result in results:
        part = result["part"]
        targets.setdefault(part["target"], set()).update(part["dtype"].split(","))
    options = [Options(target, tuple(sorted(dtypes))) for target, dtypes in targets.items()]
    return [part for one in options for name in names() for part in family(name).parts(one)]


def _kept(file: Path, versions: Versions) -> list[Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if document["torch"] != versions.torch:
        return []
    return [row for row in document["rows"] if not row[-1].startswith(ONLY_DECLINES)]
