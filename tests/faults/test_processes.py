"""Several processes on one cache: warm starts, one compile a key, and `kill -9` at any moment."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from aoti_eager import cache

from ..support.kept_builds import make_cache_dir
from ..support.processes import KEYS, WORK, finish, run, start
from ..support.workers import work


@pytest.fixture(scope="module")
def warm_dir(tmp_path_factory: pytest.TempPathFactory, shared_cache_dir: Path) -> Path:
    """A cache that a first process filled with the script's keys."""
    path = make_cache_dir(tmp_path_factory.mktemp("warm") / "cache", shared_cache_dir)
    first = run(path)
    assert first["wrong"] == 0
    assert first["compiles"] == KEYS
    return path


@pytest.mark.both_paths(costly=True)
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


@pytest.mark.both_paths(costly=True)
@pytest.mark.full
def test_warm_hits_are_right_in_cache_only_mode_too(warm_dir: Path) -> None:
    """A kernel may be right cold and wrong warm: each is tested apart."""
    again = run(warm_dir, AOTI_EAGER_MODE="cache_only")
    assert (again["wrong"], again["compiles"], again["hits"]) == (0, 0, 3 * KEYS)


@pytest.mark.both_paths(costly=True)
def test_another_torch_version_opens_none_of_the_entries(warm_dir: Path) -> None:
    """A foreign version's entry is never opened; it is listed as stale."""
    foreign = "import torch; torch.__version__ = '2.13.1'\n" + WORK
    result = run(warm_dir, foreign, AOTI_EAGER_MODE="cache_only")
    assert result["hits"] == 0
    assert set(result["declined"]) == {"not_in_cache"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.__version__", "2.13.1")
        assert {entry.status for entry in cache.list(cache_dir=warm_dir)} == {"stale"}


@pytest.mark.both_paths(costly=True)
@pytest.mark.parametrize(
    "variable", ["TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "AOT_INDUCTOR_DEBUG_COMPILE"]
)
def test_a_variable_that_shapes_the_code_makes_every_key_miss(
    variable: str, warm_dir: Path
) -> None:
    """The key holds everything that affects the generated code."""
    result = run(warm_dir, AOTI_EAGER_MODE="cache_only", **{variable: "1"})
    assert (result["wrong"], result["hits"]) == (0, 0)


@pytest.mark.both_paths(costly=True)
@pytest.mark.full
def test_eight_processes_on_an_empty_cache_compile_each_key_once(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """One compile a key, however many processes; one publish an entry."""
    path = make_cache_dir(tmp_path / "eight", shared_cache_dir)
    results = [finish(process) for process in [start(path) for _ in range(8)]]
    assert sum(result["wrong"] for result in results) == 0
    assert sum(result["compiles"] for result in results) == KEYS
    assert all(result["hits"] >= 2 * KEYS for result in results)
    assert_clean(path, KEYS)


@pytest.mark.both_paths(costly=True)
@pytest.mark.full
def test_killed_processes_leave_no_wrong_entry_and_no_residue_after_verify(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """`kill -9` at random moments, seeded; the survivors and a successor are right."""
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


@pytest.mark.full
@pytest.mark.compiles
def test_two_processes_compile_each_key_once_between_them(
    cache_dir: Path, precompiled_header: None
) -> None:
    text = """
import json, torch, aoti_eager
x = torch.arange(12.0).reshape(3, 4)
with aoti_eager.register("aten::silu"):
    for _ in range(3):
        for rows in (1, 2, 3):
            t = x[:rows]
            assert torch.allclose(torch.ops.aten.silu(t), t * torch.sigmoid(t))
        assert aoti_eager.wait(300)
    stats = aoti_eager.stats()["aten::silu"]
print(json.dumps({"compiles": stats.compiles, "hits": stats.hits, "declines": stats.declines}))
"""
    both = [start(cache_dir, text, AOTI_EAGER_MODE="background") for _ in range(2)]
    done = [finish(process) for process in both]
    assert sum(one["compiles"] for one in done) == 3
    assert [(one["declines"], one["stderr"]) for one in done] == [(0, "")] * 2
    assert all(one["hits"] >= 3 for one in done)
    assert work(cache_dir) == []
    assert cache.verify().intact == 3
