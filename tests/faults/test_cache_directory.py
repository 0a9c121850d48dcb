"""A cache directory that is deleted, full, read-only or open to others: results stay right."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager.errors import AotiEagerWarning, StorePermissionError

from ..conftest import assert_close
from ..support.kept_builds import make_cache_dir
from ..support.processes import run_script

pytestmark = pytest.mark.both_paths

aten = torch.ops.aten


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.full
def test_deleting_the_cache_directory_mid_run_is_safe(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """Loaded kernels go on, the rest is compiled again; nothing to warn about."""
    path = make_cache_dir(tmp_path / "gone", shared_cache_dir)
    x, y = torch.randn(8, 8), torch.randn(3, 8)
    with aoti_eager.config.scope(cache_dir=path), aoti_eager.register("aten::silu"):
        aten.silu(x)
        shutil.rmtree(path)
        before = aoti_eager.stats()["aten::silu"]
        assert_close(aten.silu(x), silu(x))
        make_cache_dir(path, shared_cache_dir)  # only to keep its headers: 20 s otherwise
        for _ in range(2):
            assert_close(aten.silu(y), silu(y))
        after = aoti_eager.stats()["aten::silu"]
        assert len(aoti_eager.cache.list()) == 1
    assert after.hits - before.hits == 2
    assert after.compiles - before.compiles == 1


def test_a_missing_directory_is_not_made_by_a_call_that_compiles_nothing(
    tmp_path: Path, no_compiles: None
) -> None:
    path = tmp_path / "never" / "made"
    x = torch.randn(2, 2)
    with (
        aoti_eager.config.scope(cache_dir=path, mode="cache_only"),
        aoti_eager.register("aten::silu"),
    ):
        assert_close(aten.silu(x), silu(x))
    assert not path.exists()


@pytest.mark.full
@pytest.mark.compiles
def test_a_full_disk_gives_right_results_one_warning_and_no_residue(
    mount: object, shared_cache_dir: Path
) -> None:
    path = mount("full", "size=32k")  # type: ignore[operator]
    (path / "toolchain").symlink_to(shared_cache_dir / "toolchain")
    x, y = torch.randn(8, 8), torch.randn(4, 8)
    with (
        aoti_eager.config.scope(cache_dir=path),
        aoti_eager.register("aten::silu"),
        pytest.warns(AotiEagerWarning) as given,
    ):
        for _ in range(3):
            assert_close(aten.silu(x), silu(x))
            assert_close(aten.silu(y), silu(y))
        declined = aoti_eager.stats()["aten::silu"].declined
        assert aoti_eager.cache.list() == []
    assert len(given) == 1
    assert "originals run instead" in str(given[0].message)
    assert declined["store_unwritable"] >= 4
    assert not (path / "tmp").exists() or list((path / "tmp").iterdir()) == []


def test_a_read_only_directory_serves_its_hits_and_runs_originals_for_the_rest(
    mount: object, shared_cache: Path
) -> None:
    """No writes at all, and hits still served."""
    path = mount("readonly", "size=64m")  # type: ignore[operator]
    x, y = torch.randn(8, 8), torch.randn(5, 8)
    with aoti_eager.register("aten::silu"):
        aten.silu(x)
    (stored,) = [
        entry
        for entry in aoti_eager.cache.list()
        if entry.op == "aten::silu" and entry.inputs == "f32[8,8]" and entry.status == "ready"
    ]
    copy = path / stored.path.relative_to(shared_cache)
    shutil.copytree(stored.path, copy)
    for part in [copy, *copy.parents]:
        part.chmod(0o700)
        if part == path:
            break
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    with (
        aoti_eager.config.scope(cache_dir=path),
        aoti_eager.register("aten::silu"),
        pytest.warns(AotiEagerWarning, match="Read-only") as given,
    ):
        before = aoti_eager.stats()["aten::silu"]
        for _ in range(3):
            assert_close(aten.silu(x), silu(x))
            assert_close(aten.silu(y), silu(y))
        after = aoti_eager.stats()["aten::silu"]
    assert len(given) == 1
    # The first call is compared: the directory has no verdict of this machine.
    assert after.hits - before.hits == 2
    assert after.declined["store_unwritable"] - before.declined.get("store_unwritable", 0) == 3
    assert after.compiles == before.compiles


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_directory_that_others_can_write_is_refused_with_one_warning(
    mode: int, tmp_path: Path, no_compiles: None
) -> None:
    """Whoever can write to it could have this process load their code."""
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(mode)
    x = torch.randn(8, 8)
    with (
        aoti_eager.config.scope(cache_dir=path),
        aoti_eager.register("aten::silu"),
        pytest.warns(
            AotiEagerWarning, match="set AOTI_EAGER_CACHE_DIR to a new directory"
        ) as given,
    ):
        for _ in range(2):
            assert_close(aten.silu(x), silu(x))
    assert len(given) == 1
    assert list(path.iterdir()) == []


def test_strict_raises_what_would_be_a_warning(tmp_path: Path, no_compiles: None) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o777)
    with (
        aoti_eager.config.scope(cache_dir=path, strict=True),
        aoti_eager.register("aten::silu"),
        pytest.raises(StorePermissionError, match="set AOTI_EAGER_CACHE_DIR to a new directory"),
    ):
        aten.silu(torch.randn(8, 8))


@pytest.mark.full
def test_where_warnings_are_errors_a_call_still_runs_the_original(tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o777)
    code = """
import torch, aoti_eager
x = torch.ones(3)
with aoti_eager.register("aten::silu"):
    assert torch.allclose(torch.ops.aten.silu(x), x * torch.sigmoid(x))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={**os.environ, "AOTI_EAGER_CACHE_DIR": str(path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "set AOTI_EAGER_CACHE_DIR to a new directory" in done.stderr  # logged instead


@pytest.mark.both_paths(costly=True)
def test_a_directory_that_is_refused_is_not_written_to_at_exit(tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o777)
    done = run_script(
        """
        import torch, aoti_eager
        with aoti_eager.register("aten::silu"):
            torch.ops.aten.silu(torch.ones(3))
        """,
        path,
    )
    assert done.returncode == 0
    assert "set AOTI_EAGER_CACHE_DIR to a new directory" in done.stderr
    assert list(path.iterdir()) == []


@pytest.mark.full
@pytest.mark.both_paths(costly=True)
def test_every_directory_of_the_store_is_private_whatever_the_umask(cache_dir: Path) -> None:
    done = run_script(
        """
        import os, torch, aoti_eager
        os.umask(0o002)
        with aoti_eager.register("aten::mm.default"):
            torch.mm(torch.ones(3, 3), torch.ones(3, 3))
        """,
        cache_dir,
    )
    assert done.returncode == 0, done.stderr
    directories = [p for p in (cache_dir / "v1").rglob("*") if p.is_dir()]
    assert len(directories) == 5
    for path in [cache_dir / "v1", cache_dir / "tmp", *directories]:
        assert path.stat().st_mode & 0o077 == 0, path
