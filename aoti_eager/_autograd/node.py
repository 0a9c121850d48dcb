"""The autograd node of a call whose forward and backward are kernels, on Python's hit path.

``_native/csrc/gradient.h`` has the same in C++.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass, field
from .._base.torch_compat import autograd
from .._base.torch_compat import tracing as tracing_compat
from .._base.torch_compat.dispatcher import OpOverload
from .._dispatch.asking import asking_at_once
from .._dispatch.kernel_cache import KernelCache
from .._functions.gradient import GradientFunction
from ..errors import AotiEagerError

log = logging.getLogger("aoti_eager")

# How often asking for a call's kernel may raise before it is no longer asked for.
_MOST_FAILED = 2


class Alive:
    """Counts objects that are still referenced."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[_One] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._all)

    def one(self) -> _One:
        """Return an object that is counted as long as it is referenced."""
        one = _One()
        self._all.add(one)
        return one


class _One:
    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class Pair:
    """An op and the op of its gradient.

    Attributes:
        op: The op, or the function that is called in its place.
        backward: ``(*gradients, *arguments, needs) -> gradients``.
        tensors: Places of the op's tensor arguments.
        keywords: Names of the op's keyword-only arguments, which come last.
        alive: Counts the nodes that will call ``backward``.
    """

    op: Callable[..., Any]
    backward: Callable[..., Any]
    tensors: tuple[int, ...]
    keywords: tuple[str, ...]
    alive: Alive = field(default_factory=lambda: Alive())


class JoinedCall:
    """Calls of one key: what their results look like, and the key of their backward kernel.

    Attributes:
        key: The key in the table of the backward op; ``None`` if there is no gradient at all.
        differentiable: For each result whether it has a gradient.
        has_gradient: Whether one of the results has a gradient, and all can be a kernel's results.
        is_native: Whether C++ knows of it.
    """

    def __init__(self, pair: Pair, needs: Sequence[bool], results: Sequence[Tensor]) -> None:
        self.pair = pair
        self.needs = list(needs)
        self.key: Any = None
        self.is_native = False
        self._failed = 0
        self.differentiable = [one.requires_grad for one in results]
        is_strided = all(one.layout is torch.strided for one in results)
        self.has_gradient = is_strided and any(self.differentiable)
        # A gradient comes in any layout; the kernel is made for the layout of the gradient's
        # result.
        self.layouts = [_layout(one) for one in results] if is_strided else []

    def ask(
        self, backward: KernelCache, arguments: Sequence[Any], results: Sequence[Tensor]
    ) -> None:
        """Call the backward op once, which asks for its kernel or compares a candidate.

        The results stand in for their gradients: their values are as realistic as the arguments'.
        """

        def call() -> None:
            values = self.values([one.detach() for one in results], arguments)
            if self.key is None:
                self.key = backward.key(*values)
            with asking_at_once():  # Without a kernel the function runs, and nothing counts calls.
                self.pair.backward(*values)

        if not _made_aside(call):
            self._failed += 1
            self.has_gradient = self._failed < _MOST_FAILED

    def ask_forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Call the op once without a gradient.

        Like ``ask``, this asks for the op's kernel or compares a candidate.
        """

        def call() -> None:
            with asking_at_once():
                self.pair.op(*args, **kwargs)

        _made_aside(call)

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
    """The autograd node of a call: forward and backward are the ops' own kernels."""

    @staticmethod
    def forward(ctx: Any, call: JoinedCall, *arguments: Any) -> Any:
        """Return the op's results; its kernels serve, or its function runs."""
        pair = call.pair
        ctx.call = call
        ctx.alive = pair.alive.one()
        ctx.set_materialize_grads(False)  # None stays None, and is not made zeros.
        ctx.save_for_backward(*[arguments[place] for place in pair.tensors])
        ctx.others = [None if isinstance(one, Tensor) else one for one in arguments]
        split = len(arguments) - len(pair.keywords)
        keywords = dict(zip(pair.keywords, arguments[split:], strict=True))
        with autograd.below_autograd():
            result = pair.op(*arguments[:split], **keywords)
        if False in call.differentiable:
            results = zip(listed(result), call.differentiable, strict=True)
            ctx.mark_non_differentiable(*[one for one, wanted in results if not wanted])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of the arguments; autograd itself computes the second order."""
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
        backward: The backward op.
        gradient: The gradient that the op computes.
    """

    def __init__(self, backward: OpOverload, gradient: GradientFunction) -> None:
        self._backward, self._gradient = backward, gradient

    def __call__(self, keyset: Any, *values: Any) -> Any:
        """Return the gradients; as functions of the arguments and of the results' gradients."""
        if not torch.is_grad_enabled() and not autograd.is_transforming():
            if tracing_compat.is_tracing():  # A mode counts what the gradient consists of.
                return self._gradient(*values)
            return autograd.redispatch_below_autograd(self._backward, keyset, values, {})
        signature = self._gradient.signature
        gradients, arguments, needs = signature.split(values)
        with torch.enable_grad():
            for place, need in zip(signature.tensors, needs, strict=True):
                if not need:
                    continue
                if arguments[place].requires_grad:
                    # A view with a node of its own: this gradient stops at the view, and what led
                    # to the argument comes after.
                    arguments[place] = arguments[place].view_as(arguments[place])
                else:
                    arguments[place] = arguments[place].detach().requires_grad_()
            results = signature.call(self._gradient.function, arguments)
            return self._gradient.found(arguments, needs, results, gradients, create_graph=True)


def _made_aside(call: Callable[[], Any]) -> bool:
    """Make a call that the script has not made; return whether the call raised nothing.

    A function may have no gradient, or none for these arguments, and the script may never want one.
    An error comes from the function or, with the setting ``strict``, from this package.
    """
    try:
        with torch.no_grad():
            call()
    except AotiEagerError:
        raise
    except Exception as error:  # noqa: BLE001 - of the function, which was called for nothing
        log.info("asking for a kernel raised: %r", error)
        return False
    return True


def listed(result: Any) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else result


def _layout(result: Tensor) -> tuple[torch.Size, tuple[int, ...]]:
    """Return sizes, and the strides that a gradient is to have: dense ones, in the same order."""
    return result.shape, torch.empty_like(result, device="meta").stride()


def _laid_out(tensor: Tensor, sizes: torch.Size, strides: tuple[int, ...]) -> Tensor:
    if tensor.layout is not torch.strided or autograd.is_batched(tensor):
        return tensor
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=tensor.device).copy_(
        tensor
    )
