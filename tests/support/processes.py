"""Scripts that tests run in processes of their own, forked where that shows the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from . import forked_python

# Two ops, three keys; prints what happened as one line of JSON.
WORK = """
import json, os, sys
import torch
import aoti_eager

modules = set(sys.modules)
x = torch.arange(64.0).reshape(8, 8) / 64
reg = aoti_eager.register(["aten::silu", "aten::var_mean.correction"])
wrong = 0
for _ in range(3):
    for got, want in (
        (torch.ops.aten.silu(x), x * torch.sigmoid(x)),
        (torch.ops.aten.silu(x[:4]), x[:4] * torch.sigmoid(x[:4])),
        (torch.var_mean(x, 1)[1], x.sum(1) / 8),
    ):
        wrong += not torch.allclose(got, want, atol=1e-6)
stats = {op: s for op, s in aoti_eager.stats().items()}
with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as f:
    children = f.read().split()
print(json.dumps({
    "wrong": wrong,
    "compiles": sum(s.compiles for s in stats.values()),
    "hits": sum(s.hits for s in stats.values()),
    "declined": {r: n for s in stats.values() for r, n in s.declined.items()},
    "children": len(children),
    "inductor": sorted(m for m in set(sys.modules) - modules if m.startswith("torch._inductor")),
}))
"""
KEYS = 3


def start(
    cache_dir: Path, script: str = WORK, *, stdin: int | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start ``script`` on the cache in ``cache_dir``; a variable that is empty is unset."""
    simplest = {"AOTI_EAGER_MODE": "sync", "AOTI_EAGER_GATE": "0", "AOTI_EAGER_DYNAMIC": "0"}
    own = {"AOTI_EAGER_CACHE_DIR": str(cache_dir), **variables}
    environment = {**simplest, **os.environ, **own}
    environment = {name: value for name, value in environment.items() if value}
    return forked_python.popen(
        [sys.executable, "-c", script],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cache_dir.parent,
    )


def finish(process: subprocess.Popen[str], timeout: float = 400) -> dict[str, Any]:
    """Return what the script printed; kill it if it does not end in time, or nobody waits for it.

    Raises:
        AssertionError: It failed; its standard error is the message.
        subprocess.TimeoutExpired: It was killed.
    """
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    result["stderr"] = err
    return result


def printed(program: str) -> dict[str, Any]:
    """Return what a Python program prints in a process that is started, and not forked.

    Raises:
        AssertionError: It failed; its standard error is the message.
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run(cache_dir: Path, script: str = WORK, **variables: str) -> dict[str, Any]:
    """Run ``script`` to its end and return what it printed."""
    return finish(start(cache_dir, script, **variables))


def run_script(code: str, cache_dir: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run an indented script, with this process' environment, and return how it ended."""
    return forked_python.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "AOTI_EAGER_CACHE_DIR": str(cache_dir), **variables},
        cwd=cache_dir.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
