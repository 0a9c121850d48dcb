"""Watches the Python code that runs during a recording: what it mentions, and what it must not do.

The dispatcher does not see everything that a forward does: ``tolist`` reads memory without a call
of an op, and a clock is not torch's. ``sys.setprofile`` sees each call of a function of Python's or
C's in one thread, changes nothing, and is on for the calls that are recorded only.
"""

from __future__ import annotations

import datetime
import gc
import io
import os
import random
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .code_names import mentioned_names, outer_write
from .numpy_random import NumpyRandom

# Methods that hand a tensor's data, or where the data lie, to Python without a call of an op.
_LEAKS = frozenset(
    """
    tolist numpy data_ptr untyped_storage storage _typed_storage _to_dlpack __dlpack__
    share_memory_ _share_fd_cpu_ _share_filename_cpu_ apply_ map_ map2_
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
# Modules of C whose functions give another result in each call. ``secrets``, ``uuid`` and
# ``random.SystemRandom`` are Python code above these.
_FICKLE = frozenset({"time", "_random", "_datetime", "_ctypes", "_uuid"})
_RANDOM_BYTES = frozenset({"urandom", "getrandom"})
# Methods of a date's class that read the clock.
_TODAY = frozenset({"now", "today", "utcnow"})
# Methods of a generator that no op's call shows.
_SEEDS = frozenset({"manual_seed", "seed", "set_state", "set_offset"})
_WRITES = frozenset({"print", "write", "writelines"})
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


class Watch:
    """The Python code that a call runs.

    Attributes:
        numpy_random: The generators of numpy's that the call can reach.
        leak: A call that takes data to Python, in words; empty if there was none.
        fickle: What gives another result in each call, in words; empty if there was nothing.
        effect: A call that prints or writes, in words; empty if there was none.
        failure: Why the call was not seen from its beginning to its end; empty if it was.
    """

    def __init__(self) -> None:
        self.numpy_random = NumpyRandom()
        self.leak = ""
        self.fickle = ""
        self.effect = ""
        self.failure = ""
        # A frame of work that is no part of the forward: what a registered op's kernel does, a
        # garbage collection, the import of a module.
        self._ours: types.FrameType | None = None
        self._beside = {getattr(one, "__code__", None) for one in gc.callbacks}
        self._codes: set[types.CodeType] = set()

    @property
    def mentioned(self) -> frozenset[str]:
        """Return the names that the code mentions which ran."""
        return mentioned_names(self._codes)

    @property
    def own(self) -> frozenset[str]:
        """Return the names that code outside of torch mentions."""
        return mentioned_names([code for code in self._codes if not _is_torch(code)])

    @property
    def stored(self) -> str:
        """Return a name outside of the call that the code writes to; empty if there is none."""
        found = (outer_write(one, self._codes) for one in self._codes if not _is_torch(one))
        return next(filter(None, found), "")

    @staticmethod
    def is_possible() -> bool:
        """Return whether nobody else watches this thread: a debugger, a profiler, coverage."""
        return sys.getprofile() is None

    def run(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` returns, watched."""
        sys.setprofile(self._see)
        try:
            result = call()
        finally:
            if sys.getprofile() == self._see:
                sys.setprofile(None)
            else:  # What the forward has set stays.
                self.failure = self.failure or "sys.setprofile was called within it"
        if self.numpy_random.drawn:
            self.fickle = self.fickle or f"draws from {self.numpy_random.drawn}"
        return result

    def _see(self, frame: types.FrameType, event: str, arg: Any) -> None:
        try:
            if self._ours is not None:
                if event == "return" and frame is self._ours:
                    self._ours = None
            elif event == "call":
                self._see_code(frame.f_code, frame)
            elif event == "c_call":
                self._see_function(arg, frame)
        except Exception as error:
            # The interpreter would end the watch and raise the error in the forward: right for the
            # error of a signal's handler that ran here by chance, and for no other.
            if _is_of_a_signal(error):
                raise
            self.failure = f"{type(error).__name__} when a call within it was looked at"

    def _see_code(self, code: types.CodeType, frame: types.FrameType) -> None:
        if code in self._beside or _is_beside(code):
            self._ours = frame
        elif code not in self._codes:
            self._codes.add(code)
            if not _is_torch(code):
                self.numpy_random.add_named(code, frame)

    def _see_function(self, function: Any, frame: types.FrameType) -> None:
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        module = getattr(function, "__module__", None)
        if name in _LEAKS and (_is_a(owner, Tensor) or "torch" in str(module)):
            self.leak = f"{name} in {_place(frame)}"
        elif _is_fickle(name, module, owner):
            self.fickle = f"calls {name} in {_place(frame)}"
        elif name in _WRITES and _is_output(module, owner):
            self.effect = f"{name} in {_place(frame)}"


def _is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Return whether a value is of a class; unlike ``isinstance``, runs no code of the value's."""
    return issubclass(type(value), kind)


def _is_fickle(name: str, module: Any, owner: Any) -> bool:
    if module in _FICKLE or (module == "posix" and name in _RANDOM_BYTES):
        return True
    if _is_a(owner, torch.Generator):
        return name in _SEEDS
    if _is_a(owner, type):
        return name in _TODAY and issubclass(owner, datetime.date)
    return _is_a(owner, random.Random) or type(owner).__module__ in _FICKLE


def _is_of_a_signal(error: Exception) -> bool:
    """Return whether the handler of a signal has raised an error."""
    handlers = [signal.getsignal(one) for one in signal.valid_signals()]
    codes = {getattr(one, "__code__", None) for one in handlers} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _is_output(module: Any, owner: Any) -> bool:
    return module == "posix" or (module == "builtins" and owner is not None) or _is_file(owner)


def _is_file(owner: Any) -> bool:
    return _is_a(owner, io.IOBase) and not _is_a(owner, (io.StringIO, io.BytesIO))


def _is_torch(code: types.CodeType) -> bool:
    return code.co_filename.startswith(_TORCH)


# With a separator at the end: a directory beside may have a name that begins alike.
_ROOMS = os.path.join(Path(__file__).parents[1], "")
_HERE = os.path.join(Path(__file__).parent, "")


def _is_beside(code: types.CodeType) -> bool:
    """Return whether code is no part of a forward, whatever has called it.

    This package's own work is not, but for a region's call, which runs a user's forward. Finalizers
    run in the middle of anything.
    """
    file = code.co_filename
    if file.startswith(("<aoti_eager ", "<frozen importlib")) or code.co_name == "__del__":
        return True
    return file.startswith(_ROOMS) and not file.startswith(_HERE)


def _place(frame: types.FrameType) -> str:
    code = frame.f_code
    return f"{code.co_name} ({code.co_filename}, line {frame.f_lineno})"
