"""Random modules, fused ungated, against eager: ``python -m tests.regions.random_modules``.

    python -m tests.regions.random_modules --count 10000 --seed 0 --jobs 2 --directory DIR

``random_check`` says what is compared. Each batch runs in a process that may die. ``DIR`` holds the
results, a line a batch: a run that was ended goes on where it was. Prints a table; exits with
status 1 if a module was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aoti_eager

from .random_check import Outcome, check
from .random_ops import drawn

SIZE = 10
# A worker is started anew after so many batches.
_BATCHES = 20
# The reasons of a library that was wrong when it was tried.
_REFUSALS = ("mismatch", "crashed", "compile_failed", "run_failed", "not_recorded", "tape_differs")


@contextlib.contextmanager
def simplest(directory: Path) -> Iterator[None]:
    """Compile at once, ungated, in a store of our own."""
    native = {"AOTI_EAGER_NATIVE": "1"}
    os.environ |= native
    with (
        aoti_eager.config.scope(cache_dir=directory, mode="sync", gate=False, dynamic="0"),
        warnings.catch_warnings(),
    ):
        yield


def _batch(first: int, size: int) -> dict[str, Any]:
    begin = time.monotonic()
    outcomes = [asdict(one) for one in check(range(first, first + size))]
    return {"first": first, "seconds": time.monotonic() - begin, "outcomes": outcomes}


def run_child(options: argparse.Namespace) -> None:
    """Run the batches that the command line names, and write a line for each."""
    with simplest(Path(options.directory, "store")), open(options.child, "a") as file:
        for first in options.batches:
            print(json.dumps({"begins": first}), file=file, flush=True)
            print(json.dumps(_batch(first, SIZE)), file=file, flush=True)
            aoti_eager.cache.clear()


class Run:
    """A long run: the batches that are left, and processes that take them.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._directory = Path(options.directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def results(self) -> dict[int, dict[str, Any]]:
        """Return the batches that have been run; a batch whose process died has no outcomes."""
        found: dict[int, dict[str, Any]] = {}
        for path in sorted(self._directory.glob("results-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    one = json.loads(line)
                except ValueError:
                    continue  # The last line of a process that died.
                if "begins" in one:
                    died = {"first": one["begins"], "seconds": 0.0, "outcomes": []}
                    found.setdefault(one["begins"], died)
                else:
                    found[one["first"]] = one
        return found

    def work(self) -> None:
        """Run all batches that are left."""
        options = self._options
        running: list[subprocess.Popen[bytes]] = []
        taken: set[int] = set()
        while True:
            running = [one for one in running if one.poll() is None]
            done = self.results()
            everything = range(options.seed, options.seed + options.count, SIZE)
            left = [one for one in everything if one not in done and one not in taken]
            if not left and not running:
                return
            if left and len(running) < options.jobs:
                batches = left[:_BATCHES]
                taken |= set(batches)
                running.append(self._start(batches))
            elif running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running[0].wait(10)
                if running[0].poll() is not None:
                    # What a process has left behind when it died is taken by another one.
                    taken.clear() if len(running) == 1 else None

    def _start(self, batches: Sequence[int]) -> subprocess.Popen[bytes]:
        path = self._directory / f"results-{batches[0]}-{time.time_ns()}.jsonl"
        arguments = ["--child", str(path), "--directory", str(self._directory)]
        numbers = [str(one) for one in batches]
        command = [sys.executable, "-m", "tests.regions.random_modules", *arguments]
        with open(self._directory / "log", "ab") as log:
            return subprocess.Popen([*command, "--batches", *numbers], stdout=log, stderr=log)

    def table(self) -> tuple[str, bool]:
        """Return what was found, as text, and whether nothing is wrong."""
        results = self.results()
        outcomes = [Outcome(**one) for batch in results.values() for one in batch["outcomes"]]
        died = [one["first"] for one in results.values() if not one["outcomes"]]
        states = collections.Counter(one.state for one in outcomes)
        reasons = collections.Counter(one.reason for one in outcomes if one.state != "served")
        wrong = [one for one in outcomes if one.state == "wrong"]
        refused = [one for one in outcomes if one.reason in _REFUSALS and one.state != "wrong"]
        lines = [
            f"{len(outcomes)} modules in {len(results)} batches",
            f"  {sum(one.lines for one in outcomes)} lines of forwards",
            *[f"  {state:10} {count}" for state, count in states.most_common()],
            f"  rounding decides in {sum(one.rounding for one in outcomes)}",
            *[f"    {reason:30} {count}" for reason, count in reasons.most_common()],
            # The check before a library serves has found it wrong: each is to be looked at.
            *[f"refused: seed {one.seed}: {one.message[:300]}" for one in refused],
            *[f"died: batch {first}" for first in died],
            *[f"wrong: seed {one.seed}: {one.reason} {one.message[:300]}" for one in wrong],
        ]
        return "\n".join(lines), not wrong and not died


def main() -> None:
    """Check as many modules as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--show", type=int, help="print the source of one module")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.show is not None:
        print(drawn(options.show).source())
        return
    if options.child:
        run_child(options)
        return
    with contextlib.ExitStack() as stack:
        if options.directory is None:
            options.directory = stack.enter_context(tempfile.TemporaryDirectory())
        run = Run(options)
        run.work()
        text, fine = run.table()
    print(text)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
