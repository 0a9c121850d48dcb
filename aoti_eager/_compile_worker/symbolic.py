"""The graph of a call with some sizes as symbols, and the assumptions of its code. Worker only.

The guards are read after the compile, from the shape environment of the traced tensors: lowering
continues to specialise and to compare sizes after the program was exported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor

from .._base.torch_compat.dispatcher import OpOverload
from .._base.torch_compat.tracing import symbolic_functions
from .._functions.tracing import call_module, does_not_trace
from .._keys.call_template import CallTemplate, slot_dtype
from .._keys.guards import INT64_MAX, Expression, Guards
from .._keys.kernel_key import KernelKey, float_bits
from .._keys.pattern import (
    family_of,
    number_range,
    symbolic_number,
)
from .._keys.pattern_instances import (
    size_symbols,
)
from .._keys.schema import Kind
from .._keys.size_arguments import product, resolved, size_arguments
from ..errors import CompileError
from .graph_checks import check_graph

Dims = Sequence[tuple[int, int]]


def symbolic_program(
    op: OpOverload, template: CallTemplate, outputs: list[dict[str, Any]], dims: Dims
) -> tuple[Any, tuple[Tensor, ...], list[Any]]:
    """Return the call as an exported program, its inputs, and the inputs as they were traced.

    Args:
        op: The overload.
        template: The call with the sizes to trace with.
        outputs: Where the call's results come from.
        dims: Slot and dimension of each size that is to be a symbol.

    Raises:
        CompileError: The call cannot be traced with these symbols.
    """
    inputs = tuple(_tensor(slot) for slot in template.slots)
    wanted: list[dict[int, Any]] = [{} for _ in inputs]
    slots = _tensor_slots(template)
    for slot, dim in dims:
        # With AUTO the compiler may make a symbol a fixed size where the code depends on the size.
        wanted[slots[slot]][dim] = torch.export.Dim.AUTO
    module = call_module(op, _with_repeated_sizes(template), outputs)
    try:
        with torch.no_grad():
            exported = torch.export.export(
                module, inputs, dynamic_shapes=(tuple(wanted),), strict=False
            )
        check_graph(exported, template)
    except CompileError:
        raise
    except Exception as error:
        raise does_not_trace(error) from error
    traced = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"]
    return exported.module(check_guards=False), inputs, traced[-len(inputs) :]


def _tensor_slots(template: CallTemplate) -> list[int]:
    """Return the slots that a family counts: not the numbers that are inputs in this call only."""
    return [index for index, slot in enumerate(template.slots) if "value" not in slot.component]


def _with_repeated_sizes(template: CallTemplate) -> CallTemplate:
    """Return the template with int arguments that repeat sizes read from the inputs."""
    family, slots = family_of(template.schema, template.key), _tensor_slots(template)
    return replace(
        template,
        repeated=size_arguments(family.pattern.arguments),
        places={
            name: (slots[slot], dim)
            for name, (slot, dim) in family.places.items()
            if name in size_symbols(family.pattern)
        },
    )


def _tensor(slot: Any) -> Tensor:
    # A real tensor, whose memory is never touched: torch.export makes no symbols for a fake tensor.
    if slot.number_kind:
        return torch.zeros((), dtype=slot_dtype(slot))
    sizes, strides = slot.component["sizes"], slot.component["strides"]
    return torch.empty_strided(sizes, strides, dtype=slot_dtype(slot))


def compiled_pattern(template: CallTemplate, traced: list[Any]) -> tuple[KernelKey, Guards]:
    """Return the calls that the code serves; to be called after the compile, not before.

    Raises:
        CompileError: Guards cannot express an assumption of the code.
    """
    names: dict[sympy.Symbol, str] = {}
    shapes: list[tuple[list[Any], list[Any]] | None] = []
    for slot, tensor in zip(template.slots, traced, strict=True):
        if slot.number_kind or slot.component.get("sizes") is None:
            shapes.append(None)
            continue
        sizes = [_expression(size) for size in tensor.shape]
        strides = [_expression(stride) for stride in tensor.stride()]
        for one in (*sizes, *strides):
            if isinstance(one, sympy.Symbol):
                names.setdefault(one, f"s{len(names)}")
        shapes.append((sizes, strides))
    described = iter(
        None
        if shape is None
        else {
            "sizes": [_json(one, names) for one in shape[0]],
            "strides": [_json(one, names) for one in shape[1]],
        }
        for shape in shapes
    )
    separate = [
        condition
        for slot, shape in zip(template.slots, shapes, strict=True)
        if shape is not None and slot.mutated
        for condition in _no_overlap(slot.component, shape, names)
    ]
    pattern = _with_shapes(template, described, _repeated_sizes(template, shapes, names))
    environments = {
        id(env): env
        for tensor in traced
        if (env := getattr(getattr(tensor, "fake_mode", None), "shape_env", None)) is not None
    }
    conditions: list[Expression] = []
    ranges: dict[str, tuple[int, int]] = _number_ranges(template)
    for env in environments.values():
        conditions += _conditions(env, names)
        ranges |= _ranges(env, names)
    conditions += [one for one in separate if one not in conditions]
    return pattern, Guards(ranges, tuple(conditions))


def _no_overlap(
    component: dict[str, Any],
    shape: tuple[list[Any], list[Any]],
    names: dict[sympy.Symbol, str],
) -> Iterator[Expression]:
    """Give the conditions under which no two elements of a mutated input share memory.

    If two elements share memory, the result depends on the order of the writes.
    """
    sizes, strides = shape
    spread = [d for d, size in enumerate(component["sizes"]) if size > 1 and strides[d] != 0]
    spread.sort(key=lambda dim: (component["strides"][dim], -dim))
    for inner, outer in itertools.pairwise(spread):
        taken = strides[inner] * sizes[inner]
        if taken != strides[outer]:
            yield ["<=", _json(taken, names), _json(strides[outer], names)]


def _repeated_sizes(
    template: CallTemplate,
    shapes: Sequence[tuple[list[Any], list[Any]] | None],
    names: dict[sympy.Symbol, str],
) -> dict[str, Any]:
    """Return the int arguments that repeat sizes, by name, as sizes of the traced tensors."""
    general = _with_repeated_sizes(template)
    sizes = {
        name: shape[0][dim]
        for name, (slot, dim) in general.places.items()
        if (shape := shapes[slot]) is not None
    }

    def described(expression: Expression) -> Any:
        size = _json(product(expression, sizes), names)
        return size if isinstance(size, int) else {"size": size}

    return {name: resolved(one, described) for name, one in general.repeated.items()}


def _with_shapes(
    template: CallTemplate,
    described: Iterable[dict[str, Any] | None],
    repeated: dict[str, Any],
) -> KernelKey:
    """Return the template's key with other sizes and strides in its slots."""
    shapes = iter(described)

    def tensor(component: Any) -> Any:
        shape = next(shapes)
        return component if shape is None else {**component, **shape}

    key = template.key
    arguments = []
    count = 0
    for argument, (name, component) in zip(template.schema.arguments, key.arguments, strict=True):
        if argument.is_tensor and component is not None:
            if argument.kind is Kind.TENSOR:
                component = tensor(component)
            else:
                component = [None if one is None else tensor(one) for one in component]
        elif name in template.numbers:
            next(shapes)
            component = symbolic_number(argument.kind, f"v{count}")
            count += 1
        elif name in repeated:
            component = repeated[name]
        arguments.append((name, component))
    return KernelKey(key.op, key.dispatch_key, tuple(arguments), key.context)


