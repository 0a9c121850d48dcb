"""Kernel libraries for tests of the runner, and what they are run and watched with.

They are made once a pytest run, in processes of their own, and kept for the next run, which takes
them if torch, the compiler, the processor and this file are the same.

A test process never imports Inductor: ``build`` starts this module as a script, once for each half
of the packages.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
import weakref
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from aoti_eager._base.cpp_compiler import compiler_identity
from aoti_eager._base.cpu import cpu_features
from aoti_eager._base.digest import json_digest
from aoti_eager._runner.runner import ModelContainerRunner

HERE = Path(__file__).parent
TIMEOUT_S = 60  # of whatever should come at once

# Each package's Inductor settings. Two processes make them; the lists take about as long.
PACKAGES: dict[str, dict[str, Any]] = {
    # With weights behind the ELF file's end, and folded constants.
    "folded": {
        "aot_inductor.use_runtime_constant_folding": True,
        "aot_inductor.force_mmap_weights": True,
    },
    # Without weights: they come by update.
    "bare": {"aot_inductor.package_constants_in_so": False},
    # With weights in a file beside the library.
    "blob": {
        "aot_inductor.use_runtime_constant_folding": True,
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.package_constants_on_disk_format": "binary_blob",
    },
    # Calls an op by name, also to fold.
    "proxy": {"aot_inductor.use_runtime_constant_folding": True},
    # No constants, any number of rows.
    "dynamic": {},
}
HALVES = (("folded", "bare"), ("blob", "proxy", "dynamic"))

TABLE = [float(i) for i in range(16)]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.arange(16.0))


class Served(nn.Module):
    """Constants of every kind; sums and products of small integers, so that results are exact.

    ``block.gain`` and ``block_gain`` would have the same name in the library.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(256.0).reshape(16, 16) % 7)
        self.columns = nn.Parameter((torch.arange(128.0).reshape(8, 16) % 5).t())
        self.block = _Block()
        self.block_gain = nn.Parameter(torch.arange(16.0) + 1)
        self.empty = nn.Parameter(torch.empty(0))
        self.counts = nn.Buffer(torch.arange(12))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for ``x``: (8, 16), float32."""
        constants = self.state_dict(keep_vars=True)
        return served(x, {**constants, "_tensor_constant0": torch.tensor(TABLE)})


def served(x: Tensor, c: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return what a library of ``Served`` gives for ``x`` with the constants ``c``.

    NaN in ``x`` raises; so does NaN in ``weight``, where the constants are folded.
    """
    folded = c["weight"].sum(0) + torch.histc(c["weight"], bins=16) + c["empty"].sum()
    return (
        x @ c["weight"],
        x.t() * c["columns"],
        x * c["block.gain"] + c["block_gain"],
        x[:, :12].to(torch.int64) + c["counts"],
        x * c["_tensor_constant0"] + folded,
        torch.histc(x, bins=4),
    )


SERVED_OUTPUTS = 6
X = torch.arange(128.0).reshape(8, 16) % 11
NAN = torch.full((8, 16), torch.nan)


def original_constants() -> dict[str, Tensor]:
    """Return the constants that ``Served`` was compiled with, by their names in the program."""
    tensors = {name: t.detach().clone() for name, t in Served().state_dict().items()}
    return tensors | {"_tensor_constant0": torch.tensor(TABLE)}


def filled_constants(value: int) -> dict[str, Tensor]:
    """Return constants that all are ``value``, laid out as the original ones."""
    return {name: torch.full_like(t, value) for name, t in original_constants().items()}


def constants_of(name: str, value: int | None = None) -> dict[str, Tensor]:
    """Return a full set for a package of ``Served``: the original one, or all ``value``."""
    constants = original_constants() if value is None else filled_constants(value)
    if name == "bare":
        del constants["empty"]  # Nothing of it is left there.
    return constants


def want(value: int | None = None) -> tuple[Tensor, ...]:
    """Return what a library of ``Served`` gives for X with those constants."""
    return served(X, constants_of("", value))


