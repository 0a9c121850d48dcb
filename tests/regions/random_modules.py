"""Random modules, fused ungated, against eager: ``python -m tests.regions.random_modules``.

    python -m tests.regions.random_modules --count 10000 --seed 0 --jobs 2 --directory DIR

About ten modules stand side by side in one region, to save compiles. Each is recorded alone first:
one that stops is compared, and has no part in the region. Results are compared by
``torch.testing.assert_close``, and where that finds a difference, by the package's own rule, which
asks a replay in double precision. Strides, dtypes, containers and the arguments count, too.

Each batch runs in a process that may die. ``DIR`` holds the results, a line a batch: a run that was
ended goes on where it was. Prints a table; exits with status 1 if a module was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import aoti_eager
from aoti_eager import FusionReport, fuse
from aoti_eager._regions.fused_forward import FusedForward

from .random_grammar import Draw, RandomModule, drawn
from .random_ops import GRAMMAR

SIZE = 10
# A worker is started anew after so many batches.
_BATCHES = 20
# The reasons of a library that was wrong when it was tried.
_REFUSALS = ("mismatch", "crashed", "compile_failed", "run_failed", "not_recorded", "tape_differs")


@dataclass(frozen=True)
class Outcome:
    """What became of one module.

    Attributes:
        seed: The module's seed.
        state: ``served``, ``stopped``, or ``wrong``.
        reason: Why the module stopped.
        message: The reason in words, or what is wrong.
        rounding: Whether rounding has decided: the numbers are as good as eager's, and others.
        lines: The number of lines of the module's forward.
    """

    seed: int
    state: str
    reason: str = ""
    message: str = ""
    rounding: bool = False
    lines: int = 0


class SideBySide(nn.Module):
    """Modules that know nothing of each other; the result is a tuple of theirs."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *given: list[Tensor]) -> tuple[Any, ...]:
        """Return the results of all modules, each for its own arguments."""
        return tuple([part(*one) for part, one in zip(self.parts, given, strict=True)])


class _Case:
    """One random module, two sets of arguments, and eager's results for both."""

    def __init__(self, seed: int) -> None:
        draw: Draw = drawn(seed, GRAMMAR)
        self.seed = seed
        self.module = RandomModule(draw)
        self.given = [list(draw.arguments.values()), draw.more_arguments()]
        self._kept = copy.deepcopy(self.given)
        self.want = [self.module(*one) for one in self.given]
        self.lines = len(draw.lines)

    def problem(self, got: Any, which: int) -> str:
        """Return what is wrong with a result; empty if nothing is."""
        kept, given = self._kept[which], self.given[which]
        if not all(map(_equal, kept, given)):
            return "an argument was written to"
        return problem(got, self.want[which])

    def outcome(self, state: str, **options: Any) -> Outcome:
        """Return what became of the module."""
        return Outcome(self.seed, state, lines=self.lines, **options)


def problem(got: Any, want: Any) -> str:
    """Return how a result differs from eager's; it begins with ``values`` if only numbers do."""
    mine, my_spec = tree_flatten(got)
    theirs, their_spec = tree_flatten(want)
    if my_spec != their_spec or list(map(type, mine)) != list(map(type, theirs)):
        return f"containers: {my_spec} instead of {their_spec}"
    found = ""
    for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        if not isinstance(other, Tensor):
            if one != other:
                return f"result {place}: {one} instead of {other}"
            continue
        for what in ("dtype", "shape", "requires_grad"):
            if getattr(one, what) != getattr(other, what):
                return f"result {place}: {what} {getattr(one, what)}, not {getattr(other, what)}"
        if one.stride() != other.stride():
            return f"result {place}: strides {one.stride()}, not {other.stride()}"
        try:
            with aoti_eager.config.scope(mode="off"):
                torch.testing.assert_close(one, other, equal_nan=True)
        except AssertionError as error:
            found = found or f"values of result {place}: {error}"
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def check(seeds: Sequence[int]) -> list[Outcome]:
    """Return what becomes of the modules of these seeds, fused side by side."""
    outcomes, cases = [], []
    with torch.no_grad():
        for case in map(_Case, seeds):
            stopped = _recorded_alone(case)
            if stopped is None:
                cases.append(case)
            else:
                outcomes.append(stopped)
        if cases:
            outcomes += _fused(cases)
    return outcomes


def _recorded_alone(case: _Case) -> Outcome | None:
    """Return what becomes of a module that stops when it is recorded."""
    with fuse(case.module, dry_run=True) as report:
        wrong = case.problem(case.module(*case.given[0]), 0)
        (region,) = report.regions
    if wrong:
        return case.outcome("wrong", message=f"recorded: {wrong}")
    if region.state == "stopped":
        return case.outcome("stopped", reason=region.reason, message=region.message)
    return None


def _fused(cases: Sequence[_Case]) -> list[Outcome]:
    model = SideBySide([one.module for one in cases])
    wrong: dict[int, str] = {}
    rounded: set[int] = set()
    with fuse(model) as report:
        for which in (0, 0, 0, 1, 1, 0, 1):
            results = model(*[one.given[which] for one in cases])
            aoti_eager.wait()
            for case, got in zip(cases, results, strict=True):
                found = case.problem(got, which)
                if found.startswith("values") and _is_rounding(report, cases, which):
                    rounded.add(case.seed)
                elif found:
                    wrong.setdefault(case.seed, found)
        regions = {one.path: one for one in report.regions}
    outcomes = []
    for number, case in enumerate(cases):
        region = regions.get(f"parts.{number}", regions[""])
        state, message = region.state, region.message
        if case.seed in wrong:
            state, message = "wrong", wrong[case.seed]
        reason = region.reason or ("" if state == "served" else f"(still {state})")
        options = {"reason": reason, "message": message, "rounding": case.seed in rounded}
        outcomes.append(case.outcome(state, **options))
    return outcomes


def _is_rounding(report: FusionReport, cases: Sequence[_Case], which: int) -> bool:
    """Return whether the package's own comparison finds the libraries as good as eager."""
    given = [tensor for one in cases for tensor in one.given[which]]
    for forward in report._forwards:
        number = forward.region.path.rpartition(".")[2]
        tensors = cases[int(number)].given[which] if number else given
        for variant in forward.region.variants:
            inputs = variant.inputs(tensors)
            if inputs is None or not variant.kernel.is_serving:
                continue
            expected = _fresh(forward, cases, which, number)
            variant.kernel.offer(inputs, expected)
            if not variant.kernel.is_serving:
                return False
    return True


def _fresh(forward: FusedForward, cases: Sequence[_Case], which: int, number: str) -> list[Tensor]:
    """Return the tensors that eager makes in a region's call, in the order of the results."""
    if number:
        given, want = cases[int(number)].given[which], cases[int(number)].want[which]
    else:
        given = [tensor for one in cases for tensor in one.given[which]]
        want = tuple([one.want[which] for one in cases])
    known = {id(one) for one in given}
    leaves = [one for one in tree_flatten(want)[0] if isinstance(one, Tensor)]
    return list({id(one): one for one in leaves if id(one) not in known}.values())


# -- many --


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
        print(drawn(options.show, GRAMMAR).source())
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
