"""``python -m aoti_eager demo``: train a model plain and under our kernels, and compare.

``docs/examples/char_lm.py``, which does not use this package itself, runs three times in its own
processes, with the same seed: plain; under ``run`` with an empty cache (cold); and again with the
cache that the cold run left (warm).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._base.child_process import interpreter_options
from .._base.printable import printable_lines
from .._dispatch.counters import OpStats
from .columns import align
from .run import add_ops_argument, chosen_ops

DEFAULT_STEPS = 60

# The first steps take time that later steps do not: compiles, loads, and PyTorch's own start-up.
SETTLING_STEPS = 3

# A kernel adds in a different order than eager, so losses may differ by float32 rounding: 3e-7 at a
# loss of 5, carried on by each step. Measured: 7e-7 at most in 600 steps of eager PyTorch with one
# thread against two; 5e-7 with every element of gelu's gradient moved by up to one unit in the last
# place. The bound is a hundred times as large, for machines that add in yet another order, and
# still finds a wrong kernel: with gelu's gradient 1% too large, losses differ by 6e-4.
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the script left behind.

    Attributes:
        losses: The loss of each step.
        seconds: The wall time of each step.
        counts: What happened to the calls of each op; empty for a plain run.
    """

    losses: list[float]
    seconds: list[float]
    counts: dict[str, OpStats]

    @property
    def total(self) -> OpStats:
        """Return the counts of all ops together."""
        return sum(self.counts.values(), OpStats())

    @property
    def later_seconds(self) -> float:
        """Return the median time of steps after the first ``SETTLING_STEPS``, if there are more."""
        return statistics.median(self.seconds[SETTLING_STEPS:] or self.seconds[-1:])

    def served(self, *, backward: bool) -> list[str]:
        """Return the names of the forward, or backward, ops that had hits."""
        return [op for op, c in self.counts.items() if c.hits and ("backward" in op) == backward]


class DemoError(Exception):
    """A run of the script ended with an error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo`` to ``parser``."""
    parser.add_argument(
        "--steps",
        type=_positive,
        default=DEFAULT_STEPS,
        help=f"training steps of each run (default: {DEFAULT_STEPS})",
    )
    add_ops_argument(parser)
    parser.add_argument(
        "--keep-cache",
        metavar="DIR",
        type=Path,
        help="use DIR as the cache and leave it there (default: a temporary directory)",
    )


def main(options: argparse.Namespace) -> int:
    """Return 0 if the demo showed what it should, and print the reasons and return 1 if not."""
    script = find_script()
    with _cache_directory(options.keep_cache) as cache, tempfile.TemporaryDirectory() as scratch:
        runs = _Runs(script, options.steps, chosen_ops(options), cache, Path(scratch))
        try:
            _say(f"{script}, {options.steps} steps, three times; cache {cache}")
            _say("plain: python char_lm.py")
            plain = runs.plain()
            state = "empty" if not _has_entries(cache) else "NOT empty, so this is no cold start"
            _say(f"cold:  python -m aoti_eager run char_lm.py; the cache is {state}")
            cold = runs.under_kernels("cold")
            _say("warm:  the same in a new process, with the cache that this left")
            warm = runs.under_kernels("warm")
        except DemoError as error:
            text = printable_lines(f"aoti-eager demo: error: {error}")
            print(text, file=sys.stderr)
            return 1
    _say(report(plain, cold, warm))
    found = problems(plain, cold, warm)
    for problem in found:
        _say(f"FAILED: {problem}")
    return 1 if found else 0


def find_script() -> Path:
    """Return the path of ``char_lm.py``: in the wheel beside us, in a checkout in its docs.

    Raises:
        FileNotFoundError: It is in neither place.
    """
    here = Path(__file__).resolve().parents[1]
    places = (
        here / "_examples" / "char_lm.py",
        here.parent / "docs" / "examples" / "char_lm.py",
    )
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"the demo's script is not in {' nor in '.join(map(str, places))}")