def equal(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    """Return whether all outputs are what they should be, exactly."""
    return len(got) == len(want) and all(map(torch.equal, got, want))


class Dynamic(nn.Module):
    """No constants; raises on NaN."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return twice ``x``, (n, 16), and its histogram."""
        return x * 2, torch.histc(x, bins=4)


class Hooked(nn.Module):
    """Calls Python out of a run, and out of the folding of its constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(HOOKED_WEIGHT.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x``, (8, 16), times the weight, and plus it."""
        hooked = torch.ops.aoti_eager_tests.hooked
        return hooked(x) * self.weight, x + hooked(self.weight)


HOOKED_WEIGHT = torch.arange(16.0) + 1

# The op of ``Hooked`` calls them with its argument: (8, 16) in a run, (16,) while it folds.
hooks: list[Callable[[Tensor], object]] = []


@functools.cache
def define_hooked_op() -> None:
    """Define the op that ``Hooked`` calls: it returns a copy."""

    @torch.library.custom_op("aoti_eager_tests::hooked", mutates_args=())
    def hooked(x: Tensor) -> Tensor:
        for hook in hooks:
            hook(x)
        return x.clone()

    hooked.register_fake(torch.empty_like)


# -- the thin library --

THIN_NAMES = ("layer.scale", "layer.shift")


def thin_constants(value: float) -> dict[str, Tensor]:
    """Return a full set of the thin library's constants, all of them ``value``."""
    return {name: torch.full((16,), float(value)) for name in THIN_NAMES}


class Gate:
    """What a run of the thin library tells that it has begun, and waits for to be opened."""

    def __init__(self, is_open: bool = False) -> None:
        self.tensor = torch.tensor([0, int(is_open)], dtype=torch.int32)

    def open(self) -> None:
        """Let runs through."""
        self.tensor[1] = 1

    @property
    def reached(self) -> bool:
        """Return whether a run has come to it."""
        return bool(self.tensor[0])


def thin_inputs(
    x: Tensor | None = None, *, milliseconds: float = 0, gate: Gate | None = None
) -> list[Tensor]:
    """Return inputs of the thin library, which spins for so long once the gate is open."""
    return [
        X.clone() if x is None else x,
        torch.tensor(milliseconds, dtype=torch.float64),
        (Gate(is_open=True) if gate is None else gate).tensor,
    ]


def thin_failing_inputs() -> list[Tensor]:
    """Return inputs that make the thin library fail."""
    return thin_inputs(NAN.clone())


def thin_number(library: Path, name: str) -> ctypes.c_int32:
    """Return one of the numbers that the thin library exports, to read or to set."""
    return ctypes.c_int32.in_dll(ctypes.CDLL(str(library)), name)


def scale(runner: ModelContainerRunner) -> float:
    """Return what the thin library multiplies by and adds at this moment."""
    scaled, shifted, _ = runner.run(thin_inputs())
    value = float(shifted[0, 0] - X[0, 0])
    assert torch.equal(scaled, X * value), "constants of two sets"
    return value


def running(
    threads: ThreadPoolExecutor, runner: ModelContainerRunner
) -> tuple[Gate, Future[list[Tensor]]]:
    """Start a run of the thin library; return once it is in the middle of it."""
    gate = Gate()
    future = threads.submit(runner.run, thin_inputs(gate=gate))
    eventually(lambda: gate.reached or future.done())
    assert not future.done()
    return gate, future


def waiting(runner: ModelContainerRunner) -> int:
    """Return how many wait for instances."""
    return len(runner._pool._waiters)


# -- watching --


def eventually(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


class _Memory(bytearray):
    """Memory that can be referred to weakly."""


def watched_tensor(values: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """Return a copy of ``values``, and a function that says whether its memory is still held."""
    memory = _Memory(values.numpy().tobytes())
    watch = weakref.ref(memory)
    tensor = torch.frombuffer(memory, dtype=values.dtype).reshape(values.shape)
    return tensor, lambda: watch() is not None


Load = Callable[..., ModelContainerRunner]  # the fixture ``load``


def loaded_thin(load: Load, num_models: int) -> ModelContainerRunner:
    """Return a runner of the thin library whose constants are 2."""
    runner = load("thin", num_models)
    runner.update_constant_buffer(thin_constants(2))
    return runner


@dataclass(frozen=True, slots=True)
class Libraries:
    """Where the libraries lie.

    Attributes:
        directory: One directory for each package, with what is in it, and ``thin.so``.
    """

    directory: Path

    def package(self, name: str) -> Path:
        """Return the ``.pt2`` of a package."""
        return self.directory / f"{name}.pt2"

    def so(self, name: str) -> Path:
        """Return the shared object of a package; its other files lie beside it."""
        if name == "thin":
            return self.directory / "thin.so"
        (path,) = (self.directory / name).glob("*.so")
        return path

    def weights(self) -> Path:
        """Return the file of constants of the package ``blob``."""
        (path,) = (self.directory / "blob").glob("*.blob")
        return path


def build(run_dir: Path, kept: Path) -> Libraries:
    """Return the libraries, made by the first of a run's processes that asks.

    Args:
        run_dir: What the run's processes share.
        kept: Where a run leaves its libraries for the next one.
    """
    directory = run_dir / "runner-libraries"
    with FileLock(run_dir / "runner-libraries.lock"):
        found = kept / _digest()
        if not directory.exists() and found.exists():
            shutil.copytree(found, directory)
        if not directory.exists():
            work = run_dir / "runner-libraries.new"
            work.mkdir()
            headers = run_dir / "shared-cache" / "toolchain" / "headers"
            children = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.runner_libraries", work, headers, *half],
                    cwd=HERE.parents[1],
                    env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for half in HALVES
            ]
            compile_cpp(HERE / "thin_library.cpp", work / "thin.so")
            for child in children:
                output, _ = child.communicate(timeout=400)
                assert child.returncode == 0, output
            work.rename(directory)
            shutil.rmtree(kept, ignore_errors=True)
            # Not what Inductor keeps for itself.
            shutil.copytree(directory, kept / "new", ignore=shutil.ignore_patterns("inductor"))
            (kept / "new").rename(found)
    return Libraries(directory)


def _digest() -> str:
    """Return the digest of all that the libraries are made of."""
    sources = [HERE / "runner_libraries.py", HERE / "thin_library.cpp"]
    return json_digest(
        [
            *(hashlib.sha256(source.read_bytes()).hexdigest() for source in sources),
            *(torch.__version__, str(torch.version.git_version), torch.__file__, sys.version),
            *(str(compiler_identity()), os.environ.get("CXX", ""), sorted(cpu_features())),
        ]
    )


def compile_cpp(source: Path, target: Path, *options: str) -> Path:
    """Compile a source file into a shared object that may call torch's C functions."""
    root = Path(torch.__file__).parent
    subprocess.run(
        [
            os.environ.get("CXX", "g++"),
            "-std=c++17",
            "-O1",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            f"-I{root / 'include'}",
            str(source),
            f"-L{root / 'lib'}",
            "-ltorch_cpu",
            *options,
            "-o",
            str(target),
        ],
        check=True,
        capture_output=True,
    )
    return target


def _compile(directory: Path, headers: Path, names: list[str]) -> None:
    """Compile packages, in a process of its own."""
    import torch._inductor

    from aoti_eager._compile_worker import inductor_compat, inductor_headers

    # Those that the rest of the run uses; however busy the machine is, they are waited for.
    inductor_headers._LOCK_TIMEOUT_S = 400.0
    inductor_compat.use_headers(headers)
    # Not to compile and run a program for each instruction set that the CPU says it has.
    torch._inductor.config.cpp.vec_isa_ok = True
    define_hooked_op()
    for name in names:
        module: nn.Module = {"proxy": Hooked, "dynamic": Dynamic}.get(name, Served)()
        shapes = ({0: torch.export.Dim.DYNAMIC},) if name == "dynamic" else None
        program = torch.export.export(module, (X.clone(),), dynamic_shapes=shapes)
        path = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(directory / f"{name}.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0", **PACKAGES[name]},
        )
        (directory / name).mkdir()
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if "/data/aotinductor/model/" in member:
                    target = directory / name / Path(member).name
                    target.write_bytes(archive.read(member))


if __name__ == "__main__":
    _compile(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
