"""Whether a call draws numpy's random numbers.

``sys.setprofile`` sees no call of a method of numpy's generators, so the states of the generators
that a call can reach are compared instead. Does nothing where numpy.random is not loaded.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from typing import Any

# numpy loads its generators when somebody asks for the first one.
_MODULE = "numpy.random"


class NumpyRandom:
    """The generators of numpy's that a call can reach, and their states before the call.

    Generators are found among the values that are given to ``add``, and by the names that code
    mentions: global names, variables of outer functions, and names in modules that are global.
    """

    def __init__(self) -> None:
        self._module: Any = sys.modules.get(_MODULE)
        self._kinds: tuple[type, ...] = ()
        self._before: dict[int, tuple[str, Any, Any]] = {}  # id -> name, generator, state
        if self._module is not None:
            named = ("Generator", "RandomState", "BitGenerator")
            self._kinds = tuple([getattr(self._module, one) for one in named])
            self._legacy = _frozen(self._module.get_state(legacy=False))

    def add(self, values: Iterable[tuple[str, Any]]) -> None:
        """Look at the state of each generator among these values, which have names."""
        if not self._kinds:
            return
        for name, value in values:
            inner = value.values() if type(value) is dict else value
            for one in inner if type(value) in (list, tuple, dict) else [value]:
                if issubclass(type(one), self._kinds) and id(one) not in self._before:
                    self._before[id(one)] = name, one, _state(one)

    def add_classes(self, values: Iterable[Any]) -> None:
        """Look at the generators that the classes of these values have."""
        if not self._kinds:
            return
        for kind in {base for one in values for base in type(one).__mro__}:
            self.add([(f"{name} of {kind.__qualname__}", one) for name, one in vars(kind).items()])

    def add_named(self, code: types.CodeType, frame: types.FrameType) -> None:
        """Look at the generators that ``code`` names, which begins to run in ``frame``."""
        if not self._kinds:
            return
        space, names = frame.f_globals, code.co_names
        held = [(name, space[name]) for name in names if name in space]
        if code.co_freevars:
            held += [(name, frame.f_locals.get(name)) for name in code.co_freevars]
        for holder, one in held[:]:
            # The parts of ``settings.rng``; numpy's and torch's modules have none of the user's.
            if type(one) is types.ModuleType and one.__name__ not in ("numpy", "torch"):
                inside = vars(one)
                held += [(f"{holder}.{name}", inside[name]) for name in names if name in inside]
        self.add(held)

    @property
    def drawn(self) -> str:
        """Return the generator that has another state than before; empty if there is none."""
        if self._module is None:
            return "numpy.random, which it loads" if _MODULE in sys.modules else ""
        if _frozen(self._module.get_state(legacy=False)) != self._legacy:
            return "numpy.random"
        for name, one, before in self._before.values():
            if _state(one) != before:
                return name
        return ""


def _state(generator: Any) -> Any:
    bits = getattr(generator, "bit_generator", None)
    if bits is None and hasattr(generator, "get_state"):  # The old interface.
        return _frozen(generator.get_state(legacy=False))
    return _frozen((generator if bits is None else bits).state)


def _frozen(state: Any) -> Any:
    """Return a state with bytes in place of arrays, to be compared."""
    if isinstance(state, dict):
        return {name: _frozen(one) for name, one in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state
