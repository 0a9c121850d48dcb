"""Watches the Python code that runs during a recording: what it mentions, and what it must not do.

The dispatcher does not see everything that a forward does: ``tolist`` reads memory without a call
of an op, and a clock is not torch's. ``sys.setprofile`` sees each call of a function of Python's or
C's in one thread, changes nothing, and is on for the calls that are recorded only.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Methods that hand a tensor's data, or where the data lie, to Python without a call of an op.
_LEAKS = frozenset(
    """
    tolist numpy data_ptr untyped_storage storage _typed_storage _to_dlpack __dlpack__
    share_memory_ _share_fd_cpu_ _share_filename_cpu_
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
# Modules of C whose functions give another result in each call.
_FICKLE = frozenset({"time", "_random", "_datetime", "_ctypes"})


# They read attributes whose names are values.
_BY_NAME = (getattr, vars, hasattr)
_TORCH = str(Path(torch.__file__).parent)


class _All:
    """Contains every name."""

    def __contains__(self, name: object) -> bool:
        return True


class Watch:
    """The Python code that a call runs.

    Attributes:
        mentioned: The names that the code mentions.
        leak: A call that takes data to Python, in words; empty if there was none.
        fickle: A call whose result changes from call to call, in words; empty if there was none.
    """

    def __init__(self) -> None:
        self.leak = ""
        self.fickle = ""
        # A frame of this package's own work: what a registered op's kernel does is no part of the
        # forward.
        self._ours: types.FrameType | None = None
        self._reads_by_name = False
        self._codes: set[types.CodeType] = set()

    @property
    def mentioned(self) -> Container[str]:
        """Return the names that the code mentions which ran; all names if one was made at run time.

        A name may reach ``getattr`` as a text that the code has put together.
        """
        if self._reads_by_name:
            return _All()
        found: set[str] = set()
        for code in self._codes:
            found.update(code.co_names)
            found.update(one for one in code.co_consts if isinstance(one, str))
        return frozenset(found)

    @staticmethod
    def is_possible() -> bool:
        """Return whether nobody else watches this thread: a debugger, a profiler, coverage."""
        return sys.getprofile() is None

    def run(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` returns, watched."""
        sys.setprofile(self._see)
        try:
            return call()
        finally:
            sys.setprofile(None)

    def _see(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if self._ours is not None:
            if event == "return" and frame is self._ours:
                self._ours = None
        elif event == "call" and _is_ours(frame.f_code.co_filename):
            self._ours = frame
        elif event == "call":
            self._codes.add(frame.f_code)
        elif event == "c_call":
            if arg in _BY_NAME:
                # torch's own code reads no attribute of a user's in that way.
                self._reads_by_name |= not frame.f_code.co_filename.startswith(_TORCH)
                return
            name, module = getattr(arg, "__name__", ""), getattr(arg, "__module__", None)
            if name in _LEAKS and (isinstance(arg.__self__, Tensor) or "torch" in str(module)):
                self.leak = f"{name} in {_place(frame)}"
            elif module in _FICKLE or type(getattr(arg, "__self__", None)).__module__ in _FICKLE:
                self.fickle = f"{name} in {_place(frame)}"


_ROOMS = str(Path(__file__).parents[1])
_HERE = str(Path(__file__).parent)


def _is_ours(file: str) -> bool:
    """Return whether code does this package's own work; a region's call runs a user's forward."""
    generated = file.startswith("<aoti_eager ")
    return generated or (file.startswith(_ROOMS) and not file.startswith(_HERE))


def _place(frame: types.FrameType) -> str:
    code = frame.f_code
    return f"{code.co_name} ({code.co_filename}, line {frame.f_lineno})"
