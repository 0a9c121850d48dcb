"""A real bundle on a machine without a compiler: every call is a hit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

import aoti_eager
from aoti_eager import cache

X = torch.randn(8, 8)

# The gate is off: whether this kernel wins depends on the processor.
SCRIPT = textwrap.dedent(
    """
    import json, shutil, sys, torch, aoti_eager
    report = aoti_eager.cache.load(sys.argv[1], trust="any")
    assert not any(shutil.which(name) for name in ("g++", "c++", "clang++", "cc"))
    with aoti_eager.config.scope(gate=False):
        aoti_eager.register("aten::silu")
        x = torch.randn(8, 8)
        for _ in range(2000):
            got = torch.ops.aten.silu(x)
        aoti_eager.wait(120)
        # The next call compares the kernel with the original.
        torch.ops.aten.silu(x)
        before = aoti_eager.stats()["aten::silu"].hits
        for _ in range(100):
            got = torch.ops.aten.silu(x)
        stats = aoti_eager.stats()["aten::silu"]
        print(json.dumps({
            "entries": report.entries,
            "fitting": report.fitting,
            "hits": stats.hits - before,
            "compiles": stats.compiles,
            "right": torch.allclose(got, x * torch.sigmoid(x), atol=1e-6),
        }))
    """
)


def test_each_call_hits_where_there_is_no_compiler(shared_cache: Path, tmp_path: Path) -> None:
    with aoti_eager.register("aten::silu"):
        torch.ops.aten.silu(X)
    bundle = tmp_path / "silu.bundle"
    report = cache.export(bundle, ops=["aten::silu"], sign=False)
    assert report.entries >= 1
    (tmp_path / "bin").mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AOTI")}
    variables |= {
        "PATH": str(tmp_path / "bin"),
        "AOTI_EAGER_CACHE_DIR": str(tmp_path / "there"),
    }
    variables.pop("CXX", None)

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundle)],
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found.pop("entries") == found.pop("fitting") == report.entries
    assert found == {"hits": 100, "compiles": 0, "right": True}
