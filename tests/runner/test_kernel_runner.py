"""A kernel of the cache, loaded: with the GIL for small ones, without it for large ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import ModelContainerRunner
from aoti_eager._base.sealed_library import SealedLibrary
from aoti_eager._compile_service import cache_context
from aoti_eager._native.passthrough import passing
from aoti_eager._registration import registry
from aoti_eager._runner.kernel_runner import RELEASE_GIL_NUMEL, LibraryRunner
from aoti_eager.errors import InputError, RunnerError

from ..conftest import assert_close
from ..support.sealed import sealed


def stored_library() -> Path:
    """Return the library of silu on (8, 8); compiled once a run."""
    x = torch.linspace(-2, 2, 64).reshape(8, 8)
    with aoti_eager.register("aten::silu.default"):
        torch.ops.aten.silu(x)
        assert torch.ops.aten.silu(x).shape == (8, 8)
    entry = next(
        e
        for e in cache_context.current().store.scan()
        if getattr(e, "entry", None) is not None
        and e.entry.key.op == "aten::silu"
        and e.entry.library is not None
        and e.entry.key.arguments[0][1]["sizes"] == [8, 8]
        and e.entry.key.arguments[0][1]["strides"] == [8, 1]
        and e.entry.key.arguments[0][1]["dtype"] == "float32"
    )
    return entry.library_path


@pytest.mark.parametrize("release_gil", [False, True])
def test_both_ways_give_the_same(shared_cache: Path, release_gil: bool) -> None:
    runner = LibraryRunner(sealed(stored_library()), calls_aten=False, release_gil=release_gil)
    x = torch.linspace(-2, 2, 64).reshape(8, 8).requires_grad_()
    for _ in range(3):
        with runner.lock:
            (got,) = runner.run([x])
        assert_close(got, torch.nn.functional.silu(x).detach())
        assert not got.requires_grad


def test_the_runner_for_users_loads_a_library_of_the_cache_and_checks_its_inputs(
    shared_cache: Path,
) -> None:
    x = torch.linspace(-2, 2, 64).reshape(8, 8)
    with ModelContainerRunner(stored_library(), num_models=2) as runner:
        (got,) = runner.run([x])
        assert_close(got, torch.nn.functional.silu(x))
        assert runner.constants == ()
        with pytest.raises(InputError, match="has dtype torch.float64; torch.float32 is wanted"):
            runner.run([x.double()])
        with pytest.raises(InputError, match=r"has sizes \(4, 8\); \(8, 8\) is wanted"):
            runner.run([x[:4]])
        with pytest.raises(InputError, match=r"has strides \(1, 8\); \(8, 1\) is wanted"):
            runner.run([x.t()])
        with pytest.raises(InputError, match="got 2 inputs; 1 are wanted"):
            runner.run([x, x])


def test_a_thin_library_is_small(shared_cache: Path) -> None:
    assert stored_library().stat().st_size < 50 * 1024


def test_a_run_without_the_gil_needs_no_lock(shared_cache: Path) -> None:
    runner = LibraryRunner(sealed(stored_library()), calls_aten=False, release_gil=True)
    inputs = [torch.linspace(-i, i, 64).reshape(8, 8) for i in range(4)]
    wanted = [torch.nn.functional.silu(x) for x in inputs]
    wrong: list[Any] = []

    def work(x: torch.Tensor, want: torch.Tensor) -> None:
        for _ in range(2000):
            (got,) = runner.run([x])
            if not torch.allclose(got, want, atol=1e-6):
                wrong.append(got)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(inputs, wanted, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("release_gil", [False, True])
def test_a_library_that_calls_aten_reaches_originals(
    shared_cache: Path, release_gil: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = LibraryRunner(sealed(stored_library()), calls_aten=True, release_gil=release_gil)
    seen: list[bool] = []
    inner: Any = runner.run
    cell = next(c for c in inner.__closure__ if not isinstance(c.cell_contents, type))
    run: Callable[..., Any] = cell.cell_contents

    def watched(inputs: list[torch.Tensor]) -> Any:
        seen.append(threading.get_ident() in passing)
        return run(inputs)

    cell.cell_contents = watched
    runner.run([torch.ones(8, 8)])
    assert seen == [True]
    assert threading.get_ident() not in passing


@pytest.mark.parametrize("release_gil", [False, True])
@pytest.mark.parametrize("content", [b"", b"no library"])
def test_what_is_no_library_is_a_runner_error(
    tmp_path: Path, release_gil: bool, content: bytes
) -> None:
    with (
        SealedLibrary(content, tmp_path / "library.so") as library,
        pytest.raises(RunnerError, match="library.so: cannot be") as caught,
    ):
        LibraryRunner(library, calls_aten=False, release_gil=release_gil)
    assert "/proc/" not in str(caught.value).replace(library.name, "")


def test_large_kernels_release_the_gil_and_small_ones_do_not(cache_dir: Path) -> None:
    before = aoti_eager.stats().get("aten::silu", aoti_eager.OpStats()).hits
    side = int(RELEASE_GIL_NUMEL**0.5)
    with aoti_eager.register("aten::silu.default"):
        for n in (8, side):
            x = torch.linspace(-2, 2, n * n).reshape(n, n)
            for _ in range(2):
                assert_close(torch.ops.aten.silu(x), x * torch.sigmoid(x))
        (cache,) = [c for c in registry.caches() if c.schema.op == "aten::silu"]
        locks = sorted(type(kernel.lock).__name__ for kernel in cache.table.kernels.values())
        assert aoti_eager.stats()["aten::silu"].hits == before + 2
    assert locks == ["RLock", "nullcontext"]
