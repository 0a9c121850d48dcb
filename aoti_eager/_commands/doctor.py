"""``python -m aoti_eager doctor``: what is right and wrong here, and what to do about it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._base import checked_torch as checked
from .._base.cpp_compiler import NO_COMPILER, compiler_on_path
from .._base.cpu import cpu_features, cpu_target, level_of
from .._base.file_lock import FileLock
from .._base.printable import printable
from .._base.settings import SETTINGS
from .._base.trusted_files import open_directory
from .._compile_service import cache_context, self_test_process, untested_torch
from .._native import build as native_build
from .._store.store import Store
from ..config import config
from ..errors import AotiEagerError, StoreError, StorePermissionError
from .doctor_tiers import tier_findings
from .finding import NOTE, OK, PROBLEM, Finding

# What the store needs at least to make kernels: two precompiled headers, and some libraries.
_ROOM_BYTES = 1 << 30
# What is written to find out whether there is room; a full disk may still take a small file.
_PROBE_BYTES = 1 << 20
# Kinds of file systems on which locks may not hold between machines.
_NETWORK = ("nfs", "cifs", "smb", "9p", "lustre", "gpfs", "beegfs", "ceph", "fuse")
# Seconds that the proof may take: one compile, without a precompiled header.
_PROOF_TIMEOUT_S = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor`` to ``parser``."""
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache's directory")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Print the findings; return 1 if one of them is a problem, else 0."""
    found = findings()
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
    else:
        width = max(len(one.name) for one in found)
        for one in found:
            print(f"{one.state:<7}  {one.name:<{width}}  {printable(one.message)}")
            if one.advice:
                print(f"{'':<{width + 9}}  -> {printable(one.advice)}")
    return 1 if any(one.state == PROBLEM for one in found) else 0


def findings() -> list[Finding]:
    """Return all that was looked at; the last finding is one op, served as proof."""
    found = [_python(), _torch(), _compiler()]
    settings = _settings()
    found += settings
    if any(one.state == PROBLEM for one in settings):
        return found  # Nothing can be read with a wrong setting.
    found.append(_instruction_set())
    stored = _store()
    found += stored
    found += tier_findings()
    found.append(_proof(found))
    found.append(_hit_path())
    return found


# -- this process --


def _python() -> Finding:
    return Finding("python", OK, f"{platform.python_version()}, {platform.system()}")


def _torch() -> Finding:
    version = f"torch {torch.__version__}"
    if checked.is_checked():
        return Finding("torch", OK, f"{version}, which this package was checked with")
    known = f"{version}; this package was checked with {', '.join(checked.CHECKED)}"
    missing = checked.missing_names()
    if missing:
        return Finding(
            "torch",
            PROBLEM,
            f"{known}, and this torch lacks {', '.join(missing)}: originals run",
            "install a torch that was checked, or a newer aoti_eager",
        )
    return Finding(
        "torch",
        NOTE,
        f"{known}: calls are served once a self-test has passed "
        f"(AOTI_EAGER_UNTESTED_TORCH={config.untested_torch})",
        "install a torch that was checked, or compare results yourself; "
        "AOTI_EAGER_UNTESTED_TORCH=0 serves nothing, 1 serves without a self-test",
    )


def _compiler() -> Finding:
    compiler = compiler_on_path()
    if compiler is None:
        what, _, advice = NO_COMPILER.partition("; ")
        return Finding("compiler", PROBLEM, what, advice)
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("compiler", PROBLEM, f"{compiler}: does not run: {error}", "set CXX to one")
    line = done.stdout.partition("\n")[0].strip()
    if done.returncode:
        said = done.stderr.strip()[-200:]
        message = f"{compiler}: --version fails with status {done.returncode}: {said}"
        return Finding("compiler", PROBLEM, message, "repair it, or set CXX to another")
    return Finding("compiler", OK, f"{compiler}: {line}")


def _settings() -> list[Finding]:
    found = []
    for name, setting in SETTINGS.items():
        try:
            value, source = config.lookup(name)
        except AotiEagerError as error:
            advice = f"set {setting.variable} to a value that the setting takes, or unset it"
            found.append(Finding("settings", PROBLEM, str(error), advice))
            continue
        if source != "default":
            found.append(Finding("settings", OK, f"{name} = {value}, from {source}"))
    return found or [Finding("settings", OK, "all have their defaults")]


def _instruction_set() -> Finding:
    features = cpu_features()
    target = cpu_target(features, config.cpu_target)
    message = f"{target.name} on {platform.machine()}"
    if target.vector_bits == 128:
        return Finding(
            "instruction set",
            NOTE,
            f"{message}: no vectors of 256 bits, so few kernels beat the originals",
        )
    return Finding("instruction set", OK, f"{message} ({level_of(target) or 'this very CPU'})")


# -- the store --


