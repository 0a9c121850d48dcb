"""Whether calls go through the C++ hit path: find its library, or build it.

``prepare`` is called where ops are registered, and loads a library that the store has. If the store
has none, the first ``prepare`` of a machine waits for the build for a while. A build that takes
longer goes on beside the script, and the next ``prepare`` or ``take_built`` loads its library.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from .._base import scheduling
from .._base.at_exit import at_exit
from .._base.cpp_compiler import compiler_on_path
from .._base.warn_once import log, warn_once
from .._native import build as native_build
from .._native import library as native_library
from ..config import config
from ..errors import AotiEagerError, NativePathError, StoreError
from . import cache_context, this_torch

# Seconds that a script waits for a build. Then Python serves, with right results, but slower than
# the originals on short calls.
FOREGROUND_S = 10.0


class _Build:
    """A build on a thread of its own; a process has one."""

    def __init__(self, failures: dict[Path, NativePathError] | None = None) -> None:
        self.thread: threading.Thread | None = None
        self.taken: threading.Thread | None = None  # the last one after which somebody has looked
        self.failures = failures or {}  # by the toolchain directory
        self._process: subprocess.Popen[bytes] | None = None
        self.is_new = False  # Whether somebody is to wait for the build, and nobody has yet.
        self._is_awaited = False
        self._ending = False
        self._lock = threading.Lock()

    @property
    def is_running(self) -> bool:
        """Return whether something is being built."""
        return self.thread is not None and self.thread.is_alive()

    def start(self, toolchain: Path, compiler: str, *, awaited: bool) -> None:
        """Start a build, if none is running; ``awaited`` gives it the script's priority.

        Raises:
            NativePathError: The system gives no thread.
        """
        if self.is_running or self._ending:
            return
        self._is_awaited = awaited
        thread = threading.Thread(
            target=self._run, args=(toolchain, compiler), name="aoti_eager-native", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise NativePathError(f"the native hit path cannot be built: {error}") from error
        self.thread, self.is_new = thread, awaited

    def join(self, seconds: float) -> None:
        """Wait ``seconds`` for the build; then it goes on at a lower priority."""
        thread = self.thread
        if thread is None:
            return
        try:
            thread.join(seconds)
        finally:  # Also after Ctrl-C.
            self._give_way()

    def _give_way(self) -> None:
        """Put the compiler behind the script's own work: nobody waits for the build now."""
        with self._lock:
            self._is_awaited = False
            process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                nice = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(
                    os.PRIO_PGRP, process.pid, min(scheduling.LOWEST, nice + scheduling.BEHIND)
                )
            from . import share as core_share

            core_share.share.begin(process.pid)
            if process.poll() is not None:  # Ended meanwhile: nobody else would end the windows.
                core_share.share.end(process.pid)

    def _run(self, toolchain: Path, compiler: str) -> None:
        try:
            native_build.build(toolchain, compiler, start=self._start_compiler)
        except NativePathError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - else each register would wait for it again
            log.exception("the native hit path cannot be built")
            failure = NativePathError(f"the native hit path cannot be built: {error!r}")
        else:
            return
        finally:
            if self._process is not None:
                from . import share as core_share

                core_share.share.end(self._process.pid)
        if not self._ending:
            self.failures[toolchain] = failure
            log.info("%s", failure)

    def _start_compiler(self, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        with self._lock:  # Nobody would kill a compiler that starts after ``end``.
            if self._ending:
                raise NativePathError("Python is ending")
            self._process = subprocess.Popen(*arguments, **options)
            is_awaited = self._is_awaited
        if not is_awaited:
            self._give_way()
        return self._process

    def end(self) -> None:
        """Kill the compiler: Python ends, and nobody will use the library."""
        with self._lock:
            self._ending = True
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, 9)


_build = _Build()
_has_looked = False
# Re-entrant: a signal handler may register.
_lock = threading.RLock()


def prepare(foreground_s: float | None = None) -> bool:
    """Return whether the C++ hit path is loaded; have it built if it is wanted and not there.

    The setting ``native`` says how long to wait for the build: at ``auto`` for ``FOREGROUND_S``
    seconds, at ``1`` until the build is done, at ``background`` not at all. A failure gives one
    warning.

    Args:
        foreground_s: Seconds to wait at ``auto``, in place of ``FOREGROUND_S``.

    Raises:
        AotiEagerError: The hit path cannot be had, and ``config.strict`` is on.
    """
    wanted = config.native
    if wanted == "0" or not this_torch.may_use_native():
        return False
    if native_library.is_loaded():
        return True
    if foreground_s is None:
        foreground_s = FOREGROUND_S
    try:
        with _lock:
            if _prepare(wanted, foreground_s):
                return True
            build = _build
            if not build.is_new:
                return False
            build.is_new = False
        # Not under the lock: another thread, or a signal handler, may register meanwhile.
        build.join(foreground_s)
        with _lock:
            return not build.is_running and _prepare(wanted, 0.0)
    except NativePathError as error:
        failed(error)
    except StoreError as error:
        if config.strict or wanted == "1":
            failed(error)
        else:
            log.info("%s", error)  # If a miss comes, it warns of the store's error.
    except OSError as error:
        failed(NativePathError(f"the native hit path cannot be looked for: {error}"))
    return False


