"""The first run of a library, in a process that may die of it: the server as the worker uses it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._compile_worker.fork_server import ForkServer
from aoti_eager._compile_worker.library_runs import trial_server
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import op_schema

aten = torch.ops.aten
X = torch.ones(8, 8)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = trial_server()
    yield server
    server.close()


def request(op: Any, *args: Any, library: Path, timeout_s: float = 60.0) -> dict[str, Any]:
    schema = op_schema(op)
    return {
        "key": kernel_key(schema, "CPU", schema.bind(args, {})).to_json(),
        "library": str(library),
        "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "outputs": [{"output": 0}],
        "check": True,
        "timeout_s": timeout_s,
    }


@pytest.fixture
def silu_library(shared_cache: Path) -> Path:
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
    (entry,) = [
        e
        for e in aoti_eager.cache.list()
        if (e.op, e.inputs, e.status) == ("aten::silu", "f32[8,8]", "ready")
    ]
    return entry.path / "library.so"


def test_a_good_library_passes_again_and_again(server: ForkServer, silu_library: Path) -> None:
    for _ in range(3):
        assert server.run(request(aten.silu.default, X, library=silu_library))["compared"] > 3


def test_a_library_of_another_op_is_a_mismatch(server: ForkServer, silu_library: Path) -> None:
    answer = server.run(request(aten.tanh.default, X, library=silu_library))
    assert answer["reason"] == "mismatch"
    assert "result 0: values" in answer["message"]


def test_what_differs_unchecked_does_not_count_as_compared(
    server: ForkServer, silu_library: Path
) -> None:
    asked = {**request(aten.tanh.default, X, library=silu_library), "check": False}
    assert server.run(asked) == {"compared": 0}


def test_a_library_that_raises_says_so(server: ForkServer, silu_library: Path) -> None:
    answer = server.run(request(aten.mul.Tensor, X, X, library=silu_library))
    assert answer["reason"] == "raised"


def test_a_file_that_is_no_library_says_so(server: ForkServer, tmp_path: Path) -> None:
    text = tmp_path / "library.so"
    text.write_text("text")
    answer = server.run(request(aten.silu.default, X, library=text))
    assert answer["reason"] == "library_unloadable"


def test_code_that_ends_the_process_ends_a_child_and_the_server_goes_on(
    server: ForkServer, silu_library: Path, tmp_path: Path
) -> None:
    """A library whose loading aborts, and one that never comes back."""
    for body, timeout_s, message in (
        ("abort();", 60.0, "SIGABRT"),
        ("for (;;) sleep(1);", 1.0, "no end after 1 s"),
    ):
        source = tmp_path / "bad.c"
        source.write_text(f"""
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void start(void) {{ {body} }}
""")
        library = tmp_path / "bad.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
        answer = server.run(request(aten.silu.default, X, library=library, timeout_s=timeout_s))
        assert answer["reason"] == "crashed"
        assert message in answer["message"]
    assert server.run(request(aten.silu.default, X, library=silu_library))["compared"] > 3


def test_importing_the_package_leaves_the_environment_of_the_script_alone(tmp_path: Path) -> None:
    code = """
import os
before = dict(os.environ)
import aoti_eager, aoti_eager._compile_worker.main, aoti_eager.cli
assert dict(os.environ) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=dict(os.environ))
