"""A compile costs a small part of what AOTInductor's own does: bars that hold on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..benchmarks.cold_compile import (
    _CALLS,
    _OURS,
    LIBRARY_BYTES,
    OPS,
    Child,
)
from ..support.machine import Machine

# Without the probes and the precompiled header of its first compile: that would take half a minute.
IN_TREE = """
import torch._inductor.config as config
config.cpp.vec_isa_ok = True
config.aot_inductor.precompile_headers = False
from torch._inductor import aoti_compile_and_package

class Call(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x, -1)

exported = torch.export.export(Call(), case("softmax", 64)[1])
begin = time.perf_counter()
aoti_compile_and_package(exported, package_path=os.path.join(os.environ["TMPDIR"], "one.pt2"))
print(time.perf_counter() - begin)
"""


@pytest.mark.full
@pytest.mark.compiles
def test_a_warm_compile_is_cheap_and_its_library_small(
    machine: Machine, cache_dir: Path, tmp_path: Path
) -> None:
    """A miss must stay cheap; tests.benchmarks.cold_compile measures it in full."""
    level = {"AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0"}
    (tmp_path / "in-tree").mkdir()
    with (
        machine.alone(),
        Child(
            _OURS,
            tmp_path / "ours",
            AOTI_EAGER_CACHE_DIR=str(cache_dir),
            AOTI_EAGER_NATIVE="0",
            **level,
        ) as child,
    ):
        child.wait_for_header(1000)
        child.compile(("softmax", 8))
        ours = min(child.compile(("softmax", rows)) for rows in (64, 65, 66))
        child.compile(*((op, 67) for op in OPS))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _CALLS + IN_TREE],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                **level,
                "TMPDIR": str(tmp_path / "in-tree"),
                "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "in-tree"),
            },
        )
    in_tree = float(done.stdout)
    assert ours <= 0.3 * in_tree, (ours, in_tree)
    sizes = [path.stat().st_size for path in cache_dir.glob("v1/*/*/*/*/*/library.so")]
    assert len(sizes) >= 7
    assert max(sizes) <= LIBRARY_BYTES
