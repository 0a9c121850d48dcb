"""Whether calls may be served with a torch that this package was not checked with.

A self-test decides: a process of its own serves calls of several kinds and compares their results
with eager's (``_commands/self_test.py``). The last answer is kept in the store for this build of
torch, this processor and this compiler, and for these sources. What says nothing about them is not
kept: a process that cannot be started, is killed or lacks memory. Then no call is served in this
process, and the next process tests again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .._base import checked_torch as checked
from .._base import scheduling
from .._base.at_exit import at_exit
from .._base.child_process import child_command
from .._base.cpp_compiler import compiler_identity, compiler_on_path
from .._base.cpu import cpu_features
from .._base.data_class import dataclass
from .._base.determinism import FATAL_SIGNALS, is_passing_text
from .._base.digest import Component
from .._base.printable import shortened
from .._base.warn_once import log, warn_once
from .._store.environment import CODE_VERSION
from .._store.self_tests import Answer, read_answer, write_answer
from ..config import config
from ..errors import AotiEagerError
from . import cache_context

# Seconds that a self-test may take: on a slow machine, a compile takes one of its minutes.
SELF_TEST_TIMEOUT_S = 900.0
_PROGRAM = "aoti_eager._commands.self_test"
# Most characters of the child's words in a message.
_WORDS = 600
# Of ``_enable``, a room above: the self-test serves what it is about, and nothing else.
_ENABLE = "AOTI_EAGER_ENABLE"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a self-test has found.

    Attributes:
        passed: Whether calls may be served.
        message: What was found, in words.
        path: The hit path that was tested, ``"C++"`` or ``"Python"``.
        is_lasting: Whether another process would find the same: then the outcome is kept.
    """

    passed: bool
    message: str
    path: str = "Python"
    is_lasting: bool = False


def may_serve() -> bool:
    """Return whether calls may be served with this torch; warn once where it was not checked.

    In mode ``sync`` this waits for the self-test. In other modes originals run until the self-test
    has passed, and the next ``register`` or the next process is served.
    """
    if checked.is_checked() or config.untested_torch == "1":
        return True
    version = torch.__version__
    known = f"aoti_eager was checked with torch {', '.join(checked.CHECKED)}; this is {version}"
    if config.untested_torch == "0":
        warn_once("untested_torch", f"{known}, and AOTI_EAGER_UNTESTED_TORCH is 0: originals run")
        return False
    found = _known(again=True)
    if found is None and config.mode not in ("off", "cache_only"):
        if config.mode == "sync":
            found = run_and_keep()
        else:
            _start()
    if found is not None and found.passed:
        warn_once("untested_torch", f"{known}; the self-test has passed, and calls are served")
        return True
    now = "no self-test has passed yet" if found is None else "the self-test has failed"
    warn_once(
        "untested_torch",
        f"{known}; {now}, and originals run (python -m aoti_eager doctor says more; "
        "AOTI_EAGER_UNTESTED_TORCH=1 serves without a self-test)",
    )
    return False


def is_refused() -> bool:
    """Return whether no call may be served at this moment, by what this process knows."""
    if config.untested_torch != "auto":
        return bool(config.untested_torch == "0")
    found = _known()
    return found is None or not found.passed


def may_use_native() -> bool:
    """Return whether the C++ path may be loaded: the self-test has passed on it."""
    if config.untested_torch != "auto":
        return bool(config.untested_torch == "1")
    found = _known()
    return found is not None and found.passed and found.path == "C++"


def run_and_keep() -> Outcome | None:
    """Run the self-test and keep its answer; ``None`` if the store cannot be written."""
    try:
        cache_context.current().store.create()
    except AotiEagerError as error:
        log.info("no self-test: %s", error)
        return None
    place, directory, machine = _place(), _directory(), _machine()
    outcome = self_test((), SELF_TEST_TIMEOUT_S)
    log.info("self-test: %s", outcome.message)
    if outcome.is_lasting:
        write_answer(directory, machine, Answer(outcome.passed, outcome.path, outcome.message))
    if not _is_ending:
        _note(place, outcome)
    return outcome


# What this process knows, by what the answer depends on and may change in it.
_found: dict[tuple[str, ...], Outcome | None] = {}


def _known(*, again: bool = False) -> Outcome | None:
    """Return the outcome that this process has found, or that the store keeps; ``None`` if none.

    Args:
        again: Whether to look into the store once more: another process may have tested.
    """
    place = _place()
    if again or place not in _found:
        kept = _kept()
        if kept is not None:
            _note(place, kept)
        _found.setdefault(place, None)
    return _found[place]


def _note(place: tuple[str, ...], outcome: Outcome) -> None:
    before, _found[place] = _found.get(place), outcome
    if before is None or (before.passed, before.path) != (outcome.passed, outcome.path):
        tell_of_change()


# Called when the answer has changed, on any thread; ``this_torch`` fills the list.
observers: list[Callable[[], None]] = []


def tell_of_change() -> None:
    """Call those who are to know that the answer has changed."""
    for observer in observers:
        observer()


