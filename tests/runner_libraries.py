"""Kernel libraries for tests of the runner: made once a pytest run, in processes of their own.

A test process never imports Inductor: ``build`` starts this module as a script, once for each half
of the packages.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

HERE = Path(__file__).parent

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
        constants = {name: t for name, t in self.state_dict(keep_vars=True).items()}
        return served(x, constants | {"_tensor_constant0": torch.tensor(TABLE)})


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


def original_constants() -> dict[str, Tensor]:
    """Return the constants that ``Served`` was compiled with, by their names in the program."""
    tensors = {name: t.detach().clone() for name, t in Served().state_dict().items()}
    return tensors | {"_tensor_constant0": torch.tensor(TABLE)}


def filled_constants(value: int) -> dict[str, Tensor]:
    """Return constants that all are ``value``, laid out as the original ones."""
    return {name: torch.full_like(t, value) for name, t in original_constants().items()}


class Dynamic(nn.Module):
    """No constants; raises on NaN."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return twice ``x``, (n, 16), and its histogram."""
        return x * 2, torch.histc(x, bins=4)


class Hooked(nn.Module):
    """Calls Python out of a run, and out of the folding of its constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(16.0) + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two things from ``x``: (8, 16)."""
        ops = torch.ops.aoti_eager_tests
        return ops.hooked(x) * self.weight, x + ops.hooked_fold(self.weight)


# What the two ops of ``Hooked`` call with their argument, in the middle of a run.
hooks: dict[str, Callable[[Tensor], None]] = {}


@functools.cache
def define_hooked_ops() -> None:
    """Define the ops that ``Hooked`` calls: they return a copy."""

    def define(name: str) -> None:
        @torch.library.custom_op(f"aoti_eager_tests::{name}", mutates_args=())
        def op(x: Tensor) -> Tensor:
            hooks.get(name, lambda _: None)(x)
            return x.clone()

        op.register_fake(torch.empty_like)

    define("hooked")
    define("hooked_fold")


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


def build(run_dir: Path) -> Libraries:
    """Return the libraries, made by the first of a run's processes that asks."""
    directory = run_dir / "runner-libraries"
    with FileLock(run_dir / "runner-libraries.lock"):
        if not directory.exists():
            work = run_dir / "runner-libraries.new"
            work.mkdir()
            headers = run_dir / "shared-cache" / "toolchain" / "headers"
            children = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.runner_libraries", work, headers, *half],
                    cwd=HERE.parent,
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
    return Libraries(directory)


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

    from aoti_eager import _inductor_compat

    # Those that the rest of the run uses.
    _inductor_compat.use_headers(headers)
    define_hooked_ops()
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
