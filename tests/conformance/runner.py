"""Run units, cold and then warm, and record them; what is recorded is not run again."""

from __future__ import annotations

import datetime
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .processes import Child, Ended
from .records import (
    PARTS,
    PHASES,
    Records,
    Run,
    Runs,
    Unit,
)

SEED = 0
# A child keeps every library that it has loaded: another takes its place after so many units.
UNITS_OF_A_CHILD = 40
# Calls of one unit in which a process may end before the rest of the unit is given up.
MOST_ENDS = 6
# Decided by this call, this moment or this process, so a later process has no entry to find.
NOT_STORED = frozenset(
    {
        "out_resized",
        "specialisation_cap",
        "store_unwritable",
        "no_compiler",
        "compile_timeout",
        "worker_died",
        "library_unloadable",
        "setting_not_portable",
        "op_not_in_worker",
        "run_failed",
        "tracing",
    }
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a unit is run.

    Attributes:
        samples: Samples of each entry.
        timeout_s: Seconds for one call; past it the process is killed.
        budget_s: Seconds for the calls of a unit; past it no further one is made.
    """

    samples: int = 2
    timeout_s: float = 300.0
    budget_s: float = 900.0


def draw(names: Iterable[str], count: int, seed: int = SEED) -> list[str]:
    """Return ``count`` of the names; a smaller draw is the beginning of a larger."""
    names = sorted(names)
    return random.Random(seed).sample(names, len(names))[:count]


def units_of(
    entries: dict[str, list[str]],
    *,
    only: Iterable[str] = (),
    dtypes: Iterable[str],
    parts: Iterable[str] = PARTS,
    shard: tuple[int, int] = (1, 1),
) -> list[Unit]:
    """Return the units of a run in its order: dtype, part, entry.

    Args:
        entries: The dtypes of every entry.
        only: Names of entries; all, if there is none.
        dtypes: In their order.
        parts: In their order.
        shard: ``(K, N)``: the ``K``-th of ``N`` shares of the entries, which are drawn.

    Raises:
        ValueError: There is no such entry, or no such shard.
    """
    only = list(only)
    unknown = sorted(set(only) - entries.keys())
    if unknown:
        raise ValueError(f"no such entry: {', '.join(unknown)}")
    share, of = shard
    if not 1 <= share <= of:
        raise ValueError(f"no such shard: {share}/{of}")
    names = only or draw(entries, len(entries))
    names = names[share - 1 :: of]
    return [
        Unit(name, dtype, part)
        for dtype in dtypes
        for part in parts
        for name in names
        if dtype in entries[name]
    ]


def run(
    units: list[Unit],
    cache_dir: Path,
    *,
    records: Records | None = None,
    bounds: Bounds = Bounds(),
    jobs: int = 1,
    native: str = "1",
    again: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Runs:
    """Return what happened to each unit, by phase; what ``records`` holds is not run again.

    Args:
        units: In the order in which they begin.
        cache_dir: The store that all children share.
        records: Where runs are written and found.
        bounds: How much of each unit is run.
        jobs: Units at a time, each with two children and one compile worker.
        native: Value of the setting ``native``.
        again: Whether units with a recorded problem are run once more.
        log: Takes one line for each unit and phase as it ends.
    """
    known = {} if records is None else records.read()
    if again:
        known = {unit: phases for unit, phases in known.items() if not problems({unit: phases})}
    runs: Runs = {unit: dict(known.get(unit, {})) for unit in units}
    waiting: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    for unit in units:
        if set(runs[unit]) != set(PHASES):
            waiting.put(unit)
    lock = threading.Lock()
    ending = threading.Event()
    workplaces: list[_Workplace] = []

    def record(unit: Unit, phase: str, one: Run) -> None:
        with lock:
            if ending.is_set():
                return  # Its child was killed, not by what it ran.
            runs[unit][phase] = one
            if records is not None:
                records.write(unit, phase, one)
            log(line(unit, phase, one))

    def work() -> None:
        workplace = _Workplace(cache_dir, native, bounds)
        workplaces.append(workplace)
        while not ending.is_set():
            try:
                unit = waiting.get_nowait()
            except queue.Empty:
                break
            cold = runs[unit].get("cold")
            if cold is None:
                cold = workplace.run(unit, "cold")
                record(unit, "cold", cold)
            warm = workplace.run(unit, "warm", cold)
            warm.problems += _not_warm(cold, warm)
            record(unit, "warm", warm)
        workplace.close()

    threads = [threading.Thread(target=work) for _ in range(min(jobs, max(1, waiting.qsize())))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        ending.set()
        for workplace in list(workplaces):
            workplace.kill()
        for thread in threads:
            thread.join()
        raise
    return runs


class _Workplace:
    """Two children, one for each phase, and new ones where one has ended."""

    def __init__(self, cache_dir: Path, native: str, bounds: Bounds) -> None:
        self._cache_dir, self._native, self._bounds = cache_dir, native, bounds
        self._children: dict[str, Child] = {}
        self._killed = False

    def run(self, unit: Unit, phase: str, cold: Run | None = None) -> Run:
        """Return what a unit gave; a call that ends a process is left out the next time."""
        started = time.monotonic()
        limit = None if cold is None else cold.calls.get("compared")
        skip: list[str] = []
        problems: list[str] = []
        left_out: list[str] = []
        answer = None
        while answer is None and len(skip) < MOST_ENDS and not self._killed:
            request = {
                "entry": unit.entry,
                "dtype": unit.dtype,
                "part": unit.part,
                "samples": self._bounds.samples,
                "budget_s": self._bounds.budget_s,
                "limit": limit,
                "skip": skip,
            }
            child = self._child(phase)
            if self._killed:
                child.kill()
            ended = child.ask(request, self._bounds.timeout_s)
            if not isinstance(ended, Ended):
                answer = ended
                break
            del self._children[phase]
            if ended.stage == "original":
                left_out.append(f"the original itself ends in a {ended.how.partition(':')[0]}")
            else:
                problems.append(f"{ended.label or ended.stage}: {ended.how}")
            if not ended.label:
                break
            skip.append(ended.label)
        one = Run() if answer is None else Run(**answer)
        one.problems = [*problems, *one.problems]
        for reason in left_out:
            one.left_out[reason] = one.left_out.get(reason, 0) + 1
        one.seconds = round(time.monotonic() - started, 1)
        one.date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return one

    def _child(self, phase: str) -> Child:
        child = self._children.get(phase)
        if child is not None and child.units >= UNITS_OF_A_CHILD:
            child.close()
            child = None
        if child is None:
            child = self._children[phase] = Child(phase, self._cache_dir, self._native)
        return child

    def kill(self) -> None:
        """End the children; called by another thread than ``run``, which then ends as well."""
        self._killed = True
        for child in list(self._children.values()):
            child.kill()

    def close(self) -> None:
        """End the children; they end their compile workers."""
        for child in self._children.values():
            child.close()


def _not_warm(cold: Run, warm: Run) -> list[str]:
    """Return one line for each call that a later process did not find in the cache."""
    compiles = warm.counts.get("compiles")
    found = [f"{compiles} compiles"] if compiles else []
    for key in cold.served:
        if key in warm.declined:
            found.append(f"{key}: served cold, {warm.declined[key]} warm")
    for key, reason in warm.declined.items():
        if reason == "not_in_cache" and key not in cold.served:
            was = cold.declined.get(key, "unseen")
            if was == "unseen" and cold.calls.get("raised"):
                continue  # An original that raises is not compiled, and leaves nothing.
            if was not in NOT_STORED:
                found.append(f"{key}: {was} cold, {reason} warm")
    return [f"warm: {problem}" for problem in found]


def problems(runs: Runs) -> list[str]:
    """Return every problem of every unit as one line."""
    return [
        f"{unit} ({phase}): {problem}"
        for unit, phases in sorted(runs.items())
        for phase, one in phases.items()
        for problem in one.problems
    ]


def line(unit: Unit, phase: str, one: Run) -> str:
    """Return one unit's run in a line."""
    return (
        f"{unit!s:52.52} {phase} calls {one.calls.get('compared', 0):3} "
        f"hit {one.calls.get('hit', 0):3} served {len(one.served):3} "
        f"compiles {one.counts.get('compiles', 0):3} declined {len(one.declined):3} "
        f"problems {len(one.problems):2} {one.seconds:6.1f} s"
    )
