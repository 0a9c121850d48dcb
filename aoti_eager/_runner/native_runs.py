"""Runs in C++, as long as nothing is out of the ordinary.

Python runs what C++ leaves: a runner's first run, inputs that are wrong or of a kind that only
Python can judge, a run that must wait for an instance, constants that are not ready.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._native.runner import NativeRunner
from ..errors import NativePathError
from .abi import KernelLibrary, complete_message
from .constant_buffers import ConstantBuffers
from .container import Container
from .devices import stream_address
from .given_inputs import raise_in_words
from .instance_pool import InstancePool


class NativeRuns:
    """The runs of one ``ModelContainerRunner`` that C++ does.

    Args:
        library: The opened library.
        native: The C++ side of the library's runs.
        names: The names of the inputs.
        pool: The instances.
        buffers: The constants.
        device: The device that the library runs on.
    """

    def __init__(
        self,
        library: KernelLibrary,
        native: NativeRunner,
        names: tuple[str, ...],
        pool: InstancePool,
        buffers: ConstantBuffers,
        device: torch.device,
    ) -> None:
        self._library = library
        self._native = native  # which the functions need
        self._run, self._boxed_run = native.run, native.boxed_run
        self._names = names
        self._pool = pool
        self._device = None if device.type == "cpu" else device
        pool.lend_to_native(lambda: buffers.ready)

    def run(self, inputs: list[Tensor], boxed: bool = False) -> list[Tensor] | None:
        """Return the outputs of a run on the current stream; ``None`` if Python must run.

        After ``None``, nothing ran, and ``inputs`` is as it was.

        Args:
            inputs: The inputs.
            boxed: Whether to take the inputs over and empty the list.

        Raises:
            InputError: The library refused an input.
            LibraryRunError: The library raised; its message.
        """
        stream = 0 if self._device is None else self._current_stream(self._device)
        run = self._boxed_run if boxed else self._run
        pool = self._pool
        try:
            try:
                outputs = run(inputs, stream)
            finally:
                if not pool.is_lending:
                    pool.collect()
        except BaseException:
            pool.collect()  # Ctrl-C may have come before, or in the middle of it.
            raise
        if outputs is False:
            error = self._library.error("a run", complete_message(self._native.last_message()))
            raise_in_words(self._library.name, self._names, error)
        return outputs

    def close(self) -> None:
        """Leave all later runs to Python; the caller holds all instances, or nobody runs."""
        self._pool.stop_lending()

    def _current_stream(self, device: torch.device) -> int:
        return stream_address(self._library.name, device, None) or 0


def native_runs(
    library: KernelLibrary,
    container: Container,
    pool: InstancePool,
    buffers: ConstantBuffers,
    device: torch.device,
    in_full: bool,
) -> NativeRuns | None:
    """Return the runs that C++ does for a runner; ``None`` if C++ can do none.

    Args:
        library: The opened library.
        container: The loaded library; not closed meanwhile.
        pool: The instances.
        buffers: The constants.
        device: The device that the library runs on.
        in_full: Whether dtypes, sizes and strides of inputs are checked.
    """
    found = container.native_library(in_full)
    if found is None:
        return None
    try:
        native = NativeRunner(found, pool.cells)
    except NativePathError:
        return None
    return NativeRuns(library, native, container.input_names, pool, buffers, device)
