"""Gradients of an op with a Python function: a compiled backward beside the compiled forward.

The kernel at the autograd key. Where no gradient is asked for, the op's kernels below serve. Where
one is, and the backward kernel of such a call is there, forward and backward are joined by a node
of autograd's, which keeps the arguments and nothing else. In all other cases the function itself
runs, and autograd follows it: while the kernel is being made, where it lost its measurement, under
transforms, traces and autocast, and for the second derivative.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _compat
from ._compat import OpOverload
from ._declines import LASTING
from ._gradient_function import GradientFunction
from ._kernel_cache import KernelCache
from ._native import NativeGate
from ._native_key import argument_kind, words_of_values
from ._schema import OpSchema, qualified_name
from .config import config

_PLAIN = (Tensor, torch.nn.Parameter)


class Alive:
    """Counts what there is of something."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[_One] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._all)

    def one(self) -> _One:
        """Return what is counted as long as it is kept."""
        one = _One()
        self._all.add(one)
        return one


class _One:
    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class Pair:
    """An op and the op of its gradient.

    Attributes:
        op: The op, or what is called in its place.
        backward: ``(*gradients, *arguments, needs) -> gradients``.
        tensors: Places of the op's tensor arguments.
        keywords: Names of its keyword-only arguments, the last ones.
        alive: Counts the nodes that will call ``backward``.
    """

    op: Callable[..., Any]
    backward: Callable[..., Any]
    tensors: tuple[int, ...]
    keywords: tuple[str, ...]
    alive: Alive = field(default_factory=lambda: Alive())


