"""Gradients of an op with a Python function: a compiled backward beside the compiled forward.

This is the kernel at the autograd key. If no gradient is asked for, the op's kernels below serve.
If a gradient is asked for, and the backward kernel of such a call exists, an autograd node joins
forward and backward; the node keeps the arguments and nothing else. In all other cases the function
itself runs, and autograd follows it: while the kernel is being made, if it lost its measurement,
under transforms, traces and autocast, and for the second derivative.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .._base.torch_compat import autograd
from .._base.torch_compat.dispatcher import OpOverload
from .._dispatch.kernel import Kernel
from .._dispatch.kernel_cache import KernelCache
from .._dispatch.key_state import COMPILING, RARE
from .._dispatch.table import Table
from .._functions.gradient import GradientFunction
from .._keys.schema import OpSchema, qualified_name
from ..config import config
from .followed import must_decompose, must_not_save
from .native_joins import NativeJoins, is_declined
from .node import (
    GradientNode,
    JoinedCall,
    Pair,
    listed,
)

# If random numbers were drawn in so many first calls of a key, the function draws them.
_MOST_DRAWN = 8


class AutogradKernel:
    """The kernel of one op at the autograd key.

    Args:
        op: The op.
        schema: Its schema.
        function: What a call computes, with its errors.
        gradient: The gradient of ``function``.
        backward: The op of the gradient.
        caches: Gives the kernel caches of the op and of ``backward``, where they are registered.
        function_op: Qualified name of an op that runs ``function``.
        decomposes: Whether traces, transforms and autocast see the ops that the op consists of even
            if no gradient is wanted.
    """

    def __init__(
        self,
        op: OpOverload,
        schema: OpSchema,
        function: Callable[..., Any],
        gradient: GradientFunction,
        backward: OpOverload,
        caches: Callable[[], tuple[KernelCache, KernelCache] | None],
        *,
        function_op: str,
        decomposes: bool = False,
    ) -> None:
        self.op = op
        keywords = [a.name for a in schema.arguments if a.kwarg_only]
        self._pair = Pair(op, backward, tuple(gradient.signature.tensors), tuple(keywords))
        self._function = function
        self._caches = caches
        self._defaults = [a.default if a.has_default else None for a in schema.arguments]
        self._schema = schema
        self._decomposes = decomposes
        self._table: Table | None = None
        self._calls: dict[Any, JoinedCall] = {}
        self._drawn: Counter[Any] = Counter()
        self._native = NativeJoins(
            schema, qualified_name(backward), function_op, decomposes=decomposes
        )
        _all.add(self)

    def __call__(self, keyset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the op's result, with a gradient if one is wanted."""
        tensors: list[Any] = []
        if self._decomposes or torch.is_grad_enabled():
            arguments = self._by_place(args, kwargs)
            tensors = [arguments[place] for place in self._pair.tensors]
        needs = [one is not None and one.requires_grad for one in tensors]
        if True not in needs or not torch.is_grad_enabled():
            if autograd.is_transforming() or (self._decomposes and must_decompose(tensors)):
                return self._function(*args, **kwargs)
            return autograd.redispatch_below_autograd(self.op, keyset, args, kwargs)
        caches = self._caches()
        if caches is None or must_decompose(tensors) or must_not_save(tensors):
            return self._function(*args, **kwargs)
        forward, backward = caches
        if backward.table is not self._table:
            self._listen_to(backward.table)
        if forward.bypassed or backward.bypassed:
            return self._function(*args, **kwargs)
        try:
            forward_key = forward.key(*args, **kwargs)
        except RuntimeError:  # Torch refuses to tell a setting; see ``KernelCache.no_key``.
            return self._function(*args, **kwargs)
        key = (*needs, *forward_key)
        call = self._calls.get(key)
        if call is None and len(self._calls) >= config.static_cap:
            return self._function(*args, **kwargs)  # Calls keep changing, and have their kernels.
        if call is None:
            return self._first(key, forward_key, caches, arguments, needs, args, kwargs)
        if backward.lookup(call.key) is not None:
            if self._native.kernel is not None and not call.is_native:
                self._native.tell(backward, call, arguments, joined=True)
            return GradientNode.apply(call, *arguments)  # type: ignore[no-untyped-call]
        result = self._function(*args, **kwargs)
        if not call.has_gradient or is_declined(backward, call.key):
            if self._native.kernel is not None and not call.is_native:
                self._native.tell(backward, call, arguments, joined=False)
        else:
            call.ask(backward, arguments, listed(result))
        return result

    def attach_native(self) -> None:
        """Let C++ join forward and backward of compiled calls; no call of the op may run.

        Raises:
            NativePathError: C++ cannot take the op over.
        """
        caches = self._caches()
        if caches is not None:
            self._native.attach(caches)

    @property
    def name(self) -> str:
        """Return the op's qualified name."""
        return self._schema.op

    @property
    def is_open(self) -> bool:
        """Return whether its op, and that of the gradient, are registered."""
        return self._caches() is not None

    @property
    def nodes(self) -> int:
        """Return how many autograd nodes may still call the backward op."""
        return len(self._pair.alive) + self._native.nodes

    def explained(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return what becomes of the gradient of a call, in words; ``None`` if none is wanted."""
        arguments = self._by_place(args, kwargs)
        tensors = [arguments[place] for place in self._pair.tensors]
        needs = [one is not None and one.requires_grad for one in tensors]
        caches = self._caches()
        if caches is None or True not in needs or not torch.is_grad_enabled():
            return None
        forward, backward = caches
        if must_decompose(tensors) or must_not_save(tensors):
            return "autograd follows the function: of such calls it has to"
        if forward.bypassed or backward.bypassed:
            return "autograd follows the function: the op's kernels are switched off"
        try:
            key = (*needs, *forward.key(*args, **kwargs))
        except RuntimeError as error:
            return f"autograd follows the function: {error}"
        is_known = backward.table is self._table
        call = self._calls.get(key) if is_known else None
        if call is None and is_known and len(self._calls) >= config.static_cap:
            return "autograd follows the function: there are static_cap kinds of such calls already"
        if call is None and is_known and key in self._drawn:
            return "autograd follows the function: it draws random numbers, as it seems"
        if call is None:
            return "no such call has wanted a gradient yet: the first asks for a backward kernel"
        if not call.has_gradient:
            return "autograd follows the function: no result has a gradient that a kernel may give"
        state = backward.state_of(call.key)
        if isinstance(state, Kernel):
            return "a backward kernel serves it"
        if (
            state is None
            or state.reason in (COMPILING, RARE)
            or call.key in backward.table.candidates
        ):
            return "autograd follows the function: the backward kernel is not there yet"
        return (
            "autograd follows the function: its backward kernel is declined "
            f"({state.reason}): {state.message}"
        )

    def close(self) -> None:
        """Take C++'s kernel out of the dispatcher; no call of the op may run."""
        self._listen_to(None)  # A worker may be deciding on a call.
        self._native.close(self._caches())

    def _listen_to(self, table: Table | None) -> None:
        """Start over with the calls of ``table``, and be told of its changes."""
        before, self._table, self._calls = self._table, table, {}
        self._drawn.clear()
        if before is not None:
            before.tell(None)
        if table is not None:
            table.tell(self._native.decided)

    def _by_place(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return all arguments in the schema's order, as the dispatcher has filled them in."""
        split = len(self._defaults) - len(self._pair.keywords)
        keywords = zip(self._pair.keywords, self._defaults[split:], strict=True)
        return [
            *args,
            *self._defaults[len(args) : split],
            *(kwargs.get(name, default) for name, default in keywords),
        ]

    def _first(
        self,
        key: Any,
        forward_key: Any,
        caches: tuple[KernelCache, KernelCache],
        arguments: list[Any],
        needs: list[bool],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run the function, see which of its results have a gradient, and ask for the kernels."""
        forward, backward = caches
        before = torch.get_rng_state()
        result = self._function(*args, **kwargs)
        # A function that draws random numbers gets no backward kernel, and asking for one would
        # take numbers from the script. But another thread may have drawn these numbers.
        draws = not torch.equal(before, torch.get_rng_state())
        if draws:
            self._drawn[key] += 1
            if self._drawn[key] < _MOST_DRAWN and len(self._drawn) <= config.static_cap:
                return result
        results = listed(result)
        call = self._calls[key] = JoinedCall(self._pair, needs, results)
        call.has_gradient = call.has_gradient and not draws
        if call.has_gradient:
            call.ask(backward, arguments, results)
            if forward.lookup(forward_key) is None:
                call.ask_forward(args, kwargs)
        return result


def gradients_of(op: OpOverload) -> AutogradKernel | None:
    """Return our kernel at the autograd key of an op, if there is one."""
    name = qualified_name(op)
    return next((one for one in list(_all) if one.name == name and one.is_open), None)


_all: weakref.WeakSet[AutogradKernel] = weakref.WeakSet()
