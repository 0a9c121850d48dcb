"""Generates the function that checks a region's state and collects a library's inputs.

The function is generated, because it runs in each call of a region: a loop over a hundred modules
would cost more than a small model. It answers what a tape cannot: whether Python state would make
the next call take another way through the code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.generated_code import run_generated
from .._base.torch_compat import tracing
from .stop import Stop
from .target import (
    Fused,
    Target,
    class_attributes,
    has_state,
    object_attributes,
    own_attributes,
    tensors_of,
)

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CONTAINERS = (tuple, list, dict, set, frozenset, deque)
# Settings of the thread that code may ask for: the name that asks, and the source that answers.
_SETTINGS = {
    "is_grad_enabled": "ae_torch.is_grad_enabled()",
    "is_inference_mode_enabled": "ae_torch.is_inference_mode_enabled()",
}
# With these, code reads attributes whose names it does not mention.
_BY_NAME = frozenset({"getattr", "hasattr", "attrgetter", "vars", "__dict__", "__getattribute__"})
# Containers with more items are not compared in each call.
_MOST_ITEMS = 256
# Attributes of attributes are looked at so deep: ``self.config.rope.theta``.
_DEPTH = 3

# Returns the inputs of a library for the tensors of a call; ``None`` if the state has changed.
Read = Callable[[Sequence[Tensor]], "list[Tensor] | None"]


class StateReader:
    """The state of a target at the time of a recording, and where its tensors are.

    Args:
        target: The region's target.
        mentioned: Names that the code mentions which ran during the recording: only attributes of
            these names can have been read.
        own: The names among them that code outside of torch mentions.

    Attributes:
        paths: The path of each tensor, by the address of its ``TensorImpl``.
    """

    def __init__(
        self, target: Target, mentioned: frozenset[str], own: frozenset[str] = frozenset()
    ) -> None:
        self.paths: dict[int, str] = {}
        self._sources: dict[str, str] = {}  # path -> the source that reads the tensor
        self._names: dict[str, Any] = {
            "ae_same": same,
            "ae_count": attribute_count,
            "ae_torch": torch,
        }
        self._known: dict[int, str] = {}
        self._checks: list[tuple[str, str]] = []  # what is checked, in words, and its source
        self._shapes: dict[str, str] = {}  # path -> the source that checks the tensor's sizes
        self._mentioned = mentioned
        self._reads_by_name = bool(own & _BY_NAME)
        self._seen: set[int] = set()
        self._classes: set[str] = set()  # attributes of classes that are checked
        self._add_global_hooks()
        for name, source in _SETTINGS.items():
            if name in mentioned:
                self._check(name, f"{source} is {getattr(torch, name)()}")
        for path, module in target.modules():
            self._add_module(path, module, is_root=module is target.module)
        for one in target.references():
            is_global = isinstance(one.holder, dict)
            holder = self._name(one.holder)
            source = f"{holder}[{one.name!r}]" if is_global else f"{holder}.cell_contents"
            self._add_value(one.name, source, one.value, _DEPTH)

    def generate(self, name: str, inputs: Sequence[int | str]) -> tuple[Read, Callable[[], str]]:
        """Return the function, and one that says in words what has changed.

        Args:
            name: What tracebacks show.
            inputs: For each input of the library: the index among a call's tensors, or a path.
        """
        # C++ compares the metadata of the inputs; nobody compares those of the tensors beside.
        unread = [(path, source) for path, source in self._shapes.items() if path not in inputs]
        checks = [*self._checks, *unread]
        # A parameter may be set to None.
        taken = [one for one in inputs if isinstance(one, str)]
        checks += [
            (one, f"(i{n} := {self._sources[one]}) is not None") for n, one in enumerate(taken)
        ]
        condition = " and ".join(f"({source})" for _, source in checks) or "True"
        places = {one: f"i{n}" for n, one in enumerate(taken)}
        listed = ", ".join(places[one] if isinstance(one, str) else f"t[{one}]" for one in inputs)
        source = f"""
def read(t):
    if {condition}:
        return [{listed}]
    return None

