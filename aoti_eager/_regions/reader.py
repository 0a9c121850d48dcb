"""Generates the function that checks a region's state and collects a library's inputs.

The function is generated, because it runs in each call of a region: a loop over a hundred modules
would cost more than a small model. What every module has is compared by lists, which C walks, so
that a model of thousands of modules takes no seconds to generate. The function answers what a tape
cannot: whether Python state would make the next call take another way through the code.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from .._base.generated_code import run_generated
from .._base.torch_compat import tracing
from .copies import PLAIN, copied, same
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
            "ae_shape": _shape_in,
            "ae_training": itemgetter("training"),
            "ae_torch": torch,
        }
        self._known: dict[int, str] = {}
        self._checks: list[tuple[str, str]] = []  # what is checked, in words, and its source
        # path -> the source that checks the tensor's sizes, or the dict that has the tensor, its
        # name there, and its sizes
        self._shapes: dict[str, str | tuple[dict[str, Any], str, torch.Size]] = {}
        self._lists: dict[str, _Listed] = {one: _Listed(one) for one in _LISTS}
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
        known, shapes = set(inputs), _Listed("ae_shape")
        checks: list[tuple[str | _Listed, str]] = [*self._checks]
        # C++ compares the metadata of the inputs; nobody compares those of the tensors beside.
        for path, one in self._shapes.items():
            if path not in known and isinstance(one, str):
                checks.append((path, one))
            elif path not in known:
                shapes.add(path, one[:2], one[2])
        for listed in (*self._lists.values(), shapes):
            checks[:0] = listed.checks(self._name)
        # A parameter may be set to None.
        taken = [one for one in inputs if isinstance(one, str)]
        places = {one: f"i{n}" for n, one in enumerate(taken)}
        checks += [(one, f"({places[one]} := {self._sources[one]}) is not None") for one in taken]
        condition = " and ".join(f"({source})" for _, source in checks) or "True"
        wanted = ", ".join(places[one] if isinstance(one, str) else f"t[{one}]" for one in inputs)
        # Each default is copied in each call: none for a name that is not looked at.
        used = set(re.findall(r"\w+", condition + wanted))
        given = ", ".join(f"{one}={one}" for one in self._names if one in used)
        source = f"""
def read(t, {given}):
    if {condition}:
        return [{wanted}]
    return None
