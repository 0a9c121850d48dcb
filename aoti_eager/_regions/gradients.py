"""Whether a call of a region needs gradients: then the forward runs as it is."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from .target import Target

# One call in so many looks at all parameters.
_WHOLE_ANSWER = 256


class GradientNeed:
    """Answers for the calls of one region, most of them by one look at one parameter.

    Args:
        target: The region's target.
    """

    __slots__ = ("_answers", "_last", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        # The module and the name of the parameter that wanted a gradient in an earlier call. The
        # module may have been taken out of the target since.
        self._last: tuple[weakref.ref[torch.nn.Module], str] | None = None
        self._answers = 0

    def is_as_before(self) -> bool:
        """Return whether the parameter that wanted a gradient earlier wants one in this call, too.

        The whole answer costs a list of all modules; one call in so many of a training waits for
        that.
        """
        if self._last is None or not torch.is_grad_enabled():
            return False
        self._answers += 1
        held, name = self._last
        module = held()
        if module is None or self._answers % _WHOLE_ANSWER == 0:
            self._last = None
            return False
        found = vars(module)["_parameters"].get(name)
        return found is not None and found.requires_grad

    def is_there(self, given: Sequence[Tensor]) -> bool:
        """Return whether any tensor that the call can read wants a gradient.

        Args:
            given: The tensors among the call's arguments.
        """
        if not torch.is_grad_enabled():
            return False
        if any(tensor.requires_grad for tensor in given):
            return True
        for _, module in self._target.modules():
            for name, one in list(vars(module)["_parameters"].items()):
                if one is not None and one.requires_grad:
                    self._last = weakref.ref(module), name
                    return True
        return False


def wants_gradients(inputs: Sequence[Tensor]) -> bool:
    """Return whether one of a library's inputs wants a gradient in this call."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
