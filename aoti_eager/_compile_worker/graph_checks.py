"""Checks of a traced graph for reasons to decline that the op's name does not show.

``_keys.declines`` knows torch's ops by name. A function of the user's may call anything, so its
graph is checked. Worker only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .._base.torch_compat.dispatcher import OpOverload, raw_schema
from .._functions.tracing import storage_identity
from .._keys.call_template import CallTemplate
from .._keys.declines import DATA_DEPENDENT_ERRORS, INTEGER_DIVISION, WRITES_STATISTICS
from .._keys.index_ops import INDEX_OPS
from .._keys.unsaid_writes import unsaid_write
from ..errors import CompileError


def check_graph(exported: Any, template: CallTemplate) -> None:
    """Refuse a graph whose results a kernel would not always reproduce.

    Args:
        exported: The exported program of the call.
        template: The call; a function's constants are its last slots.

    Raises:
        CompileError: With the decline reason.
    """
    is_function = any(name == "function" for name, _ in template.key.context)
    written = _Written(template, list(exported.graph_signature.user_inputs))
    for node in exported.graph.nodes:
        target = node.target
        if node.op == "placeholder":
            written.add_input(node)
            continue
        if not isinstance(target, OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in target.tags and not _draws_nothing(node):
            raise _refusal("random", f"the function draws random numbers ({target})")
        if is_function:
            _check_node(node, target)
            written.add_node(node, target)


def _check_node(node: Any, target: Any) -> None:
    name = raw_schema(target).name.partition("::")[2]
    if name in DATA_DEPENDENT_ERRORS and name not in INDEX_OPS:
        raise _refusal("error_depends_on_data", f"the function calls {target}")
    if name in INTEGER_DIVISION and _is_integral(node):
        raise _refusal("error_depends_on_data", f"the function divides integers ({target})")
    if name.startswith("as_strided"):
        raise _refusal("reads_storage_offset", f"the function calls {target}")
    if any(part in name for part in WRITES_STATISTICS):
        named = _arguments(node, target)
        if named.get("training") or named.get("train") or named.get("use_input_stats"):
            raise _refusal(
                "mutates_constant",
                f"its function updates running statistics ({target}): make them "
                "arguments, and name them in mutates_args",
            )


def _refusal(reason: str, message: str) -> CompileError:
    return CompileError(reason, message, remember=True)  # The graph is the same in every process.


def _draws_nothing(node: Any) -> bool:
    """Return whether an op that may draw random numbers draws none in this call.

    The ops are known by name: other ops (bernoulli, native_dropout) draw at a rate of zero too.
    """
    name = raw_schema(node.target).name.partition("::")[2]
    named = _arguments(node, node.target)
    if name.lstrip("_").startswith("scaled_dot_product"):
        return bool(named.get("dropout_p") == 0)
    if name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        return named.get("train") is False or bool(named.get("p") == 0)
    return False


def _is_integral(node: Any) -> bool:
    value = node.meta.get("val")
    dtype = getattr(value, "dtype", None)
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)


def _arguments(node: Any, target: Any) -> dict[str, Any]:
    schema = raw_schema(target)
    names = [argument.name for argument in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


_LITERAL = -1


class _Written:
    """Follows views back to inputs, and refuses writes to inputs that the op does not declare."""

    def __init__(self, template: CallTemplate, inputs: list[Any]) -> None:
        self._template, self._slots = template, list(template.slots)
        self._inputs = inputs
        self._sources: dict[Any, frozenset[int]] = {}

    def add_input(self, node: Any) -> None:
        # A placeholder that is no user input is a tensor that the function makes, as a constant.
        is_input = node.name in self._inputs
        self._sources[node] = frozenset({self._inputs.index(node.name) if is_input else _LITERAL})

    def add_node(self, node: Any, target: Any) -> None:
        schema = raw_schema(target)
        named = _arguments(node, target)
        touched: frozenset[int] = frozenset()
        for argument in schema.arguments:
            alias = argument.alias_info
            if alias is None:
                continue
            sources = self._of(named.get(argument.name))
            touched |= sources
            if alias.is_write and not (sources == {_LITERAL} and schema.name == "aten::detach_"):
                self._check(sources, target)
        # Composite ops such as reshape return views although their schemas do not say so.
        if touched or not any(a.alias_info for a in schema.arguments):
            touched |= self._of(list(named.values())) if _may_be_view(node) else frozenset()
        self._sources[node] = touched

    def _check(self, sources: frozenset[int], target: Any) -> None:
        for index in sources:
            if index == _LITERAL:
                what = "writes to a literal tensor: compute a new one instead"
            elif self._slots[index].mutated:
                continue
            else:
                what = unsaid_write(self._template, index)
            raise _refusal("mutates_constant", f"its function {what} ({target})")

    def _of(self, value: Any) -> frozenset[int]:
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, Sequence) and not isinstance(value, str):
            return frozenset().union(*[self._of(one) for one in value])
        try:
            return self._sources.get(value, frozenset())
        except TypeError:
            return frozenset()


def _may_be_view(node: Any) -> bool:
    """Return whether a result may share memory with an argument, by their fake storages."""
    storages = {
        storage for one in node.all_input_nodes for storage in _storages(one.meta.get("val"))
    }
    return any(storage in storages for storage in _storages(node.meta.get("val")))


def _storages(value: Any) -> list[int]:
    if isinstance(value, torch.Tensor):
        return [storage_identity(value)]
    if isinstance(value, list | tuple):
        return [storage for one in value for storage in _storages(one)]
    return []
