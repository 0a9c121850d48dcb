"""Finds the root modules of a script: those whose call is the outermost module's on its thread.

A global hook of torch's sees each call of a module and costs two microseconds; so the search
pauses when it finds nothing, and goes on when a module is built. It ends where ``torch.compile`` is
used: compiled code would guard on the hook, and be compiled again without it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .._base.torch_compat import compile_start, tracing
from .._base.warn_once import warn_once
from .target import Fused

# A root is found by this one of its calls: what is called once is often never called again.
_CALL = 2
# The search pauses after so many calls of modules without a root: 40 ms, all in all.
_PATIENCE = 20_000
# A module that gets a part has the search go on for so many calls, and so often at most.
_PATIENCE_AGAIN, _MOST_AGAIN = 2_000, 32


class _Counted(weakref.ref[torch.nn.Module]):
    """A module that was called, held weakly, and how often it was called."""

    __slots__ = ("calls",)
    calls: int


def _counted(module: torch.nn.Module, counts: dict[int, _Counted]) -> _Counted:
    """Return the count of a module's calls, which is forgotten with the module."""
    place = id(module)

    def forget(ended: Any) -> None:
        # No lock: a garbage collection may end a module in the middle of anything.
        if counts.get(place) is ended:
            counts.pop(place, None)

    counted = _Counted(module, forget)
    counted.calls = 0
    return counted


class RootSearch:
    """The search for root modules, from ``start`` to ``stop``.

    Args:
        found: Called with each root module before its second call, on the thread that calls it.
    """

    def __init__(self, found: Callable[[torch.nn.Module], None]) -> None:
        self._found = found
        # By ``id``: modules may have no hash, or one that runs code of the user's.
        self._calls: dict[int, _Counted] = {}
        self._lock = threading.Lock()
        self._left = 0
        self._again = 0
        self._end_watch: Callable[[], None] | None = None
        self._parts: Any = None  # the handle of the hook that sees modules get parts
        self._end_compile_watch: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Look at the calls of modules from now on; a second call ends a pause.

        What raises leaves an earlier search as it was.
        """
        begins = False
        try:
            with self._lock:
                begins = self._parts is None
                if begins:
                    module = torch.nn.modules.module
                    self._parts = module.register_module_module_registration_hook(self._see_part)
                    self._end_compile_watch = compile_start.on_compile_start(self.stop)
            self._go_on(_PATIENCE)
        except BaseException:
            if begins:
                self.stop()  # A part of it may have been begun.
            raise

    def stop(self) -> None:
        """Look at no call any more."""
        self._pause()
        with self._lock:
            if self._parts is not None:
                self._parts.remove()
                self._end_compile_watch()
            self._parts = None

    def after_fork(self) -> None:
        """Look at no call any more, in a forked child: another thread may have held the lock."""
        self._lock = threading.Lock()
        self.stop()

    @property
    def is_looking(self) -> bool:
        """Return whether the calls of modules are looked at now."""
        return self._end_watch is not None

    def _go_on(self, patience: int) -> None:
        with self._lock:
            self._left = max(self._left, patience)
            if self._end_watch is None:
                self._end_watch = tracing.watch_module_calls(self._see)

    def _pause(self) -> None:
        with self._lock:
            if self._end_watch is not None:
                self._end_watch()
            self._end_watch = None

    def _see_part(self, module: torch.nn.Module, name: str, part: Any) -> None:
        """See that a module gets a part: a model is being built."""
        try:
            if tracing.is_compiled_module(module):
                self.stop()
            elif self._end_watch is None and self._again < _MOST_AGAIN and self._parts is not None:
                self._again += 1
                self._go_on(_PATIENCE_AGAIN)
        except Exception as error:  # noqa: BLE001 - the script's model is built all the same
            self._failed(error)

    def _see(self, module: torch.nn.Module, args: Any) -> None:
        """See a module that is about to be called."""
        # First: a compiler that traces this must find nothing that changes from call to call.
        if torch.compiler.is_compiling():
            return
        try:
            self._left -= 1
            if self._left < 0:
                self._pause()
            elif not isinstance(vars(module).get("forward"), Fused) and (
                tracing.is_outermost_module_call(sys._getframe(1))
            ):
                self._count(module)
        except Exception as error:  # noqa: BLE001 - the script's call goes on
            self._failed(error)

    def _count(self, module: torch.nn.Module) -> None:
        counted = self._calls.get(id(module))
        if counted is None or counted() is not module:
            counted = self._calls[id(module)] = _counted(module, self._calls)
        counted.calls += 1
        if counted.calls == _CALL:
            self._left = max(self._left, _PATIENCE)
            self._found(module)

    def _failed(self, error: Exception) -> None:
        """End the search: what has failed for one module would fail in each of its calls."""
        warn_once(
            f"search {type(error).__name__}", f"no further modules are found to be fused: {error!r}"
        )
        self.stop()
