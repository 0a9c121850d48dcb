"""Results of the laboratory -> one document for the package, one line a row.

``python -m tests.numerics certificates --work DIR FILE`` writes it. Rows are of functional
overloads: in-place, ``out=`` and foreach overloads have the same code and share them.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .kernels import Versions
from .parts import Results
from .report import rows

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
    results: Iterable[Mapping[str, Any]], versions: Versions, made: str, compiler: str
) -> str:
    """Return the document of these results, as text; the same results give the same text.

    Args:
        results: Of parts, as ``Results.all`` gives them.
        versions: Under which they were made.
        made: The date, ``2026-11-29``.
        compiler: The compiler's name and version, for people.
    """
    lines = [
        json.dumps([_short(row[name]) for name in COLUMNS], ensure_ascii=True)
        for row in rows(results)
    ]
    head = {"format": FORMAT, "torch": versions.torch, "compiler": compiler, "made": made}
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    body = ",\n".join(sorted(lines))
    return "{" + ",\n".join([*fields, f'"rows": [\n{body}\n]']) + "}\n"


def _short(value: Any) -> Any:
    """Return a number with the digits that mean anything."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write(works: Sequence[Path], file: Path, versions: Versions, compiler: str) -> int:
    """Write the certificates of all results in ``works`` to ``file``; return how many rows it has.

    Args:
        works: Directories of results, as ``--work`` names them.
        file: Replaced as a whole.
        versions: Results of others are left out.
        compiler: See ``certificates``.
    """
    results = [one for work in works for one in Results(work, versions).all()]
    made = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    text = certificates(results, versions, made, compiler)
    staged = file.with_name(f"{file.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(file)
    return len(json.loads(text)["rows"])
