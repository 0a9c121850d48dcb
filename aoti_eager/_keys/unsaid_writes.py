"""Finds inputs that a user's function writes to without saying so, and words the message."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .call_template import CallTemplate


def unsaid_write(template: CallTemplate, index: int) -> str:
    """Return the part of a message about a write to an input not declared as written to.

    Args:
        template: The call; a function's constants are the last slots.
        index: The input's slot.
    """
    name = template.slots[index].name
    if index >= len(template.slots) - template.constants:
        return (
            f"writes to {name!r}, which it finds by name: make it an argument, and name that in "
            "mutates_args"
        )
    return (
        f"writes to its argument {name!r} and does not say so: write mutates_args=({name!r},) "
        "where custom_op makes its operator"
    )


class UnsaidWrites:
    """The versions, before a call, of inputs that the call must not write to.

    In a live call, only the arguments are watched, and the caller counts a change only where the
    script has one thread: an optimizer of another thread may write to an argument meanwhile.
    Tensors that the function finds by name are watched in a trace, with fakes, because other
    threads may write to the real tensors during a call (parameters of a model that is trained).
    Inference tensors are not watched: they have no version.

    Args:
        template: The call.
        inputs: The call's tensors, in slot order.
        of_trace: Whether the inputs are fakes of a trace: then the tensors that the function finds
            by name are watched, and else the arguments.
    """

    def __init__(
        self, template: CallTemplate, inputs: Sequence[Tensor], *, of_trace: bool = False
    ) -> None:
        self._template = template
        arguments = len(template.slots) - template.constants
        self._before = [
            (index, tensor, tensor._version)
            for index, (slot, tensor) in enumerate(zip(template.slots, inputs, strict=True))
            if (index >= arguments) is of_trace and not slot.mutated and not tensor.is_inference()
        ]

    def problem(self) -> str | None:
        """Return in words which watched input the call has written to; ``None`` if none."""
        for index, tensor, version in self._before:
            if tensor._version != version:
                return unsaid_write(self._template, index)
        return None
