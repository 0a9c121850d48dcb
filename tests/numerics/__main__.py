"""``python -m tests.numerics``: run the laboratory, or collect what it found."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import values
from .certificates import write
from .families import Options, family, names
from .kernels import compiler_version, versions
from .parts import run_parts
from .report import beyond, rows, table

DTYPES = ("float32", "bfloat16", "float16", "float64", *values.INTEGERS, *values.COMPLEX)


def main() -> int:
    """Return the exit status: 1 if an op that would serve is beyond the rule."""
    if sys.argv[1:2] == ["certificates"]:
        return _certificates(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.numerics", description=__doc__)
    parser.add_argument("--op", nargs="+", help="overloads (aten::mul.Tensor) or names (mul)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES[:3]))
    parser.add_argument("--family", nargs="+", choices=names(), default=list(names()))
    parser.add_argument("--exhaustive", action="store_true", help="every value; hours")
    parser.add_argument("--share", type=int, default=61, help="every so many-th value otherwise")
    parser.add_argument("--target", choices=("x86-64-v4", "x86-64-v3"), default="x86-64-v4")
    parser.add_argument("--work", type=Path, required=True, help="keeps results and kernels")
    parser.add_argument("--jobs", type=int, default=2, help="processes, with a compile worker each")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="for one part")
    options = parser.parse_args()
    asked = Options(
        options.target, tuple(options.dtype), exhaustive=options.exhaustive, share=options.share
    )
    parts = [part for name in options.family for part in family(name).parts(asked)]
    if options.op:
        parts = [part for part in parts if _is_asked(part.op, options.op)]
    started = time.monotonic()
    results = run_parts(
        parts,
        options.work.absolute(),
        options.target,
        versions(),
        jobs=options.jobs,
        timeout_s=options.timeout_s,
        log=lambda line: print(line, flush=True),
    )
    print(table(rows(results)))
    found = beyond(results)
    print(f"{len(results)} parts in {time.monotonic() - started:.0f} s of this run, ", end="")
    print(f"{sum(result['seconds'] for result in results):.0f} s in all of their runs")
    print(f"{len(found)} overloads and dtypes that would serve are beyond the rule")
    return 1 if found else 0


def _certificates(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.numerics certificates")
    parser.add_argument("--work", type=Path, action="append", required=True, help="of a run")
    parser.add_argument(
        "file", type=Path, help="what is written: aoti_eager/_dispatch/certificates.json"
    )
    options = parser.parse_args(arguments)
    works = [work.absolute() for work in options.work]
    count = write(works, options.file, versions(), compiler_version())
    print(f"{count} rows in {options.file}")
    return 0


def _is_asked(op: str, asked: list[str]) -> bool:
    short = op.removeprefix("aten::")
    return any(one.removeprefix("aten::") in (short, short.partition(".")[0]) for one in asked)


if __name__ == "__main__":
    sys.exit(main())
