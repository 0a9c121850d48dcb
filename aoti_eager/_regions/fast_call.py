"""The shortest way of a call: one that is like the last calls that a library has served.

The whole way reads a key of the arguments, looks for a variant, and asks for the state of its
library. This one compares the arguments with those of the last call, checks the state of the
module, and calls the op of the tape. Nothing else has to be right: C++ compares the metadata of all
inputs with those of the recording, and the forward runs where no library serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat import tracing
from .._native.thread_state import ThreadState, native_thread_state
from .current_settings import settings
from .frame import Frame
from .gradients import wants_gradients
from .recorded_call import is_recording
from .target import Target
from .variant import Variant

# What ``FastCall`` returns of a call that takes the whole way.
MISSED = object()
# So many calls come this way before one takes the whole way, and sees what has changed.
_AT_ONCE = 64
_TENSORS = frozenset({Tensor, torch.nn.Parameter})
# Values of these types are the same if they are equal.
_PLAIN = frozenset({bool, int, str, type(None)})


def python_thread_state() -> bool | None:
    """Return what C++'s ``thread_state`` does, by torch's own functions."""
    if is_recording() or not tracing.is_plain_eager():
        return None
    return not torch.is_grad_enabled()


class FastCall:
    """Calls of one region that are like a call that a library has served.

    Args:
        variant: The call's variant.
        key: The key of the call's arguments.
        target: The region's target.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.

    Attributes:
        variant: The variant of the calls.
        key: The key of their arguments.
        left: How many calls may come this way yet.
        error: Why a call's results could not be put together; ``None`` if they could.
    """

    __slots__ = (
        "_build",
        "_forward",
        "_gives_none",
        "_is_timed",
        "_kernel",
        "_names",
        "_read",
        "_thread_state",
        "_wanted",
        "error",
        "key",
        "left",
        "variant",
    )

    def __init__(
        self,
        variant: Variant,
        key: Any,
        target: Target,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        # Not the forward itself, which holds the module.
        self.variant, self.key, self._forward = variant, key, target.run
        self._gives_none = variant.gives_none
        self.error: Exception | None = None
        self._is_timed = settings.gate and variant.is_timed
        self._kernel, self._read, self._build = variant.kernel, variant.read, variant.build
        self._names = tuple(kwargs)
        self._wanted = [_wanted(one) for one in (*args, *kwargs.values())]
        self.left = variant.take_calls(_AT_ONCE, again=settings.rerecord)
        state: ThreadState | None = native_thread_state()
        self._thread_state = python_thread_state if state is None else state

    def end(self) -> None:
        """Take back the calls that are counted ahead: no more calls come this way."""
        self.variant.calls -= self.left
        self.left = 0

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the call's result; ``MISSED`` if the call is another one, and nothing has run.

        Longer than 60 lines, because each function would cost a served call 50 nanoseconds.
        """
        variant = self.variant
        if (
            self.left <= 0
            or variant.stopped is not None
            or (self._is_timed and variant.times.wants_plain)
        ):
            return MISSED
        no_gradients = self._thread_state()
        if no_gradients is None:
            return MISSED
        values: Sequence[Any] = args
        if kwargs or self._names:
            if tuple(kwargs) != self._names:
                return MISSED
            values = (*args, *kwargs.values())
        if len(values) != len(self._wanted):
            return MISSED
        given: list[Tensor] = []
        for value, (kind, what, strides, dtype, needs) in zip(values, self._wanted, strict=False):
            if type(value) is not kind:
                return MISSED
            if needs is None:
                if value != what:
                    return MISSED
                continue
            # Another layout or dtype is another kind of call, which may have a library of its own.
            # What Python code has put on a tensor may decide on the call: the whole way looks.
            if (
                value.shape != what
                or value.dtype is not dtype
                or value.stride() != strides
                or value.requires_grad is not needs
                or value.__dict__
            ):
                return MISSED
            given.append(value)
        if len(given) > 1 and len(set(map(id, given))) < len(given):
            return MISSED
        try:
            inputs = self._read(given)
        except Exception:  # noqa: BLE001 - a part is gone, has another form, or a property raises
            return MISSED
        if inputs is None or not (no_gradients or self._gives_none or not wants_gradients(inputs)):
            return MISSED
        self.left -= 1
        frame = Frame(self._forward, args, kwargs, given)
        fresh = self._kernel.call(inputs, frame)
        if frame.has_run:
            self.end()
            if not variant.has_key(inputs):
                variant.is_contested = variant.is_unsure = True
            return frame.result
        variant.hits += 1
        try:
            return self._build(fresh, given)
        except Exception as error:  # noqa: BLE001 - of a container of the user's
            self.left, self.error = 0, error
            frame.run()
            return frame.result


def fast_call(
    variant: Variant,
    key: Any,
    target: Target,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> FastCall | None:
    """Return the short way of calls like this one, which has been served; ``None`` if none is."""
    values = [*args, *kwargs.values()]
    tensors = [one for one in values if type(one) in _TENSORS]
    if (
        variant.is_contested
        # C++ compares no tensor but those that the tape reads.
        or not variant.reads_all(len(tensors))
        or len(set(map(id, tensors))) < len(tensors)
        or any(one.__dict__ for one in tensors)
        or not all(type(one) in _TENSORS or type(one) in _PLAIN for one in values)
    ):
        return None
    return FastCall(variant, key, target, args, kwargs)


def _wanted(value: Any) -> tuple[Any, Any, Any, Any, bool | None]:
    """Return an argument's type and its value, or of a tensor its sizes, strides, dtype and need.

    The last one says whether the tensor needs gradients; ``None`` for what is no tensor.
    """
    kind = type(value)
    if kind in _TENSORS:
        return kind, value.shape, value.stride(), value.dtype, value.requires_grad
    return kind, value, None, None, None
