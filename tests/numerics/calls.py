"""The calls that a family compares: an overload with its further arguments. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor goes in a call.

    Attributes:
        index: Which one of the data's tensors.
        dtype: Its dtype where it is not the part's.
    """

    index: int
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """Where a number goes in a Tensor slot: an input of the kernel, of which the kind is known.

    Attributes:
        kind: ``float``, ``int`` or ``bool``; ``float64[]`` for a tensor without dimensions.
    """

    kind: str


X, Y, Z = Slot(0), Slot(1), Slot(2)
MASK = Slot(0, "bool")


@dataclass(frozen=True, slots=True)
class Call:
    """One overload with all of its arguments but the tensors.

    Attributes:
        op: The overload, ``aten::elu``.
        args: Positional arguments, slots among them.
        kwargs: Keyword arguments.
        reference: ``float64`` for eager in double precision, or ``eager`` where the op selects or
            rounds, so that eager's result is the exact one.
        least: Values below are left out: eager itself does not come to an end there.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    reference: str = "float64"
    least: float | None = None

    @property
    def variant(self) -> str:
        """Return the further arguments in words; empty if there are none."""
        shown = [_shown(value) for value in self.args]
        shown += [f"{name}={_shown(value)}" for name, value in self.kwargs.items()]
        plain = self.args == (X, Y, Z)[: len(self.args)]
        return "" if plain and not self.kwargs else f"({', '.join(shown)})"

    @property
    def slots(self) -> list[Slot]:
        """Return where the tensors go, in the order of the arguments."""
        return [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Slot)]

    @property
    def numbers(self) -> list[Number]:
        """Return where numbers go that are inputs; at most one."""
        return [v for v in self.args if isinstance(v, Number)]

    def inputs(self, tensors: Sequence[Any], number: Any = None) -> list[Any]:
        """Return the inputs of a run, in the order of the arguments."""
        return [
            tensors[one.index] if isinstance(one, Slot) else number
            for one in (*self.args, *self.kwargs.values())
            if isinstance(one, Slot | Number)
        ]

    def arguments(
        self, tensors: Sequence[Any], number: Any = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call's arguments with ``tensors`` and ``number`` in their slots."""

        def filled(value: Any) -> Any:
            if isinstance(value, Number):
                return number
            return tensors[value.index] if isinstance(value, Slot) else value

        return tuple(filled(v) for v in self.args), {k: filled(v) for k, v in self.kwargs.items()}


def _shown(value: Any) -> str:
    if isinstance(value, Slot):
        name = "xyz"[value.index]
        return f"{name}:{value.dtype}" if value.dtype else name
    if isinstance(value, Number):
        return f"a {value.kind}"
    return str(value).removeprefix("torch.") if not isinstance(value, str) else repr(value)


def calls(op: str, *further: tuple[Any, ...], **options: Any) -> list[Call]:
    """Return calls of one tensor with each of the tuples of further arguments."""
    return [Call(f"aten::{op}", (X, *one), **options) for one in further]