def report(plain: Outcome, cold: Outcome, warm: Outcome) -> str:
    """Return what the demo prints at the end: times, counts, differences and what they mean."""
    rows: list[tuple[str, ...]] = [
        ("run", "first step s", "later steps ms", "hits", "compiles", "declines")
    ]
    for name, outcome in (("plain", plain), ("cold", cold), ("warm", warm)):
        total = outcome.total
        counts = (total.hits, total.compiles, total.declines) if outcome.counts else "---"
        times = (f"{outcome.seconds[0]:.2f}", f"{1000 * outcome.later_seconds:.1f}")
        rows.append((name, *times, *map(str, counts)))
    ratio = plain.later_seconds / warm.later_seconds
    lost = _all_lose(warm)
    lines = [
        "",
        *align(rows, left=(0,)),
        "",
        "first step: wall time; the cold run compiles its kernels in it, one after the other",
        f"later steps: median wall time after the first {SETTLING_STEPS}, unserved ops included",
        f"    plain / warm = {ratio:.2f}; below 1, the kernels do not pay here",
        "hits: calls that a compiled kernel served; compiles: kernels made",
        "declines: calls that ran PyTorch's own kernel for a reason:",
        *(f"    {reason}" for reason in _reasons(warm) or ["none"]),
        *(["    no kernel beats PyTorch's own here: none serves, and nothing is lost"] * lost),
        "",
        f"loss, plain: {plain.losses[0]:.4f} at the first step, {plain.losses[-1]:.4f} at the last",
    ]
    for name, outcome in (("cold", cold), ("warm", warm)):
        lines.append(
            f"loss, {name} against plain: largest difference of a step "
            f"{largest_difference(plain, outcome):.1g} (float32 rounding: at most "
            f"{LARGEST_DIFFERENCE:g})"
        )
    lines += [
        f"served forward:  {', '.join(warm.served(backward=False)) or 'none'}",
        f"served backward: {', '.join(warm.served(backward=True)) or 'none'}",
    ]
    return "\n".join(lines)


def _all_lose(outcome: Outcome) -> bool:
    """Return whether each kernel of a run was measured to lose to PyTorch's own."""
    total = outcome.total
    return not total.hits and set(total.declined) == {"slower"}


def problems(plain: Outcome, cold: Outcome, warm: Outcome) -> list[str]:
    """Return one line for each thing that the demo should show and did not."""
    found = []
    for name, outcome in (("cold", cold), ("warm", warm)):
        difference = largest_difference(plain, outcome)
        if not difference <= LARGEST_DIFFERENCE:
            found.append(f"{name}: a loss differs from plain's by {difference:.2g}")
        if not outcome.total.hits and not _all_lose(outcome):
            found.append(f"{name}: no call was served by a kernel")
    if warm.total.compiles:
        found.append(f"warm: compiled {warm.total.compiles} kernels that cold should have left")
    return found


def largest_difference(one: Outcome, other: Outcome) -> float:
    """Return the largest absolute difference between two runs' losses at the same step.

    The difference is infinite if a loss is not finite: NaN would compare as no difference at all.
    """
    pairs = list(zip(one.losses, other.losses, strict=True))
    if not all(math.isfinite(loss) for pair in pairs for loss in pair):
        return math.inf
    return max(abs(a - b) for a, b in pairs)


class _Runs:
    """The script's runs, which differ only in what serves their ops."""

    def __init__(
        self, script: Path, steps: int, ops: Sequence[str] | None, cache: Path, scratch: Path
    ) -> None:
        self._script = [str(script), "--steps", str(steps)]
        self._ops = [] if ops is None else ["--ops", ",".join(ops)]
        self._cache = cache
        self._scratch = scratch

    def plain(self) -> Outcome:
        """Return the outcome of the script under Python alone."""
        return self._outcome("plain", [sys.executable, *interpreter_options()], None)

    def under_kernels(self, name: str) -> Outcome:
        """Return the outcome of the script under ``run`` with the cache as it is now."""
        counts = self._scratch / f"{name}-counts.json"
        python = [sys.executable, *interpreter_options()]
        run = [*python, "-m", "aoti_eager", "run", *self._ops]
        # Given explicitly: a variable or a file may set something else.
        run += ["--mode", "sync", "--cache-dir", str(self._cache), "--json", str(counts)]
        return self._outcome(name, run, counts)

    def _outcome(self, name: str, launcher: list[str], counts: Path | None) -> Outcome:
        steps = self._scratch / f"{name}-steps.json"
        command = [*launcher, *self._script, "--json", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise DemoError(
                f"the {name} run ended with exit code {done.returncode}:\n{done.stderr.rstrip()}"
            )
        measured = _read(steps)
        stats = {} if counts is None else {op: OpStats(**c) for op, c in _read(counts).items()}
        return Outcome(measured["losses"], measured["seconds"], stats)


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


@contextmanager
def _cache_directory(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="aoti_eager-demo-") as directory:
        yield Path(directory)


def _has_entries(cache: Path) -> bool:
    return any(cache.glob("v*/*"))


def _reasons(outcome: Outcome) -> list[str]:
    return [
        f"{op}: {reason} x{count}"
        for op, counts in outcome.counts.items()
        for reason, count in counts.declined.items()
    ]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _say(text: str) -> None:
    # Flushed at once: the cold run takes a minute and more.
    print(printable_lines(text), flush=True)
