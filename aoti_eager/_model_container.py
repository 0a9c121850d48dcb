"""Our container, for a library that has only a model."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._abi import MODEL, KernelLibrary
from ._constants import Constant, ConstantKind
from ._container import named_handles, run_library
from ._devices import Stream
from ._handles import new_handles
from .errors import LibraryLoadError


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    dtype: str
    sizes: list[int | None]
    strides: list[int | None]

    def problem(self, tensor: Tensor) -> str | None:
        """Return what is wrong with ``tensor``, or ``None``."""
        if tensor.dtype != getattr(torch, self.dtype):
            return f"has dtype {tensor.dtype}; torch.{self.dtype} is wanted"
        for what, got, want in (
            ("sizes", tuple(tensor.shape), self.sizes),
            ("strides", tensor.stride(), self.strides),
        ):
            if len(got) != len(want) or any(
                w not in (None, g) for g, w in zip(got, want, strict=True)
            ):
                wanted = ", ".join("any" if w is None else str(w) for w in want)
                return f"has {what} {tuple(got)}; ({wanted}) is wanted"
        return None


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
            self._inputs = tuple(_Input(**one) for one in manifest["inputs"])
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
        try:
            for _ in range(num_models):
                self._models.append(self._new_model())
        except BaseException:
            self.close()
            raise

    def run(self, instance: int, inputs: list[Tensor], stream: Stream, boxed: bool) -> list[Tensor]:
        """Run one instance."""
        model = self._models[instance]
        # The container of AOTInductor's does this; a model by itself need not.
        with torch.no_grad():
            return self._run_model(model, inputs, boxed)

    def _run_model(self, model: int, inputs: list[Tensor], boxed: bool) -> list[Tensor]:
        return run_library(
            lambda handles, outputs: int(self._run(model, handles, outputs)),
            self._library.check,
            inputs,
            len(self.output_names),
            boxed,
        )

    def input_problem(self, inputs: Sequence[Tensor]) -> str | None:
        """Return what is wrong with the inputs of a run: a thin library does not look."""
        for index, (wanted, tensor) in enumerate(zip(self._inputs, inputs, strict=True)):
            problem = wanted.problem(tensor)
            if problem is not None:
                return f"input {index} ({wanted.name}): {problem}"
        return None

    def update(self, tensors: Mapping[str, Tensor], inactive: bool, user_managed: bool) -> None:
        """Put constants into a buffer: copies, or the user's own tensors."""
        kept = {n: t.detach() if user_managed else t.detach().clone() for n, t in tensors.items()}
        self._buffers[inactive].update(kept)
        if not inactive:
            self._hand_over()

    def extract(self, inactive: bool) -> dict[str, Tensor]:
        """Return the constants of a buffer by name; they share its memory."""
        return dict(self._buffers[inactive])

    def fold(self, inactive: bool, stream: Stream) -> None:
        """Do nothing: a library without a container has no folded constants."""

    def swap(self) -> None:
        """Exchange the buffers."""
        self._buffers.reverse()
        self._hand_over()

    def free_inactive(self) -> None:
        """Let go of the inactive buffer's memory."""
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

    def _hand_over(self) -> None:
        active = self._buffers[0]
        for model in self._models:
            # The model deletes its handles, so each one gets its own.
            pairs = named_handles(active, new_handles(list(active.values())))
            self._library.call(
                f"{MODEL}UpdateConstantsMapV2", "an update of constants", model, pairs, len(pairs)
            )


def _manifest_constant(one: Mapping[str, Any]) -> Constant:
    dtype = getattr(torch, one["dtype"])
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
