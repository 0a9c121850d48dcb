"""Load a kernel library and run it: several instances, hot-swapped constants, no GIL.

``ModelContainerRunner`` is AOTInductor's runner for Python. Its runs hold no GIL and disable grad;
a pool in front of the container keeps runs apart from changes of constants and from ``close``.

Longer than 350 lines, because most lines describe the methods of one public class to their users.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .._native import runner as native_runner
from ..errors import (
    InputTypeError,
    LibraryLoadError,
    LibraryRunError,
)
from .abi import CONSTANTS_FUNCTIONS, KernelLibrary, closed
from .constant_buffers import ConstantBuffers
from .constants import Constant
from .container import Container
from .devices import Stream, resolve_device, stream_address
from .given_inputs import check_given, raise_in_words
from .input_checks import first_run, is_settled
from .instance_pool import InstancePool, Lease
from .library_container import LibraryContainer
from .model_container import ModelContainer
from .native_runs import NativeRuns, native_runs
from .package import check_metadata, is_package, unpack
from .proxy_container import ProxyContainer


class ModelContainerRunner:
    """A loaded kernel library: ``num_models`` instances over one set of constants.

    Thread-safe. Each run borrows an instance and gives it back, also when the run raises. A run
    that finds no free instance waits, first come, first served. A CPU library's instances share
    only the constants, so ``num_models`` threads run at the same time.

    Args:
        library: A ``.pt2`` package, or a shared object: AOTInductor's, or a thin one that has a
            model but no container.
        num_models: How many runs there may be at a time, at least 1.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"xpu"``; without an index, the current
            device.
        cubin_dir: Where a GPU library's kernels lie, if not beside it.
        model_name: Which model of a package.
        check_inputs: Whether each run checks dtypes, sizes, strides and devices of its inputs
            before it reads them. Without the checks, AOTInductor's libraries read whatever they
            get.

    Attributes:
        device: The device it runs on, with its index.
        num_models: As given.

    Raises:
        LibraryLoadError: The file is no kernel library for this machine and device.
        MissingSymbolError: It is a shared object of another kind.
        ValueError: ``num_models`` is less than 1, or ``device`` is no device.

    More than 12 methods, because it has those of AOTInductor's C++ runner, under the same names.
    """

    def __init__(
        self,
        library: str | os.PathLike[str],
        num_models: int = 1,
        device: str | torch.device = "cpu",
        cubin_dir: str | os.PathLike[str] | None = None,
        *,
        model_name: str = "model",
        check_inputs: bool = True,
    ) -> None:
        if isinstance(num_models, bool) or not isinstance(num_models, int) or num_models < 1:
            raise ValueError(f"num_models is {num_models!r}; an int of at least 1 is wanted")
        self._path = Path(library)
        self.device = resolve_device(device)
        self.num_models = num_models
        package = unpack(self._path, model_name) if is_package(self._path) else None
        if package is not None:
            check_metadata(self._path, package, self.device)
        path = package.library if package is not None else self._path.absolute()
        directory = package.directory if package is not None else None
        self._library = KernelLibrary(path, device_type=self.device.type, name=self._path.name)
        self._check_inputs = check_inputs
        self._pool = InstancePool(num_models, self._path.name)
        self._pid = os.getpid()
        self._container: Container | None = None
        self._native_runs: NativeRuns | None = None
        self._has_native_runs = False  # whether it is known if there are any
        self._container = self._load(Path(cubin_dir) if cubin_dir is not None else directory)
        self._buffers = ConstantBuffers(self._container, self._pool, self._path.name, self.device)
        if package is not None and package.weights is not None:
            self.update_constant_buffer_from_blob(package.weights)

    # -- running --

    def run(self, inputs: Sequence[Tensor], stream: Any = None) -> list[Tensor]:
        """Return the outputs of a run on ``inputs``; waits for a free instance.

        Args:
            inputs: The program's inputs, flattened, on the runner's device.
            stream: A ``torch.cuda.Stream`` or ``torch.xpu.Stream``, or the address of the driver's
                stream; by default the current stream of the runner's device.

        Raises:
            InputError: Number, dtype, sizes, strides or device of the inputs are wrong.
            InputTypeError: An input is no tensor.
            MissingConstantsError: Constants have no values yet.
            LibraryRunError: The library raised; its message.
            RunnerError: The runner is closed.
        """
        native = self._native_runs
        if native is not None and stream is None and type(inputs) is list:
            outputs = native.run(inputs)
            if outputs is not None:
                return outputs
        if isinstance(inputs, Tensor):
            raise InputTypeError(
                f"{self._path.name}: got a tensor; a list of tensors is wanted, run([x])"
            )
        return self._run(list(inputs), stream, boxed=False)

    def boxed_run(self, inputs: list[Tensor], stream: Any = None) -> list[Tensor]:
        """Return the outputs of a run that takes its inputs over.

        The list is emptied, and each tensor that nobody else holds is freed as soon as the library
        is done with it. A call that is refused (wrong inputs) leaves the list as it is.

        Args:
            inputs: A list, and nothing else, of what ``run`` takes.
            stream: As for ``run``.

        Raises:
            InputTypeError: ``inputs`` is no list, or an input is no tensor.
            InputError: Number, dtype, sizes, strides or device of the inputs are wrong.
            MissingConstantsError: Constants have no values yet.
            LibraryRunError: The library raised; its message.
            RunnerError: The runner is closed.
        """
        if type(inputs) is not list:
            raise InputTypeError(
                f"{self._path.name}: boxed_run takes a list, which it empties; got "
                f"{type(inputs).__name__}"
            )
        native = self._native_runs
        if native is not None and stream is None:
            outputs = native.run(inputs, boxed=True)
            if outputs is not None:
                return outputs
        return self._run(inputs, stream, boxed=True)

    def _run(self, inputs: list[Tensor], stream: Any, boxed: bool) -> list[Tensor]:
        check_given(self._path.name, self._open(), self.device, inputs, in_full=self._check_inputs)
        address = stream_address(self._path.name, self.device, stream)
        while True:
            lease = Lease()
            try:
                try:
                    instance = self._pool.borrow(lease)
                    container = self._open()  # The runner may be closed while this call waits.
                    if self._buffers.ready:
                        return self._run_instance(container, instance, inputs, address, boxed)
                finally:
                    self._pool.give_back(lease)
            except BaseException:
                self._pool.give_back(lease)  # Ctrl-C may have come while the lease was given back.
                raise
            self._buffers.prepare(address)

    def _run_instance(
        self, container: Container, instance: int, inputs: list[Tensor], stream: Stream, boxed: bool
    ) -> list[Tensor]:
        try:
            # ``check_given`` has checked a thin library's inputs.
            checks = self._check_inputs and not isinstance(container, ModelContainer)
            if checks and not is_settled(self._library):
                with first_run(self._library):
                    return container.run(instance, inputs, stream, boxed)
            if not self._has_native_runs and native_runner.can_run():
                self._begin_native_runs(container)
            return container.run(instance, inputs, stream, boxed)
        except LibraryRunError as error:
            raise_in_words(self._path.name, container.input_names, error)

    def _begin_native_runs(self, container: Container) -> None:
        """Have C++ do what it can from the next run on; this thread has an instance."""
        self._native_runs = native_runs(
            self._library, container, self._pool, self._buffers, self.device, self._check_inputs
        )
        self._has_native_runs = True

    # -- constants --

    @property
    def constants(self) -> tuple[Constant, ...]:
        """Return what the library says of its constants: names, dtypes, sizes, kinds."""
        return self._open().constants

    def constant_names_to_original_fqns(self) -> dict[str, str]:
        """Return each constant's name in the exported program (``l.weight``), by its own name."""
        return {c.name: c.fqn for c in self.constants}

    def constant_names_to_dtypes(self) -> dict[str, torch.dtype]:
        """Return the dtype of each constant by its name in the library."""
        return {c.name: c.dtype for c in self.constants}

    def extract_constants_map(self, use_inactive: bool = False) -> dict[str, Tensor]:
        """Return copies of the constants of a buffer by their names in the exported program.

        Folded constants are left out. The inactive buffer has none before it is updated.

        Args:
            use_inactive: Read the buffer that is not in use.

        Returns:
            Tensors with the constants' own sizes and dtypes, on the runner's device.

        Raises:
            RunnerError: The runner is closed.
        """
        self._open()
        return self._buffers.extract(use_inactive)

    def update_constant_buffer(
        self,
        constants: Mapping[str, Tensor],
        use_inactive: bool = False,
        validate_full_update: bool = True,
        user_managed: bool = False,
    ) -> None:
        """Put new constants into a buffer.

        An update of the active buffer waits for running calls and keeps new calls waiting. An
        update of the inactive buffer leaves calls alone.

        Args:
            constants: Tensors by name: a constant's name in the library or in the exported program.
                Sizes and dtype must be the constant's. The tensors are copied, whatever their
                strides and device.
            use_inactive: Update the buffer that is not in use, until ``swap_constant_buffer``.
            validate_full_update: Whether every parameter must be given. Buffers and
                ``_tensor_constant*`` may be missing, with a warning; they keep their values.
            user_managed: Point to the given tensors instead of copying them. The runner keeps the
                tensors alive; writing to them changes what runs compute (folded constants only
                after ``run_const_fold``).

        Raises:
            UnknownConstantError: A name is no constant of the library. Weights of up to eight
                elements are constants only where the model was compiled with
                ``always_keep_tensor_constants``.
            MissingConstantsError: ``validate_full_update``, and parameters are missing.
            ConstantError: A tensor's dtype, sizes or layout is wrong; nothing was updated.
            RunnerError: The runner is closed.
        """
        self._open()
        self._buffers.update(constants, use_inactive, validate_full_update, user_managed)

    def update_inactive_constant_buffer(self, constants: Mapping[str, Tensor]) -> None:
        """Put a full set of constants into the inactive buffer; running calls are left alone.

        Args:
            constants: As for ``update_constant_buffer``.

        Raises:
            UnknownConstantError: A name is no constant of the library.
            MissingConstantsError: Parameters are missing.
            ConstantError: A tensor's dtype, sizes or layout is wrong; nothing was updated.
            RunnerError: The runner is closed.
        """
        self._open()
        # Not through ``update_constant_buffer``: a warning must show this method's caller.
        self._buffers.update(constants, True, True, False)

    def update_constant_buffer_from_blob(
        self, path: str | os.PathLike[str], use_inactive: bool = False
    ) -> None:
        """Load all constants from the file that AOTInductor writes for ``"binary_blob"``.

        Args:
            path: The file, ``aot_inductor.package_constants_on_disk_format`` at the compile.
            use_inactive: Load into the buffer that is not in use.

        Raises:
            ConstantError: The file has another size, or the library has no such file.
            OSError: The file cannot be read.
            RunnerError: The runner is closed.
        """
        self._open()
        self._buffers.update_from_blob(path, use_inactive)

    def run_const_fold(self, use_inactive: bool = False, stream: Any = None) -> None:
        """Compute the folded constants of a buffer now, instead of before its next run.

        Args:
            use_inactive: Fold the constants of the buffer that is not in use.
            stream: As for ``run``.

        Raises:
            MissingConstantsError: Constants of the buffer have no values.
            LibraryRunError: The library raised.
            RunnerError: The runner is closed.
        """
        self._open()
        address = stream_address(self._path.name, self.device, stream)
        self._buffers.fold(use_inactive, address)

    def swap_constant_buffer(self) -> None:
        """Exchange the active and the inactive buffer; waits for running calls.

        Raises:
            MissingConstantsError: Constants of the inactive buffer have no values.
            RunnerError: The runner is closed.
        """
        self._open()
        self._buffers.swap()

    def free_inactive_constant_buffer(self) -> None:
        """Free the inactive buffer's memory; before a swap, the buffer needs a new update.

        Raises:
            RunnerError: The runner is closed.
        """
        self._open()
        self._buffers.free_inactive()

    # -- what the library says of itself --

    def get_call_spec(self) -> list[str]:
        """Return the serialized pytree specs of the program's inputs and of its outputs."""
        return list(self._open().call_spec)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Return the names of the inputs, in their order."""
        return self._open().input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs, in their order."""
        return self._open().output_names

    @property
    def num_inputs(self) -> int:
        """Return how many inputs a run takes."""
        return len(self.input_names)

    @property
    def num_outputs(self) -> int:
        """Return how many outputs a run gives."""
        return len(self.output_names)

    # -- the end --

    def close(self) -> None:
        """Wait for running calls, then delete instances and constants; later calls do nothing."""
        with self._buffers.changing():
            if self._container is None:
                return
            with self._pool.all_instances():
                container, self._container = self._container, None
                if self._native_runs is not None:
                    self._native_runs.close()
                self._buffers.close()
                container.close()
            self._library.close()

    def __enter__(self) -> ModelContainerRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # No thread runs the library, so there is nothing to wait for.
        container = getattr(self, "_container", None)
        # A forked child must not delete its copy of a GPU's objects.
        if container is not None and self._pid == os.getpid() and not sys.is_finalizing():
            self._container = None
            if self._native_runs is not None:
                self._native_runs.close()
            container.close()
            self._library.close()

    def __repr__(self) -> str:
        state = "closed" if self._container is None else f"num_models={self.num_models}"
        return f"<ModelContainerRunner {self._path.name} on {self.device}, {state}>"

    # -- parts --

    def _load(self, cubin_dir: Path | None) -> Container:
        library, count = self._library, self.num_models
        try:
            if not library.has_container:
                return ModelContainer(library, count)
            if library.file is not None and library.file.needs_proxy_executor:
                return ProxyContainer(library, count, self.device, cubin_dir)
            if not all(map(library.has, CONSTANTS_FUNCTIONS)) and self.device.type == "cpu":
                return ProxyContainer(library, count, self.device, cubin_dir)
            return LibraryContainer(library, count, self.device, cubin_dir)
        except LibraryRunError as error:
            raise LibraryLoadError(self._path, f"cannot be loaded: {error}") from error

    def _open(self) -> Container:
        container = self._container
        if container is None:
            raise closed(self._path)
        return container
