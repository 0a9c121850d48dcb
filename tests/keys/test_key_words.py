"""The words of a key: Python writes what C++ reads from a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._base.op_names import find_overload
from aoti_eager._base.torch_compat.dispatcher import has_computed_kernel
from aoti_eager._base.torch_compat.tensors import wrapped_number
from aoti_eager._keys.aliasing import mutation_overlaps
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.key_words import argument_kind, native_key, words_of_values
from aoti_eager._keys.schema import Kind, OpSchema, op_schema
from aoti_eager._native import op_kernel

from ..support.calls import (
    bound_values,
    examples,
    keyable_schemas,
    schemas,
)

pytestmark = pytest.mark.native

Record = Callable[[OpSchema, Sequence[Any]], bytes | None]

NUMBERS = (bool, int, float, complex)
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def overlaps(schema: OpSchema, values: Sequence[Any]) -> bool:
    """Return whether a mutated argument overlaps another one."""
    tensors: dict[bool, list[Any]] = {True: [], False: []}
    for argument, value in zip(schema.arguments, values, strict=True):
        if argument.is_tensor:
            listed = [value] if argument.kind is Kind.TENSOR else value or []
            tensors[argument.mutated] += listed
    return mutation_overlaps(tensors[True], tensors[False])


@pytest.fixture(scope="module")
def record(native_library: None) -> Iterator[Record]:
    """A function that gives the words of a call as C++ reads them; ``None`` for no valid call."""
    installed: dict[str, tuple[op_kernel.NativeOp, Any]] = {}

    def record_(schema: OpSchema, values: Sequence[Any]) -> bytes | None:
        if schema.op not in installed:
            op = op_kernel.NativeOp(
                schema.op,
                "CPU",
                [argument_kind(argument) for argument in schema.arguments],
                [argument.mutated for argument in schema.arguments],
            )
            op.install()
            kernel = torch.library.get_kernel(find_overload(schema.op), "CPU")
            installed[schema.op] = op, kernel
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument, value in zip(schema.arguments, values, strict=True):
            is_number = argument.kind is Kind.TENSOR and isinstance(value, NUMBERS)
            taken = wrapped_number(value) if is_number else value
            if argument.kwarg_only:
                kwargs[argument.name] = taken
            else:
                args.append(taken)
        op, kernel = installed[schema.op]
        op.set_state(op_kernel.RECORD)
        try:
            kernel.call_boxed(CPU, *args, **kwargs)
        except (RuntimeError, ValueError, TypeError) as error:
            # What cannot be made a value of the schema's type never reaches a kernel.
            return op_kernel.recorded_key() if "the key is recorded" in str(error) else None
        finally:
            op.set_state(op_kernel.PASS)
        raise AssertionError("the kernel returned")

    yield record_
    for op, _ in installed.values():
        op.uninstall()
        op.close()


def expected(schema: OpSchema, values: Sequence[Any]) -> bytes | None:
    return native_key(schema, kernel_key(schema, "CPU", values), overlaps=overlaps(schema, values))


def has_cpu_kernel(schema: OpSchema) -> bool:
    return bool(has_computed_kernel(schema.op, "CPU"))


@given(st.data())
@hypothesis_settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_python_writes_the_words_that_cpp_reads(record: Record, data: st.DataObject) -> None:
    """Any op, any call: a kernel is published under the words that its calls will ask for."""
    schema = data.draw(schemas.filter(has_cpu_kernel))
    values = data.draw(bound_values(schema))
    words = record(schema, values)
    assume(words is not None)
    wanted = expected(schema, values)
    assert wanted is None or words == wanted


def test_every_op_and_every_kind_of_value_has_the_same_words(record: Record) -> None:
    """Each argument of each op once, a sample of its values; different values, different words."""
    compared = 0
    seen_types: dict[str, int] = {}
    for schema in keyable_schemas():
        if not has_cpu_kernel(schema):
            continue
        base = [next(iter(examples(argument)), None) for argument in schema.arguments]
        for position, argument in enumerate(schema.arguments):
            count = seen_types[argument.type_name] = seen_types.get(argument.type_name, 0) + 1
            choices = examples(argument) if count <= 4 else examples(argument)[:1]
            for value in choices:
                values = [*base[:position], value, *base[position + 1 :]]
                words = record(schema, values)
                if words is None:
                    continue
                wanted = expected(schema, values)
                if wanted is not None:
                    compared += 1
                    assert words == wanted, f"{schema.op}: {argument.name}={value!r}"
    assert compared > 3000


MUL = op_schema(find_overload("aten::mul.Tensor"))
ADD = op_schema(find_overload("aten::add_.Tensor"))


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    ],
)
def test_each_part_of_the_context_changes_the_words(
    record: Record, change: Callable[[], None]
) -> None:
    x = torch.ones(2, 3)
    before = record(MUL, (x, x))
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    try:
        change()
        after = record(MUL, (x, x))
        assert after == expected(MUL, (x, x))
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
    assert before is not None
    assert after != before
    assert record(MUL, (x, x)) == before


def test_a_mutated_argument_that_overlaps_another_has_other_words(record: Record) -> None:
    base = torch.zeros(8)
    apart = (base[:3], base[3:6], 1)
    meeting = (base[:3], base[1:4], 1)
    empty = (base[:0], base[:0], 1)
    words = [record(ADD, values) for values in (apart, meeting)]
    assert words == [expected(ADD, values) for values in (apart, meeting)]
    assert words[0] != words[1]
    assert record(ADD, empty) == expected(ADD, empty)


def test_a_wrapped_number_of_the_default_dtype_is_keyed_as_a_number(record: Record) -> None:
    x = torch.ones(2, 3)
    single = wrapped_number(2.0).to(torch.float32)  # no longer wrapped: a tensor like any other
    assert record(MUL, (x, 2.0)) != record(MUL, (x, single))
    assert record(MUL, (x, 2.0)) == record(MUL, (x, -3.5))
    assert len({record(MUL, (x, number)) for number in (True, 2, 2.0, 2j)}) == 4


def test_an_argument_that_no_key_can_hold_is_keyed_by_being_there(record: Record) -> None:
    schema = op_schema(find_overload("aten::bernoulli"))
    x = torch.ones(2, 3)
    with_generator = (x, torch.Generator())
    words = record(schema, with_generator)
    assert words == words_of_values(schema, "CPU", with_generator)
    assert words != record(schema, (x, None))


def test_a_sparse_tensor_has_no_words(record: Record) -> None:
    assert record(MUL, (torch.ones(2, 2).to_sparse(), torch.ones(2, 2))) == b""


def test_long_keys_are_whole(record: Record) -> None:
    schema = op_schema(find_overload("aten::cat"))
    tensors = [torch.ones(2, n) for n in range(100)]
    assert record(schema, (tensors, 1)) == expected(schema, (tensors, 1))
    gelu = op_schema(find_overload("aten::gelu"))
    for length in (0, 1, 7, 8, 9, 400):
        call = (torch.ones(2), "a" * length)
        words = record(gelu, call)
        assert words
        assert words == expected(gelu, call)