class Gradients:
    """The kernel of one op at the autograd key.

    Args:
        op: The op.
        schema: Its schema.
        function: What a call computes, with its errors.
        gradient: The gradient of that.
        backward: The op of the gradient.
        caches: Gives the kernel caches of the op and of ``backward``, where they are registered.
        function_op: Qualified name of an op that runs ``function``.
        decomposes: Whether traces, transforms and autocast are to see what the op consists of
            where no gradient is wanted, too.
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
        self.op, self._backward = op, backward
        keywords = [a.name for a in schema.arguments if a.kwarg_only]
        self._pair = Pair(op, backward, tuple(gradient.signature.tensors), tuple(keywords))
        self._function = function
        self._caches = caches
        self._defaults = [a.default if a.has_default else None for a in schema.arguments]
        self._schema = schema
        self._decomposes = decomposes
        self._function_op = function_op
        self._table: Any = None
        self._calls: dict[Any, JoinedCall] = {}
        self._gate: NativeGate | None = None

    def __call__(self, keyset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the op's result, with a gradient if one is wanted."""
        tensors: list[Any] = []
        if self._decomposes or torch.is_grad_enabled():
            arguments = self._by_place(args, kwargs)
            tensors = [arguments[place] for place in self._pair.tensors]
        needs = [one is not None and one.requires_grad for one in tensors]
        if True not in needs or not torch.is_grad_enabled():
            if _compat.is_transforming() or (self._decomposes and self._must_decompose(tensors)):
                return self._function(*args, **kwargs)
            return _compat.redispatch_below_autograd(self.op, keyset, args, kwargs)
        caches = self._caches()
        if caches is None or self._must_decompose(tensors) or self._must_not_save(tensors):
            return self._function(*args, **kwargs)
        forward, backward = caches
        if backward.table is not self._table:
            self._table, self._calls = backward.table, {}
        if forward.bypassed or backward.bypassed:
            return self._function(*args, **kwargs)
        forward_key = forward.key(*args, **kwargs)
        key = (*needs, *forward_key)
        call = self._calls.get(key)
        if call is None and len(self._calls) >= config.static_cap:
            return self._function(*args, **kwargs)  # It goes on changing, and has its kernels.
        if call is None:
            return self._first(key, forward_key, caches, arguments, needs, args, kwargs)
        missing = [
            (cache, one)
            for cache, one in ((forward, forward_key), (backward, call.key))
            if cache.lookup(one) is None
        ]
        if not missing:
            if self._gate is not None and not call.is_native:
                call.is_native = True
                self.put(self._gate, call, arguments)
            return GradientNode.apply(call, *arguments)  # type: ignore[no-untyped-call]
        result = self._function(*args, **kwargs)
        if not call.has_gradient or any(_is_lasting(*one) for one in missing):
            if self._gate is not None and not call.is_native:
                call.is_native = True
                self.put(self._gate, call, arguments, declined=True)
            return result
        for cache, one in missing:
            if one in cache.table.declines and one not in cache.table.arrivals:
                continue  # It is on its way.
            if cache is backward:
                call.ask(backward, arguments, _listed(result))
            else:
                call.ask_forward(args, kwargs)
        return result

    # -- C++ --

    def attach_native(self) -> None:
        """Have C++ join the calls that are known as compiled; no call of the op may run.

        Raises:
            NativePathError: C++ cannot take the op over.
        """
        caches = self._caches()
        if self._gate is not None or caches is None or None in [one.native for one in caches]:
            return
        kinds = [argument_kind(argument) for argument in self._schema.arguments]
        gate = NativeGate(
            self._schema.op,
            qualified_name(self._backward),
            self._function_op,
            kinds,
            len(self._schema.returns),
            decomposes=self._decomposes,
        )
        try:
            gate.install()
        except BaseException:
            gate.close()
            raise
        self._gate = gate
        for cache in caches:
            cache.observers.append(self._refreshed)

    @property
    def nodes(self) -> int:
        """Return how many nodes of autograd's there are that call the backward op yet."""
        return len(self._pair.alive) + (0 if self._gate is None else self._gate.nodes)

    def close(self) -> None:
        """Take C++'s kernel out of the dispatcher; no call of the op may run."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.close()
        for cache in self._caches() or ():
            if self._refreshed in cache.observers:
                cache.observers.remove(self._refreshed)

    def _refreshed(self) -> None:
        """Decide anew on all calls: a setting has changed, or what serves them."""
        if self._gate is not None:
            self._gate.clear()
        for call in list(self._calls.values()):
            call.is_native = False

    def put(
        self,
        gate: NativeGate,
        call: JoinedCall,
        arguments: Sequence[Any],
        *,
        declined: bool = False,
    ) -> None:
        """Tell C++ of a call: that its kernels are joined, or that its function runs."""
        words = words_of_values(self._schema, "CPU", arguments)
        if words is None:
            return
        needs = sum(need << index for index, need in enumerate(call.needs))
        words += needs.to_bytes(8, sys.byteorder)
        if declined:
            gate.put_decline(words)
            return
        layouts: list[int] = []
        for (sizes, strides), differentiable in zip(call.layouts, call.differentiable, strict=True):
            layouts += (differentiable, len(sizes), *sizes, *strides)
        gate.put(words, layouts)

    # -- Python --

    def _by_place(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return all arguments in the schema's order, as the dispatcher has filled them in."""
        split = len(self._defaults) - len(self._pair.keywords)
        keywords = zip(self._pair.keywords, self._defaults[split:], strict=True)
        return [
            *args,
            *self._defaults[len(args) : split],
            *(kwargs.get(name, default) for name, default in keywords),
        ]

    @staticmethod
    def _must_decompose(tensors: Sequence[Tensor | None]) -> bool:
        return (
            _compat.is_tracing()
            or _compat.is_transforming()
            or torch.is_autocast_enabled("cpu")
            or any(one is not None and type(one) not in _PLAIN for one in tensors)
            or any(one is not None and one.device.type != "cpu" for one in tensors)
        )

    @staticmethod
    def _must_not_save(tensors: Sequence[Tensor | None]) -> bool:
        """Return whether the function must run though a kernel is there.

        Nothing can be saved of an inference tensor. And what is saved under hooks must be the same
        each time, whether a kernel has come meanwhile or not: a checkpoint compares.
        """
        return _compat.has_saved_tensor_hooks() or any(
            one is not None and (one.is_inference() or one.layout is not torch.strided)
            for one in tensors
        )

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
        result = self._function(*args, **kwargs)
        results = _listed(result)
        call = self._calls[key] = JoinedCall(self._pair, needs, results)
        if call.has_gradient:
            call.ask(backward, arguments, results)
            if forward.lookup(forward_key) is None:
                call.ask_forward(args, kwargs)
        return result


