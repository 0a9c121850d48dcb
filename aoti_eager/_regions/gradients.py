"""Whether a call of a region needs gradients: then the forward runs as it is."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._base.torch_compat import containers
from .stop import Stop
from .target import Target

# One call in so many looks at all parameters.
_WHOLE_ANSWER = 256

if TYPE_CHECKING:
    from .recorded_call import RecordedCallResult

_MADE = "result_needs_gradients"


class GradientNeed:
    """Answers for the calls of one region, most of them by one look at one parameter.

    Args:
        target: The region's target.
    """

    __slots__ = ("_answers", "_gives_none", "_last", "_may_look", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        # Whether a call that could have had gradients gave none: the forward switches them off.
        self._gives_none = False
        self._may_look = True  # at results, for that
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
        if self._gives_none or not torch.is_grad_enabled():
            return False
        if any(tensor.requires_grad for tensor in given):
            return True
        try:
            modules = self._target.modules()
        except Exception:  # noqa: BLE001 - of an object that a function refers to
            return False  # The recording finds the same, and stops.
        for _, module in modules:
            parameters = vars(module).get("_parameters")
            if not isinstance(parameters, dict):
                continue  # TorchScript's, or not built yet: such calls are not served.
            for name, one in list(parameters.items()):
                if one is not None and one.requires_grad:
                    self._last = weakref.ref(module), name
                    return True
        return False

    def seen(self, result: Any) -> Any:
        """Return the result of a call that ``is_there`` is true of, after a look at it.

        A forward under its own ``torch.no_grad()`` gives no gradients, whatever its parameters
        want; the next call is recorded.
        """
        if not self._may_look:
            return result
        try:
            leaves = [result] if type(result) is Tensor else containers.flatten(result)[0]
        except Exception:  # noqa: BLE001 - of a container of the user's
            return result
        tensors = [one for one in leaves if isinstance(one, Tensor)]
        if tensors and not any(one.requires_grad or one.is_inference() for one in tensors):
            self._gives_none, self._last = True, None
        return result

    def check(self, recorded: RecordedCallResult) -> None:
        """Raise if a recorded call has made gradients, though its forward seemed to make none.

        Raises:
            Stop: It has.
        """
        if self._gives_none and torch.is_grad_enabled() and recorded.makes_gradients:
            raise Stop(_MADE, "an op of it makes gradients")

    def was_wrong(self, stop: Stop) -> bool:
        """Return whether a recording stopped because the forward gives gradients after all."""
        if stop.reason != _MADE or not self._gives_none:
            return False
        self._gives_none = self._may_look = False
        return True


def wants_gradients(inputs: Sequence[Tensor]) -> bool:
    """Return whether one of a library's inputs wants a gradient in this call."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


def state_wants_gradients(inputs: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Return whether an input wants a gradient that is no argument of the call.

    Args:
        inputs: The library's inputs.
        given: The tensors among the call's arguments.
    """
    for one in inputs:
        if one.requires_grad and not any(one is argument for argument in given):
            return True
    return False
