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
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .._base import checked_torch as checked
from .._base.cpp_compiler import compiler_identity, compiler_on_path
from .._base.cpu import cpu_features
from .._base.data_class import dataclass
from .._base.digest import Component
from .._base.warn_once import log, warn_once
from .._store.environment import CODE_VERSION
from .._store.self_tests import Answer, read_answer, write_answer
from ..config import config
from ..errors import AotiEagerError
from . import cache_context, self_test_process
from .self_test_process import Outcome, self_test, settings_variables


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
    if found is None and _compiles():
        if config.mode != "sync":
            _start()
        elif wait():  # For one that was started in another mode.
            found = _known() or run_and_keep()
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
    """Return whether no call may be served at this moment; nobody is told."""
    if config.untested_torch != "auto":
        return bool(config.untested_torch == "0")
    found = _known()
    return found is None or not found.passed


def may_use_native() -> bool:
    """Return whether the C++ path may be loaded: the self-test passed on it; nobody is told."""
    if config.untested_torch != "auto":
        return bool(config.untested_torch == "1")
    found = _known()
    return found is not None and found.passed and found.path == "C++"


def start_if_missing() -> None:
    """Start the self-test, beside the script, if nothing is known and one may run."""
    if config.untested_torch == "auto" and _compiles() and _known() is None:
        _start()


def run_and_keep() -> Outcome | None:
    """Run the self-test and keep its answer; ``None`` if the store cannot be written.

    Call it without locks: kernels are refreshed when the answer has changed.
    """
    asked = _Asked.now()
    return None if asked is None else _test(asked)


def _compiles() -> bool:
    return config.mode not in ("off", "cache_only")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is tested, by the settings of one moment: a scope may end before the test begins."""

    place: tuple[str, ...]
    context: cache_context.CacheContext
    machine: list[Component]
    variables: dict[str, str]

    @classmethod
    def now(cls) -> _Asked | None:
        """Return what is to be tested by the present settings; ``None`` if the store is no use."""
        try:
            return cls(_place(), cache_context.current(), _machine(), settings_variables())
        except AotiEagerError as error:
            log.info("no self-test: %s", error)
            return None


def _test(asked: _Asked) -> Outcome | None:
    directory = _directory(asked.context)
    try:
        asked.context.store.create()
    except AotiEagerError as error:
        log.info("no self-test: %s", error)
        return None
    outcome = self_test(variables=asked.variables)
    log.info("self-test: %s", outcome.message)
    if outcome.is_lasting:
        kept = Answer(outcome.passed, outcome.path, outcome.message)
        write_answer(directory, asked.machine, kept)
    if not self_test_process.is_ending:
        _note(asked.place, outcome)
    return outcome


# What this process knows, by what the answer depends on and may change in it.
_found: dict[tuple[str, ...], Outcome | None] = {}


def _known(*, again: bool = False) -> Outcome | None:
    """Return the outcome that this process has found, or that the store keeps; ``None`` if none.

    Args:
        again: Whether to look into the store once more, because another process may have tested,
            and tell of a change. Otherwise nobody is told: a kernel that asks holds its lock, and
            who is told wants the locks of all.
    """
    place = _place()
    if again:
        kept = _kept()
        if kept is not None:
            _note(place, kept)
    elif place not in _found:
        return _found.setdefault(place, _kept())
    return _found.get(place)


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


def _kept() -> Outcome | None:
    """Return the outcome that the store keeps; ``None`` if it keeps none."""
    try:
        context = cache_context.current()
        if not context.store.is_trusted():
            return None
        found = read_answer(_directory(context), _machine())
    except AotiEagerError as error:
        log.info("%s", error)
        return None
    if found is None:
        return None
    return Outcome(found.passed, found.message, found.path, is_lasting=True)


def _directory(context: cache_context.CacheContext) -> Path:
    return context.toolchain / "self_tests"


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

_lock = threading.Lock()
# By what they test.
_threads: dict[tuple[str, ...], threading.Thread] = {}


def _start() -> None:
    """Run the self-test on a thread of its own, once in a process for each place."""
    asked = _Asked.now()
    if asked is None:
        return
    with _lock:
        if asked.place in _threads:
            return
        thread = threading.Thread(
            target=_test, args=(asked,), name="aoti_eager-self-test", daemon=True
        )
        with contextlib.suppress(RuntimeError):  # The system gives no thread: another process asks.
            thread.start()
            _threads[asked.place] = thread


def wait(timeout_s: float | None = None) -> bool:
    """Wait for the self-tests that run beside the script; return whether none is running."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    threads = list(_threads.values())
    for thread in threads:
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
