"""Random small modules: the source of a forward that calls ops of a grammar, and its arguments.

A module depends on its seed alone. Its forward is drawn line by line, and each line is run as it is
drawn: so sizes fit, and numbers stay ordinary. Ops with steps (``floor``, comparisons, ``argmax``)
take numbers that no rounding has touched, because rounding decides on the other side of a step.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_ELEMENTS, _LARGEST = 2048, 100.0


@dataclass(frozen=True)
class Value:
    """A tensor that a line may use.

    Attributes:
        name: Its name in the source.
        tensor: The tensor, at the drawing.
        exact: Whether no rounding has touched its numbers.
    """

    name: str
    tensor: Tensor
    exact: bool

    @property
    def dim(self) -> int:
        return self.tensor.dim()

    @property
    def sizes(self) -> list[int]:
        return list(self.tensor.shape)

    @property
    def is_float(self) -> bool:
        return self.tensor.is_floating_point()

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype)


class RandomModule(nn.Module):
    """A module whose forward was drawn.

    Attributes:
        source: The source of the forward.
        arguments: The arguments of the drawing.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        for name, (tensor, is_buffer) in draw.captured.items():
            if is_buffer:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.source = draw.source()
        space: dict[str, Any] = {"torch": torch, "F": F}
        exec(compile(self.source, f"<random module {draw.seed}>", "exec"), space)  # noqa: S102
        # A class of its own, as a module that somebody wrote has.
        self.__class__ = type("Drawn", (RandomModule,), {"forward": space["forward"]})
        self.eval()


