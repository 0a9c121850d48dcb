"""Finds the state that a region depends on, and has a function generated that checks the state.

The function answers what a tape cannot: whether Python state would make the next call take another
way through the code. Each check reads from the module anew, from the root down, and holds no module
and no tensor: a part that was replaced is freed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat import tracing
from .guard_source import GuardSource, Read
from .guarded_tensors import GuardedTensors
from .guarded_values import GuardedValues
from .plain_values import same
from .stop import Stop
from .target import (
    Fused,
    Target,
    hooked,
    own_attributes,
    tensors_of,
)

_TENSORS = (Tensor, torch.nn.Parameter)
# Functions of torch that tell a setting of the thread, and the names of which code mentions one if
# the setting may decide what the code gives.
_SETTINGS = {
    "is_grad_enabled": frozenset(
        """
        is_grad_enabled requires_grad requires_grad_ enable_grad set_grad_enabled
        """.split()  # noqa: SIM905 - a list of names to read, not to parse
    ),
    "is_inference_mode_enabled": frozenset({"is_inference_mode_enabled"}),
}
# With these, code reads attributes whose names it does not mention.
_BY_NAME = frozenset(
    """
    getattr hasattr attrgetter vars __dict__ __getattribute__ asdict astuple setattr delattr
    __match_args__ __getstate__
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)


class StateReader:
    """The state of a target at the time of a recording, and where its tensors are.

    Args:
        target: The region's target.
        mentioned: Names that the code mentions which ran during the recording: only attributes of
            these names can have been read.
        own: The names among them that code outside of torch mentions.

    Attributes:
        paths: The path of each tensor, by the address of its ``TensorImpl``.

    Raises:
        Stop: The state cannot be compared in each call.
    """

    def __init__(
        self, target: Target, mentioned: frozenset[str], own: frozenset[str] = frozenset()
    ) -> None:
        self._guard = GuardSource(
            {
                "ae_same": same,
                "ae_count": attribute_count,
                "ae_torch": torch,
                "ae_type": type,
                "ae_len": len,
                "ae_list": list,
                "ae_has": hasattr,
            }
        )
        asks = "requires_grad" in mentioned
        self._tensors = GuardedTensors(self._guard, asks_for_gradients=asks)
        self.paths = self._tensors.paths
        self._values = GuardedValues(
            self._guard,
            self._tensors,
            mentioned,
            reads_by_name=bool(own & _BY_NAME),
        )
        self._mentioned = mentioned
        self._modules: dict[int, str] = {}  # id -> variable
        self._add_settings()
        module = target.module
        if module is not None:
            self._add_module("", self._guard.let(self._guard.weak(module)), module, is_root=True)
        for one in target.references():
            holder = self._guard.name(one.holder)
            source = f"{holder}.cell_contents" if one.key is None else f"{holder}[{one.key!r}]"
            self._values.add(one.name, source, one.value)
        self._values.walk(self._add_module)

    def generate(self, name: str, inputs: Sequence[int | str]) -> tuple[Read, GuardSource]:
        """Return the function, and what it was made of.

        Args:
            name: What tracebacks show.
            inputs: For each input of the library: the index among a call's tensors, or a path.
        """
        self._tensors.check_others(set(inputs))
        listed = [self._tensors.input(one) if isinstance(one, str) else one for one in inputs]
        return self._guard.reader(name, listed), self._guard

    # -- what is checked --

    def _add_settings(self) -> None:
        for setting, names in _SETTINGS.items():
            if names & self._mentioned:
                answer = getattr(torch, setting)()
                self._guard.check(setting, f"ae_torch.{setting}() is {answer}")
        module = torch.nn.modules.module
        after, before = module._global_forward_hooks, module._global_forward_pre_hooks
        own, name = self._guard.name(tracing.own_module_hooks), self._guard.name
        source = f"not {name(after)} and ae_len({name(before)}) == ae_len({own})"
        self._guard.check("hooks for all modules", source)
        call = f"{name(torch.nn.Module)}.__call__ is {name(torch.nn.Module.__call__)}"
        self._guard.check("the call of all modules", call)

    def _add_module(
        self, path: str, local: str, module: torch.nn.Module, *, is_root: bool = False
    ) -> None:
        guard, what = self._guard, path or "the module"
        first = self._modules.get(id(module))
        if first is not None:
            guard.check(f"{path} (shared)", f"{local} is {first}")
            return
        self._modules[id(module)] = local
        if hooked(module, is_root=is_root):
            raise Stop("hooks", f"{path} has forward hooks")
        guard.check(what, f"{local} is {guard.weak(module)}")
        self._values.add_module_class(what, local, type(module))
        state, dot = vars(module), f"{path}." if path else ""
        mine, count = guard.let(f"{local}.__dict__"), attribute_count(state)
        guard.check(
            f"the attributes of {what}", f"ae_len({mine}) == {count} or ae_count({mine}) == {count}"
        )
        own = state.get("forward")
        if own is not None and not isinstance(own, Fused):
            guard.check(f"{dot}forward", f"{mine}['forward'] is {guard.weak(own)}")
        training = guard.name(module.training)
        guard.check(f"{dot}training", f"{mine}['training'] is {training}")
        if not is_root:
            hooks = [f"{mine}[{one!r}]" for one in ("_forward_hooks", "_forward_pre_hooks")]
            guard.check(f"the hooks of {path}", f"not ({' or '.join(hooks)})")
        tables = {"": mine}
        for table in ("_parameters", "_buffers"):
            held, text = state[table], f"the {table[1:]} of {what}"
            if held:
                tables[table] = guard.let(f"{mine}[{table!r}]")
                guard.check(text, f"ae_len({tables[table]}) == {len(held)}")
            else:
                guard.check(text, f"not {mine}[{table!r}]")
        for table, name, tensor in tensors_of(module):
            source = f"{tables[table]}[{name!r}]"
            if tensor is None:
                guard.check(dot + name, f"{source} is None")
            else:
                self._values.add_tensor(dot + name, source, tensor)
        for name, value in own_attributes(module):
            if self._values.may_read(name) and type(value) not in _TENSORS:
                is_mentioned = name in self._mentioned
                self._values.add_item(dot + name, mine, name, value, is_mentioned=is_mentioned)
        self._add_children(path, mine, state["_modules"])

    def _add_children(self, path: str, mine: str, children: dict[str, Any]) -> None:
        guard, text = self._guard, f"the modules of {path or 'the module'}"
        if not children:
            guard.check(text, f"not {mine}['_modules']")
            return
        table = guard.let(f"{mine}['_modules']")
        guard.check(text, f"ae_list({table}) == {guard.name(list(children))}")
        locals_ = [guard.let(f"{table}[{name!r}]") for name in children]
        for local, (name, child) in zip(locals_, list(children.items()), strict=True):
            inner = f"{path}.{name}" if path else name
            if child is None:
                guard.check(inner, f"{local} is None")
            else:
                self._add_module(inner, local, child)


def attribute_count(state: dict[str, Any]) -> int:
    """Return how many attributes a module has, without a forward that ``fuse`` has put there."""
    return len(state) - isinstance(state.get("forward"), Fused)
