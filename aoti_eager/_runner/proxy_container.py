"""torch's own runner behind our interface, for libraries that need more than C functions."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat import aotinductor
from ..errors import LibraryLoadError, LibraryRunError, RunnerError
from .abi import KernelLibrary
from .devices import Stream
from .library_container import LibraryContainer
from .tensor_handles import borrowed_handle, tensors_of


class ProxyContainer:
    """torch's own runner, for a library that the C functions do not suffice for.

    One kind of library calls ops without a C shim. A JSON file beside the library lists such ops,
    and an object calls them by name; the C interface has no function to make this object. Another
    kind has no C functions to change constants by (torch 2.12). torch's Python binding holds the
    GIL during a run.

    More than 12 methods, because it is a whole ``Container`` and must outlive a failed fold.
    """

    def __init__(
        self, library: KernelLibrary, num_models: int, device: torch.device, cubin_dir: Path | None
    ) -> None:
        nodes = library.path.with_suffix(".json")
        calls_by_name = library.file is not None and library.file.needs_proxy_executor
        if calls_by_name and not nodes.exists():
            raise LibraryLoadError(
                library.path,
                f"calls ops by name, and the file that lists them, {nodes.name}, is not beside it; "
                "load the .pt2 package instead, or keep AOTInductor's files together",
            )
        if device.type != "cpu":
            raise LibraryLoadError(
                library.path, f"calls ops by name, which is supported on cpu, not on {device.type}"
            )
        # The library's own container tells what torch's binding does not.
        own = LibraryContainer(library, 1, device, cubin_dir)
        self.input_names, self.output_names = own.input_names, own.output_names
        self.call_spec, self.constants = own.call_spec, own.constants
        own.close()
        self._name, self._path, self._num_models = library.name, library.path, num_models
        self._runner = self._new_runner()
        self._updated = False  # whether constants may differ from the library's own
        self._folded = True
        self._unfold()
        self._folding = threading.Lock()
        self._folding_thread: int | None = None

    def run(self, instance: int, inputs: list[Tensor], stream: Stream, boxed: bool) -> list[Tensor]:
        """Run one instance, of torch's choice."""
        if not self._folded:
            if self._folding_thread == get_ident():
                raise RunnerError(f"{self._name}: a run inside of the run that folds its constants")
            # torch's runner folds inside of the next run, under a lock of its own. If a Python op
            # releases the GIL there, another run would wait for that lock while it holds the GIL.
            with self._folding:
                if not self._folded:
                    self._folding_thread = get_ident()
                    try:
                        return self._run_and_fold(inputs, boxed)
                    finally:
                        self._folding_thread = None
        return self._run(inputs, boxed)

    def native_library(self, in_full: bool) -> None:
        """Return ``None``: only torch's runner can make the object that calls ops by name."""

    def _run_and_fold(self, inputs: list[Tensor], boxed: bool) -> list[Tensor]:
        self._open()
        try:
            outputs = self._run(inputs, boxed)
        except LibraryRunError:
            # If folding failed, torch's runner has lost an instance for good, and a later run would
            # wait for that instance. A new runner has the library's own constants, so it replaces
            # the old one only if these were in use.
            self._runner = None if self._updated else self._new_runner()
            raise
        self._folded = True
        return outputs

    def _new_runner(self) -> Any:
        try:
            return aotinductor.AOTIModelContainerRunnerCpu(str(self._path), self._num_models)
        except Exception as error:
            raise LibraryLoadError(self._path, f"cannot be loaded: {error}") from error

    def _run(self, inputs: list[Tensor], boxed: bool) -> list[Tensor]:
        try:
            with torch.no_grad():
                outputs: list[Tensor] = self._runner.run(inputs)
        except RuntimeError as error:
            message = str(error).split("\nException raised from")[0].strip()
            raise LibraryRunError(f"{self._name}: a run failed: {message}", message) from error
        if boxed:
            inputs.clear()
        return outputs

    def update(self, tensors: Mapping[str, Tensor], inactive: bool, user_managed: bool) -> None:
        """Put constants into a buffer: copies, or pointers to the user's memory."""
        if user_managed:
            tensors = {n: tensors_of([borrowed_handle(t)])[0] for n, t in tensors.items()}
        self._updated = True
        self._open().update_constant_buffer(dict(tensors), inactive, False, user_managed)
        self._unfold()

    def extract(self, inactive: bool) -> dict[str, Tensor]:
        """Return the constants of a buffer by name; they share its memory."""
        by_fqn = self._open().extract_constants_map(inactive)
        return {c.name: by_fqn[c.fqn] for c in self.constants if c.fqn in by_fqn and not c.folded}

    def fold(self, inactive: bool, stream: Stream) -> None:
        """Do nothing: torch's runner folds before the first run, and has no function for it."""

    def swap(self) -> None:
        """Exchange the buffers."""
        self._updated = True
        self._open().swap_constant_buffer()
        self._unfold()

    def free_inactive(self) -> None:
        """Free the inactive buffer's memory, unless the library has folded constants.

        The container keeps freed constants in its map, folded constants without their tensors, and
        its next update would read them. torch's runner has no function to fold them anew.
        """
        if not any(constant.folded for constant in self.constants):
            self._open().free_inactive_constant_buffer()

    def close(self) -> None:
        """Delete the instances."""
        self._runner = None

    def _unfold(self) -> None:
        self._folded = not any(constant.folded for constant in self.constants)

    def _open(self) -> Any:
        if self._runner is None:
            raise RunnerError(
                f"{self._name}: folding its constants failed before; torch's runner cannot be used "
                "after that: load it again"
            )
        return self._runner
