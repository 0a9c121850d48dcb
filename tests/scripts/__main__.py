"""The table of the real scripts: ``python -m tests.scripts [SCRIPT ...]``.

Each script runs plain, then enabled with an empty cache (cold; ``setup`` is done), enabled twice
more, so that its kernels are there and ops that only lose are left out, and then in alternation
plain and enabled (warm). Ratios are of medians of the whole script's seconds. Results are compared
to a relative tolerance of 1e-3: a training carries differences of rounding on. The packages that
the scripts need are the extra ``scripts``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = ("bert", "gpt2", "digits_mlp", "digits_cnn", "optimizers")
# What each script does per unit of ``--steps``.
STEPS = {"bert": 1, "gpt2": 1, "digits_mlp": 20, "digits_cnn": 10, "optimizers": 4}
TOLERANCE = 1e-3


def main() -> int:
    """Print the table; return 1 if a script's results differ."""
    options = _options()
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        cache = options.cache_dir or Path(directory) / "cache"
        _aoti_eager("setup", cache)
        print(
            f"{'script':<12}{'plain s':>9}{'cold':>7}{'warm':>7}{'calls':>9}{'hits':>9}"
            f"{'longest ms':>22}  results"
        )
        for name in options.scripts or SCRIPTS:
            _aoti_eager("clear", cache)
            arguments = (name, options.steps * STEPS[name], cache, Path(directory) / "result.json")
            one = found[name] = measured(*arguments, rounds=options.rounds)
            print(
                f"{name:<12}{one['plain_s']:>9.2f}{one['cold']:>7.2f}{one['warm']:>7.2f}"
                f"{one['calls']:>9}{one['hits']:>9}"
                f"{one['plain_longest_ms']:>11.1f}{one['warm_longest_ms']:>11.1f}"
                f"  {'equal' if one['equal'] else 'DIFFER'}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if all(one["equal"] for one in found.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", choices=[*SCRIPTS, []], help="by default all")
    parser.add_argument("--steps", type=int, default=200, help="how long the scripts are")
    parser.add_argument("--rounds", type=int, default=5, help="warm runs of each kind")
    parser.add_argument("--cache-dir", type=Path, help="a cache of its own; it is emptied")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def measured(name: str, steps: int, cache: Path, result: Path, *, rounds: int) -> dict[str, Any]:
    """Return the figures of one script."""
    plain = [_run(name, steps, cache, result, enabled=False)]
    cold = _run(name, steps, cache, result, enabled=True)
    for _ in range(2):
        _run(name, steps, cache, result, enabled=True)
    warm = []
    for _ in range(rounds):
        plain.append(_run(name, steps, cache, result, enabled=False))
        warm.append(_run(name, steps, cache, result, enabled=True))
    plain_s = statistics.median(one["seconds"] for one in plain)
    return {
        "plain_s": plain_s,
        "cold": plain_s / cold["seconds"],
        "warm": plain_s / statistics.median(one["seconds"] for one in warm),
        "calls": warm[-1]["calls"],
        "hits": warm[-1]["hits"],
        "declined": warm[-1]["declined"],
        "plain_longest_ms": statistics.median(one["longest_ms"] for one in plain),
        "cold_longest_ms": cold["longest_ms"],
        "warm_longest_ms": statistics.median(one["longest_ms"] for one in warm),
        "equal": all(is_close(one["printed"], plain[0]["printed"]) for one in (cold, *warm)),
    }


def is_close(got: dict[str, float], want: dict[str, float]) -> bool:
    """Return whether a script's numbers are those of the plain run, to the tolerance."""
    return got.keys() == want.keys() and all(
        math.isclose(got[name], want[name], rel_tol=TOLERANCE, abs_tol=1e-6) for name in want
    )


def _run(name: str, steps: int, cache: Path, result: Path, *, enabled: bool) -> dict[str, Any]:
    watched = (sys.executable, "-W", "ignore", "-m", "tests.scripts.watched")
    script = HERE / f"{name}.py"
    done = subprocess.run(
        [*watched, result, "1" if enabled else "0", cache, script, str(steps)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found | {"printed": json.loads(done.stdout.splitlines()[-1])}


def _aoti_eager(verb: str, cache: Path) -> None:
    command = [sys.executable, "-m", "aoti_eager", verb, "--cache-dir", str(cache)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main())
