"""Whether calls may be served with a torch that this package was not checked with.

A self-test decides: a process of its own serves calls of several kinds and compares their results
with eager's (``_commands/self_test.py``). The answer is kept in the store for this build of torch,
this processor and this compiler, and for these sources.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .._base import checked_torch as checked
from .._base import scheduling
from .._base.at_exit import at_exit
from .._base.child_process import child_command
from .._base.cpp_compiler import compiler_identity
from .._base.cpu import cpu_features
from .._base.data_class import dataclass
from .._base.printable import shortened
from .._base.warn_once import log, warn_once
from .._store.environment import CODE_VERSION
from .._store.probes import Probes
from ..config import config
from ..errors import AotiEagerError
from . import cache_context

# Seconds that a self-test may take: on a slow machine, a compile takes one of its minutes.
SELF_TEST_TIMEOUT_S = 900.0
_PROGRAM = "aoti_eager._commands.self_test"
_PASSED, _FAILED = ["self-test passed"], ["self-test failed"]
# Most characters of the child's words in a message.
_WORDS = 600


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a self-test has found.

    Attributes:
        passed: Whether calls may be served.
        message: What was found, in words.
    """

    passed: bool
    message: str


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
    answer = _kept()
    if answer is None and config.mode not in ("off", "cache_only"):
        if config.mode == "sync":
            outcome = run_and_keep()
            answer = None if outcome is None else outcome.passed
        else:
            _start()
    if answer:
        warn_once("untested_torch", f"{known}; the self-test has passed, and calls are served")
        return True
    now = "the self-test has failed" if answer is False else "no self-test has passed yet"
    warn_once(
        "untested_torch",
        f"{known}; {now}, and originals run (python -m aoti_eager doctor says more; "
        "AOTI_EAGER_UNTESTED_TORCH=1 serves without a self-test)",
    )
    return False


def run_and_keep() -> Outcome | None:
    """Run the self-test and keep its answer; ``None`` if the store cannot be written."""
    try:
        cache_context.current().store.create()
    except AotiEagerError as error:
        log.info("no self-test: %s", error)
        return None
    outcome = self_test((), SELF_TEST_TIMEOUT_S)
    log.info("self-test: %s", outcome.message)
    _probes().add([*(_PASSED if outcome.passed else _FAILED)])
    return outcome


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
        **os.environ,
        "AOTI_EAGER_CACHE_DIR": str(config.cache_dir),
        "AOTI_EAGER_CPU_TARGET": str(config.cpu_target),
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
    except OSError as error:
        return Outcome(False, f"the self-test cannot be started: {error}")
    _running.add(process)
    if threading.current_thread() is not threading.main_thread():
        with contextlib.suppress(OSError):  # Nobody waits for it.
            os.setpriority(os.PRIO_PGRP, process.pid, scheduling.LOWEST)
    try:
        said, complained = process.communicate(json.dumps(list(kinds)), timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.communicate()
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
        version = str(answer["torch"])
        served = str(answer["served"])
    except (ValueError, KeyError, TypeError, IndexError):
        words = shortened(complained.strip()[-_WORDS:], _WORDS)
        return Outcome(False, f"the self-test ended with status {status}: {words}")
    if version != str(torch.__version__):
        return Outcome(False, f"the self-test ran with torch {version}")
    if problems:
        return Outcome(False, shortened("; ".join(problems), _WORDS))
    return Outcome(True, served)


def _kept() -> bool | None:
    """Return the answer that the store has; ``None`` if it has none."""
    try:
        if not cache_context.current().store.is_trusted():
            return None
        probes = _probes()
    except AotiEagerError as error:
        log.info("%s", error)
        return None
    if probes.has([*_PASSED]):
        return True
    return False if probes.has([*_FAILED]) else None


def _probes() -> Probes:
    machine = [
        *("self-test", str(torch.__version__), torch.version.git_version, platform.machine()),
        *(CODE_VERSION, _sources(), compiler_identity() or "", sorted(cpu_features())),
        *(sys.version.partition(" ")[0], str(config.cpu_target)),
    ]
    return Probes(cache_context.current().toolchain / "probes", machine)


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


def wait() -> None:
    """Wait for the self-test that runs beside the script, if one does."""
    if _thread is not None:
        _thread.join()


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)


def _end() -> None:
    for process in list(_running):
        _kill(process)


at_exit(_end)


def _after_fork() -> None:
    global _lock, _thread
    _lock, _thread = threading.Lock(), None
    _running.clear()  # They are the parent's.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
