"""torch's own runner behind our interface, for libraries that need its proxy executor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import _compat
from ._abi import KernelLibrary
from ._devices import Stream
from ._handles import borrowed_handle, tensors_of
from ._library_container import LibraryContainer
from .errors import LibraryLoadError, LibraryRunError


class ProxyContainer:
    """torch's own runner, for a library that calls ops without a C shim.

    Such ops are called by name from a file of JSON beside the library, by an object that C has no
    function to make. torch's Python binding holds the GIL for the length of a run.
    """

    def __init__(
        self, library: KernelLibrary, num_models: int, device: torch.device, cubin_dir: Path | None
    ) -> None:
        nodes = library.path.with_suffix(".json")
        if not nodes.exists():
            raise LibraryLoadError(
                library.path,
                f"calls ops by name, and the file that lists them, {nodes.name}, is not beside it; "
                "load the .pt2 package instead, or keep AOTInductor's files together",
            )
        if device.type != "cpu":
            raise LibraryLoadError(
                library.path, f"calls ops by name, which is supported on cpu, not on {device.type}"
            )
        # Its own container knows what torch's binding does not tell.
        own = LibraryContainer(library, 1, device, cubin_dir)
        self.input_names, self.output_names = own.input_names, own.output_names
        self.call_spec, self.constants = own.call_spec, own.constants
        own.close()
        self._path = library.path
        try:
            self._runner = _compat.AOTIModelContainerRunnerCpu(str(library.path), num_models)
        except Exception as error:
            raise LibraryLoadError(library.path, f"cannot be loaded: {error}") from error

    def run(self, instance: int, inputs: list[Tensor], stream: Stream, boxed: bool) -> list[Tensor]:
        """Run one instance, of torch's choice."""
        try:
            with torch.no_grad():
                outputs: list[Tensor] = self._runner.run(inputs)
        except RuntimeError as error:
            message = str(error).split("\nException raised from")[0]
            raise LibraryRunError(f"{self._path.name}: a run failed: {message}", message) from error
        if boxed:
            inputs.clear()
        return outputs

    def update(self, tensors: Mapping[str, Tensor], inactive: bool, user_managed: bool) -> None:
        """Put constants into a buffer: copies, or pointers to the user's memory."""
        if user_managed:
            tensors = {n: tensors_of([borrowed_handle(t)])[0] for n, t in tensors.items()}
        self._runner.update_constant_buffer(dict(tensors), inactive, False, user_managed)

    def extract(self, inactive: bool) -> dict[str, Tensor]:
        """Return the constants of a buffer by name; they share its memory."""
        by_fqn = self._runner.extract_constants_map(inactive)
        return {c.name: by_fqn[c.fqn] for c in self.constants if c.fqn in by_fqn and not c.folded}

    def fold(self, inactive: bool, stream: Stream) -> None:
        """Do nothing: torch's runner folds before the first run, and has no function for it."""

    def swap(self) -> None:
        """Exchange the buffers."""
        self._runner.swap_constant_buffer()

    def free_inactive(self) -> None:
        """Let go of the inactive buffer's memory."""
        self._runner.free_inactive_constant_buffer()

    def close(self) -> None:
        """Delete the instances."""
        del self._runner
