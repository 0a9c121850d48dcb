"""Forked children, pools of processes and data loaders: right results in parent and child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager._compile_service import cache_context
from aoti_eager._dispatch import asking_modules

from ..support import processes
from ..support.processes import run, run_script
from ..support.workers import Marked, until, work


@pytest.mark.full
@pytest.mark.both_paths(costly=True)
def test_a_forked_child_serves_and_compiles_on_its_own(shared_cache: Path) -> None:
    script = f"""
import os, torch, aoti_eager, sys
x = torch.arange(24.0).reshape(4, 6)
aoti_eager.config.cache_dir = {str(shared_cache)!r}
reg = aoti_eager.register("aten::silu")
torch.ops.aten.silu(x)
child = os.fork()
y = x[:, :5].clone() if child == 0 else x
ok = all(torch.allclose(torch.ops.aten.silu(t), t * torch.sigmoid(t)) for t in (x, y, x, y))
stats = aoti_eager.stats()["aten::silu"]
if child == 0:
    os._exit(0 if ok and stats.hits >= 3 else 1)
assert ok and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("{{}}")
"""
    run(shared_cache, script)
    assert aoti_eager.registered_ops() == []


@pytest.mark.full
@pytest.mark.both_paths(costly=True)
def test_a_forked_child_does_not_wait_for_the_parents_threads(shared_cache_dir: Path) -> None:
    done = run_script(
        """
        import os, torch, aoti_eager
        torch.set_num_threads(2)
        x = torch.randn(64, 128)  # parallel for Inductor, serial for ATen
        want = x * torch.sigmoid(x)
        with aoti_eager.register("aten::silu"):
            for _ in range(3):
                torch.ops.aten.silu(x)
            child = os.fork()
            got = [torch.ops.aten.silu(x) for _ in range(2)][1]
            if child == 0:
                assert (got - want).abs().max() < 1e-5
                assert aoti_eager.stats()["aten::silu"].declined == {"forked": 2}
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        shared_cache_dir,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.compiles
def test_a_forked_child_leaves_the_parent_s_workers_alone(
    cache_dir: Path, precompiled_header: None
) -> None:
    text = """
import json, os, sys, torch, aoti_eager
x = torch.arange(12.0).reshape(3, 4)
def right(rows):
    return torch.allclose(torch.ops.aten.silu(x[:rows]), x[:rows] * torch.sigmoid(x[:rows]))

registration = aoti_eager.register("aten::silu")
ok = right(3)
child = os.fork()
if child == 0:
    ok = all(right(rows) for rows in (3, 2, 3, 2))
    declined = aoti_eager.stats()["aten::silu"].declined
    ok = ok and declined == {"forked": 4} and aoti_eager.wait(5)
    sys.exit(0 if ok else 7)  # through atexit, as any script
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
ok = ok and aoti_eager.wait(300) and right(3) and right(3)
stats = aoti_eager.stats()["aten::silu"]
print(json.dumps({"ok": ok, "child": status, "hits": stats.hits, "compiles": stats.compiles}))
"""
    marked = Marked()
    done = processes.run(cache_dir, text, AOTI_EAGER_MODE="background", **marked.variables)
    assert done == {"ok": True, "child": 0, "hits": 1, "compiles": 1, "stderr": ""}
    until(lambda: not marked.processes(), "nothing runs any more", 20)
    assert work(cache_dir) == []


POOLS = """
import json, multiprocessing, sys
import torch
import torch.utils.data
import aoti_eager

x = torch.arange(12.0).reshape(3, 4)

def right(rows):
    t = x[:rows]
    return torch.allclose(torch.ops.aten.silu(t), t * torch.sigmoid(t))

def register_and_right(rows):
    with aoti_eager.register("aten::silu"):
        return right(rows) and right(rows)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.ops.aten.silu(x[i % 3])

if __name__ == "__main__":
    with aoti_eager.register("aten::silu"):
        ok = [right(3)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            ok += pool.map(right, [3, 2, 1, 3])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            ok += pool.map(register_and_right, [3, 2])
        loader = torch.utils.data.DataLoader(Data(), batch_size=2, num_workers=2)
        for i, batch in enumerate(loader):
            rows = torch.stack([x[(2 * i + j) % 3] for j in range(2)])
            ok.append(torch.allclose(batch, rows * torch.sigmoid(rows)))
        ok += [aoti_eager.wait(300), right(3), right(3)]
        hits = aoti_eager.stats()["aten::silu"].hits
    print(json.dumps({"ok": all(ok), "hits": hits}))
"""


@pytest.mark.full
@pytest.mark.compiles
def test_pools_of_processes_and_data_loaders_give_right_results(
    cache_dir: Path, tmp_path: Path, precompiled_header: None
) -> None:
    (tmp_path / "pools.py").write_text(POOLS)
    marked = Marked()
    environment = {
        **os.environ,
        **marked.variables,
        "AOTI_EAGER_CACHE_DIR": str(cache_dir),
        "AOTI_EAGER_MODE": "background",
    }
    done = subprocess.run(
        [sys.executable, "pools.py"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": True, "hits": 1}
    assert done.stderr == ""
    until(lambda: not marked.processes(), "nothing runs any more", 20)
    assert work(cache_dir) == []


def test_a_forked_child_imports_nothing_in_a_call(
    monkeypatch: pytest.MonkeyPatch, no_compiles: None
) -> None:
    """Another thread of the parent may have been importing: a lock without an owner stays."""
    x = torch.ones(3, 5)
    with aoti_eager.config.scope(mode="background"), aoti_eager.register("aten::tanh"):
        # Registered by the parent, and forked then.
        monkeypatch.setattr(asking_modules, "_is_prepared", False)
        monkeypatch.setattr(asking_modules, "prepare", lambda: pytest.fail("the child imports"))
        monkeypatch.setattr(cache_context, "is_forked", lambda: True)
        assert torch.equal(torch.tanh(x), x.tanh())
        assert aoti_eager.stats()["aten::tanh"].declined == {"forked": 2}
