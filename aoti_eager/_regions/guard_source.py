"""Writes the function that checks a region's state: assignments and checks, in their order.

The function is generated, because it runs in each call of a region: a loop over a hundred modules
would cost more than a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .._base.data_class import dataclass
from .._base.generated_code import run_generated
from .plain_values import weakly

# Returns the inputs of a library for the tensors of a call; ``None`` if the state has changed.
Read = Callable[[Sequence[Tensor]], "list[Tensor] | None"]


@dataclass(frozen=True, slots=True)
class _Step:
    """A line of the function.

    Attributes:
        text: What is checked, in words; empty for an assignment.
        source: The condition, or the value that is assigned.
        target: The variable that is assigned to; empty for a check.
    """

    text: str
    source: str
    target: str = ""


class GuardSource:
    """The lines of a function that checks state, and the objects that the lines name.

    Args:
        names: Functions that the lines call.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._known: dict[int, str] = {}
        self._weak: list[Any] = []
        self._alive: list[Any] = []  # Until the function is made: ids stand for these objects.
        self._steps: list[_Step] = []
        self._variables = 0

    def name(self, value: Any) -> str:
        """Return a name for an object in the lines; the object is kept alive."""
        name = self._known.get(id(value))
        if name is None:
            name = self._known[id(value)] = f"o{len(self._names)}"
            self._names[name] = value
        return name

    def weak(self, value: Any) -> str:
        """Return what gives an object in the lines; the object is not kept alive, if possible."""
        name = self._known.get(id(value))
        if name is None:
            kept = weakly(value)
            if kept is value:
                return self.name(value)
            self._weak.append(kept)
            self._alive.append(value)
            name = self._known[id(value)] = f"o{len(self._names)}()"
            self._names[name[:-2]] = kept
        return name

    def let(self, source: str) -> str:
        """Return a variable to which a line assigns the value of ``source``."""
        name = f"v{self._variables}"
        self._variables += 1
        self._steps.append(_Step("", source, name))
        return name

    def check(self, text: str, source: str) -> None:
        """Add a condition; ``text`` names what is checked."""
        self._steps.append(_Step(text, source))

    def is_lost(self) -> bool:
        """Return whether an object is gone that the lines ask for: no state can be as it was."""
        return any(one() is None for one in self._weak)

    def reader(self, name: str, result: str) -> Read:
        """Return the function; its argument ``t`` is the list of a call's tensors.

        Args:
            name: What tracebacks show.
            result: The source of what the function returns.
        """
        lines, waiting = ["def read(t):"], []
        for step in self._steps:
            if not step.target:
                waiting.append(f"({step.source})")
                continue
            if waiting:
                lines.append(f"    if not ({' and '.join(waiting)}): return None")
                waiting = []
            lines.append(f"    {step.target} = {step.source}")
        lines.append(f"    return {result} if {' and '.join(waiting) or True} else None\n")
        names = dict(self._names)
        run_generated("\n".join(lines), f"state of {name}", names)
        self._alive = []
        found: Read = names["read"]
        return found

    def first_change(self) -> str:
        """Return in words which condition fails; empty if all hold."""
        lines, text = ["def changed(at):"], "the module"
        texts: list[str] = []
        for step in self._steps:
            text = step.text or text
            texts.append(text)
            lines.append(f"    at[0] = {len(texts) - 1}")
            if step.target:
                lines.append(f"    {step.target} = {step.source}")
            else:
                lines.append(f"    if not ({step.source}): return True")
        names, at = dict(self._names), [0]
        run_generated("\n".join([*lines, "    return False\n"]), "change of a state", names)
        try:
            return texts[at[0]] if names["changed"](at) else ""
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError):
            return texts[at[0]]