def _store() -> list[Finding]:
    try:
        store = cache_context.current().store
        store.create()
        with store.workspace() as work:
            _write_probe(work)
            locks = _locks(work)
    except StorePermissionError as error:
        return [Finding("store", PROBLEM, *_advised(str(error), _NEW_DIRECTORY))]
    except StoreError as error:
        return [Finding("store", PROBLEM, *_advised(str(error), _advice(error)))]
    except OSError as error:
        text = f"{config.cache_dir}: cannot be written: {error.strerror or error}"
        return [Finding("store", PROBLEM, text, _advice(error))]
    root = store.root
    kind = _file_system(root)
    found = [Finding("store", OK, f"{root} on {kind or 'a file system'}, ours to write"), locks]
    if kind.startswith(_NETWORK):
        found[0] = Finding(
            "store",
            NOTE,
            f"{root} on {kind}, which other machines may share",
            "set AOTI_EAGER_CACHE_DIR to a local disk if locks or reads are slow there",
        )
    return [*found, _room(root)]


_NEW_DIRECTORY = "set AOTI_EAGER_CACHE_DIR to a new directory of your own"


def _advised(message: str, advice: str) -> tuple[str, str]:
    """Return a message without the advice in it, and the advice."""
    said, _, own = message.partition("; ")
    return (said, own) if own else (message, advice)


def _advice(error: OSError) -> str:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return (
            "free room there (python -m aoti_eager prune --stale --declined), or set "
            "AOTI_EAGER_CACHE_DIR to a directory on another disk"
        )
    if error.errno == 30:  # EROFS
        return (
            "hits are served, and nothing new is compiled; set AOTI_EAGER_CACHE_DIR to a directory "
            "that can be written to"
        )
    return _NEW_DIRECTORY


def _write_probe(work: Path) -> None:
    with open(work / "probe", "wb") as file:
        file.write(os.urandom(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _locks(work: Path) -> Finding:
    with open_directory(work) as directory, contextlib.ExitStack() as stack:
        first = FileLock(directory, "lock")
        stack.callback(first.close)
        try:
            first.acquire(0)
        except OSError as error:
            advice = "set AOTI_EAGER_CACHE_DIR to a directory on a local disk"
            return Finding("locks", PROBLEM, f"cannot be taken: {error}", advice)
        second = FileLock(directory, "lock")
        stack.callback(second.close)
        try:
            second.acquire(0)
        except OSError:
            return Finding("locks", OK, "keep two processes apart")
    return Finding(
        "locks",
        PROBLEM,
        "do not keep two processes apart on this file system",
        "set AOTI_EAGER_CACHE_DIR to a directory on a local disk",
    )


def _file_system(path: Path) -> str:
    """Return the kind of file system that ``path`` is on, empty if the system does not tell."""
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    resolved, best = path.resolve(), ("", "")
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        place = left.split()[4].replace("\\040", " ")
        if resolved.is_relative_to(place) and len(place) >= len(best[0]):
            best = place, right.split()[0]
    return best[1]


def _room(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    message = f"{free / 2**30:.1f} GiB are free"
    if free < _ROOM_BYTES:
        advice = f"kernels and two precompiled headers take up to {_ROOM_BYTES / 2**30:.0f} GiB"
        return Finding("room", NOTE, message, f"{advice}: free room, or choose another directory")
    return Finding("room", OK, message)


# -- proof --


def _proof(found: list[Finding]) -> Finding:
    """Serve one op by the normal way: compile, try, load, compare, hit."""
    stopped = [one.name for one in found if one.state == PROBLEM]
    if stopped:
        return Finding("proof", NOTE, f"no op was served: see {', '.join(dict.fromkeys(stopped))}")
    untested = not checked.is_checked()
    if untested and config.untested_torch == "0":
        return Finding("proof", NOTE, "no op was served: AOTI_EAGER_UNTESTED_TORCH is 0")
    if untested and config.untested_torch == "auto":
        kept = untested_torch.run_and_keep()
        outcome = kept or self_test_process.Outcome(False, "the self-test cannot be kept")
        what = "the self-test has passed" if outcome.passed else "the self-test has failed"
        message = f"{what}: {outcome.message}"
    else:
        outcome = self_test_process.self_test(["pointwise"], _PROOF_TIMEOUT_S)
        message = f"aten::silu {outcome.message}" if outcome.passed else outcome.message
    if outcome.passed:
        return Finding("proof", OK, message)
    return Finding(
        "proof",
        PROBLEM,
        message,
        "originals run, with right results; TORCH_LOGS=+aoti_eager shows more, and "
        "python -m aoti_eager explain aten::silu 'f32[64,64]' says what is kept",
    )


def _hit_path() -> Finding:
    if config.native == "0":
        return Finding("C++ path", NOTE, "is switched off (AOTI_EAGER_NATIVE=0): Python serves")
    with contextlib.suppress(AotiEagerError):
        places: list[tuple[str, Callable[[], Any]]] = [
            ("the store has it", lambda: _stored_path(cache_context.current().store)),
            ("the package carries it", native_build.find_carried),
        ]
        for message, find in places:
            if find() is not None:
                return Finding("C++ path", OK, message)
    return Finding(
        "C++ path",
        NOTE,
        "is not built yet: Python serves, slower than C++, until it is",
        "python -m aoti_eager setup builds it",
    )


def _stored_path(store: Store) -> Any:
    return native_build.find(store.root / "toolchain", None) if store.is_trusted() else None
