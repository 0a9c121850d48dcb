"""The C++ kernel of one op at the autograd key, and what it was told of the op's calls."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from .._dispatch.kernel_cache import KernelCache
from .._keys.key_words import argument_kind, words_of_values
from .._keys.schema import OpSchema
from .._native.autograd_kernel import NativeAutogradKernel
from .node import JoinedCall

Caches = tuple[KernelCache, KernelCache]


class NativeJoins:
    """Which calls C++ joins with their backward kernels, and which it sends to the function.

    Args:
        schema: The op's schema.
        backward: Qualified name of the op of its gradient.
        function_op: Qualified name of an op that runs the op's function.
        decomposes: Whether traces, transforms and autocast see the ops that the op consists of even
            if no gradient is wanted.

    Attributes:
        kernel: The C++ kernel; ``None`` while Python alone serves.
    """

    def __init__(
        self, schema: OpSchema, backward: str, function_op: str, *, decomposes: bool
    ) -> None:
        self._schema = schema
        self._backward = backward
        self._function_op = function_op
        self._decomposes = decomposes
        self.kernel: NativeAutogradKernel | None = None
        self._told: list[JoinedCall] = []
        # Guards the C++ kernel and what it was told. Taken after a table's lock, where both are
        # held.
        self._lock = threading.RLock()
        _all.add(self)

    @property
    def nodes(self) -> int:
        """Return how many of C++'s autograd nodes may still call the backward op."""
        return 0 if self.kernel is None else self.kernel.nodes

    def attach(self, caches: Caches) -> None:
        """Put the C++ kernel into the dispatcher, if C++ serves the op and that of its gradient.

        No call of the op may run.

        Args:
            caches: The kernel caches of both ops.

        Raises:
            NativePathError: C++ cannot take the op over.
        """
        if self.kernel is not None or None in [one.native for one in caches]:
            return
        kernel = NativeAutogradKernel(
            self._schema.op,
            self._backward,
            self._function_op,
            [argument_kind(argument) for argument in self._schema.arguments],
            len(self._schema.returns),
            decomposes=self._decomposes,
        )
        try:
            kernel.install()
        except BaseException:
            kernel.close()
            raise
        self.kernel = kernel
        for cache in caches:
            cache.observers.append(self.refreshed)

    def close(self, caches: Caches | None) -> None:
        """Take the C++ kernel out of the dispatcher; no call of the op may run.

        Args:
            caches: As for ``attach``; ``None`` if one of the ops is not registered any more.
        """
        with self._lock:
            kernel, self.kernel = self.kernel, None
            if kernel is not None:
                kernel.close()
        for cache in caches or ():
            if self.refreshed in cache.observers:
                cache.observers.remove(self.refreshed)

    def tell(
        self, backward: KernelCache, call: JoinedCall, arguments: Sequence[Any], *, joined: bool
    ) -> None:
        """Let C++ join such calls, or send them to the function, until something else is decided.

        Another thread may decide at any time: a decision from before C++ was told is looked at
        again.
        """
        with self._lock:
            if self.kernel is None or call.is_native:
                return
            call.is_native = True
            self._told.append(call)
            put_call(self.kernel, self._schema, call, arguments, declined=not joined)
            if joined:
                is_so = backward.lookup(call.key) is not None
            else:
                is_so = not call.has_gradient or is_declined(backward, call.key)
            if not is_so:
                self.refreshed()

    def refreshed(self) -> None:
        """Have all calls decided on again: a setting has changed, or what serves the calls."""
        with self._lock:
            told, self._told = self._told, []
            if self.kernel is not None:
                self.kernel.clear()
            for call in told:
                call.is_native = False

    def decided(self) -> None:
        """Have the calls that C++ knows decided on again: a kernel may have come or gone."""
        with self._lock:
            if self._told:
                self.refreshed()

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent process may have held."""
        self._lock = threading.RLock()


def put_call(
    kernel: NativeAutogradKernel,
    schema: OpSchema,
    call: JoinedCall,
    arguments: Sequence[Any],
    *,
    declined: bool = False,
) -> None:
    """Tell a C++ kernel of a call: that its kernels are joined, or that its function runs.

    Args:
        kernel: The C++ kernel.
        schema: The op's schema.
        call: Calls of one key.
        arguments: All arguments of one such call, in the schema's order.
        declined: Whether the function runs.
    """
    words = words_of_values(schema, "CPU", arguments)
    if words is None:
        return
    needs = sum(need << index for index, need in enumerate(call.needs))
    words += needs.to_bytes(8, sys.byteorder)
    if declined:
        kernel.put_decline(words)
        return
    layouts: list[int] = []
    for (sizes, strides), differentiable in zip(call.layouts, call.differentiable, strict=True):
        layouts += (differentiable, len(sizes), *sizes, *strides)
    kernel.put(words, layouts)


def is_declined(cache: KernelCache, key: Any) -> bool:
    """Return whether a key has no kernel for now: it is with the compiler, or none pays off."""
    return key in cache.table.declines and key not in cache.table.candidates


_all: weakref.WeakSet[NativeJoins] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(_all):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
