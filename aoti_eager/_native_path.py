"""Whether calls go through the C++ hit path: it is found, or built while Python serves.

``prepare`` is called where ops are registered: it loads a library that the store has, and has one
built in the background otherwise. What the build gives is loaded by the next ``prepare``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

from . import _backend, _native_build, _native_library
from ._cpp_compiler import compiler_on_path
from ._warnings import log, warn_once
from .config import config
from .errors import AotiEagerError, NativePathError, StoreError


class _Build:
    """A build in the background, one a process."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.failures: dict[Path, NativePathError] = {}  # by the toolchain directory
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._lock = threading.Lock()

    def start(self, toolchain: Path, compiler: str) -> None:
        """Build in the background, if nothing is being built."""
        if (self.thread is None or not self.thread.is_alive()) and not self._ending:
            self.thread = threading.Thread(
                target=self._run, args=(toolchain, compiler), name="aoti_eager-native", daemon=True
            )
            self.thread.start()

    def _run(self, toolchain: Path, compiler: str) -> None:
        try:
            _native_build.build(toolchain, compiler, start=self._start_compiler)
        except NativePathError as error:
            if not self._ending:
                self.failures[toolchain] = error
                log.info("%s", error)

    def _start_compiler(self, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        with self._lock:  # Started after the end of Python, nobody would kill it.
            if self._ending:
                raise NativePathError("Python is ending")
            self._process = subprocess.Popen(*arguments, **options)
            return self._process

    def end(self) -> None:
        """Kill the compiler: Python ends, and nobody will use what it makes."""
        with self._lock:
            self._ending = True
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, 9)


_build = _Build()
_lock = threading.Lock()


def prepare() -> bool:
    """Return whether the C++ hit path is loaded; start its build if it is wanted and not there.

    With the setting ``native`` at ``1`` the build is waited for. A failure is one warning.

    Raises:
        AotiEagerError: It failed, and ``config.strict`` is on.
    """
    wanted = config.native
    if wanted == "0":
        return False
    if _native_library.is_loaded():
        return True
    with _lock:
        try:
            return _prepare(wait=wanted == "1")
        except NativePathError as error:
            failed(error)
        except StoreError as error:
            if config.strict or wanted == "1":
                failed(error)
            else:
                log.info("%s", error)  # A miss warns of it, if there is one.
        except OSError as error:
            failed(NativePathError(f"the native hit path cannot be looked for: {error}"))
        return False


def wait(timeout_s: float | None = None) -> bool:
    """Wait until a build that has been started is done; return whether it is."""
    thread = _build.thread
    if thread is not None:
        thread.join(timeout_s)
    return thread is None or not thread.is_alive()


def _prepare(wait: bool) -> bool:
    backend = _backend.current()
    compiler = compiler_on_path()
    if _found(compiler):
        return True
    if compiler is None or config.mode in ("cache_only", "off"):
        # Kernels are not compiled either, and that is said elsewhere; another compiler's will do.
        return _found(None)
    failure = _build.failures.get(backend.toolchain)
    if failure is not None:
        if _found(None):
            return True
        raise failure
    try:
        backend.store.create()
        if wait:
            _native_library.load(_native_build.build(backend.toolchain, compiler))
            return True
    except (NativePathError, StoreError):
        if _found(None):
            return True
        raise
    _build.start(backend.toolchain, compiler)
    return False


def _found(compiler: str | None) -> bool:
    """Load the library that ``compiler`` has built, any compiler if ``None``; False if none has."""
    backend = _backend.current()
    if not backend.store.is_trusted():
        return False
    found = _native_build.find(backend.toolchain, compiler)
    if found is not None:
        _native_library.load(found)
    return found is not None


def failed(error: AotiEagerError) -> None:
    """Warn, once, that Python serves instead.

    Raises:
        AotiEagerError: It is ``error``, and ``config.strict`` is on.
    """
    if config.strict:
        raise error
    warn_once("native", f"{error}; the Python hit path serves instead")


def _after_fork() -> None:
    global _lock, _build
    _lock = threading.Lock()
    if _build.thread is not None:
        _build = _Build()  # Its thread and its compiler are the parent's.


def _end() -> None:
    _build.end()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