class JoinedCall:
    """Calls of one key: what their results look like, and the key of their backward kernel.

    Attributes:
        key: In the table of the backward op; ``None`` where there is no gradient at all.
        differentiable: For each result whether it has a gradient.
        has_gradient: Whether one of them has, and all can be a kernel's.
        is_native: Whether C++ knows of it.
    """

    def __init__(self, pair: Pair, needs: Sequence[bool], results: Sequence[Tensor]) -> None:
        self.pair = pair
        self.needs = list(needs)
        self.key: Any = None
        self.is_native = False
        self.differentiable = [one.requires_grad for one in results]
        is_strided = all(one.layout is torch.strided for one in results)
        self.has_gradient = is_strided and any(self.differentiable)
        # A gradient comes in any layout; the kernel is made for that of its result.
        self.layouts = [_layout(one) for one in results] if is_strided else []

    def ask(
        self, backward: KernelCache, arguments: Sequence[Any], results: Sequence[Tensor]
    ) -> None:
        """Call the backward op once, which asks for its kernel or compares one that has come.

        The results stand for their gradients: values as real as the arguments'.
        """
        with torch.no_grad():
            values = self.values([one.detach() for one in results], arguments)
            if self.key is None:
                self.key = backward.key(*values)
            self.pair.backward(*values)

    def ask_forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Call the op once without a gradient, likewise."""
        with torch.no_grad():
            self.pair.op(*args, **kwargs)

    def values(self, gradients: Sequence[Tensor | None], arguments: Sequence[Any]) -> list[Any]:
        """Return the arguments of the backward op."""
        laid_out = [
            _laid_out(one, *layout) if wanted and one is not None else None
            for one, layout, wanted in zip(
                gradients, self.layouts, self.differentiable, strict=True
            )
        ]
        return [*laid_out, *arguments, self.needs]


class GradientNode(torch.autograd.Function):
    """What autograd keeps of a call: forward and backward are the ops' own kernels."""

    @staticmethod
    def forward(ctx: Any, call: JoinedCall, *arguments: Any) -> Any:
        """Return the op's results; its kernels serve, or its function runs."""
        pair = call.pair
        ctx.call = call
        ctx.alive = pair.alive.one()
        ctx.set_materialize_grads(False)  # None is no gradient of zeros.
        ctx.save_for_backward(*[arguments[place] for place in pair.tensors])
        ctx.others = [None if isinstance(one, Tensor) else one for one in arguments]
        split = len(arguments) - len(pair.keywords)
        keywords = dict(zip(pair.keywords, arguments[split:], strict=True))
        with _compat.below_autograd():
            result = pair.op(*arguments[:split], **keywords)
        if False in call.differentiable:
            results = zip(_listed(result), call.differentiable, strict=True)
            ctx.mark_non_differentiable(*[one for one, wanted in results if not wanted])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of the arguments; of the second order by autograd itself."""
        call, arguments = ctx.call, list(ctx.others)
        pair = call.pair
        for place, tensor in zip(pair.tensors, ctx.saved_tensors, strict=True):
            arguments[place] = tensor
        needs = ctx.needs_input_grad[1:]
        if all(one is None for one in gradients):
            return (None, *[None for _ in arguments])
        values = call.values(gradients, arguments)
        if torch.is_autocast_enabled("cpu"):
            # A backward kernel computes in the forward's dtypes.
            with torch.autocast("cpu", enabled=False):
                found = pair.backward(*values)
        else:
            found = pair.backward(*values)
        by_place = [None] * len(arguments)
        listed = (found,) if len(pair.tensors) == 1 else found
        for place, one in zip(pair.tensors, listed, strict=True):
            by_place[place] = one if needs[place] else None
        return (None, *by_place)


class SecondOrder:
    """The kernel of a backward op at the autograd key: gradients that have gradients themselves.

    Args:
        backward: The op.
        gradient: What it computes.
    """

    def __init__(self, backward: OpOverload, gradient: GradientFunction) -> None:
        self._backward, self._gradient = backward, gradient

    def __call__(self, keyset: Any, *values: Any) -> Any:
        """Return the gradients; as functions of the arguments and of the results' gradients."""
        if not torch.is_grad_enabled() and not _compat.is_transforming():
            if _compat.is_tracing():  # A mode counts what the gradient consists of.
                return self._gradient(*values)
            return _compat.redispatch_below_autograd(self._backward, keyset, values, {})
        signature = self._gradient.signature
        gradients, arguments, needs = signature.split(values)
        with torch.enable_grad():
            for place, need in zip(signature.tensors, needs, strict=True):
                if not need:
                    continue
                if arguments[place].requires_grad:
                    # A node of its own: the gradient stops here, and what led to it comes after.
                    arguments[place] = arguments[place].view_as(arguments[place])
                else:
                    arguments[place] = arguments[place].detach().requires_grad_()
            results = signature.call(self._gradient.function, arguments)
            return self._gradient.found(arguments, needs, results, gradients, create_graph=True)


def _is_lasting(cache: KernelCache, key: Any) -> bool:
    """Return whether calls of a key are declined until a setting changes."""
    decline = cache.table.declines.get(key)
    return decline is not None and decline.reason in LASTING and key not in cache.table.arrivals


def _listed(result: Any) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else result


def _layout(result: Tensor) -> tuple[torch.Size, tuple[int, ...]]:
    """Return sizes, and the strides that a gradient is to have: dense ones, in the same order."""
    return result.shape, torch.empty_like(result, device="meta").stride()


def _laid_out(tensor: Tensor, sizes: torch.Size, strides: tuple[int, ...]) -> Tensor:
    if tensor.layout is not torch.strided or _compat.is_batched(tensor):
        return tensor
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=tensor.device).copy_(
        tensor
    )