class Draw:
    """Draws one module.

    Args:
        seed: What the module depends on.

    Attributes:
        seed: As given.
        rng: Draws.
        captured: Parameters and buffers by name; with each, whether it is a buffer.
        arguments: The arguments by name.
        lines: The lines of the forward.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self._numbers = torch.Generator().manual_seed(seed)
        self.captured: dict[str, tuple[Tensor, bool]] = {}
        self.arguments: dict[str, Tensor] = {}
        self._makers: dict[str, Callable[[], Tensor]] = {}
        self.values: list[Value] = []
        self.lines: list[str] = []
        self.ops: list[str] = []
        self._space: dict[str, Any] = {"torch": torch, "F": F}
        self._result = ""

    # -- arguments, parameters --

    def argument(self, make: Callable[[], Tensor]) -> Value:
        """Return a new argument of the forward; ``make`` gives its numbers, anew each time."""
        name = f"x{len(self.arguments)}"
        self._makers[name] = make
        self.arguments[name] = make()
        return self._value(name, self.arguments[name], exact=True)

    def more_arguments(self) -> list[Tensor]:
        """Return other numbers for the arguments, in tensors with the same metadata."""
        return [make() for make in self._makers.values()]

    def parameter(self, sizes: list[int], dtype: torch.dtype, *, positive: bool = False) -> str:
        """Return the source that reads a new parameter or buffer."""
        name = f"p{len(self.captured)}"
        tensor = torch.randn(sizes, generator=self._numbers)
        if positive:
            tensor = tensor.abs() + 0.5
        if tensor.dim() > 1:
            tensor /= max(1, tensor[0].numel()) ** 0.5
        self.captured[name] = tensor.to(dtype), self.rng.random() < 0.3
        self._space.setdefault("self", type("Space", (), {})())
        setattr(self._space["self"], name, self.captured[name][0])
        return f"self.{name}"

    def floats(self, sizes: list[int], dtype: torch.dtype) -> Value:
        """Return a new argument of floating point numbers, in a drawn layout."""
        layout = self.rng.choice(["plain", "plain", "transposed", "offset", "steps", "expanded"])
        return self.argument(lambda: self._laid_out(sizes, dtype, layout))

    def _laid_out(self, sizes: list[int], dtype: torch.dtype, layout: str) -> Tensor:
        def numbers(sizes: list[int]) -> Tensor:
            return torch.randn(sizes, generator=self._numbers).to(dtype)

        if layout == "transposed" and len(sizes) > 1:
            return numbers([*sizes[:-2], sizes[-1], sizes[-2]]).transpose(-1, -2)
        if layout == "offset" and sizes:
            return numbers([sizes[0] + 2, *sizes[1:]])[1:-1]
        if layout == "steps" and sizes:
            return numbers([*sizes[:-1], 2 * sizes[-1]])[..., ::2]
        if layout == "expanded" and len(sizes) > 1:
            return numbers([1, *sizes[1:]]).expand(sizes)
        return numbers(sizes)

    def integers(self, sizes: list[int], end: int) -> Value:
        """Return a new argument of indices below ``end``."""
        return self.argument(lambda: torch.randint(end, sizes, generator=self._numbers))

    def mask(self, sizes: list[int]) -> Value:
        """Return a new argument of bools."""
        return self.argument(lambda: torch.randint(2, sizes, generator=self._numbers).bool())

    # -- choices --

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """Return a value that fits; later ones are likelier.

        Raises:
            LookupError: None fits.
        """
        found = [one for one in self.values if fits(one)]
        if not found:
            raise LookupError("no value fits")
        return found[max(self.rng.randrange(len(found)), self.rng.randrange(len(found)))]

    def one_of(self, *texts: str) -> str:
        """Return one of these texts."""
        return self.rng.choice(texts)

    def dim(self, value: Value) -> int:
        """Return a dimension of a value, counted from the front or from the end.

        Raises:
            LookupError: The value has none.
        """
        if not value.dim:
            raise LookupError("no dimensions")
        return self.rng.randrange(-value.dim, value.dim)

    # -- lines --

    def line(self, op: str, text: str, *, exact: bool = False) -> list[Value]:
        """Append ``name = text``, unless its result is odd; return the tensors that it gives.

        Raises:
            LookupError: The result is too large, has odd numbers, or the line raises.
        """
        name = f"v{len(self.lines)}"
        before = {one.name: one.tensor.clone() for one in self.values}
        try:
            result = eval(text, self._space)
        except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError) as error:
            for one in self.values:  # A write that failed in the middle.
                if not torch.equal(one.tensor, before[one.name]):
                    raise
            raise LookupError(str(error)) from error
        listed = list(result) if isinstance(result, tuple | list) else [result]
        tensors = [one for one in listed if isinstance(one, Tensor)]
        if not tensors or not all(map(_is_ordinary, tensors)):
            raise LookupError("odd numbers")
        if isinstance(result, tuple | list):
            names = [f"{name}_{i}" for i in range(len(listed))]
            self.lines.append(f"{', '.join(names)}, = {text}")
        else:
            names = [name]
            self.lines.append(f"{name} = {text}")
        self.ops.append(op)
        return [
            self._value(name, one, exact=exact) for name, one in zip(names, listed, strict=True)
        ]

    def write(self, value: Value, text: str) -> Value:
        """Return a copy of a value that a statement has written to: ``{}`` is the copy.

        Raises:
            LookupError: As for ``line``.
        """
        name = f"v{len(self.lines)}"
        copy = value.tensor.clone()
        self._space[name] = copy
        try:
            exec(text.format(name), self._space)  # noqa: S102
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise LookupError(str(error)) from error
        if not _is_ordinary(copy):
            raise LookupError("odd numbers")
        self.lines += [f"{name} = {value.name}.clone()\n  {text.format(name)}"]
        self.ops.append("write")
        return self._value(name, copy, exact=False)

    def write_in_place(self, value: Value, text: str) -> None:
        """Append a statement that writes to a value.

        Raises:
            LookupError: The statement raises.
        """
        if (
            value.tensor.is_contiguous() is False
            and value.tensor._is_view()
            and 0 in value.tensor.stride()
        ):
            raise LookupError("elements that share memory")
        trial = value.tensor.clone()
        try:
            exec(text, {**self._space, value.name: trial})  # noqa: S102
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise LookupError(str(error)) from error
        exec(text, self._space)  # noqa: S102
        self.lines.append(text)
        self.ops.append("write in place")
        memory = _memory(value.tensor)
        self.values = [
            replace(one, exact=one.exact and _memory(one.tensor) != memory) for one in self.values
        ]

    def is_given(self, value: Value) -> bool:
        """Return whether a value lies in the memory of an argument or a parameter."""
        return _memory(value.tensor) in self._given_memory()

    def _given_memory(self) -> set[int]:
        tensors = [*self.arguments.values(), *(one for one, _ in self.captured.values())]
        return {_memory(one) for one in tensors}

    def _value(self, name: str, tensor: Tensor, *, exact: bool) -> Value:
        self._space[name] = tensor
        self.values.append(Value(name, tensor, exact or not tensor.is_floating_point()))
        return self.values[-1]

    # -- the module --

    def finish(self) -> None:
        """Choose the results, in a container: the last value, and values that no line reads."""
        shares = self.rng.random() < 0.02  # Such a module stops, or is served with care.
        given = self._given_memory()
        chosen: list[Value] = []
        unread = [one for one in self.values if self._is_unread(one)]
        some = self.rng.sample(self.values, min(2, len(self.values)))
        for one in [self.values[-1], *unread, *some]:
            memory = _memory(one.tensor)
            if len(chosen) < 6 and (shares or memory not in given):
                given.add(memory)
                chosen.append(one)
        if not chosen:
            (made,) = self.line("result", f"{self.values[-1].name} * 2")
            chosen = [made]
        self._forget_unused([one.name for one in chosen])
        names = [one.name for one in chosen]
        if len(names) == 1 or self.rng.random() < 0.3:
            self._result = names[0]
        else:
            pairs = ", ".join(f"'{name}': {name}" for name in names)
            rest = ", ".join(names[1:])
            self._result = self.one_of(
                f"({', '.join(names)})",
                f"[{', '.join(names)}]",
                f"{{{pairs}}}",
                f"{names[0]}, [{rest}], None, {{'n': 3}}",
                f"{names[0]}, {names[0]}, {{'rest': ({rest},)}}",
            )

    def _is_unread(self, value: Value) -> bool:
        return len(re.findall(rf"\b{value.name}\b", "\n".join(self.lines))) < 2

    def _forget_unused(self, results: Sequence[str]) -> None:
        """Leave out what was drawn for lines that were given up; some arguments stay, unused."""
        used = set(re.findall(r"\w+", " ".join([*self.lines, *results])))
        self.captured = {name: one for name, one in self.captured.items() if name in used}
        for name in [one for one in self.arguments if one not in used]:
            if self.rng.random() < 0.9 and len(self.arguments) > 1:
                del self.arguments[name], self._makers[name]

    def source(self) -> str:
        """Return the source of the forward."""
        body = [f"  {line}" for line in self.lines]
        head = f"def forward(self, {', '.join(self.arguments)}):"
        return "\n".join([head, *body, f"  return {self._result}", ""])


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_ordinary(tensor: Tensor) -> bool:
    if not 0 < tensor.numel() <= _MOST_ELEMENTS or tensor.dim() > 5:
        return False
    if tensor.dtype is torch.bool:
        return True
    return bool(tensor.isfinite().all()) and float(tensor.abs().max()) <= _LARGEST
