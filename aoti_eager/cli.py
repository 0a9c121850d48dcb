"""The command line: the verbs of ``cache``, ``stats``, ``explain``, ``run``, ``warm``, ``demo``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _demo, _script, _warm_verb, cache
from ._explain import explain
from ._pattern import guard_texts
from ._stats import OpStats, read_totals
from ._verdict import Verdict, processor
from .cache import short_dtype
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
        print(f"aoti-eager: {message}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader had enough (`| head`); Python would complain again when it flushes at exit.
        sys.stdout = None
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        ("prune", _prune, "Remove what the next process is to try again, or has no use for."),
        ("clear", _clear, "Remove all entries."),
        ("stats", _stats, "Show the counters of all processes that used the cache."),
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
        if name == "prune":
            sub.add_argument(
                "--declined",
                action="store_true",
                help="remembered failures, and what lost against the original on this processor",
            )
            sub.add_argument("--stale", action="store_true", help="entries of other environments")
        if name == "explain":
            sub.add_argument("op", help="aten::silu, or aten::add.Tensor")
            sub.add_argument(
                "arguments",
                nargs="*",
                help="tensors as 'f32[8,8]' or with strides 'f32[8,8]{1,8}', other values as in "
                "Python, keyword arguments as 'alpha=2'",
            )
    _script.add_arguments(verb("run", _script.main, "Run a script with ops served from the cache."))
    _warm_verb.add_arguments(
        verb("warm", _warm_verb.main, "Compile the calls that run --record wrote.")
    )
    _demo.add_arguments(
        verb("demo", _demo.main, "Train a small model plain, cold and warm, and compare.")
    )
    return parser


def _list(namespace: argparse.Namespace) -> int:
    entries = cache.list()
    if namespace.json:
        print(json.dumps([dataclasses.asdict(e) | {"path": str(e.path)} for e in entries]))
        return 0
    rows = [
        (e.op, e.digest[:12], e.status, f"{e.size_bytes / 1024:.0f}", e.inputs, e.reason or "")
        for e in entries
    ]
    header = ("op", "key", "status", "KiB", "inputs", "reason")
    print("\n".join(_script.align([header, *rows], left=(0, 1, 2, 4, 5))))
    size = sum(e.size_bytes for e in entries)
    print(f"{len(entries)} entries, {size / 2**20:.1f} MiB, in {config.cache_dir}")
    return 0


def _inspect(namespace: argparse.Namespace) -> int:
    for details in cache.inspect(namespace.digest):
        entry, summary = details.entry, details.summary
        print(f"{entry.key.op}  {entry.digest}")
        print(f"  path      {summary.path}")
        print(f"  status    {summary.status}" + (f" ({entry.reason})" if entry.reason else ""))
        if entry.message:
            print(f"  message   {entry.message}")
        print(f"  target    {entry.target}")
        print(f"  checked   {entry.checked}")
        if details.verdict is not None:
            print(f"  verdict   {_verdict_text(details.verdict)}")
            for path, time in sorted(details.verdict.times.items()):
                print(f"    {path} threads: {time}, {'wins' if time.wins else 'loses'}")
        if entry.library is not None:
            print(f"  library   {entry.library.size_bytes} bytes, sha256 {entry.library.sha256}")
        for name, value in entry.provenance:
            print(f"  {name:<9} {value}")
        print("  key")
        for name, value in entry.key.components().items():
            print(f"    {name} = {value}")
        if entry.guards is not None:
            print("  guards")
            for line in guard_texts(entry.guards):
                print(f"    {line}")
        print("  environment")
        for name, value in entry.environment.components:
            print(f"    {name} = {value}")
        for name, (here, there) in details.differing.items():
            print(f"  differs   {name}: {here} here, {there} there")
        if details.log:
            print("  log")
            print("\n".join(f"    {line}" for line in details.log.splitlines()))
    return 0


def _verdict_text(verdict: Verdict) -> str:
    live = "checked" if verdict.checked else "not checked"
    compared = "compared" if verdict.compared else "not compared"
    return f"on {processor()}: {live} on a call's own arguments, {compared} on made-up data"


def _verify(namespace: argparse.Namespace) -> int:
    report = cache.verify(repair=not namespace.dry_run)
    for path, problem in report.damaged:
        print(f"damaged: {path}: {problem}")
    done = "removed" if report.repaired else "found"
    print(
        f"{report.intact} intact, {report.foreign} of other environments, "
        f"{len(report.damaged)} damaged and {report.residue} leftovers {done}"
    )
    return 1 if report.damaged else 0


def _prune(namespace: argparse.Namespace) -> int:
    if not (namespace.declined or namespace.stale):
        print("aoti-eager: prune: choose --declined, --stale or both", file=sys.stderr)
        return 2
    report = cache.prune(declined=namespace.declined, stale=namespace.stale)
    print(
        f"{report.declined} remembered failures, {report.slower} losing verdicts and "
        f"{report.stale} entries of other environments removed from {config.cache_dir}"
    )
    return 0


def _clear(namespace: argparse.Namespace) -> int:
    print(f"{cache.clear()} entries removed from {config.cache_dir}")
    return 0


def _stats(namespace: argparse.Namespace) -> int:
    totals = read_totals(config.cache_dir)
    if namespace.json:
        print(json.dumps({op: dataclasses.asdict(counts) for op, counts in totals.items()}))
        return 0
    rows = [_stats_row(op, counts) for op, counts in sorted(totals.items())]
    header = ("op", "hits", "misses", "compiles", "failures", "declines", "reasons")
    print("\n".join(_script.align([header, *rows], left=(0, 6))))
    print(f"{len(totals)} ops, all processes that used {config.cache_dir}")
    return 0


def _stats_row(op: str, counts: OpStats) -> tuple[str, ...]:
    reasons = ", ".join(f"{reason} x{n}" for reason, n in sorted(counts.declined.items()))
    numbers = (counts.hits, counts.misses, counts.compiles, counts.failures, counts.declines)
    return (op, *map(str, numbers), reasons)


def _explain(namespace: argparse.Namespace) -> int:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in namespace.arguments:
        name, separator, value = text.partition("=")
        if separator and name.isidentifier():
            kwargs[name] = _value(value)
        else:
            args.append(_value(text))
    try:
        print(explain(namespace.op, *args, **kwargs))
    except RuntimeError as error:
        if isinstance(error, AotiEagerError):
            raise
        print(f"aoti-eager: {namespace.op}: PyTorch takes no such call: {error}", file=sys.stderr)
        return 2
    return 0


_DTYPES = {
    short_dtype(name): dtype
    for name in sorted(vars(torch))
    if isinstance(dtype := getattr(torch, name), torch.dtype) and str(dtype) == f"torch.{name}"
}
_TENSOR = re.compile(r"(\w+)\[([\d,\s]*)\](?:\{([\d,\s]*)\})?$")


def _value(text: str) -> Any:
    match = _TENSOR.match(text.strip())
    if match and match[1] in _DTYPES:
        sizes, strides = _ints(match[2]), match[3]
        if strides is None:
            return torch.empty(sizes, dtype=_DTYPES[match[1]])
        return torch.empty_strided(sizes, _ints(strides), dtype=_DTYPES[match[1]])
    if text.startswith("torch."):
        return getattr(torch, text.removeprefix("torch."), None)
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]
