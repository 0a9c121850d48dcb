"""The results of a region's call: which of them a library gives, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat import containers
from .stop import Stop

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_TORCH_VALUES = (torch.dtype, torch.device, torch.layout, torch.memory_format)

# Returns the results of a call for a library's results and the call's own tensors.
Build = Callable[[Sequence[Tensor], Sequence[Tensor]], Any]


class Results:
    """The results of one recorded call.

    Args:
        result: What the forward returned.
        given: The tensors among the call's arguments.

    Attributes:
        fresh: The distinct tensors that the call has made, in the order of the library's results.

    Raises:
        Stop: A result has a type that cannot be made anew.
    """

    def __init__(self, result: Any, given: Sequence[Tensor]) -> None:
        self.fresh: list[Tensor] = []
        self._is_single = type(result) is Tensor
        leaves, self._spec = containers.flatten(result)
        places = {id(tensor): index for index, tensor in reversed([*enumerate(given)])}
        self._plan = [self._leaf(leaf, places) for leaf in leaves]

    def _leaf(self, leaf: Any, given: dict[int, int]) -> tuple[str, Any]:
        kind = type(leaf)
        if kind is Tensor or kind is torch.nn.Parameter:
            if id(leaf) in given:
                return "given", given[id(leaf)]
            if kind is not Tensor:
                raise Stop("result_is_shared", "a result is a parameter")
            for index, one in enumerate(self.fresh):
                if one is leaf:
                    return "fresh", index
            self.fresh.append(leaf)
            return "fresh", len(self.fresh) - 1
        if kind in _PLAIN or isinstance(leaf, _TORCH_VALUES):
            return "value", leaf
        raise Stop(
            "unsupported_result",
            f"a result is a {kind.__module__}.{kind.__qualname__}; tensors, numbers, strings and "
            "containers of them are supported",
        )

    def builder(self) -> Build:
        """Return the function that puts results together."""
        plan, spec = self._plan, self._spec
        if self._is_single and plan == [("fresh", 0)]:
            return lambda fresh, _: fresh[0]

        def build(fresh: Sequence[Tensor], given: Sequence[Tensor]) -> Any:
            leaves = [
                fresh[value] if kind == "fresh" else given[value] if kind == "given" else value
                for kind, value in plan
            ]
            return containers.unflatten(leaves, spec)

        return build

    def shape(self) -> tuple[Any, ...]:
        """Return the results without their tensors: equal for calls whose results are alike."""
        plan = [(kind, type(value), repr(value)) for kind, value in self._plan]
        return (self._spec, tuple(plan))


def outliving(result: Any) -> frozenset[int]:
    """Return the addresses of the tensors that are alive after a call as its results need them.

    A view keeps the tensor that it is a view of.
    """
    try:
        leaves, _ = containers.flatten(result)
    except Exception:  # noqa: BLE001 - a library's class raises; ``Results`` says so
        return frozenset()
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    found += [leaf._base for leaf in found if leaf._base is not None]
    return frozenset(tensor._cdata for tensor in found)


def fresh_tensors(result: Any, given: Sequence[Tensor]) -> list[Tensor]:
    """Return the distinct new tensors of a call's results, in the order of ``Results.fresh``.

    Results that no library can give are left out: the caller has the result itself.
    """
    if type(result) is Tensor and not given:
        return [result]
    try:
        return Results(result, given).fresh
    except Stop:
        return []
