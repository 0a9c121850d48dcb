"""Whether a call of a region needs gradients: then the forward runs as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .target import Target


class GradientNeed:
    """Answers for the calls of one region, most of them by one look at one parameter.

    Args:
        target: The region's target.
    """

    __slots__ = ("_last", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        # The dict and the name of the parameter that wanted a gradient in an earlier call.
        self._last: tuple[dict[str, Any], str] | None = None

    def is_as_before(self) -> bool:
        """Return whether the parameter that wanted a gradient earlier wants one in this call, too.

        The whole answer costs a list of all modules, in each call of a training.
        """
        if self._last is None or not torch.is_grad_enabled():
            return False
        parameters, name = self._last
        found = parameters.get(name)
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
            parameters = vars(module)["_parameters"]
            for name, one in list(parameters.items()):
                if one is not None and one.requires_grad:
                    self._last = parameters, name
                    return True
        return False


def wants_gradients(inputs: Sequence[Tensor]) -> bool:
    """Return whether one of a library's inputs wants a gradient in this call."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
