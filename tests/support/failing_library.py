"""Kernels that fail when they are run, on either hit path."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch

from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._native import table as native_table

MESSAGE = "the library failed"

_SOURCE = f"""
static const char* message;
int run(void* const* inputs, void** outputs) {{ message = "{MESSAGE}"; return 1; }}
int last_error(const char** text) {{ *text = message; return 0; }}
"""


def make_fail(cache: KernelCache, directory: Path) -> None:
    """Have each kernel of ``cache`` fail in its next run.

    C++ runs a real library for that, which is built in ``directory``.
    """
    for kernel in cache.table.kernels.values():
        kernel.run = _raise
        if cache.native is not None:
            assert kernel.words is not None
            assert kernel.native_results is not None
            cache.table.attach().put(kernel.words, _failing_run(directory), kernel.native_results)


def _raise(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    raise RuntimeError(MESSAGE)


def _failing_run(directory: Path) -> native_table.NativeRun:
    path = directory / "failing.so"
    if not path.exists():
        source = directory / "failing.c"
        source.write_text(_SOURCE)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source], check=True)
    library = ctypes.CDLL(str(path))
    run, last_error = (
        ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        for name in ("run", "last_error")
    )
    return native_table.NativeRun(run, 0, last_error, 0, 1, False, library)
