"""Writes the function that checks a region's state: assignments and checks, in their order.

The function is generated, because it runs in each call of a region: a loop over a hundred modules
would cost more than a small model.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .._base.data_class import dataclass
from .._base.generated_code import run_generated
from .plain_values import weakly

# So many items of one mapping are compared by one condition.
_TOGETHER = 6

# Returns the inputs of a library for the tensors of a call; ``None`` if the state has changed.
Read = Callable[[Sequence[Tensor]], "list[Tensor] | None"]


@dataclass(frozen=True, slots=True)
class _Step:
    """A line of the function.

    Attributes:
        text: What is checked, in words; empty for an assignment.
        source: The condition, or the value that is assigned.
        target: The variable that is assigned to; empty for a check.
        item: Of a check of an item: the mapping, the key, and the value that the key had.
    """

    text: str
    source: str
    target: str = ""
    item: tuple[str, str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor of the state that is an input of the library.

    Attributes:
        path: Its path.
        source: What reads the tensor.
        kind: Its class.
    """

    path: str
    source: str
    kind: type


def _items_together(mapping: str, steps: Sequence[_Step], names: dict[str, Any]) -> str:
    """Return one condition for checks of a mapping's items: shorter to compile and to run.

    Args:
        mapping: What the lines call the mapping.
        steps: The checks.
        names: The names of the lines; what the condition needs is added.
    """
    items = [one.item for one in steps if one.item is not None]
    number = len(names)
    names[f"g{number}"] = operator.itemgetter(*[key for _, key, _ in items])
    names[f"k{number}"] = tuple(value for _, _, value in items)
    names.update(ae_all=all, ae_map=map, ae_is=operator.is_)
    got, known = f"g{number}({mapping})", f"k{number}"
    return f"(ae_all(ae_map(ae_is, {got}, {known})) or ae_all(ae_map(ae_same, {got}, {known})))"


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
        self._inputs: list[Input] = []
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

    def check_item(self, text: str, mapping: str, key: str, value: Any) -> None:
        """Add the condition that a mapping has a plain value under a key, or one like it."""
        source, known = f"{mapping}[{key!r}]", self.name(value)
        condition = f"{source} is {known} or ae_same({source}, {known})"
        self._steps.append(_Step(text, condition, "", (mapping, key, value)))

    def is_lost(self) -> bool:
        """Return whether an object is gone that the lines ask for: no state can be as it was."""
        return any(one() is None for one in self._weak)

    def reader(self, name: str, inputs: Sequence[int | Input]) -> Read:
        """Return the function; its argument ``t`` is the list of a call's tensors.

        Args:
            name: What tracebacks show.
            inputs: What the function returns: tensors of the state, and of the call, by index.
        """
        self._inputs = [one for one in inputs if isinstance(one, Input)]
        names = dict(self._names)
        lines, waiting = ["def read(t):"], []
        for mapping, steps in itertools.groupby(self._steps, lambda one: one.item and one.item[0]):
            listed = list(steps)
            if mapping and len(listed) >= _TOGETHER:
                waiting.append(_items_together(mapping, listed, names))
                continue
            for step in listed:
                if not step.target:
                    waiting.append(f"({step.source})")
                    continue
                if waiting:
                    lines.append(f"    if not ({' and '.join(waiting)}): return None")
                    waiting = []
                lines.append(f"    {step.target} = {step.source}")
        if waiting:
            lines.append(f"    if not ({' and '.join(waiting)}): return None")
        lines.append(f"    r = [{', '.join(one.source for one in self._inputs)}]")
        if self._inputs:
            names.update(ae_all=all, ae_map=map, ae_is=operator.is_)
            names["kinds"] = [one.kind for one in self._inputs]
            kinds = "ae_all(ae_map(ae_is, ae_map(ae_type, r), kinds))"
            lines.append(f"    if not {kinds}: return None")
        given = [(place, one) for place, one in enumerate(inputs) if isinstance(one, int)]
        lines += [f"    r.insert({place}, t[{index}])" for place, index in given]
        lines.append("    return r\n")
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
        for one in self._inputs:
            texts.append(one.path)
            lines.append(f"    at[0] = {len(texts) - 1}")
            names[f"kind{len(texts)}"] = one.kind
            lines.append(f"    if ae_type({one.source}) is not kind{len(texts)}: return True")
        run_generated("\n".join([*lines, "    return False\n"]), "change of a state", names)
        try:
            return texts[at[0]] if names["changed"](at) else ""
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError):
            return texts[at[0]]
