"""Our container, for a library that has only a model."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._native.runner import RunnerLibrary, WantedInput
from ..errors import LibraryLoadError
from .abi import LAST_ERROR, MODEL, KernelLibrary
from .constants import Constant, ConstantKind
from .container import named_handles, run_library
from .devices import Stream
from .tensor_handles import device_type_number, dtype_numbers, new_handles


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]
    strides: tuple[int | None, ...]

    def problem(self, tensor: Tensor) -> str | None:
        """Return what is wrong with ``tensor``, or ``None``."""
        if tensor.dtype != self.dtype:
            return f"has dtype {tensor.dtype}; {self.dtype} is wanted"
        sizes, strides = tuple(tensor.shape), tensor.stride()
        if len(sizes) != len(self.sizes) or any(
            want not in (None, got) for got, want in zip(sizes, self.sizes, strict=True)
        ):
            return f"has sizes {sizes}; {_wanted(self.sizes)} is wanted"
        # Strides of sizes 0 and 1 are never followed.
        if (
            any(
                size > 1 and want not in (None, got)
                for size, got, want in zip(sizes, strides, self.strides, strict=True)
            )
            and tensor.numel()
        ):
            return f"has strides {strides}; {_wanted(self.strides)} is wanted"
        return None


def _wanted(numbers: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if n is None else str(n) for n in numbers)})"


class ModelContainer:
    """Our container, for a library that has only a model: two buffers, ``num_models`` instances.

    The library exports ``aoti_eager_manifest``, a document of JSON::

        {"inputs": [{"name": "x", "dtype": "float32", "sizes": [8, null], "strides": [null, 1]}],
         "outputs": ["y"],
         "constants": [{"name": "w", "fqn": "l.w", "dtype": "float32", "sizes": [4],
                        "strides": [1], "kind": "parameter"}],
         "call_spec": ["", ""]}

    ``null`` is a size or stride that the code does not depend on.
    """

    def __init__(self, library: KernelLibrary, num_models: int) -> None:
        self._library = library
        try:
            manifest = json.loads(library.manifest)
            self._inputs = tuple(_manifest_input(one) for one in manifest["inputs"])
            self.input_names: tuple[str, ...] = tuple(one.name for one in self._inputs)
            self.output_names: tuple[str, ...] = tuple(manifest["outputs"])
            first, second = manifest.get("call_spec", ("", ""))
            self.call_spec: tuple[str, str] = (first, second)
            self.constants = tuple(_manifest_constant(one) for one in manifest["constants"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LibraryLoadError(
                library.path, f"its aoti_eager_manifest is wrong: {error!r}"
            ) from error
        self._run = library.function(f"{MODEL}Run")
        self._buffers: list[dict[str, Tensor]] = [{}, {}]  # active, inactive
        self._models: list[int] = []
        self._differ = False  # whether some models have constants that are not the active ones
        try:
            for _ in range(num_models):
                self._models.append(self._new_model())
        except BaseException:
            self.close()
            raise

    def run(self, instance: int, inputs: list[Tensor], stream: Stream, boxed: bool) -> list[Tensor]:
        """Run one instance."""
        model = self._models[instance]
        # AOTInductor's container switches grad off; a model by itself need not.
        with torch.no_grad():
            return run_library(
                lambda handles, outputs: int(self._run(model, handles, outputs)),
                self._library.check,
                inputs,
                len(self.output_names),
                boxed,
            )

    def native_library(self, in_full: bool) -> RunnerLibrary | None:
        """Return what C++ calls, and each model's handle; ``None`` for dtypes without a number."""
        numbers = dtype_numbers()
        if any(one.dtype not in numbers for one in self._inputs):
            return None
        wanted = [WantedInput(numbers[i.dtype], i.sizes, i.strides) for i in self._inputs]
        return RunnerLibrary(
            container_run=0,
            model_run=self._library.address(f"{MODEL}Run"),
            last_error=self._library.address(LAST_ERROR),
            inputs=len(self.input_names),
            outputs=len(self.output_names),
            device_type=device_type_number("cpu"),
            device_index=-1,
            handles=list(self._models),
            wanted=wanted if in_full else None,
        )

    def input_problem(self, inputs: Sequence[Tensor]) -> str | None:
        """Return what is wrong with a run's inputs, if anything: a thin library has no checks."""
        for index, (wanted, tensor) in enumerate(zip(self._inputs, inputs, strict=True)):
            problem = wanted.problem(tensor)
            if problem is not None:
                return f"input {index} ({wanted.name}): {problem}"
        return None

    def update(self, tensors: Mapping[str, Tensor], inactive: bool, user_managed: bool) -> None:
        """Put constants into a buffer: copies, or the user's own tensors."""
        kept = {n: t.detach() if user_managed else t.detach().clone() for n, t in tensors.items()}
        updated = self._buffers[inactive] | kept
        if not inactive:
            self._hand_over(updated)
        self._buffers[inactive] = updated

    def extract(self, inactive: bool) -> dict[str, Tensor]:
        """Return the constants of a buffer by name; they share its memory."""
        return dict(self._buffers[inactive])

    def fold(self, inactive: bool, stream: Stream) -> None:
        """Hand the constants to the models if that failed before; there is nothing to fold."""
        if self._differ and not inactive:
            self._hand_over(self._buffers[0])

    def swap(self) -> None:
        """Exchange the buffers."""
        self._hand_over(self._buffers[1])
        self._buffers.reverse()

    def free_inactive(self) -> None:
        """Free the inactive buffer's memory."""
        self._buffers[1] = {}

    def close(self) -> None:
        """Delete the instances."""
        models, self._models = self._models, []
        for model in models:
            self._library.call(f"{MODEL}Delete", "deleting a model", model)
        self._buffers = [{}, {}]

    def _new_model(self) -> int:
        handle = ctypes.c_void_p()
        self._library.call(f"{MODEL}CreateV2", "creating a model", ctypes.byref(handle), None, 0)
        assert handle.value is not None
        return handle.value

    def _hand_over(self, constants: Mapping[str, Tensor]) -> None:
        self._differ = True
        for model in self._models:
            # A model deletes its handles, so each model gets its own.
            pairs = named_handles(constants, new_handles(list(constants.values())))
            self._library.call(
                f"{MODEL}UpdateConstantsMapV2", "an update of constants", model, pairs, len(pairs)
            )
        self._differ = False


def _manifest_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch.{name} is no dtype")
    return dtype


def _manifest_input(one: Mapping[str, Any]) -> _Input:
    sizes, strides = tuple(one["sizes"]), tuple(one["strides"])
    if len(sizes) != len(strides):
        raise ValueError(f"input {one['name']}: {len(sizes)} sizes and {len(strides)} strides")
    return _Input(one["name"], _manifest_dtype(one["dtype"]), sizes, strides)


def _manifest_constant(one: Mapping[str, Any]) -> Constant:
    dtype = _manifest_dtype(one["dtype"])
    sizes, strides = tuple(one["sizes"]), tuple(one["strides"])
    extent = 0 if 0 in sizes else sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1
    return Constant(
        name=one["name"],
        fqn=one.get("fqn", one["name"]),
        dtype=dtype,
        size_bytes=extent * dtype.itemsize,
        kind=ConstantKind[one.get("kind", "unknown").upper()],
        folded=False,
        sizes=sizes,
        strides=strides,
        device=torch.device("cpu"),
    )
