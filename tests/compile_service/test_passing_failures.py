"""What fails in a compile worker for a while: nothing of it is in the store afterwards.

Real workers, which do what a file says just before they start the C++ compiler; or a compiler that
fails.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import aoti_eager

from ..support import processes
from ..support.child_patches import patch_children
from ..support.processes import run_script

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("precompiled_header")]

PATCH = """
import os
import resource

_call_compiler = call_compiler

def limited(name, value):
    kind = getattr(resource, name)
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        return _call_compiler(*_arguments)
    finally:
        resource.setrlimit(kind, before)

def call_compiler(*arguments):
    global _arguments
    _arguments = arguments
    with open(os.environ["AE_TEST_FAULT"], encoding="utf-8") as file:
        fault = file.read()
    if fault.startswith("limited"):
        return eval(fault)
    if fault:
        raise eval(fault)
    return _call_compiler(*arguments)
"""

SCRIPT = """
import json, os, sys
import torch
import aoti_eager

faults = json.loads(os.environ["AE_TEST_FAULTS"])
x = torch.arange(256.0).reshape(32, 8)
found = []
with aoti_eager.register("aten::silu"):
    for rows, fault in enumerate(faults, 1):
        with open(os.environ["AE_TEST_FAULT"], "w", encoding="utf-8") as file:
            file.write(fault)
        for _ in range(2):
            assert torch.allclose(torch.ops.aten.silu(x[:rows]), x[:rows] * x[:rows].sigmoid())
            assert aoti_eager.wait(60)
        explained = aoti_eager.explain("aten::silu", x[:rows])
        found.append([fault, explained.reason])
    hits = aoti_eager.stats()["aten::silu"].hits
stored = [[one.inputs, one.status, one.reason] for one in aoti_eager.cache.list()]
print(json.dumps({"found": found, "stored": stored, "hits": hits}))
"""

FAULTS = [
    *(f"OSError({number}, os.strerror({number}))" for number in (11, 12, 24, 122, 5, 30, 116)),
    "MemoryError()",
    'RuntimeError("can\'t start new thread")',
    "RuntimeError('std::bad_alloc')",
    "RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes.')",
    # What filelock raises for ENOSYS, and the system for ENOLCK.
    "NotImplementedError('FileSystem does not appear to support flock; use SoftFileLock instead')",
    "OSError(37, os.strerror(37))",
    "ImportError('x.so: failed to map segment from shared object')",
    "type('Unheard', (Exception,), {})('of')",
    # These for real.
    "limited('RLIMIT_NOFILE', 3)",
    "limited('RLIMIT_AS', 1 << 20)",
    "limited('RLIMIT_FSIZE', 1024)",
]
OWN = "NotImplementedError('a graph that nobody can compile')"


@pytest.fixture
def run(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs the script with faults in its worker, in a mode."""
    patch_children(monkeypatch, tmp_path, {"aoti_eager._compile_worker.thin_codegen": PATCH})

    def run_(faults: list[str], mode: str, cache: Path = cache_dir) -> dict[str, Any]:
        return processes.run(
            cache,
            SCRIPT,
            AE_TEST_FAULTS=json.dumps(faults),
            AE_TEST_FAULT=str(tmp_path / "fault"),
            AOTI_EAGER_MODE=mode,
            AOTI_EAGER_STATIC_CAP="64",
        )

    return run_


@pytest.mark.full
@pytest.mark.parametrize("mode", ["sync", "background"])
def test_what_the_system_refuses_a_worker_is_not_remembered(run: Any, mode: str) -> None:
    first = run(FAULTS, mode)
    reasons = dict(first["found"])
    assert set(reasons.values()) <= {"compile_failed", "store_unwritable"}, reasons
    assert first["stored"] == []
    assert first["hits"] == 0
    second = run(["", ""], mode)
    assert [reason for _, reason in second["found"]] == [None, None]
    statuses = [status for _, status, _ in second["stored"]]
    # In the background, what the first process wanted in vain is gone on with.
    assert set(statuses) == {"ready"}
    assert len(statuses) == 2 if mode == "sync" else len(statuses) >= 2


@pytest.mark.full
@pytest.mark.parametrize("mode", ["sync", "background"])
def test_what_every_compile_of_the_key_would_meet_is_remembered(run: Any, mode: str) -> None:
    first = run([OWN], mode)
    assert first["found"] == [[OWN, "compile_failed"]]
    assert first["stored"] == [["f32[1,8]", "declined", "compile_failed"]]
    second = run([""], mode)
    assert second["found"] == [["", "compile_failed"]]
    assert second["stored"] == first["stored"]


@pytest.mark.full
@pytest.mark.parametrize("mode", ["sync", "background"])
def test_a_mount_that_forbids_execution_is_not_remembered(
    run: Any, mode: str, mount: Any, shared_cache_dir: Path
) -> None:
    """Whether a kernel can be had there or not, there is one after the remount."""
    path = mount("noexec", "size=64m,noexec")
    (path / "toolchain").symlink_to(shared_cache_dir / "toolchain")
    first = run([""], mode, path)
    assert {status for _, status, _ in first["stored"]} <= {"ready"}
    subprocess.run(["mount", "-o", "remount,exec", str(path)], check=True)
    second = run([""], mode, path)
    assert second["found"] == [["", None]]
    assert [status for _, status, _ in second["stored"]] == ["ready"]


@pytest.mark.full
@pytest.mark.both_paths(costly=True)
def test_a_compiler_that_fails_is_tried_again_by_the_next_process(
    cache_dir: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "g++"
    bad.write_text('#!/bin/sh\ncase "$*" in *library.cpp*) exit 1;; esac\nexec /usr/bin/g++ "$@"\n')
    bad.chmod(0o755)
    code = """
        import torch, aoti_eager
        x = torch.ones(3, 5)
        with aoti_eager.register("aten::silu"):
            for _ in range(2):
                torch.ops.aten.silu(x)
            print(aoti_eager.stats()["aten::silu"])
        """
    first = run_script(code, cache_dir, CXX=str(bad))
    assert "'compile_failed': " in first.stdout, first.stderr
    assert aoti_eager.cache.list() == []
    second = run_script(code, cache_dir)
    assert "hits=1" in second.stdout, second.stderr
