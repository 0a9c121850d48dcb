"""A real device for the tests: ``hostaccel``, two devices whose memory is host memory.

It is an out-of-tree PrivateUse1 backend in C++ with allocator, device guard and kernels of its own.
PyTorch has room for one such backend in a process, for good: load it in a child process only.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import ninja
import torch
from filelock import FileLock
from torch.utils import cpp_extension

NAME = "hostaccel"
SOURCE = Path(__file__).with_name("host_device.cpp")

_extension: Any = None


def load(build_directory: Path | None = None) -> Any:
    """Build the extension, set the device up, and return the extension; once per process.

    Processes may share the directory: the first one builds, in some 20 seconds.

    Args:
        build_directory: Where to build it; by default a directory for this source and this torch
            below ``TORCH_EXTENSIONS_DIR`` or else the directory for temporary files.

    Returns:
        A module of

        - ``as_cpu(tensor)``: A CPU tensor over the memory of a device tensor, which it keeps alive.
        - ``from_cpu(tensor, index)``: The same in the other direction.
        - ``live_blocks()``: How many blocks of device memory are allocated.
        - ``kernel_calls()``: By name (``mul.Tensor``), how often a kernel of the device ran; only
          those for mul, add and silu count, and those that never ran are left out.
    """
    global _extension
    if _extension is None:
        _extension = _build(build_directory or _default_directory())
        torch.utils.rename_privateuse1_backend(NAME)
        torch._register_device_module(NAME, DeviceModule())
        torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return _extension


class DeviceModule(ModuleType):
    """``torch.hostaccel``. Random ops run on the CPU: its generator is the device's too."""

    def __init__(self) -> None:
        super().__init__(f"torch.{NAME}")

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def is_in_fork(self) -> bool:
        return False

    _is_in_bad_fork = is_in_fork

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return torch.accelerator.current_device_index()

    def set_device(self, device: int | str | torch.device) -> None:
        torch.accelerator.set_device_index(device)

    def synchronize(self, device: int | str | torch.device | None = None) -> None:
        """Do nothing: all work is done when a call returns."""

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    manual_seed_all = manual_seed

    class device:
        """Makes a device the current one of this thread for the time of a ``with`` statement."""

        def __init__(self, device: int | str | torch.device) -> None:
            self._device = device
            self._outer: list[int] = []

        def __enter__(self) -> None:
            self._outer.append(torch.accelerator.current_device_index())
            torch.accelerator.set_device_index(self._device)

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            torch.accelerator.set_device_index(self._outer.pop())


def _default_directory() -> Path:
    """Name a directory after all that the extension is built from: no stale build is loaded."""
    built_from = (SOURCE, SOURCE.read_text(), torch.__version__, sys.version)
    digest = hashlib.sha256(repr(built_from).encode()).hexdigest()[:16]
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root:
        return Path(root) / f"aoti_eager_host_device-{digest}"
    return Path(tempfile.gettempdir()) / f"aoti_eager_host_device-{os.getuid()}-{digest}"


def _build(directory: Path) -> Any:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():  # what lies in there is loaded
        raise PermissionError(f"{directory} belongs to somebody else")
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, path])  # the venv may not be activated
    try:
        with FileLock(directory / "build.lock"):
            # PyTorch's own lock: a process that was killed leaves it, and all others wait for it.
            (directory / "lock").unlink(missing_ok=True)
            return cpp_extension.load(
                name="aoti_eager_host_device",
                sources=[str(SOURCE)],
                build_directory=str(directory),
            )
    finally:
        os.environ["PATH"] = path