"""
        names = dict(self._names)
        run_generated(source, f"state of {name}", names)
        return names["read"], lambda: _first_change(checks, names)

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
        state, where = vars(module), path or "the module"
        mine, dot = self._name(state), f"{path}." if path else ""
        lists = self._lists
        lists["type"].add(f"the class of {where}", module, type(module))
        lists["ae_count"].add(f"the attributes of {where}", state, attribute_count(state))
        lists["ae_training"].add(f"{dot}training", state, module.training)
        own = state.get("forward")
        if own is not None and not isinstance(own, Fused):
            self._check(f"{dot}forward", f"{mine}['forward'] is {self._name(own)}")
        if not is_root:
            for hooks in (state["_forward_hooks"], state["_forward_pre_hooks"]):
                lists["len"].add(f"the hooks of {path}", hooks, 0)
        for table in ("_modules", "_parameters", "_buffers"):
            held = state[table]
            text = f"the {table[1:]} of {where}"
            lists["len"].add(text, held, len(held))
            if held and table == "_modules":
                name = self._name(held)
                names, values = self._name(list(held)), self._name(list(held.values()))
                self._check(text, f"list({name}) == {names} and list({name}.values()) == {values}")
        for table, name, tensor in tensors_of(module):
            source = f"{self._name(state[table]) if table else mine}[{name!r}]"
            if tensor is None:
                self._check(dot + name, f"{source} is None")
            else:
                holder = state[table] if table else state
                self._add_tensor(dot + name, source, tensor, (holder, name))
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

    def _add_tensor(
        self, path: str, source: str, tensor: Tensor, place: tuple[dict[str, Any], str] | None
    ) -> None:
        impl = tensor._cdata
        first = self.paths.get(impl)
        if first is not None:
            # Tied: each place must still hold one and the same tensor.
            self._check(f"{path} (tied)", f"{source} is {self._sources[first]}")
            return
        self.paths[impl], self._sources[path] = path, source
        if place is not None:
            self._shapes[path] = (*place, tensor.shape)
        else:
            self._shapes[path] = f"{source}.shape == {self._name(tuple(tensor.shape))}"

    def _add_value(self, path: str, source: str, value: Any, depth: int) -> None:
        if type(value) in (Tensor, torch.nn.Parameter):
            self._add_tensor(path, source, value, None)
            return
        if isinstance(value, PLAIN):
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
                self._add_tensor(inner.replace(source, path, 1), inner, one, None)
            kept = self._name(copied(value))
            self._check(path, f"ae_same({source}, {kept})")
            return
        self._check(path, f"{source} is {self._name(value)}")
        if not has_state(value) or id(value) in self._seen or depth == 0:
            return  # Modules are looked at as modules.
        self._seen.add(id(value))
        self._check(f"the class of {path}", f"type({source}) is {self._name(type(value))}")
        held: dict[str, Any] = getattr(value, "__dict__", {})
        for name, one in object_attributes(value).items():
            if name in self._mentioned:
                holder = self._name(held if name in held else value)
                text = f"{holder}[{name!r}]" if name in held else f"{holder}.{name}"
                self._add_value(f"{path}.{name}", text, one, depth - 1)
        self._add_classes(value)


# What is asked of every module, by the names that the generated code has for it.
_LISTS = ("ae_count", "ae_training", "len", "type")
# So many objects are asked one by one, which takes less time than to walk a list of them.
_FEW = 16


class _Listed:
    """Objects of which one and the same is asked, and what each must answer.

    Attributes:
        looked_at: The objects.
        wanted: The answers.
        texts: What each is, in words.
    """

    def __init__(self, question: str) -> None:
        self._question = question
        self.texts: list[str] = []
        self.looked_at: list[Any] = []
        self.wanted: list[Any] = []

    def add(self, text: str, looked_at: Any, wanted: Any) -> None:
        """Ask one more object."""
        self.texts.append(text)
        self.looked_at.append(looked_at)
        self.wanted.append(wanted)

    def checks(self, name: Callable[[Any], str]) -> list[tuple[str | _Listed, str]]:
        """Return what is checked, in words or as this, with its source.

        Args:
            name: Gives the name that an object has in the generated code.
        """
        ask = self._question
        if len(self.texts) <= _FEW:
            found = zip(self.texts, self.looked_at, self.wanted, strict=True)
            spelled = name if ask in ("ae_shape", "type") else repr
            return [(text, _asked(ask, name(one), spelled(wanted))) for text, one, wanted in found]
        looked_at, wanted = name(self.looked_at), name(self.wanted)
        source = f"list(map({ask}, {looked_at})) == {wanted}"
        # As a rule no module counts its own forward: C's len is enough.
        if ask == "ae_count":
            source = f"list(map(len, {looked_at})) == {wanted} or {source}"
        return [(self, source)]

    def first_change(self, names: dict[str, Any]) -> str:
        """Return the words of the first object that answers another way."""
        asked: Callable[[Any], Any] = {"len": len, "type": type, **names}[self._question]
        found = zip(self.texts, self.looked_at, self.wanted, strict=True)
        return next((text for text, one, wanted in found if asked(one) != wanted), "")


def _asked(question: str, looked_at: str, wanted: str) -> str:
    """Return the source of the check of one object."""
    if question == "ae_training":
        return f"{looked_at}['training'] is {wanted}"
    if question == "type":
        return f"type({looked_at}) is {wanted}"
    if question == "len" and wanted == "0":
        return f"not {looked_at}"
    source = f"len({looked_at}) == {wanted}" if question != "ae_shape" else ""
    if question != "len":
        source = " or ".join(filter(None, [source, f"{question}({looked_at}) == {wanted}"]))
    return source


def _shape_in(place: tuple[dict[str, Any], str]) -> torch.Size:
    shape: torch.Size = place[0][place[1]].shape
    return shape


def attribute_count(state: dict[str, Any]) -> int:
    """Return how many attributes a module has, without a forward that ``fuse`` has put there."""
    return len(state) - isinstance(state.get("forward"), Fused)


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


def _first_change(texts: Sequence[tuple[str | _Listed, str]], names: dict[str, Any]) -> str:
    """Return in words which check fails first; its sources are run one by one, with ``names``."""
    try:
        for text, source in texts:
            if not eval(source, names, {}):  # What it assigns goes nowhere.
                return text if isinstance(text, str) else text.first_change(names)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        return f"{error!r}"
    return ""
