"""Devices that PyTorch does not know: runners and compile backends of their makers' own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import ModelContainerRunner
from aoti_eager._base.op_names import find_overload
from aoti_eager._compile_service.device_backends import device_backend
from aoti_eager._compile_service.device_compile import DeviceBackend
from aoti_eager._keys.call_template import call_template
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import op_schema
from aoti_eager.errors import BackendRegistrationError, CompileError, RunnerError

from ..support import processes

pytestmark = pytest.mark.both_paths

ROOT = Path(__file__).parents[2]


def run_end_to_end(cache_dir: Path, mode: str, run_dir: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "AOTI_EAGER_CACHE_DIR": str(cache_dir),
        "AOTI_EAGER_MODE": "sync",
        "TORCH_EXTENSIONS_DIR": str(run_dir / "extensions"),
        "TORCHINDUCTOR_CACHE_DIR": str(run_dir / "inductor"),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.host_device.end_to_end", mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cache_dir.parent,
    )
    return processes.finish(process)


@pytest.mark.full
@pytest.mark.both_paths(costly=True)
def test_an_op_of_a_device_that_torch_does_not_know_misses_compiles_is_stored_and_hits(
    cache_dir: Path, run_dir: Path
) -> None:
    cold = run_end_to_end(cache_dir, "load_fn", run_dir)
    assert cold["problems"] == []
    assert cold["compiled"] == 4  # a device's index is in the key
    assert cold["loaded"] == ["hostaccel:0", "hostaccel:1"]
    assert cold["misses"] == {
        "aten::mul.Tensor": 2,
        "aten::mul_.Tensor": 1,
        "aten::silu": 1,
        "aten::silu.out": 0,
    }
    assert cold["hits"] == {
        "aten::mul.Tensor": 4,
        "aten::mul_.Tensor": 2,
        "aten::silu": 2,
        "aten::silu.out": 0,
    }
    assert cold["declined"] == {}

    warm = run_end_to_end(cache_dir, "load_fn", run_dir)
    assert warm["problems"] == []
    assert warm["compiled"] == 0
    assert not warm["inductor"]
    assert set(warm["misses"].values()) == {0}
    assert sum(warm["hits"].values()) == 12
    assert warm["originals"] == {}, "a device's own kernels ran in a warm process"

    # Without a load_fn, by the runner that is registered for the device.
    by_runner = run_end_to_end(cache_dir, "runner", run_dir)
    assert by_runner["problems"] == []
    assert by_runner["compiled"] == 0
    assert sum(by_runner["hits"].values()) == 12
    assert by_runner["loaded"] == ["hostaccel:0", "hostaccel:1"]


# --- registration --------------------------------------------------------------------------------


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("nothing is to be compiled or loaded here")


def test_a_device_type_that_torch_does_not_know_is_refused() -> None:
    with pytest.raises(BackendRegistrationError, match="'gpu9' is no device type"):
        aoti_eager.register_runner("gpu9", never)


def test_a_device_with_an_index_is_refused() -> None:
    with pytest.raises(BackendRegistrationError, match="a device type is wanted: 'xpu'"):
        aoti_eager.register_compile_backend("xpu:0", never)


@pytest.mark.parametrize("value", [None, "compile", 3])
def test_what_cannot_be_called_is_refused(value: Any) -> None:
    with pytest.raises(BackendRegistrationError, match="a function"):
        aoti_eager.register_compile_backend("privateuseone", value)
    with pytest.raises(BackendRegistrationError, match="a function is wanted"):
        aoti_eager.register_runner("privateuseone", value)


def test_a_second_backend_of_a_device_is_refused_until_the_first_is_gone() -> None:
    with aoti_eager.register_compile_backend("privateuseone", never) as first:
        with pytest.raises(BackendRegistrationError, match="has a compile backend already"):
            aoti_eager.register_compile_backend("privateuseone", never)
        first.unregister()
        aoti_eager.register_compile_backend("privateuseone", never).unregister()
    first.unregister()  # again: nothing


def test_load_runner_asks_the_registered_factory() -> None:
    asked: list[Any] = []

    class Runner:
        def run(self, inputs: list[torch.Tensor], stream: Any = None) -> list[torch.Tensor]:
            return inputs

    def factory(*arguments: Any) -> Runner:
        asked.append(arguments)
        return Runner()

    with aoti_eager.register_runner("privateuseone", factory):
        runner = aoti_eager.load_runner("/a/library.so", 2, "privateuseone:1", "/a/cubins")
        assert isinstance(runner, Runner)
    assert asked == [(Path("/a/library.so"), 2, torch.device("privateuseone:1"), Path("/a/cubins"))]


def test_without_a_factory_the_error_says_what_to_register(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="register_runner"):
        aoti_eager.load_runner(tmp_path / "library.so", device="privateuseone")
    with pytest.raises(ValueError, match="register_runner"):
        ModelContainerRunner(tmp_path / "library.so", device="privateuseone")


def test_a_load_function_that_is_false_is_one() -> None:
    class Loads(list[None]):
        def __call__(self, library: Path, device: torch.device) -> Any:
            raise AssertionError

    load_fn = Loads()
    with aoti_eager.register_compile_backend("xpu", never, load_fn):
        backend = device_backend("xpu")
        assert backend is not None
        assert backend.load_fn is load_fn


def test_the_types_of_what_is_registered_can_be_asked_for() -> None:
    hints = typing.get_type_hints(aoti_eager.register_compile_backend)
    assert hints["compile_fn"].__args__[0] is aoti_eager.CompileRequest


# --- what a backend may do wrong -----------------------------------------------------------------


def compile_with(compile_fn: Any, work: Path, timeout_s: float = 60) -> Any:
    """Compile silu of a CPU tensor by a backend: that needs no device."""
    op = find_overload("aten::silu")
    schema = op_schema(op)
    template = call_template(schema, kernel_key(schema, "CPU", [torch.ones(4, 4)]))
    return DeviceBackend("cpu", "test", compile_fn, never).compile(
        op, template, work, timeout_s=timeout_s
    )


def test_a_request_holds_the_call_without_data(tmp_path: Path) -> None:
    seen: list[aoti_eager.CompileRequest] = []

    def compile_fn(request: aoti_eager.CompileRequest) -> Path:
        seen.append(request)
        with request.fake_mode:
            (result,) = request.module(*request.inputs)
            assert result.shape == (4, 4)
        (request.directory / "kernel").write_bytes(b"code")
        return request.directory / "kernel"

    made = compile_with(compile_fn, tmp_path)
    assert made.library.read_bytes() == b"code"
    assert made.outputs == ({"output": 0},)
    (request,) = seen
    assert request.op == "aten::silu"
    assert [tuple(t.shape) for t in request.inputs] == [(4, 4)]


def test_the_caller_s_state_does_not_reach_the_compile_function(tmp_path: Path) -> None:
    seen: list[Any] = []

    def compile_fn(request: aoti_eager.CompileRequest) -> Path:
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        (request.directory / "kernel").touch()
        return request.directory / "kernel"

    with torch.autocast("cpu"), torch.inference_mode():
        compile_with(compile_fn, tmp_path)
    assert seen == [(False, False)]


def test_a_backend_that_raises_declines_with_its_message(tmp_path: Path) -> None:
    def compile_fn(request: aoti_eager.CompileRequest) -> Path:
        raise LookupError("no such intrinsic")

    with pytest.raises(CompileError, match="silu.*raised LookupError: no such intrinsic") as caught:
        compile_with(compile_fn, tmp_path)
    assert caught.value.reason == "compile_failed"
    assert not caught.value.remember
    assert "Traceback" in caught.value.log


def test_a_backend_s_own_compile_error_is_kept(tmp_path: Path) -> None:
    def compile_fn(request: aoti_eager.CompileRequest) -> Path:
        raise CompileError("no_kernel_of_its_own", "not worth it", remember=True)

    with pytest.raises(CompileError, match="not worth it") as caught:
        compile_with(compile_fn, tmp_path)
    assert caught.value.reason == "no_kernel_of_its_own"
    assert caught.value.remember


def test_a_compile_that_takes_too_long_is_left_alone(tmp_path: Path) -> None:
    ended = threading.Event()

    def compile_fn(request: aoti_eager.CompileRequest) -> Path:
        ended.wait(60)
        return request.directory

    with pytest.raises(CompileError, match="no library after 0.1 s") as caught:
        compile_with(compile_fn, tmp_path, timeout_s=0.1)
    ended.set()
    assert caught.value.reason == "compile_timeout"


def test_a_backend_that_ends_the_thread_declines(tmp_path: Path) -> None:
    def compile_fn(request: aoti_eager.CompileRequest) -> Path:
        raise SystemExit(3)

    with pytest.raises(CompileError, match="raised SystemExit: 3"):
        compile_with(compile_fn, tmp_path)


@pytest.mark.parametrize("returned", ["/nowhere/kernel", "outside"])
def test_a_file_that_is_not_in_the_directory_is_refused(tmp_path: Path, returned: str) -> None:
    (tmp_path / "outside").touch()
    (tmp_path / "work").mkdir()
    with pytest.raises(CompileError, match="returned .*, which is n"):
        compile_with(lambda request: tmp_path / returned, tmp_path / "work")


def test_a_library_that_cannot_be_loaded_is_a_runner_error(tmp_path: Path) -> None:
    def load_fn(library: Path, device: torch.device) -> Any:
        raise KeyError("garbled")

    backend = DeviceBackend("cpu", "test", never, load_fn)
    with pytest.raises(RunnerError, match="cannot be loaded: KeyError: 'garbled'"):
        backend.load(tmp_path / "kernel", torch.device("cpu"))


def test_what_a_runner_raises_reaches_the_kernel_cache_as_a_failed_run(tmp_path: Path) -> None:
    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        raise KeyError("lost")

    backend = DeviceBackend("cpu", "test", never, lambda library, device: run)
    with pytest.raises(RunnerError, match="the runner of cpu raised KeyError: 'lost'"):
        backend.load(tmp_path / "kernel", torch.device("cpu"))([])