def _number_ranges(template: CallTemplate) -> dict[str, tuple[int, int]]:
    values = [slot.component["value"] for slot in template.slots if "value" in slot.component]
    ranges = {}
    for count, value in enumerate(values):
        bounds = number_range(float_bits(value))
        if bounds is None:
            message = f"{value} is a number with a meaning of its own"
            raise CompileError("not_dynamic", message, remember=True)
        ranges[f"v{count}"] = bounds
    return ranges


def _expression(value: Any) -> Any:
    return value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(int(value))


def _ranges(env: Any, names: dict[sympy.Symbol, str]) -> dict[str, tuple[int, int]]:
    ranges = {}
    for symbol, name in names.items():
        bounds = env.var_to_range[symbol]
        # Sizes of 0 and 1 were never tried: the compiler assumes that there are none.
        low = max(2, int(bounds.lower)) if _is_finite(bounds.lower) else 2
        high = int(bounds.upper) if _is_finite(bounds.upper) else INT64_MAX
        ranges[name] = (low, high)
    return ranges


def _is_finite(bound: Any) -> bool:
    return isinstance(bound, sympy.Integer)


def _conditions(env: Any, names: dict[sympy.Symbol, str]) -> list[Expression]:
    asserted = [guard.expr for guard in env.guards]
    for deferred in env.deferred_runtime_asserts.values():
        asserted += [one.expr for one in deferred]
    conditions: list[Expression] = []
    for one in asserted:
        expression = env.replace(one)
        if expression is sympy.true:
            continue
        written = _json(expression, names)
        if written not in conditions:
            conditions.append(written)
    return conditions


def _json(expression: Any, names: dict[sympy.Symbol, str]) -> Expression:
    """Return a sympy expression in the form of guards.

    Raises:
        CompileError: The expression has an operator that guards do not know, or a symbol that no
            input has.
    """
    if isinstance(expression, sympy.Integer):
        return int(expression)
    if isinstance(expression, sympy.Symbol) and expression in names:
        return names[expression]
    if expression in (sympy.true, sympy.false):
        return int(bool(expression))
    if isinstance(expression, sympy.Pow):
        base, exponent = expression.args
        if isinstance(exponent, sympy.Integer) and 2 <= exponent <= 8:
            return ["*", *[_json(base, names)] * int(exponent)]
    operator = _operators().get(type(expression))
    if operator is None:
        raise CompileError(
            "not_dynamic",
            f"the code relies on {expression}, which no guard can say",
            remember=True,
        )
    name, swapped = operator
    operands = [_json(one, names) for one in expression.args]
    return [name, *(reversed(operands) if swapped else operands)]


def _operators() -> dict[type, tuple[str, bool]]:
    functions = symbolic_functions()
    known: dict[type, tuple[str, bool]] = {
        sympy.Add: ("+", False),
        sympy.Mul: ("*", False),
        sympy.Eq: ("==", False),
        sympy.Ne: ("!=", False),
        sympy.StrictLessThan: ("<", False),
        sympy.LessThan: ("<=", False),
        sympy.StrictGreaterThan: ("<", True),
        sympy.GreaterThan: ("<=", True),
        sympy.And: ("and", False),
        sympy.Or: ("or", False),
        sympy.Not: ("not", False),
        sympy.Min: ("min", False),
        sympy.Max: ("max", False),
    }
    for name, operator in (
        ("FloorDiv", "//"),
        ("CleanDiv", "//"),
        ("Mod", "%"),
        ("PythonMod", "%"),
        ("Min", "min"),
        ("Max", "max"),
    ):
        if hasattr(functions, name):
            known[getattr(functions, name)] = (operator, False)
    return known
