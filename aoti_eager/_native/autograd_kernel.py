"""The C++ kernel at the autograd key, which connects an op's forward and backward kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .library import functions, last_error


class NativeAutogradKernel:
    """The boxed C++ kernel of one op at the autograd key; see ``csrc/gradient.h``.

    Args:
        op: Qualified name of the op.
        backward: Qualified name of the op of its gradient.
        function: Qualified name of an op that runs the ops that ``op`` consists of.
        kinds: For each argument, the number from ``argument_kind``; no argument is written to.
        results: How many tensors the op returns.
        decomposes: Whether traces, transforms and autocast see the ops that ``op`` consists of.

    Raises:
        NativePathError: One of the ops does not exist.
    """

    def __init__(
        self,
        op: str,
        backward: str,
        function: str,
        kinds: Sequence[int],
        results: int,
        *,
        decomposes: bool = False,
    ) -> None:
        name, _, overload = op.partition(".")
        self._name = op
        self._pointer: int | None = functions().ae_autograd_new(
            name.encode(),
            overload.encode(),
            backward.encode(),
            function.encode(),
            bytes(kinds),
            bytes(len(kinds)),
            len(kinds),
            results,
            decomposes,
        )
        if not self._pointer:
            raise last_error(op, "cannot be differentiated")

    def install(self) -> None:
        """Register the C++ kernel; the kernel registered before gets the calls that are not known.

        Raises:
            NativePathError: The kernel cannot be registered.
        """
        if functions().ae_autograd_install(self._pointer):
            raise last_error(self._name, "cannot be registered at the autograd key")

    def put(self, key: bytes, layouts: Sequence[int]) -> None:
        """Connect forward and backward of calls of ``key``.

        Args:
            key: The words of ``native_key``, and a word with one bit for each tensor's gradient.
            layouts: For each result: whether it is differentiable, its number of dimensions, its
                sizes, its strides.
        """
        if self._pointer:
            numbers = (ctypes.c_int64 * len(layouts))(*layouts)
            address = ctypes.addressof(numbers)
            functions().ae_autograd_put(self._pointer, key, len(key) // 8, address)

    @property
    def nodes(self) -> int:
        """Return how many autograd nodes exist that may still call the backward op."""
        return int(functions().ae_autograd_nodes(self._pointer)) if self._pointer else 0

    def put_decline(self, key: bytes) -> None:
        """Send calls of ``key`` to the op's function."""
        if self._pointer:
            functions().ae_autograd_put_decline(self._pointer, key, len(key) // 8)

    def clear(self) -> None:
        """Forget all keys: every call is Python's to decide on."""
        if self._pointer:
            functions().ae_autograd_clear(self._pointer)

    def close(self) -> None:
        """Take the kernel out of the dispatcher and free it; no call of the op may be running."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            functions().ae_autograd_uninstall(pointer)
            functions().ae_autograd_delete(pointer)
