"""How many faults the trial finds: ``python -m tests.mutants [--count N]``.

Kernels of some thirty calls are compiled as the package compiles them; then each mutant is one of
their sources with one line changed, compiled with the same command, and given to the trial alone.
What does not compile, or is never seen to differ from its kernel, counts for nothing. All of it is
kept in a directory (``AOTI_EAGER_TESTS_MUTANTS``), so that a run that was ended goes on.

    python -m tests.mutants [--count N] [--seed N] [--missed] [--json FILE]
    python -m tests.mutants --held-out

The second tries kernels of other calls as they are (``held_out``): each must pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from aoti_eager._compile_worker.library_runs import trial_server

from . import trial_digest
from .built import (
    FOUND,
    MISSED,
    NO_CODE,
    SAME,
    asked,
    judged,
)
from .calls import mutated_cases
from .captured import (
    Captured,
    capture,
    captured,
    directory,
)
from .held_out import held_out_cases
from .mutate import drawn


def kernels(place: Path) -> list[Captured]:
    """Return the kernels that are mutated."""
    cases = mutated_cases()
    capture(cases, place / "kernels")
    return [one for case in cases for one in captured(case, place / "kernels")]


def held_out(place: Path) -> int:
    """Return 0 where the trial lets pass each kernel that its constants were not chosen by."""
    cases = list(held_out_cases())
    capture(cases, place / "kernels")
    server = trial_server()
    tried = declined = 0
    for kernel in (one for case in cases for one in captured(case, place / "kernels")):
        answer = server.run(asked(kernel, Path(kernel.request["library"])))
        tried += 1
        if "reason" in answer:
            declined += 1
            print(f"declined: {kernel.name}: {answer['message'][:300]}", flush=True)
    server.close()
    print(f"{tried} kernels of {len(cases)} calls; {declined} declined")
    return 0 if tried and not declined else 1


def main(arguments: list[str]) -> int:
    """Return 0 where at least 95 in 100 mutants are found."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=200, help="how many that differ")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=float, default=2.0, help="draw so many times more at most")
    parser.add_argument("--held-out", action="store_true", help="try other kernels, as they are")
    parser.add_argument("--missed", action="store_true", help="print each that is missed")
    parser.add_argument("--json", type=Path, help="where to write what became of each")
    options = parser.parse_args(arguments)
    place = directory()
    if options.held_out:
        return held_out(place)
    server = trial_server()
    digest = trial_digest()
    good = []
    for kernel in kernels(place):
        seen = kernel.place / f"{digest}.json"
        if not seen.exists():
            answer = server.run(asked(kernel, Path(kernel.request["library"])))
            seen.write_text(json.dumps(answer))
        answer = json.loads(seen.read_text())
        if "reason" in answer:
            print(f"not used: {kernel.name}: {answer['message'][:200]}", flush=True)
        else:
            good.append(kernel)
    counts: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    rows = []
    most = int(options.count * options.most)
    for at, mutant in drawn([kernel.source for kernel in good], most, options.seed):
        if counts[FOUND] + counts[MISSED] >= options.count:
            break
        kernel = good[at]
        outcome = judged(kernel, mutant, place / "mutants", server, digest)
        counts[outcome.verdict] += 1
        kinds.setdefault(mutant.kind, Counter())[outcome.verdict] += 1
        rows.append(
            [
                kernel.name,
                mutant.kind,
                mutant.before,
                mutant.after,
                outcome.verdict,
                outcome.message,
            ]
        )
        if options.missed and len(rows) % 20 == 0:
            print(len(rows), dict(counts), flush=True)
        if options.missed and outcome.verdict == MISSED:
            print(f"missed: {kernel.name}: {mutant.kind}, {outcome.message}")
            print(f"    {mutant.before.strip()}\n    {mutant.after.strip()}", flush=True)
    server.close()
    for kind, found in sorted(kinds.items()):
        print(f"{kind:15}", *(f"{name} {found[name]}" for name in (FOUND, MISSED, SAME, NO_CODE)))
    total = counts[FOUND] + counts[MISSED]
    share = counts[FOUND] / max(1, total)
    print(f"{len(good)} kernels; {counts[FOUND]} of {total} mutants found: {share:.1%};", end=" ")
    print(f"{counts[SAME]} never differ, {counts[NO_CODE]} do not compile")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
