"""Runs a script as ``python`` does, and writes down its time, hits and longest call.

``python -m tests.scripts.watched FILE ENABLED CACHE SCRIPT [ARGS]``. The longest call is that of a
module which the script itself calls, without the first, which warms torch up; hooks time it.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch

import aoti_eager

_calls: list[float] = []
_begun: dict[int, float] = {}


def _before(module: Any, *arguments: Any) -> None:
    if not _begun:
        _begun[id(module)] = time.perf_counter()


def _after(module: Any, *arguments: Any) -> None:
    begin = _begun.pop(id(module), None)
    if begin is not None:
        _calls.append(time.perf_counter() - begin)


def main() -> None:
    """Run the script."""
    file, enabled, cache, script, *arguments = sys.argv[1:]
    torch.nn.modules.module.register_module_forward_pre_hook(_before)
    torch.nn.modules.module.register_module_forward_hook(_after)
    sys.argv[:] = [script, *arguments]
    begin, cpu = time.perf_counter(), time.thread_time()
    if enabled == "1":
        aoti_eager.config.cache_dir = cache
        aoti_eager.enable()
    runpy.run_path(script, run_name="__main__")
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - begin,
        "cpu_s": time.thread_time() - cpu,
    }
    found["longest_ms"] = 1e3 * max(_calls[1:], default=0.0)
    if enabled == "1":
        total = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
        found |= {"calls": total.calls, "hits": total.hits, "declined": dict(total.declined)}
        aoti_eager.wait(600)  # So that the next run is warm; not a part of this one's time.
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
