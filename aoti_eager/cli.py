"""The command line: verbs of ``cache``, and ``run``, ``warm``, ``setup``, ``doctor``, ``demo``."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import cache
from ._base.printable import printable, printable_lines
from ._commands import (
    benchmark as benchmark_verb,
)
from ._commands import (
    bundles as bundle_verbs,
)
from ._commands import (
    demo as demo_verb,
)
from ._commands import (
    doctor as doctor_verb,
)
from ._commands import (
    evict as evict_verb,
)
from ._commands import (
    prune as prune_verb,
)
from ._commands import (
    record as record_verb,
)
from ._commands import (
    report as report_verb,
)
from ._commands import (
    run as run_verb,
)
from ._commands import (
    settings as config_verb,
)
from ._commands import (
    setup as setup_verb,
)
from ._commands import (
    stats as stats_verb,
)
from ._commands import (
    tiers as tier_verbs,
)
from ._commands import (
    warm as warm_verb,
)
from ._commands.call_text import add_arguments as add_call_arguments
from ._commands.call_text import call_arguments, no_such_call
from ._commands.columns import show
from ._commands.explain import explain
from ._commands.held import held_in_words
from ._keys.pattern import guard_texts
from ._store.entry import Remembered
from ._store.new_entries import TAPE
from ._store.verdict import Verdict, processor
from .config import config
from .errors import AotiEagerError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for a finding, 2 for a wrong use."""
    namespace = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = namespace.command
    try:
        if getattr(namespace, "cache_dir", None) is not None:
            config.cache_dir = namespace.cache_dir
        return command(namespace)
    except (AotiEagerError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        _say_error(str(message))
        return 2
    except BrokenPipeError:
        # The reader closed the pipe (`| head`); Python would complain again when it flushes at
        # exit.
        sys.stdout = None
        return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"{self.prog}: {printable_lines(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aoti-eager",
        description="Inspect and manage the kernel cache of PyTorch's eager mode.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, command: Callable[[argparse.Namespace], int], help_: str) -> Any:
        sub = verbs.add_parser(name, help=help_, description=help_)
        sub.set_defaults(command=command)
        return sub

    for name, command, help_ in (
        ("list", _list, "List the entries of the cache."),
        ("inspect", _inspect, "Show all that is known about an entry."),
        ("verify", _verify, "Check every file of the cache; remove what is broken."),
        ("clear", _clear, "Remove all entries."),
        ("explain", _explain, "Say what becomes of a call, and why."),
    ):
        sub = verb(name, command, help_)
        sub.add_argument("--cache-dir", help="the cache's directory")
        if name in ("list", "stats"):
            sub.add_argument("--json", action="store_true", help="print JSON")
        if name == "inspect":
            sub.add_argument("digest", help="the beginning of a key's digest, from list")
        if name == "verify":
            sub.add_argument("--dry-run", action="store_true", help="only report")
        if name == "explain":
            add_call_arguments(sub)
    _add_verbs_with_files(verb)
    return parser


def _add_verbs_with_files(verb: Callable[..., Any]) -> None:
    """Add the verbs that have a file of their own in ``_commands``."""
    prune_verb.add_arguments(
        verb("prune", prune_verb.main, "Remove what the next process is to try again.")
    )
    evict_verb.add_arguments(
        verb("evict", evict_verb.main, "Remove entries by the time of their last use, or by op.")
    )
    evict_verb.add_trim_arguments(
        verb("trim", evict_verb.main_trim, "Remove the least recently used entries.")
    )
    bundle_verbs.add_verbs(verb)
    tier_verbs.add_verbs(verb)
    stats_verb.add_arguments(
        verb("stats", stats_verb.main, "Show the counters of all processes that used the cache.")
    )
    report_verb.add_arguments(
        verb("report", report_verb.main, "Write a page about the cache and the last runs.")
    )
    benchmark_verb.add_arguments(
        verb("benchmark", benchmark_verb.main, "Compare an op's kernel with its original.")
    )
    config_verb.add_arguments(
        verb("config", config_verb.main, "Show every setting, and where its value came from.")
    )
    record_verb.add_arguments(
        verb("record", record_verb.main, "Run a script, and write its calls for the verb warm.")
    )
    run_verb.add_arguments(
        verb("run", run_verb.main, "Run a script with ops served from the cache.")
    )
    warm_verb.add_arguments(
        verb("warm", warm_verb.main, "Compile the calls that run --record wrote.")
    )
    doctor_verb.add_arguments(
        verb("doctor", doctor_verb.main, "Say what is right and wrong here, and what to do.")
    )
    setup_verb.add_arguments(verb("setup", setup_verb.main, "Build what is built once a machine."))
    demo_verb.add_arguments(
        verb("demo", demo_verb.main, "Train a small model plain, cold and warm, and compare.")
    )


def _say(line: str) -> None:
    """Print one line; characters that a terminal would obey are shown as escapes."""
    print(printable(line))


def _say_error(message: str) -> None:
    print(f"aoti-eager: {printable_lines(message)}", file=sys.stderr)


def _list(namespace: argparse.Namespace) -> int:
    entries = cache.list()
    if namespace.json:
        print(json.dumps([dataclasses.asdict(e) | {"path": str(e.path)} for e in entries]))
        return 0
    rows = [
        (e.op, e.digest[:12], e.status, f"{e.size_bytes / 1024:.0f}", _what(e), e.reason or "")
        for e in entries
    ]
    header = ("op", "key", "status", "KiB", "inputs, or ops of a region", "reason")
    show([header, *rows], left=(0, 1, 2, 4, 5))
    _say(held_in_words(entries))
    return 0


def _what(entry: cache.CacheEntry) -> str:
    """Return the inputs of an op's entry, and the ops of a region's, which has many inputs."""
    return entry.region or entry.inputs


def _inspect(namespace: argparse.Namespace) -> int:
    for details in cache.inspect(namespace.digest):
        entry, summary = details.entry, details.summary
        _say(f"{entry.key.op}  {entry.digest}")
        if summary.region:
            _say(f"  region    {summary.region}")
        _say(f"  path      {summary.path}")
        # For a failure of this environment, the summary also says whether it has lapsed.
        reason = summary.reason if summary.status == entry.status.value else entry.reason
        _say(f"  status    {summary.status}" + (f" ({reason})" if reason else ""))
        if entry.message:
            print(f"  message   {printable_lines(entry.message)}")
        _say(f"  target    {entry.target}")
        _say(f"  checked   {entry.checked}")
        if details.verdict is not None:
            _say(f"  verdict   {_verdict_text(details.verdict)}")
            for path, time in sorted(details.verdict.times.items()):
                _say(f"    {path} threads: {time}, {'wins' if time.wins else 'loses'}")
            if details.verdict.unmeasured:
                _say(f"    not timed: {details.verdict.unmeasured}")
        if entry.library is not None:
            _say(f"  library   {entry.library.size_bytes} bytes, sha256 {entry.library.sha256}")
        for name, value in entry.provenance:
            if name == TAPE:
                print("  tape")
                for line in value.splitlines():
                    _say(f"    {line}")
            else:
                _say(f"  {name:<9} {value}")
        if entry.remembered is not None:
            _say(f"  failed    {_failed_text(entry.remembered)}")
        print("  key")
        for name, value in entry.key.components().items():
            _say(f"    {name} = {value}")
        if entry.guards is not None:
            print("  guards")
            for line in guard_texts(entry.guards):
                _say(f"    {line}")
        print("  environment")
        for name, value in entry.environment.components:
            _say(f"    {name} = {value}")
        for name, (here, there) in details.differing.items():
            _say(f"  differs   {name}: {here} here, {there} there")
        if details.log:
            print("  log")
            for line in details.log.splitlines():
                print(f"    {printable_lines(line)}")
    return 0


def _failed_text(remembered: Remembered) -> str:
    at = datetime.datetime.fromtimestamp(remembered.at, datetime.timezone.utc)
    return f"{at:%Y-%m-%d %H:%M} UTC, with {remembered.compiler or 'no compiler that is known'}"


def _verdict_text(verdict: Verdict) -> str:
    live = "checked" if verdict.checked else "not checked"
    compared = "compared" if verdict.compared else "not compared"
    return f"on {processor()}: {live} on a call's own arguments, {compared} on made-up data"


def _verify(namespace: argparse.Namespace) -> int:
    report = cache.verify(repair=not namespace.dry_run)
    for path, problem in report.damaged:
        _say(f"damaged: {path}: {problem}")
    done = "removed" if report.repaired else "found"
    _say(
        f"{report.intact} intact, {report.foreign} of other environments, "
        f"{len(report.damaged)} damaged and {report.residue} leftovers {done}"
    )
    return 1 if report.damaged else 0


def _clear(namespace: argparse.Namespace) -> int:
    _say(f"{cache.clear()} entries removed from {config.cache_dir}")
    return 0


def _explain(namespace: argparse.Namespace) -> int:
    args, kwargs = call_arguments(namespace.arguments)
    try:
        print(printable_lines(str(explain(namespace.op, *args, **kwargs))))
    except RuntimeError as error:
        if isinstance(error, AotiEagerError):
            raise
        raise no_such_call(namespace.op) from error
    return 0
