"""Several processes on one cache: warm starts, one compile a key, and `kill -9` at any moment."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

import aoti_eager
from aoti_eager import cache

from ..support.processes import (
    KEYS,
    WORK,
    finish,
    run,
    start,
)

pytestmark = pytest.mark.both_paths(costly=True)


@pytest.fixture(scope="module")
def warm_dir(tmp_path_factory: pytest.TempPathFactory, shared_cache_dir: Path) -> Path:
    """A cache that a first process filled with the script's keys."""
    from ..conftest import make_cache_dir

    path = make_cache_dir(tmp_path_factory.mktemp("warm") / "cache", shared_cache_dir)
    first = run(path)
    assert first["wrong"] == 0
    assert first["compiles"] == KEYS
    return path


@pytest.mark.full
def test_a_second_process_serves_every_key_with_nothing_of_a_compiler(
    warm_dir: Path, tmp_path: Path
) -> None:
    """No compile, no Inductor, no child process, no compiler on PATH."""
    second = run(warm_dir, PATH=str(tmp_path), CXX="", CC="")
    assert second["wrong"] == 0
    assert second["compiles"] == 0
    assert second["declined"] == {}
    assert second["hits"] == 3 * KEYS
    assert second["inductor"] == []
    assert second["children"] == 0
    assert "Warning" not in second["stderr"]


@pytest.mark.full
def test_warm_hits_are_right_in_cache_only_mode_too(warm_dir: Path) -> None:
    """A kernel may be right cold and wrong warm: each is tested apart."""
    again = run(warm_dir, AOTI_EAGER_MODE="cache_only")
    assert (again["wrong"], again["compiles"], again["hits"]) == (0, 0, 3 * KEYS)


def test_another_torch_version_opens_none_of_the_entries(warm_dir: Path) -> None:
    """A foreign version's entry is never opened; it is listed as stale."""
    foreign = "import torch; torch.__version__ = '2.13.1'\n" + WORK
    result = run(warm_dir, foreign, AOTI_EAGER_MODE="cache_only")
    assert result["hits"] == 0
    assert set(result["declined"]) == {"not_in_cache"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.__version__", "2.13.1")
        assert {entry.status for entry in cache.list(cache_dir=warm_dir)} == {"stale"}


@pytest.mark.parametrize(
    "variable", ["TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "AOT_INDUCTOR_DEBUG_COMPILE"]
)
def test_a_variable_that_shapes_the_code_makes_every_key_miss(
    variable: str, warm_dir: Path
) -> None:
    """The key holds everything that affects the generated code."""
    result = run(warm_dir, AOTI_EAGER_MODE="cache_only", **{variable: "1"})
    assert (result["wrong"], result["hits"]) == (0, 0)


@pytest.mark.full
def test_eight_processes_on_an_empty_cache_compile_each_key_once(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """One compile a key, however many processes; one publish an entry."""
    from ..conftest import make_cache_dir

    path = make_cache_dir(tmp_path / "eight", shared_cache_dir)
    results = [finish(process) for process in [start(path) for _ in range(8)]]
    assert sum(result["wrong"] for result in results) == 0
    assert sum(result["compiles"] for result in results) == KEYS
    assert all(result["hits"] >= 2 * KEYS for result in results)
    assert_clean(path, KEYS)


@pytest.mark.full
def test_killed_processes_leave_no_wrong_entry_and_no_residue_after_verify(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """`kill -9` at random moments, seeded; the survivors and a successor are right."""
    from ..conftest import make_cache_dir

    path = make_cache_dir(tmp_path / "killed", shared_cache_dir)
    draw = random.Random(2)
    processes = [start(path) for _ in range(8)]
    deadline = time.monotonic() + 60
    for process in processes[:5]:
        wait_s = draw.uniform(0.5, 6.0)
        try:
            process.wait(timeout=min(wait_s, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    for process in processes[5:]:
        assert finish(process)["wrong"] == 0
    successor = run(path)
    assert successor["wrong"] == 0
    assert successor["compiles"] == 0
    assert_clean(path, KEYS)


def assert_clean(path: Path, entries: int) -> None:
    """Assert that the store is whole, and that nothing but entries is left after ``verify``."""
    report = cache.verify(cache_dir=path)
    assert report.damaged == ()
    assert report.intact == entries
    assert list((path / "tmp").iterdir()) == []
    for entry in cache.list(cache_dir=path):
        assert entry.status == "ready"
        assert {file.name for file in entry.path.iterdir()} <= {"entry.json", "library.so", "log"}
    assert len(list((path / "locks").iterdir())) <= 257


def test_a_killed_process_takes_its_workers_with_it(tmp_path: Path, shared_cache_dir: Path) -> None:
    from ..conftest import make_cache_dir

    path = make_cache_dir(tmp_path / "orphans", shared_cache_dir)
    process = start(path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    workers: list[str] = []
    while not workers and time.monotonic() < deadline:
        workers = children.read_text().split()
        time.sleep(0.05)
    assert workers
    process.kill()
    process.communicate()
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and is_running(pid) for pid in workers):
            return
        time.sleep(0.05)
    pytest.fail(f"workers {workers} outlived their process")


def is_running(pid: str) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.full
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
