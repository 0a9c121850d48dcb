"""``export``, ``load``, ``keygen``, ``sign`` and ``verify-signature``: entries in one file."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from .. import cache
from .._base.amounts import size_in_words
from .._base.printable import printable
from ..config import config


def add_verbs(verb: Callable[[str, Callable[[argparse.Namespace], int], str], Any]) -> None:
    """Add all verbs.

    Args:
        verb: Makes the parser of a verb, by its name, what runs it, and its purpose.
    """
    _add_export_arguments(verb("export", export, "Write entries to one file, a bundle."))
    _add_load_arguments(verb("load", load, "Take the entries of a bundle into the cache."))
    _add_keygen_arguments(verb("keygen", keygen, "Make a key to sign bundles with."))
    _add_sign_arguments(verb("sign", sign, "Sign a bundle."))
    _add_verify_arguments(
        verb("verify-signature", verify_signature, "Say who has signed a bundle.")
    )


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the bundle; replaced in one piece")
    parser.add_argument(
        "--op",
        metavar="PATTERN",
        action="append",
        help="entries of these ops: aten::silu, 'aten::add*'; may be given again",
    )
    parser.add_argument(
        "--all-environments",
        action="store_true",
        help="entries of other versions of torch and other settings, too",
    )
    parser.add_argument("--no-regions", action="store_true", help="no entries of regions")
    parser.add_argument("--no-native", action="store_true", help="without the C++ path")
    parser.add_argument(
        "--headers", action="store_true", help="precompiled headers, too, 150 MB each"
    )
    signing = parser.add_mutually_exclusive_group()
    signing.add_argument("--sign", action="store_true", help="an error without a key (keygen)")
    signing.add_argument("--no-sign", action="store_true", help="do not sign")
    _add_common(parser)


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the bundle")
    parser.add_argument(
        "--trust",
        choices=("signed", "any"),
        default="signed",
        help="signed: by your key or a key of the setting trusted_keys; any: whoever made the "
        "bundle may run code as you",
    )
    _add_common(parser)


def _add_keygen_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="FILE", help="the private key's file; default: your own")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_sign_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the bundle; replaced in one piece")
    parser.add_argument("--key", metavar="FILE", help="the private key's file; default: your own")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the bundle")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache-dir", help="the cache's directory")


def export(namespace: argparse.Namespace) -> int:
    """Run ``export``; return its exit status."""
    report = cache.export(
        namespace.file,
        ops=namespace.op,
        environments="all" if namespace.all_environments else "this",
        regions=not namespace.no_regions,
        native=not namespace.no_native,
        headers=namespace.headers,
        sign=True if namespace.sign else False if namespace.no_sign else None,
    )
    if namespace.json:
        print(json.dumps(dataclasses.asdict(report) | {"path": str(report.path)}))
        return 0
    parts = [f"{report.entries} entries"]
    parts += [f"of regions {report.regions}"] if report.regions else []
    parts += [f"failures {report.failures}"] if report.failures else []
    parts += [f"{report.toolchain} files of the toolchain"] if report.toolchain else []
    size = size_in_words(report.size_bytes)
    signed = f"signed by {report.signed_by}" if report.signed_by else "not signed"
    say(f"{', '.join(parts)}: {size} in {report.path}, {signed}")
    say_counts("left out", report.skipped)
    return 0


def load(namespace: argparse.Namespace) -> int:
    """Run ``load``; return its exit status: 1 if something in the bundle was damaged."""
    report = cache.load(namespace.file, trust=namespace.trust)
    if namespace.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        signed = f", signed by {', '.join(report.signed_by)}" if report.signed_by else ""
        tools = f", {report.toolchain} files of the toolchain" if report.toolchain else ""
        say(
            f"{report.entries} entries taken{tools}, {report.fitting} of them for this torch, "
            f"these settings and this CPU, in {config.cache_dir}{signed}"
        )
        say_counts("left out", report.skipped)
        for problem in report.problems:
            say(f"  damaged: {problem}")
    return 1 if report.skipped.get("damaged") else 0


def keygen(namespace: argparse.Namespace) -> int:
    """Run ``keygen``; return its exit status."""
    public = cache.keygen(namespace.key)
    _say_key(public, namespace.json)
    return 0


def sign(namespace: argparse.Namespace) -> int:
    """Run ``sign``; return its exit status."""
    public = cache.sign(namespace.file, key=namespace.key)
    _say_key(public, namespace.json)
    return 0


def verify_signature(namespace: argparse.Namespace) -> int:
    """Run ``verify-signature``; return its exit status: 1 if nobody who is trusted has signed."""
    report = cache.verify_signature(namespace.file)
    if namespace.json:
        print(json.dumps(dataclasses.asdict(report)))
    elif not report.signed_by:
        say("not signed")
    else:
        for public in report.signed_by:
            say(f"{public}  {'trusted' if public in report.trusted else 'not trusted'}")
    return 0 if report.trusted else 1


def _say_key(public: str, as_json: bool) -> None:
    print(json.dumps({"public_key": public}) if as_json else public)


def say_counts(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        say(f"{what}: " + ", ".join(f"{reason} {n}" for reason, n in counts.items()))


def say(line: Any) -> None:
    print(printable(str(line)))
