"""What a call of a user's function writes to without saying so, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .call_template import CallTemplate


def unsaid_write(template: CallTemplate, index: int) -> str:
    """Return what a message says of a write to an input that is not declared as written to.

    Args:
        template: The call; a function's constants are its last slots.
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
    """The inputs of a call that it is not to write to, as they are before it.

    Those of a live call are its arguments. To what its function finds by name, other threads may
    write meanwhile (parameters of a model that is trained), so that is for a trace, with fakes; and
    so are inference tensors, which have no version.

    Args:
        template: The call.
        inputs: Its tensors, in slot order.
        of_trace: Whether they are fakes: then they are what the function finds by name.
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
        """Return what the call has written to since, in words; ``None`` if nothing."""
        for index, tensor, version in self._before:
            if tensor._version != version:
                return unsaid_write(self._template, index)
        return None