def changed():
    return [{", ".join(f"({source})" for _, source in checks)}]
"""
        names = dict(self._names)
        run_generated(source, f"state of {name}", names)
        return names["read"], lambda: _first_change([text for text, _ in checks], names["changed"])

    # -- what is checked --

    def _name(self, value: Any) -> str:
        """Return a name for an object in the generated code; the object is kept alive."""
        name = self._known.get(id(value))
        if name is None:
            name = self._known[id(value)] = f"o{len(self._known)}"
            self._names[name] = value
        return name

    def _check(self, text: str, source: str) -> None:
        self._checks.append((text, source))

    def _add_global_hooks(self) -> None:
        module = torch.nn.modules.module
        after, before = module._global_forward_hooks, module._global_forward_pre_hooks
        own = self._name(tracing.own_module_hooks)
        source = f"not {self._name(after)} and len({self._name(before)}) == len({own})"
        self._check("hooks for all modules", source)

    def _add_module(self, path: str, module: torch.nn.Module, *, is_root: bool) -> None:
        state = vars(module)
        mine, dot = self._name(state), f"{path}." if path else ""
        count = attribute_count(state)
        what = f"the attributes of {path or 'the module'}"
        self._check(what, f"len({mine}) == {count} or ae_count({mine}) == {count}")
        own = state.get("forward")
        if own is not None and not isinstance(own, Fused):
            self._check(f"{dot}forward", f"{mine}['forward'] is {self._name(own)}")
        self._check(f"{dot}training", f"{mine}['training'] is {module.training}")
        if not is_root:
            hooks = [state["_forward_hooks"], state["_forward_pre_hooks"]]
            names = " or ".join(map(self._name, hooks))
            self._check(f"the hooks of {path}", f"not ({names})")
        for table in ("_modules", "_parameters", "_buffers"):
            held = state[table]
            name, text = self._name(held), f"the {table[1:]} of {path or 'the module'}"
            if not held:
                self._check(text, f"not {name}")
            elif table == "_modules":
                names, values = self._name(list(held)), self._name(list(held.values()))
                self._check(text, f"list({name}) == {names} and list({name}.values()) == {values}")
            else:
                self._check(text, f"len({name}) == {len(held)}")
        for table, name, tensor in tensors_of(module):
            source = f"{self._name(state[table]) if table else mine}[{name!r}]"
            if tensor is None:
                self._check(dot + name, f"{source} is None")
            else:
                self._add_tensor(dot + name, source, tensor)
        for name, value in own_attributes(module):
            is_read = name in self._mentioned or self._reads_by_name
            if is_read and not isinstance(value, Tensor):
                self._add_value(dot + name, f"{mine}[{name!r}]", value, _DEPTH)
        self._add_classes(module)

    def _add_classes(self, value: Any) -> None:
        own = getattr(value, "__dict__", {})
        for owner, name, plain in class_attributes(value):
            text = f"{name} of {owner.__qualname__}"
            if name in self._mentioned and name not in own:
                self._check(text, f"{name!r} not in {self._name(own)}")
            if name in self._mentioned and text not in self._classes:
                self._classes.add(text)
                self._add_value(text, f"{self._name(owner)}.__dict__[{name!r}]", plain, 0)

    def _add_tensor(self, path: str, source: str, tensor: Tensor) -> None:
        impl = tensor._cdata
        first = self.paths.get(impl)
        if first is not None:
            # Tied: each place must still hold one and the same tensor.
            self._check(f"{path} (tied)", f"{source} is {self._sources[first]}")
            return
        self.paths[impl], self._sources[path] = path, source
        self._shapes[path] = f"{source}.shape == {self._name(tuple(tensor.shape))}"

    def _add_value(self, path: str, source: str, value: Any, depth: int) -> None:
        if type(value) in (Tensor, torch.nn.Parameter):
            self._add_tensor(path, source, value)
            return
        if isinstance(value, _PLAIN):
            known = self._name(value)
            self._check(path, f"{source} is {known} or ae_same({source}, {known})")
            return
        if isinstance(value, _CONTAINERS) and len(value) > _MOST_ITEMS:
            if path.rpartition(".")[2] in self._mentioned:
                raise Stop("large_attribute", f"{path} has {len(value)} items")
            self._check(path, f"{source} is {self._name(value)}")
            return
        if isinstance(value, _CONTAINERS):
            tensors = _tensors_in(value, source)
            for one, inner in tensors:
                self._add_tensor(inner.replace(source, path, 1), inner, one)
            kept = self._name(copied(value))
            self._check(path, f"ae_same({source}, {kept})")
            return
        self._check(path, f"{source} is {self._name(value)}")
        if not has_state(value) or id(value) in self._seen or depth == 0:
            return  # Modules are looked at as modules.
        self._seen.add(id(value))
        held: dict[str, Any] = getattr(value, "__dict__", {})
        for name, one in object_attributes(value).items():
            if name in self._mentioned:
                holder = self._name(held if name in held else value)
                text = f"{holder}[{name!r}]" if name in held else f"{holder}.{name}"
                self._add_value(f"{path}.{name}", text, one, depth - 1)
        self._add_classes(value)


def attribute_count(state: dict[str, Any]) -> int:
    """Return how many attributes a module has, without a forward that ``fuse`` has put there."""
    return len(state) - isinstance(state.get("forward"), Fused)


def same(value: Any, known: Any) -> bool:
    """Return whether two plain values, or containers of them, are equal and of the same types."""
    if value is known:
        return True
    if isinstance(known, _Copy):
        mine = copied(value)
        return type(mine) is _Copy and mine.kind is known.kind and same(mine.plain, known.plain)
    if type(value) is not type(known):
        return False
    if isinstance(value, float | complex):
        return repr(value) == repr(known)  # NaN equals NaN, and -0.0 differs from 0.0.
    if isinstance(value, list | tuple | deque):
        return len(value) == len(known) and all(map(same, value, known))
    if isinstance(value, dict):
        return list(value) == list(known) and all(map(same, value.values(), known.values()))
    if isinstance(value, (*_PLAIN, set, frozenset)):
        return bool(value == known)
    return False


class _Copy:
    """The contents of a container of a class of its own."""

    __slots__ = ("kind", "plain")

    def __init__(self, kind: type, plain: Any) -> None:
        self.kind = kind
        self.plain = plain


def copied(value: Any, depth: int = 8) -> Any:
    """Return a copy of containers within containers; everything else is the object itself.

    Raises:
        Stop: Containers lie too deep in each other, or in themselves.
    """
    kind = type(value)
    if kind not in (list, tuple, dict) and not _is_other(kind):
        return set(value) if kind is set else value
    if depth == 0:
        raise Stop("large_attribute", "an attribute has containers within containers, too deep")
    if kind is list or kind is tuple:
        return kind([copied(one, depth - 1) for one in value])
    if kind is dict:
        return {name: copied(one, depth - 1) for name, one in list(value.items())}
    return _Copy(kind, copied(_as_plain(value), depth - 1))


def _is_other(kind: type) -> bool:
    return kind is not set and issubclass(kind, list | dict | set | deque | bytearray)


def _as_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(dict.items(value))
    return set(value) if isinstance(value, set) else list(value)


def _tensors_in(value: Any, source: str) -> list[tuple[Tensor, str]]:
    found = []
    if isinstance(value, list | tuple):
        items: list[tuple[Any, Any]] = list(enumerate(value))
    else:
        items = list(value.items()) if isinstance(value, dict) else []
    for name, one in items:
        inner = f"{source}[{name!r}]"
        if type(one) in (Tensor, torch.nn.Parameter):
            found.append((one, inner))
        elif isinstance(one, list | tuple | dict):
            found += _tensors_in(one, inner)
    return found


def _first_change(texts: Sequence[str], hold: Callable[[], Sequence[Any]]) -> str:
    try:
        return next((text for text, holds in zip(texts, hold(), strict=True) if not holds), "")
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        return f"{error!r}"
