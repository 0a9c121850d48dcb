"""What a hostile reader broke once: each stays mended."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats

from ..conftest import assert_close

pytestmark = pytest.mark.both_paths

aten = torch.ops.aten


def run_script(code: str, cache_dir: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "AOTI_EAGER_CACHE_DIR": str(cache_dir), **variables},
        cwd=cache_dir.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )


def declined(op: str) -> dict[str, int]:
    return dict(aoti_eager.stats().get(op, OpStats()).declined)


# --- never wrong ---


@pytest.mark.full
@pytest.mark.parametrize("call", [aten.softshrink, aten.gelu])
def test_functions_that_differ_at_nan_or_infinity_are_found_out_on_ordinary_data(
    call: Any, shared_cache: Path
) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0] * 16)
    want = call(odd)
    with aoti_eager.register(call):
        for x in (torch.linspace(-2, 2, 64), odd, odd):
            got = call(x)
    assert_close(got, want, equal_nan=True)


def test_sums_that_lose_digits_are_found_out_on_zeros(shared_cache: Path) -> None:
    full = torch.full((1 << 22,), 0.1)
    want = full.sum()
    with aoti_eager.register("aten::sum"):
        torch.zeros(1 << 22).sum()
        got = full.sum()
    assert_close(got, want)


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_integer_division_into_a_float_out_raises_what_eager_raises(
    mode: str, no_compiles: None
) -> None:
    a, b, out = torch.tensor([1, 2]), torch.tensor([0, 1]), torch.empty(2)
    with pytest.raises(RuntimeError) as plain:
        torch.div(a, b, rounding_mode=mode, out=out)
    with aoti_eager.register("aten::div.out_mode"):
        torch.div(a, a, rounding_mode=mode, out=out)
        with pytest.raises(RuntimeError) as served:
            torch.div(a, b, rounding_mode=mode, out=out)
    assert str(served.value) == str(plain.value)


def test_complex_numbers_with_zeros_of_either_sign_are_two_numbers(no_compiles: None) -> None:
    x = torch.tensor([complex(-1, -0.0)])
    numbers = [complex(1, 0.0), complex(1, -0.0)]
    want = [torch.angle(x * n).item() for n in numbers]
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::mul.Tensor"):
        assert [torch.angle(x * n).item() for n in numbers] == want


# --- never in the way ---


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
                good = (got - want).abs().max() < 1e-5
                good &= aoti_eager.stats()["aten::silu"].declined == {"forked": 2}
                os._exit(0 if good else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        shared_cache_dir,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.both_paths(costly=True)
def test_a_signal_handler_may_call_registered_ops_during_a_compile_and_a_hit(
    shared_cache_dir: Path, cache_dir: Path
) -> None:
    done = run_script(
        """
        import signal, torch, aoti_eager
        x, calls = torch.randn(8, 24), []
        def handler(*_):
            calls.append(torch.ops.aten.silu(x[0]))
            calls.append(torch.ops.aten.silu(x))
        signal.signal(signal.SIGALRM, handler)
        with aoti_eager.register("aten::silu"):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            torch.ops.aten.silu(x)
            assert calls, "the compile was too quick for the test"
            assert aoti_eager.stats()["aten::silu"].declined == {"reentrant": 2}
            signal.signal(signal.SIGALRM, lambda *_: torch.ops.aten.silu(x))
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
            for _ in range(20_000):
                torch.ops.aten.silu(x)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert aoti_eager.stats()["aten::silu"].hits > 20_000
        """,
        cache_dir,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.both_paths(costly=True)
def test_python_ends_well_while_a_daemon_thread_compiles(cache_dir: Path) -> None:
    done = run_script(
        """
        import threading, time, torch, aoti_eager
        aoti_eager.register("aten::silu")
        threading.Thread(target=lambda: torch.ops.aten.silu(torch.randn(3, 3)), daemon=True).start()
        time.sleep(1.5)
        """,
        cache_dir,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list((cache_dir / "tmp").iterdir()) == []


def test_a_subclass_with_a_strict_torch_function_is_left_alone(shared_cache: Path) -> None:
    class Strict(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__name__", "") in ("silu", "sum", "backward"):
                return super().__torch_function__(func, types, args, kwargs or {})
            raise TypeError(f"Strict does not support {func}")

    plain = torch.randn(8, 8)
    with aoti_eager.register(["aten::silu", "aten::silu_backward"]):
        for _ in range(2):
            x = plain.clone().requires_grad_()
            with torch._C.DisableTorchFunctionSubclass():
                strict = x.as_subclass(Strict)
            torch.nn.functional.silu(strict).sum().backward()
    assert x.grad is not None
    s = torch.sigmoid(plain)
    assert_close(x.grad.as_subclass(torch.Tensor), s * (1 + plain * (1 - s)))


def test_impl_over_a_registration_outlives_it(no_compiles: None) -> None:
    x = torch.randn(3)
    with aoti_eager.config.scope(mode="cache_only"):
        registration = aoti_eager.register("aten::tanh")
        library = torch.library.Library("aten", "IMPL")
        aoti_eager.impl(library, "tanh", "CPU")
        registration.unregister()
        assert_close(torch.tanh(x), x.sinh() / x.cosh())
        library._destroy()
    assert_close(torch.tanh(x), x.sinh() / x.cosh())


def test_a_dropped_handle_keeps_its_ops(no_compiles: None) -> None:
    import gc

    from aoti_eager._registration import registry

    aoti_eager.register("aten::silu.default")
    gc.collect()
    for _ in range(300):
        with aoti_eager.register(["aten::silu.default", "aten::mm.default"]):
            pass
    assert aoti_eager.registered_ops() == ["aten::silu"]
    for token in list(registry._installed["aten::silu", "CPU"].holders):
        registry._release("aten::silu", "CPU", token)


# --- the store ---


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
    assert "compile_failed" in first.stdout, first.stderr
    assert aoti_eager.cache.list() == []
    second = run_script(code, cache_dir)
    assert "hits=1" in second.stdout, second.stderr