def _place() -> tuple[str, ...]:
    path = "Python" if config.native == "0" else "C++"
    return str(config.cache_dir), str(config.cpu_target), path, compiler_on_path() or ""


def self_test(
    kinds: Sequence[str],
    timeout_s: float,
    *,
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Serve calls in a process of its own and return what became of them; never raises.

    Args:
        kinds: Names of the calls in ``_commands/self_test.py``; all if empty.
        timeout_s: Seconds until the process is killed.
        variables: Environment variables on top of this process's.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != _ENABLE},
        "AOTI_EAGER_CACHE_DIR": str(config.cache_dir),
        "AOTI_EAGER_CPU_TARGET": str(config.cpu_target),
        # The path that is to serve: the child waits until the C++ path is built.
        "AOTI_EAGER_NATIVE": "0" if config.native == "0" or not compiler_on_path() else "1",
        "AOTI_EAGER_STRICT": "0",  # Without the C++ path, the test is one of the Python path.
        "AOTI_EAGER_UNTESTED_TORCH": "1",
        **(variables or {}),
    }
    try:
        process = subprocess.Popen(
            child_command(_PROGRAM, "serve_child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
    except (OSError, MemoryError, subprocess.SubprocessError) as error:
        return Outcome(False, f"the self-test cannot be started: {error!r}")
    _running.add(process)
    if _is_ending:  # Nobody would end it later.
        _kill(process)
    if threading.current_thread() is not threading.main_thread():
        with contextlib.suppress(OSError):  # Nobody waits for it.
            os.setpriority(os.PRIO_PGRP, process.pid, scheduling.LOWEST)
    try:
        said, complained = process.communicate(json.dumps(list(kinds)), timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        with process:  # Closes its pipes.
            pass
        return Outcome(False, f"the self-test has not ended after {timeout_s:g} s")
    except BaseException:  # Ctrl-C.
        _kill(process)
        raise
    finally:
        _running.discard(process)
    return _outcome(process.returncode, said, complained)


def _outcome(status: int, said: str, complained: str) -> Outcome:
    try:
        answer: dict[str, Any] = json.loads(said.splitlines()[-1])
        problems = [str(one) for one in answer["problems"]]
        version, served = str(answer["torch"]), str(answer["served"])
        path, is_lasting = str(answer["path"]), answer["is_lasting"] is True
    except (ValueError, KeyError, TypeError, IndexError):
        words = shortened(complained.strip()[-_WORDS:], _WORDS)
        message = f"the self-test ended with status {status}: {words}"
        # A crash is an answer: wrong code caused it. Somebody else sends any other signal.
        is_lasting = _signal_name(status) in FATAL_SIGNALS and not is_passing_text(complained)
        return Outcome(False, message, is_lasting=is_lasting)
    if version != str(torch.__version__):
        return Outcome(False, f"the self-test ran with torch {version}")
    if problems:
        return Outcome(False, shortened("; ".join(problems), _WORDS), path, is_lasting)
    return Outcome(True, f"{served}; hit path: {path}", path, is_lasting=True)


def _signal_name(status: int) -> str:
    """Return the name of the signal that has ended a process; empty if none has."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return ""


def _kept() -> Outcome | None:
    """Return the outcome that the store keeps; ``None`` if it keeps none."""
    try:
        if not cache_context.current().store.is_trusted():
            return None
        found = read_answer(_directory(), _machine())
    except AotiEagerError as error:
        log.info("%s", error)
        return None
    if found is None:
        return None
    return Outcome(found.passed, found.message, found.path, is_lasting=True)


def _directory() -> Path:
    return cache_context.current().toolchain / "self_tests"


def _machine() -> list[Component]:
    """Return what the answer holds for."""
    return [
        *(str(torch.__version__), torch.version.git_version, platform.machine()),
        *(CODE_VERSION, _sources(), compiler_identity() or "", sorted(cpu_features())),
        *(sys.version.partition(" ")[0], str(config.cpu_target), config.native == "0"),
    ]


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".h", ".cpp")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# -- beside the script --

_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def _start() -> None:
    """Run the self-test on a thread of its own, once in a process."""
    global _thread
    with _lock:
        if _thread is not None:
            return
        thread = threading.Thread(target=run_and_keep, name="aoti_eager-self-test", daemon=True)
        with contextlib.suppress(RuntimeError):  # The system gives no thread: another process asks.
            thread.start()
            _thread = thread


def wait(timeout_s: float | None = None) -> bool:
    """Wait for the self-test that runs beside the script; return whether none is running."""
    thread = _thread
    if thread is not None:
        thread.join(timeout_s)
    return thread is None or not thread.is_alive()


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)


_is_ending = False


def _end() -> None:
    global _is_ending
    _is_ending = True
    for process in list(_running):
        _kill(process)


at_exit(_end)


def _after_fork() -> None:
    global _lock, _thread
    _lock, _thread = threading.Lock(), None
    _running.clear()  # They are the parent's.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
