"""The tensors of a region's state: where each is, and the checks of those that are no inputs."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .guard_source import GuardSource, Input
from .stop import Stop


class GuardedTensors:
    """The tensors that a region can read, by the paths that lead to them.

    Args:
        guard: The lines of the function that checks the state.
        asks_for_gradients: Whether code that ran mentions ``requires_grad``.

    Attributes:
        paths: The path of each tensor, by the address of its ``TensorImpl``.
    """

    def __init__(self, guard: GuardSource, *, asks_for_gradients: bool) -> None:
        self.paths: dict[int, str] = {}
        self._guard = guard
        self._asks_for_gradients = asks_for_gradients
        self._sources: dict[str, str] = {}  # path -> the source that reads the tensor
        self._tensors: dict[str, Tensor] = {}  # by path

    def add(self, path: str, source: str, tensor: Tensor) -> None:
        """Add the tensor that ``source`` reads.

        Raises:
            Stop: Another tensor has this path.
        """
        impl = tensor._cdata
        first = self.paths.get(impl)
        if first is not None:
            # Tied: each place must still hold one and the same tensor.
            self._guard.check(f"{path} (tied)", f"{source} is {self._sources[first]}")
            return
        if path in self._sources:
            raise Stop("not_recorded", f"two attributes have the path {path}")
        self.paths[impl], self._sources[path], self._tensors[path] = path, source, tensor
        if self._asks_for_gradients:
            needs = f"{source}.requires_grad is {tensor.requires_grad}"
            self._guard.check(f"requires_grad of {path}", needs)

    def check_others(self, inputs: Collection[int | str]) -> None:
        """Check the tensors that are no inputs of the library."""
        for path, tensor in self._tensors.items():
            if path not in inputs:
                self._check_metadata(path, tensor)

    def input(self, path: str) -> Input:
        """Return an input of the library.

        C++ compares its metadata. A parameter may be set to None, and a tensor be replaced by one
        of a subclass.
        """
        return Input(path, self._sources[path], type(self._tensors[path]))

    def _check_metadata(self, path: str, tensor: Tensor) -> None:
        """Check a tensor that is no input: code may have asked for its type, device or sizes."""
        guard = self._guard
        local = guard.let(self._sources[path])
        parts = [
            f"ae_type({local}) is {guard.name(type(tensor))}",
            f"{local}.dtype is {guard.name(tensor.dtype)}",
            f"{local}.device == {guard.name(tensor.device)}",
            f"{local}.shape == {guard.name(tensor.shape)}",
        ]
        if tensor.layout is torch.strided:
            parts.append(f"{local}.stride() == {guard.name(tensor.stride())}")
        else:
            parts.append(f"{local}.layout is {guard.name(tensor.layout)}")
        guard.check(path, " and ".join(parts))