def take_built() -> bool:
    """Return whether the C++ hit path is loaded; load what this process has built meanwhile.

    For the middle of a call: unlike ``prepare``, this begins no build, raises nothing, and looks
    once after each build. Ops that are served by Python stay there until ``prepare`` is called
    where the dispatcher may change.
    """
    if native_library.is_loaded():
        return True
    build = _build
    if build.thread is None or build.thread is build.taken or build.is_running or build.failures:
        return False
    build.taken = build.thread
    try:
        if config.native == "0" or not this_torch.may_use_native():
            return False
        with _lock:
            return _found(compiler_on_path())
    except (AotiEagerError, OSError) as error:  # The next ``prepare`` says what is wrong.
        log.info("the C++ path that was built is not used: %s", error)
        return False


def why_not_loaded() -> str:
    """Return in words why calls do not go through C++; empty if they do, or may from now on."""
    if native_library.is_loaded():
        return ""
    if config.native == "0":
        return "the setting native is 0"
    if not this_torch.may_use_native():
        return "this torch was not checked, and no self-test has passed with the C++ path"
    if _build.is_running:
        return "the C++ path is being built"
    if _build.failures:
        return str(next(iter(_build.failures.values())))
    return "" if compiler_on_path() else "no C++ compiler is found"


def wait(timeout_s: float | None = None) -> bool:
    """Wait until a build that has been started is done; return whether none is running."""
    thread = _build.thread
    if thread is not None:
        thread.join(timeout_s)
    return thread is None or not thread.is_alive()


def _prepare(wanted: str, foreground_s: float) -> bool:
    context = cache_context.current()
    compiler = compiler_on_path()
    if _found(compiler) or load_carried():
        return True
    if compiler is None or config.mode in ("cache_only", "off"):
        # Kernels are not compiled either, which is reported elsewhere. A library that another
        # compiler has built will do.
        return _found(None)
    failure = _build.failures.get(context.toolchain)
    if failure is not None:
        if _found(None):
            return True
        raise failure
    try:
        context.store.create()
        if wanted == "1":
            native_library.load(native_build.build(context.toolchain, compiler))
            return True
    except (NativePathError, StoreError):
        if _found(None):
            return True
        raise
    if _build.is_running:
        return False
    # After a build that was cut off, nobody waits: scripts here end before the build does, and
    # would wait in vain each time.
    awaited = wanted == "auto" and foreground_s > 0
    awaited = awaited and not native_build.was_cut_off(context.toolchain, compiler)
    if awaited:
        _say(
            "building the C++ path of this machine's calls, once; a script waits "
            f"{FOREGROUND_S:g} s for it at most (AOTI_EAGER_NATIVE=background: not at all; "
            "python -m aoti_eager setup: beforehand)"
        )
    _build.start(context.toolchain, compiler, awaited=awaited)
    return False


def _say(line: str) -> None:
    """Print a line to standard error, where there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"aoti_eager: {line}", file=sys.stderr, flush=True)


def _found(compiler: str | None) -> bool:
    """Load the library that ``compiler`` (``None``: any compiler) has built; False if none has."""
    context = cache_context.current()
    if not context.store.is_trusted():
        return False
    found = native_build.find(context.toolchain, compiler)
    if found is not None:
        native_library.load(found)
    return found is not None


def load_carried() -> bool:
    """Load the library that came with the package; False, and a line in the log, if none fits."""
    global _has_looked
    if _has_looked:
        return False
    _has_looked = True  # What does not fit now will not fit later.
    found = native_build.find_carried()
    if found is not None:
        try:
            native_library.load(found)
        except NativePathError as error:  # Built where the C library is newer, say.
            log.info("the C++ path that came with the package is not used: %s", error)
        return native_library.is_loaded()
    versions = native_build.carried_for()
    if versions:
        log.info(
            "the C++ path that came with the package is for torch %s, or damaged; this is torch %s",
            ", ".join(versions),
            torch.__version__,
        )
    return False


def failed(error: AotiEagerError) -> None:
    """Warn, once, that Python serves instead.

    Raises:
        AotiEagerError: ``config.strict`` is on; the error is ``error``.
    """
    if config.strict:
        raise error
    warn_once("native", f"{error}; the Python hit path serves instead")


def _after_fork() -> None:
    global _lock, _build
    _lock = threading.RLock()
    if _build.thread is not None:
        # The thread and the compiler are the parent's; failures are known here, too.
        _build = _Build(_build.failures)


def _end() -> None:
    _build.end()


at_exit(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
