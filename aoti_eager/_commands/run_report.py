"""The report of ``run`` at the end of a script: a table, the time saved, and unfinished kernels."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from .._base.output_file import OutputFile
from .._base.printable import printable_lines
from .._base.warn_once import log
from .._compile_service import cache_context, queue
from .._compile_service.remote_wait import wait_for_remotes
from .._dispatch.counters import OpStats
from .._dispatch.key_state import COMPARING, STATES
from .._registration.registry import registered_ops, stats
from .._workloads import left_out as left_out_module
from .._workloads.workload import Recorder, write_workload
from ..config import config
from ..errors import OutputFileError
from .columns import align
from .region_report import is_region, regions_text


class RunReport:
    """The report at the end of a run.

    Args:
        options: The options of ``run``.
        counts_file: The file that the counts are also written to.
        recording: The script's calls, and the file that they are written to.
        run: The digest that the run is counted by (``_workloads.left_out``); ``None`` if it is not
            counted.

    Attributes:
        waits: Whether unfinished kernels are finished first.
        is_whole: Whether the script has come to its end without an error.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        counts_file: OutputFile | None,
        recording: tuple[Recorder, OutputFile] | None,
        run: str | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._options = options
        self._counts_file = counts_file
        self._recording = recording
        self._run = run
        self.waits: bool = options.wait
        self.is_whole = False

    def at_exit(self) -> None:
        """Print the report."""
        if os.getpid() != self._pid:
            return  # In a forked child, whose counts are no part of the script's.
        # First of all: the rest takes time, and a second Ctrl-C would lose the workload.
        recorded = None if self._recording is None else _write_workload(*self._recording)
        if self.waits:
            self._finish()
        counts = stats()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # If both streams go to one file, the table comes last. The script may have closed the
            # stream.
            sys.stdout.flush()
        ops = {op: count for op, count in counts.items() if not is_region(op)}
        registered = [op for op in registered_ops() if not is_region(op)]
        table = format_table(ops, registered=registered)
        place = config.cache_dir or "in no directory: this user has no home"
        say(f"\naoti_eager: {config.mode} mode, cache {place}\n{table}")
        if self._options.fuse:
            say(regions_text(counts))
        left_out = say_left_out(left_out_module.left_out)
        for line in (*summary(ops), left_out, self._unfinished(counts), recorded):
            if line is not None:
                say(line)
        if self._counts_file is not None:
            document = json.dumps({op: asdict(count) for op, count in counts.items()})
            try:
                self._counts_file.write(document.encode())
            except OutputFileError as error:
                say_error(str(error))

        self._note()

    def _note(self) -> None:
        """Count the run, if it has met all calls of the script and the calls are remembered."""
        root = config.cache_dir
        if self._run is None or not self.is_whole or config.mode not in ("background", "sync"):
            return
        if root is None or not root.is_dir():
            return
        try:
            cache_context.current().store.create()
            left_out_module.note_run(self._run, root, looked=not left_out_module.left_out)
        except OSError as error:
            log.info("the run is not counted: %s", error)

    def _finish(self) -> None:
        number = number_unfinished(stats())
        try:
            if number:
                kernels = _kernels(number)
                say(f"aoti_eager: finishing {kernels}; Ctrl-C leaves the rest to the next run")
                queue.background.wait()
            wait_for_remotes()
        except KeyboardInterrupt:
            say("aoti_eager: interrupted")

    def _unfinished(self, counts: Mapping[str, OpStats]) -> str | None:
        """Return in words what is unfinished, and how to finish it."""
        number = number_unfinished(counts)
        if not number or config.mode != "background":
            return None
        command = ["aoti-eager", "warm", "--kept"]
        if self._options.cache_dir is not None:
            command += ["--cache-dir", self._options.cache_dir]
        is_own = any(
            number_unfinished({op: count}) and not op.startswith("aten::")
            for op, count in counts.items()
        )
        if is_own:  # Only the script has these ops.
            command = self._same_run()
        goes_on = "it goes on" if number == 1 else "they go on"
        return (
            f"{_kernels(number)} unfinished; {goes_on} in the next run, or now: "
            f"{shlex.join(command)}"
        )

    def _same_run(self) -> list[str]:
        """Return the command that runs the script again as it was run, and finishes."""
        options = self._options
        command = ["aoti-eager", "run", "--wait"]
        for name in ("mode", "cache_dir", "workers"):
            value = getattr(options, name)
            if value is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        for ops in options.ops or ():
            command += ["--ops", ops]
        for name in ("all_ops", "fuse"):
            if getattr(options, name):
                command.append(f"--{name.replace('_', '-')}")
        return [*command, options.script, *options.arguments]


