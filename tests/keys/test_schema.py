"""Binding: argument names, kinds, defaults filled in, and what an op writes to or hands back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._base.op_names import find_overload
from aoti_eager._base.torch_compat.dispatcher import all_op_names
from aoti_eager._keys.schema import (
    Kind,
    OpSchema,
    Return,
    op_schema,
)

from ..support.calls import (
    UNSUPPORTED_TYPES,
    aten_schemas,
    bound_values,
    call_meaning,
    schemas,
    spellings,
)


def schema_of(name: str) -> OpSchema:
    return op_schema(find_overload(name))


def test_every_registered_op_has_a_schema() -> None:
    for name in all_op_names():
        schema = schema_of(name)
        assert schema.op == name
        assert hash(schema) == hash(op_schema.__wrapped__(find_overload(name)))


def test_every_argument_type_of_aten_but_three_is_known() -> None:
    unknown = {
        argument.type_name
        for schema in aten_schemas()
        for argument in schema.arguments
        if argument.kind is Kind.UNSUPPORTED
    }
    assert unknown == UNSUPPORTED_TYPES


DEFAULT_TYPES: dict[Kind, type | tuple[type, ...]] = {
    Kind.SCALAR: (bool, int, float, complex),
    Kind.INT: int,
    Kind.INTS: list,
    Kind.FLOAT: float,
    Kind.BOOL: bool,
    Kind.STR: str,
    Kind.DTYPE: torch.dtype,
    Kind.LAYOUT: torch.layout,
    Kind.DEVICE: torch.device,
    Kind.MEMORY_FORMAT: torch.memory_format,
}


def test_every_default_has_the_type_that_a_kernel_is_given() -> None:
    for schema in aten_schemas():
        for argument in schema.arguments:
            if argument.has_default and argument.default is not None:
                assert isinstance(argument.default, DEFAULT_TYPES[argument.kind]), schema.op
            if argument.has_default and argument.default is None:
                assert argument.optional, schema.op


@pytest.mark.parametrize(
    ("op", "argument", "default"),
    [
        ("aten::elu", "alpha", 1),
        ("aten::elu", "scale", 1),
        ("aten::gelu", "approximate", "none"),
        ("aten::native_dropout_backward", "scale", None),
        ("aten::max_pool2d_with_indices", "stride", []),
        ("aten::norm_except_dim", "pow", 2),
        ("aten::celu", "alpha", 1.0),
        ("aten::sum", "dtype", None),
        ("aten::contiguous", "memory_format", torch.contiguous_format),
        ("aten::tril_indices", "dtype", torch.int64),
    ],
)
def test_defaults_are_those_of_the_schema(op: str, argument: str, default: Any) -> None:
    found = next(one for one in schema_of(op).arguments if one.name == argument)
    assert found.default == default
    assert type(found.default) is type(default)
    assert found.has_default is (argument != "scale" or op == "aten::elu")


@pytest.mark.parametrize(
    ("op", "kinds"),
    [
        ("aten::add.Tensor", [Kind.TENSOR, Kind.TENSOR, Kind.SCALAR]),
        ("aten::cat", [Kind.TENSORS, Kind.INT]),
        ("aten::index.Tensor", [Kind.TENSOR, Kind.OPTIONAL_TENSORS]),
        ("aten::_foreach_add.ScalarList", [Kind.TENSORS, Kind.SCALARS]),
        ("aten::sum.dim_IntList", [Kind.TENSOR, Kind.INTS, Kind.BOOL, Kind.DTYPE]),
        ("aten::expand", [Kind.TENSOR, Kind.INTS, Kind.BOOL]),
        ("aten::clone", [Kind.TENSOR, Kind.MEMORY_FORMAT]),
        ("aten::upsample_nearest1d", [Kind.TENSOR, Kind.INTS, Kind.FLOAT]),
        ("aten::upsample_nearest2d.vec", [Kind.TENSOR, Kind.INTS, Kind.FLOATS]),
        ("aten::bernoulli", [Kind.TENSOR, Kind.GENERATOR]),
        ("aten::set_.source_Storage", [Kind.TENSOR, Kind.UNSUPPORTED]),
    ],
)
def test_kinds_are_the_schemas_types(op: str, kinds: list[Kind]) -> None:
    assert [argument.kind for argument in schema_of(op).arguments] == kinds


def test_an_optional_argument_is_known_as_one() -> None:
    optional = {a.name: a.optional for a in schema_of("aten::native_layer_norm").arguments}
    assert optional == {
        "input": False,
        "normalized_shape": False,
        "weight": True,
        "bias": True,
        "eps": False,
    }


@pytest.mark.parametrize(
    ("op", "mutated"),
    [
        ("aten::add.Tensor", ()),
        ("aten::add_.Tensor", (0,)),
        ("aten::add.out", (3,)),
        ("aten::aminmax.out", (3, 4)),
        ("aten::_foreach_add_.Scalar", (0,)),
        ("aten::transpose.int", ()),
    ],
)
def test_what_an_op_writes_to_is_mutated(op: str, mutated: tuple[int, ...]) -> None:
    assert schema_of(op).mutated == mutated


@pytest.mark.parametrize(
    ("op", "returns"),
    [
        ("aten::add.Tensor", [(Kind.TENSOR, None, False)]),
        ("aten::add_.Tensor", [(Kind.TENSOR, "self", False)]),
        ("aten::add.out", [(Kind.TENSOR, "out", False)]),
        ("aten::aminmax.out", [(Kind.TENSOR, "min", False), (Kind.TENSOR, "max", False)]),
        ("aten::transpose.int", [(Kind.TENSOR, None, True)]),
        ("aten::split.Tensor", [(Kind.TENSORS, None, True)]),
        ("aten::_foreach_add_.Scalar", []),
        ("aten::is_same_size", [(Kind.BOOL, None, False)]),
    ],
)
def test_results_name_the_argument_that_is_handed_back(
    op: str, returns: list[tuple[Kind, str | None, bool]]
) -> None:
    found: tuple[Return, ...] = schema_of(op).returns
    assert [(result.kind, result.argument, result.is_view) for result in found] == returns


# --- binding -------------------------------------------------------------------------------------


def test_what_is_left_out_is_filled_in_by_name() -> None:
    elu = schema_of("aten::elu")
    assert elu.bind(["x"], {}) == ("x", 1, 1, 1)
    assert elu.bind(["x", 2.0], {}) == ("x", 2.0, 1, 1)
    assert elu.bind(["x", 1, 2.0], {}) == ("x", 1, 2.0, 1)
    assert elu.bind(["x"], {"input_scale": 2.0}) == ("x", 1, 1, 2.0)
    assert elu.bind([], {"self": "x", "scale": 3}) == ("x", 1, 3, 1)


@given(st.data())
@hypothesis_settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_spelling_of_a_call_binds_to_its_values(data: st.DataObject) -> None:
    schema = data.draw(schemas)
    values = data.draw(bound_values(schema))
    args, kwargs = data.draw(spellings(schema, values))
    assert call_meaning(schema, schema.bind(args, kwargs)) == call_meaning(schema, values)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (["x"], {}, "argument 'other' is missing"),
        (["x", "y", 2], {}, "takes 2 positional arguments, got 3"),
        (["x", "y"], {"other": "z"}, "argument 'other' is given twice"),
        (["x", "y"], {"beta": 1}, "no argument is named beta"),
        (["x", "y"], {"alpha": 2, "b": 1, "a": 1}, "no argument is named a, b"),
    ],
)
def test_a_call_that_does_not_fit_is_a_type_error_that_names_the_op(
    args: list[Any], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=rf"aten::add\.Tensor: {message}"):
        schema_of("aten::add.Tensor").bind(args, kwargs)
