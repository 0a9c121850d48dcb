"""A key turned back into a call: the call it was made from, without its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._base.op_names import find_overload
from aoti_eager._keys.call_template import CallTemplate, call_template, slot_dtype
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import Kind, OpSchema, op_schema

from ..support.calls import (
    bound_values,
    examples,
    keyable_schemas,
    schemas,
    tensor,
)


def template_of(schema: OpSchema, values: Any) -> CallTemplate:
    return call_template(schema, kernel_key(schema, "CPU", values))


def inputs(schema: OpSchema, values: Any) -> list[Any]:
    """Return the tensors and the numbers in their slots, lists flattened, absent ones left out.

    An undefined tensor in a required slot keeps its place.
    """
    flat: list[Any] = []
    for argument, value in zip(schema.arguments, values, strict=True):
        if argument.kind is Kind.TENSOR:
            flat += [] if value is None and argument.optional else [value]
        elif argument.is_tensor and value is not None:
            flat += [one for one in value if one is not None]
    return flat


def assert_rebuilds(schema: OpSchema, values: Any) -> None:
    template = template_of(schema, values)
    args, kwargs = template.arguments(inputs(schema, values))
    assert set(kwargs) == {a.name for a in schema.arguments if a.kwarg_only}
    again = kernel_key(schema, "CPU", schema.bind(args, kwargs))
    assert again == template.key
    assert again.digest == template.key.digest


@given(st.data())
@hypothesis_settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_rebuilt_call_binds_to_the_key_it_was_rebuilt_from(data: st.DataObject) -> None:
    schema = data.draw(schemas)
    assert_rebuilds(schema, data.draw(bound_values(schema)))


def test_a_call_of_every_op_can_be_rebuilt() -> None:
    for schema in keyable_schemas():
        values = [next(iter(examples(argument)), None) for argument in schema.arguments]
        assert_rebuilds(schema, values)


def test_slots_are_the_tensors_in_schema_order() -> None:
    schema = op_schema(find_overload("aten::index_put_"))
    x, rows, values = tensor((4, 3)), tensor((2,), dtype=torch.int64), tensor((2, 3))
    template = template_of(schema, [x, [rows, None], values, False])
    assert [(slot.name, slot.mutated) for slot in template.slots] == [
        ("self", True),
        ("indices", False),
        ("values", False),
    ]
    assert [slot_dtype(slot) for slot in template.slots] == [
        torch.float32,
        torch.int64,
        torch.float32,
    ]
    args, kwargs = template.arguments(["a", "b", "c"])
    assert (args, kwargs) == (["a", ["b", None], "c", False], {})


@pytest.mark.parametrize(
    ("number", "kind", "dtype"),
    [
        (True, "bool", torch.bool),
        (2, "int", torch.int64),
        (2.5, "float", torch.float64),
        (1j, "complex", torch.complex128),
    ],
)
def test_a_number_in_a_tensor_slot_is_an_input(
    number: complex, kind: str, dtype: torch.dtype
) -> None:
    schema = op_schema(find_overload("aten::mul.Tensor"))
    template = template_of(schema, [tensor(), number])
    _, slot = template.slots
    assert slot.number_kind == kind
    assert slot_dtype(slot) is dtype
    stand_in = torch.tensor(number)
    x = tensor()
    args, _ = template.arguments([x, stand_in], as_number=lambda value: value.item())
    assert args[0] is x
    assert args[1] == number
    assert type(args[1]) is type(number)


def test_a_call_gives_what_the_op_gives() -> None:
    schema = op_schema(find_overload("aten::add.Tensor"))
    x, y = torch.arange(6.0), torch.ones(6)
    template = template_of(schema, [x, y, 2])
    assert template.call(torch.ops.aten.add.Tensor, [x, y]).tolist() == [2, 3, 4, 5, 6, 7]


def test_too_few_or_too_many_inputs_are_an_error() -> None:
    schema = op_schema(find_overload("aten::add.Tensor"))
    template = template_of(schema, [tensor(), tensor(), 1])
    with pytest.raises(ValueError, match="zip"):
        template.arguments([tensor()])
    with pytest.raises(ValueError, match="zip"):
        template.arguments([tensor()] * 3)
