"""Runners on CUDA: the stream, and the device's index. These need a GPU, and skip without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aoti_eager import ModelContainerRunner
from aoti_eager.errors import InputError, LibraryLoadError, RunnerError

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

_COMPILE = """
import sys
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((64,), 2.0))

    def forward(self, x):
        return torch.tanh(x * self.weight)

model = Model().cuda()
program = torch.export.export(model, (torch.randn(8, 64, device="cuda"),))
torch._inductor.aoti_compile_and_package(
    program, package_path=sys.argv[1], inductor_configs={"always_keep_tensor_constants": True}
)
"""


@pytest.fixture(scope="module")
def package(run_dir: Path) -> Path:
    """A package compiled for CUDA: tanh(x * weight), x: (8, 64), weight: (64,), all twos."""
    path = run_dir / "cuda.pt2"
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(run_dir / "inductor-cuda")}
    subprocess.run([sys.executable, "-c", _COMPILE, str(path)], check=True, env=environment)
    return path


def test_a_run_is_on_the_current_stream_of_its_device(package: Path) -> None:
    runner = ModelContainerRunner(package, num_models=2, device="cuda")
    x = torch.randn(8, 64, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # The run must wait for this, and comes out wrong on any other stream.
        torch.cuda._sleep(50_000_000)
        x.fill_(0.5)
        (got,) = runner.run([x])
    stream.synchronize()
    torch.testing.assert_close(got, torch.tanh(x * 2))


def test_a_run_is_on_the_given_stream(package: Path) -> None:
    runner = ModelContainerRunner(package, device="cuda")
    x = torch.zeros(8, 64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(0.5)
    for given in (stream, stream.cuda_stream):
        (got,) = runner.run([x], stream=given)
        stream.synchronize()
        torch.testing.assert_close(got, torch.full_like(got, 0.5 * 2).tanh())


def test_a_stream_of_the_cpu_or_of_another_kind_is_refused(package: Path) -> None:
    runner = ModelContainerRunner(package, device="cuda")
    with pytest.raises(RunnerError, match="a torch.cuda.Stream"):
        runner.run([torch.zeros(8, 64, device="cuda")], stream="fast")


def test_weights_are_swapped_under_running_kernels(package: Path) -> None:
    runner = ModelContainerRunner(package, num_models=2, device="cuda")
    x = torch.full((8, 64), 0.5, device="cuda")
    for turn in range(20):
        weight = torch.full((64,), float(turn))  # on the CPU: it is copied
        runner.update_inactive_constant_buffer({"weight": weight})
        runner.swap_constant_buffer()
        runner.free_inactive_constant_buffer()
        (got,) = runner.run([x])
        torch.testing.assert_close(got.cpu(), torch.tanh(x.cpu() * turn))


def test_inputs_of_the_cpu_are_refused(package: Path) -> None:
    runner = ModelContainerRunner(package, device="cuda")
    with pytest.raises(InputError, match=r"is on cpu; the runner is on cuda:0"):
        runner.run([torch.zeros(8, 64)])


def test_a_library_for_cuda_is_refused_on_the_cpu(package: Path) -> None:
    with pytest.raises(LibraryLoadError, match="compiled for cuda"):
        ModelContainerRunner(package, device="cpu")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_runner_is_on_its_own_device_and_leaves_the_current_one(package: Path) -> None:
    """pytorch#152087."""
    with torch.cuda.device(0):
        runner = ModelContainerRunner(package, device="cuda:1")
        assert torch.cuda.current_device() == 0
        x = torch.randn(8, 64, device="cuda:1")
        (got,) = runner.run([x])
        assert got.device == torch.device("cuda:1")
        torch.testing.assert_close(got, torch.tanh(x * 2))
        with pytest.raises(InputError, match="is on cuda:0; the runner is on cuda:1"):
            runner.run([x.to("cuda:0")])
