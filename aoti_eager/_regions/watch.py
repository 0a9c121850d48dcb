"""Watches the Python code that runs during a recording: what it mentions, and what it must not do.

The dispatcher does not see everything that a forward does: ``tolist`` reads memory without a call
of an op, and a clock is not torch's. ``sys.setprofile`` sees each call of a function of Python's or
C's in one thread, changes nothing, and is on for the calls that are recorded only.
"""

from __future__ import annotations

import gc
import io
import opcode
import os
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Methods that hand a tensor's data, or where the data lie, to Python without a call of an op.
_LEAKS = frozenset(
    """
    tolist numpy data_ptr untyped_storage storage _typed_storage _to_dlpack __dlpack__
    share_memory_ _share_fd_cpu_ _share_filename_cpu_ apply_ map_ map2_
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
# Modules of C whose functions give another result in each call.
_FICKLE = frozenset({"time", "_random", "_datetime", "_ctypes"})
# Methods of a generator that no op's call shows.
_SEEDS = frozenset({"manual_seed", "seed", "set_state", "set_offset"})
_WRITES = frozenset({"print", "write", "writelines"})
_STORE_GLOBAL, _STORE_OUTER = opcode.opmap["STORE_GLOBAL"], opcode.opmap["STORE_DEREF"]
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


class Watch:
    """The Python code that a call runs.

    Attributes:
        mentioned: The names that the code mentions.
        leak: A call that takes data to Python, in words; empty if there was none.
        fickle: A call whose result changes from call to call, in words; empty if there was none.
        effect: A call that prints or writes, in words; empty if there was none.
    """

    def __init__(self) -> None:
        self.leak = ""
        self.fickle = ""
        # A frame of work that is no part of the forward: what a registered op's kernel does, a
        # garbage collection, the import of a module.
        self._ours: types.FrameType | None = None
        self._beside = {getattr(one, "__code__", None) for one in gc.callbacks}
        self.effect = ""
        self._codes: set[types.CodeType] = set()

    @property
    def mentioned(self) -> frozenset[str]:
        """Return the names that the code mentions which ran."""
        found: set[str] = set()
        for code in self._codes:
            found.update(code.co_names)
            # Names that reach getattr as text.
            found.update(one for one in code.co_consts if isinstance(one, str))
        return frozenset(found)

    @property
    def own(self) -> frozenset[str]:
        """Return the names that code outside of torch mentions."""
        return frozenset(
            name for code in self._codes if not _is_torch(code) for name in code.co_names
        )

    @property
    def stored(self) -> str:
        """Return a name outside of the call that the code writes to; empty if there is none."""
        # The arguments of instructions are at odd places.
        inner = {name for code in self._codes for name in code.co_cellvars}
        for code in self._codes:
            operations = code.co_code[::2]
            if not {_STORE_GLOBAL, _STORE_OUTER} & set(operations) or _is_torch(code):
                continue
            for place, operation in enumerate(operations):
                argument = code.co_code[2 * place + 1]
                if operation == _STORE_GLOBAL:
                    return f"{code.co_names[argument]} in {code.co_name}"
                if operation == _STORE_OUTER:
                    name = _local_name(code, argument)
                    if name in code.co_freevars and name not in inner:
                        return f"{name} in {code.co_name}"
        return ""

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
            if sys.getprofile() == self._see:  # Else the forward has set another one.
                sys.setprofile(None)

    def _see(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if self._ours is not None:
            if event == "return" and frame is self._ours:
                self._ours = None
        elif event == "call" and (frame.f_code in self._beside or _is_beside(frame.f_code)):
            self._ours = frame
        elif event == "call":
            self._codes.add(frame.f_code)
        elif event == "c_call":
            name, module = getattr(arg, "__name__", ""), getattr(arg, "__module__", None)
            if name in _LEAKS and (isinstance(arg.__self__, Tensor) or "torch" in str(module)):
                self.leak = f"{name} in {_place(frame)}"
            elif module in _FICKLE or _is_fickle(name, getattr(arg, "__self__", None)):
                self.fickle = f"{name} in {_place(frame)}"
            elif name in _WRITES and _is_output(module, getattr(arg, "__self__", None)):
                self.effect = f"{name} in {_place(frame)}"


def _is_fickle(name: str, owner: Any) -> bool:
    if isinstance(owner, torch.Generator):
        return name in _SEEDS
    return isinstance(owner, random.Random) or type(owner).__module__ in _FICKLE


def _is_output(module: Any, owner: Any) -> bool:
    return module == "posix" or (module == "builtins" and owner is not None) or _is_file(owner)


def _is_file(owner: Any) -> bool:
    return isinstance(owner, io.IOBase) and not isinstance(owner, io.StringIO | io.BytesIO)


def _is_torch(code: types.CodeType) -> bool:
    return code.co_filename.startswith(_TORCH)


def _local_name(code: types.CodeType, place: int) -> str:
    """Return the name of a variable that functions share, by its place among all variables."""
    names = [*code.co_varnames, *(one for one in code.co_cellvars if one not in code.co_varnames)]
    names += code.co_freevars
    return names[place] if place < len(names) else ""


_ROOMS = str(Path(__file__).parents[1])
_HERE = str(Path(__file__).parent)


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