def say_left_out(ops: Sequence[str]) -> str | None:
    """Return in a line which ops were left out, and why; ``None`` if no op was."""
    if not ops:
        return None
    names = ", ".join(op.removesuffix(".default") for op in ops)
    were, their = ("1 op was", "its") if len(ops) == 1 else (f"{len(ops)} ops were", "their")
    return f"{were} left out, as all {their} kernels lose here (--all-ops registers all): {names}"


def _kernels(number: int) -> str:
    return "1 kernel" if number == 1 else f"{number} kernels"


def number_unfinished(counts: Mapping[str, OpStats]) -> int:
    """Return how many kernels must still be made or measured; a kernel to be compared exists."""
    return sum(
        number
        for count in counts.values()
        for state, number in count.unfinished.items()
        if state != COMPARING
    )


def summary(counts: Mapping[str, OpStats]) -> list[str]:
    """Return in a line how many calls were hits, and how much time they have saved."""
    total = sum(counts.values(), OpStats())
    if not total.calls:
        return []
    share = f"{100 * total.hits / total.calls:.1f} % of all calls were hits"
    saved = f"; they have saved about {total.saved_s:.2g} s" if total.saved_s else ""
    return [share + saved]


def format_table(counts: Mapping[str, OpStats], *, registered: Sequence[str]) -> str:
    """Return the table of what happened to the calls of each op, with a line of totals.

    Ops without a call are counted in the last line. If keys have no decision yet, a column says how
    many, by state.

    Args:
        counts: What ``stats()`` returns.
        registered: What ``registered_ops()`` returns.
    """
    called = {op: count for op, count in counts.items() if count.calls or count.unfinished}
    lines = []
    if called:
        total = replace(sum(called.values(), OpStats()), steps=())
        header = ("op", "calls", "hits", "misses", "compiles", "declines", "reasons", "unfinished")
        rows: list[tuple[str, ...]] = [header]
        rows += [_row(op, count) for op, count in called.items()]
        rows.append(("total", *_row("", total)[1:-2], "", _states(total)))
        if not total.unfinished:
            rows = [row[:-1] for row in rows]
        lines = align(rows, left=(0, 6, 7))
        lines.insert(-1, "-" * max(map(len, lines)))
    ops = "op was" if len(registered) == 1 else "ops were"
    never = len(set(registered) - set(called))
    lines.append(f"{len(registered)} {ops} registered, {never} of them never called")
    return "\n".join(lines)


def _row(op: str, count: OpStats) -> tuple[str, ...]:
    numbers = (count.calls, count.hits, count.misses, count.compiles, count.declines)
    by_count = sorted(count.declined.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{reason} x{n}" for reason, n in by_count)
    unfinished = _states(count) + (f" ({'; '.join(count.steps)})" if count.steps else "")
    return (op, *map(str, numbers), reasons, unfinished)


def _states(count: OpStats) -> str:
    """Return how many keys have no decision yet, by state."""
    known = [state for state in STATES if state in count.unfinished]
    return ", ".join(f"{count.unfinished[state]} {state}" for state in known)


def _write_workload(recorder: Recorder, file: OutputFile) -> str | None:
    """Write the workload; return what to say after the table."""
    calls = recorder.calls()
    try:
        write_workload(file, calls)
    except OutputFileError as error:
        say_error(str(error))
        return None
    return (
        f"{len(calls)} calls were recorded; to compile them: "
        f"{shlex.join(['aoti-eager', 'warm', str(file.path)])}"
    )


def say(text: str) -> None:
    """Print to standard error if there is one; print(file=None) would write to the output."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(printable_lines(text), file=sys.stderr)


def say_error(message: str) -> None:
    """Print an error of ``run``."""
    say(f"aoti-eager run: error: {message}")
