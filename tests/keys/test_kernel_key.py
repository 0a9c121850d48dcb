"""Keys: equal exactly for equal calls, in both spellings, over every op that PyTorch registers."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._base.op_names import find_overload
from aoti_eager._keys.kernel_key import (
    KernelKey,
    call_context,
    kernel_key,
)
from aoti_eager._keys.schema import (
    Argument,
    Kind,
    OpSchema,
    op_schema,
)
from aoti_eager._keys.table_key import (
    table_key_function,
)
from aoti_eager.errors import UnsupportedArgumentError

from ..support.calls import (
    UNSUPPORTED_TYPES,
    as_pytorch_hands_over,
    aten_schemas,
    bound_values,
    call_meaning,
    examples,
    fresh,
    keyable_schemas,
    meaning,
    schemas,
    spellings,
    tensor,
)

property_test = hypothesis_settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_table_keys: dict[str, Callable[..., Any]] = {}


def table_key(schema: OpSchema, *args: Any, **kwargs: Any) -> Any:
    function = _table_keys.get(schema.op)
    if function is None:
        function = _table_keys[schema.op] = table_key_function(schema, "CPU")
    return function(*args, **kwargs)


def digest(schema: OpSchema, *args: Any, **kwargs: Any) -> str:
    return kernel_key(schema, "CPU", schema.bind(args, kwargs)).digest


def schema_of(name: str) -> OpSchema:
    return op_schema(find_overload(name))


def both_keys(name: str, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    """Return the digest of a call and, of the call as PyTorch hands it over, the table key."""
    schema = schema_of(name)
    values = schema.bind(args, kwargs)
    handed, named = as_pytorch_hands_over(schema, values)
    return kernel_key(schema, "CPU", values).digest, table_key(schema, *handed, **named)


def assert_same(one: tuple[str, Any], other: tuple[str, Any]) -> None:
    assert one == other


def assert_different(one: tuple[str, Any], other: tuple[str, Any]) -> None:
    assert one[0] != other[0], "the digests are equal"
    assert one[1] != other[1], "the table keys are equal"


# --- every registered op -------------------------------------------------------------------------


def test_there_is_a_table_key_for_every_registered_aten_op() -> None:
    """Every registered schema, so that no op is left out of the tests below."""
    assert len(aten_schemas()) == 3110
    for schema in aten_schemas():
        values = [object() if a.kind is Kind.UNSUPPORTED else _base(a) for a in schema.arguments]
        args, kwargs = as_pytorch_hands_over(schema, values, keep_defaults=True)
        assert hash(table_key(schema, *args, **kwargs)) is not None


def test_only_storages_streams_and_class_objects_have_no_canonical_key() -> None:
    keyable = {schema.op for schema in keyable_schemas()}
    unsupported = [schema for schema in aten_schemas() if schema.op not in keyable]
    types = {
        argument.type_name
        for schema in unsupported
        for argument in schema.arguments
        if argument.kind is Kind.UNSUPPORTED
    }
    assert types == UNSUPPORTED_TYPES
    assert len(unsupported) == 11
    for schema in unsupported:
        values = [object() if a.kind is Kind.UNSUPPORTED else _base(a) for a in schema.arguments]
        with pytest.raises(UnsupportedArgumentError, match=schema.op.replace(".", r"\.")):
            kernel_key(schema, "CPU", values)


def test_every_change_of_one_argument_changes_both_keys_of_every_op() -> None:
    """Each op and argument, with values that caches have mixed up before.

    All of them for the first few arguments of each type, then four for each: what is left to go
    wrong is that an argument is not in the key, or is in it as another type.
    """
    thorough: Counter[tuple[Kind, bool, bool]] = Counter()
    for schema in keyable_schemas():
        base = [_base(argument) for argument in schema.arguments]
        for position, argument in enumerate(schema.arguments):
            type_ = argument.kind, argument.optional, argument.kwarg_only
            thorough[type_] += 1
            values = examples(argument)
            if thorough[type_] > 20:
                values = [*values[:3], values[-1]]
            _check_argument(schema, base, position, values)


def _check_argument(schema: OpSchema, base: list[Any], position: int, choices: list[Any]) -> None:
    argument = schema.arguments[position]
    seen: dict[Any, tuple[str, Any]] = {}
    for value in choices:
        values = [*base[:position], value, *base[position + 1 :]]
        args, kwargs = as_pytorch_hands_over(schema, values)
        keys = kernel_key(schema, "CPU", values).digest, table_key(schema, *args, **kwargs)
        known = seen.setdefault(meaning(argument, value), keys)
        assert known == keys, f"{schema.op}: {argument.name}={value!r} has two keys"
    digests, table_keys = ({keys[i] for keys in seen.values()} for i in (0, 1))
    assert len(digests) == len(seen), f"{schema.op}: digests collide in {argument.name!r}"
    assert len(table_keys) == len(seen), f"{schema.op}: table keys collide in {argument.name!r}"


def _base(argument: Argument) -> Any:
    return next(iter(examples(argument)), None)


@given(st.data())
@hypothesis_settings(property_test, max_examples=300)
def test_keys_are_equal_exactly_for_calls_that_mean_the_same(data: st.DataObject) -> None:
    """Any op, any two calls, each argument respelled or redrawn."""
    schema = data.draw(schemas)
    first = data.draw(bound_values(schema))
    drawn = data.draw(bound_values(schema))
    second = [
        other if data.draw(st.integers(0, 3)) == 0 else fresh(value)
        for value, other in zip(first, drawn, strict=True)
    ]
    same = call_meaning(schema, first) == call_meaning(schema, second)

    keys = []
    for values in (first, second):
        args, kwargs = data.draw(spellings(schema, values))
        handed, named = as_pytorch_hands_over(
            schema, values, keep_defaults=data.draw(st.booleans())
        )
        # A mutated argument that overlaps another one has a key of its own: drawn tensors do not.
        keys.append((digest(schema, *args, **kwargs), table_key(schema, *handed, **named)))
    assert (keys[0][0] == keys[1][0]) is same
    assert (keys[0][1] == keys[1][1]) is same


@given(st.data())
@property_test
def test_spelling_a_call_otherwise_changes_neither_key(data: st.DataObject) -> None:
    """Defaults given or left out, by name or by position, equal tensors."""
    schema = data.draw(schemas)
    values = data.draw(bound_values(schema))
    plain, respelled = (data.draw(spellings(schema, v)) for v in (values, fresh(values)))
    assert digest(schema, *plain[0], **plain[1]) == digest(schema, *respelled[0], **respelled[1])
    short, full = (
        as_pytorch_hands_over(schema, fresh(values), keep_defaults=keep) for keep in (False, True)
    )
    assert table_key(schema, *short[0], **short[1]) == table_key(schema, *full[0], **full[1])


@given(st.data())
@property_test
def test_a_key_survives_json(data: st.DataObject) -> None:
    schema = data.draw(schemas)
    key = kernel_key(schema, "CPU", data.draw(bound_values(schema)))
    again = KernelKey.from_json(json.loads(json.dumps(key.to_json())))
    assert again == key
    assert again.digest == key.digest


@given(st.data())
@property_test
def test_components_name_exactly_the_arguments_that_differ(data: st.DataObject) -> None:
    """What ``explain`` compares tells calls apart as the digest does."""
    schema = data.draw(schemas.filter(lambda schema: schema.arguments))
    first = data.draw(bound_values(schema))
    position = data.draw(st.integers(0, len(first) - 1))
    argument = schema.arguments[position]
    second = [*first[:position], data.draw(bound_values(schema))[position], *first[position + 1 :]]
    mine, theirs = (kernel_key(schema, "CPU", v).components() for v in (first, second))
    differing = {n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)}
    same = meaning(argument, first[position]) == meaning(argument, second[position])
    assert (not differing) is same
    assert {name.partition(".")[0].partition("[")[0] for name in differing} <= {argument.name}


# --- single components ---------------------------------------------------------------------------


def test_the_positions_of_a_defaulted_argument_do_not_collide() -> None:
    """PyTorch's own eager cache gives the second call the first one's kernel."""
    x = tensor()
    calls = [both_keys("aten::elu", x, *args) for args in ((2.0,), (1, 2.0), (1, 1, 2.0))]
    assert_different(calls[0], calls[1])
    assert_different(calls[0], calls[2])
    assert_different(calls[1], calls[2])


def test_a_given_default_is_the_same_call_as_one_left_out() -> None:
    """Keys are equal for calls that mean the same."""
    a, b = tensor(), tensor()
    assert_same(both_keys("aten::add.Tensor", a, b), both_keys("aten::add.Tensor", a, b, alpha=1))
    assert_same(both_keys("aten::elu", a, 2.0), both_keys("aten::elu", a, input_scale=1, alpha=2.0))


def test_a_default_of_another_type_is_another_call() -> None:
    """``alpha=1`` adds integers, ``alpha=1.0`` raises for them."""
    a, b = tensor(), tensor()
    plain = both_keys("aten::add.Tensor", a, b)
    for alpha in (True, 1.0, 1 + 0j):
        assert_different(plain, both_keys("aten::add.Tensor", a, b, alpha=alpha))


@pytest.mark.parametrize("value", [True, 1, 1.0, 0.0, -0.0, 2**40, 1j, float("nan")])
def test_equal_numbers_have_equal_keys(value: complex) -> None:
    """NaN equals itself, or it would be compiled for ever."""
    again = json.loads(json.dumps(value)) if not isinstance(value, complex) else 0 + 1j
    assert_same(
        both_keys("aten::add.Scalar", tensor(), value),
        both_keys("aten::add.Scalar", tensor(), again),
    )


def test_every_nan_is_the_same_number() -> None:
    """The sign and payload of a NaN shape no code."""
    quiet, negative = float("nan"), -float("nan")
    assert_same(
        both_keys("aten::add.Scalar", tensor(), quiet),
        both_keys("aten::add.Scalar", tensor(), negative),
    )


@pytest.mark.parametrize(
    ("one", "other"), [(2.0, 3.5), (1, 2**40), (True, False), (1j, 2j), (0.0, float("nan"))]
)
def test_a_number_in_a_tensor_slot_is_keyed_by_kind_not_value(one: complex, other: complex) -> None:
    """``x * 2.0`` reaches ``mul.Tensor`` with a float, which is an input."""
    x = tensor()
    assert_same(both_keys("aten::mul.Tensor", x, one), both_keys("aten::mul.Tensor", x, other))


def test_the_kinds_of_numbers_in_a_tensor_slot_differ() -> None:
    """Each kind promotes the result's dtype in its own way."""
    x = tensor()
    calls = [both_keys("aten::mul.Tensor", x, number) for number in (True, 1, 1.0, 1j)]
    calls.append(both_keys("aten::mul.Tensor", x, tensor((), dtype=torch.float64)))
    assert len({key for key, _ in calls}) == len({key for _, key in calls}) == len(calls)


IMAGE = (2, 3, 4, 5)
CHANNELS_LAST = torch.empty(IMAGE).to(memory_format=torch.channels_last).stride()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(tensor(), tensor(dtype=torch.bfloat16), id="dtype"),
        pytest.param(tensor((2, 3)), tensor((2, 4)), id="sizes"),
        pytest.param(tensor((6,)), tensor((6, 1)), id="dimensions"),
        pytest.param(tensor((3, 3)), tensor((3, 3)).t(), id="transposed"),
        pytest.param(tensor(IMAGE), tensor(IMAGE, CHANNELS_LAST), id="channels_last"),
        pytest.param(tensor((2, 3)), tensor((3,)).expand(2, 3), id="expanded"),
        pytest.param(tensor((2, 3)), tensor((2, 6))[:, ::2], id="sliced"),
        pytest.param(tensor((1, 3)), tensor((1, 3), (7, 1)), id="stride_of_a_dimension_of_one"),
        pytest.param(
            tensor(dtype=torch.complex64), tensor(dtype=torch.complex64).conj(), id="conj"
        ),
        pytest.param(
            tensor(dtype=torch.complex64).imag, tensor(dtype=torch.complex64).conj().imag, id="neg"
        ),
    ],
)
def test_what_shapes_the_code_for_a_tensor_changes_both_keys(
    one: torch.Tensor, other: torch.Tensor
) -> None:
    """One component at a time."""
    assert_different(both_keys("aten::silu", one), both_keys("aten::silu", other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(tensor(), tensor(requires_grad=True), id="requires_grad"),
        pytest.param(torch.zeros(2, 3), torch.ones(2, 3), id="data"),
        pytest.param(tensor(), tensor(offset=5), id="storage_offset"),
        pytest.param(torch.zeros(3), torch.zeros(9)[4:7], id="slice_elsewhere"),
    ],
)
def test_what_does_not_shape_the_code_changes_neither_key(
    one: torch.Tensor, other: torch.Tensor
) -> None:
    assert_same(both_keys("aten::silu", one), both_keys("aten::silu", other))


def test_an_undefined_tensor_is_not_an_absent_one() -> None:
    undefined = kernel_key(schema_of("aten::silu"), "CPU", [None])
    assert dict(undefined.arguments) == {"self": {"undefined": True}}
    absent = both_keys("aten::native_layer_norm", tensor(), [3], None, None, 1e-5)
    present = both_keys("aten::native_layer_norm", tensor(), [3], tensor((3,)), None, 1e-5)
    assert_different(absent, present)


def test_op_overload_and_dispatch_key_are_in_the_digest() -> None:
    values = [tensor()]
    silu = kernel_key(schema_of("aten::silu"), "CPU", values)
    assert silu.digest != kernel_key(schema_of("aten::gelu"), "CPU", [*values, "none"]).digest
    assert silu.digest != kernel_key(schema_of("aten::silu_"), "CPU", values).digest
    assert silu.digest != kernel_key(schema_of("aten::silu"), "CUDA", values).digest
    pair = [tensor(), 1]
    scalar, tensors = (schema_of(f"aten::eq.{name}") for name in ("Scalar", "Tensor"))
    assert kernel_key(scalar, "CPU", pair).digest != kernel_key(tensors, "CPU", pair).digest


def test_table_keys_of_a_device_tell_alignments_apart() -> None:
    """Generated GPU code assumes 16 bytes; the CPU's assumes nothing."""
    aligned, off = torch.zeros(8)[:4], torch.zeros(8)[1:5]
    schema = schema_of("aten::silu")
    on_device = table_key_function(schema, "CUDA")
    assert aligned.data_ptr() % 16 == 0
    assert on_device(aligned) != on_device(off)
    assert table_key(schema, aligned) == table_key(schema, off)


def test_a_mutated_argument_that_overlaps_another_has_a_table_key_of_its_own() -> None:
    """Both calls have one layout; only one of them may be served."""
    schema = schema_of("aten::add.out")
    memory = torch.zeros(8)
    apart = table_key(schema, memory[:4], torch.zeros(4), out=torch.zeros(4))
    overlapping = table_key(schema, memory[:4], torch.zeros(4), out=memory[1:5])
    assert apart != overlapping
    same_twice = table_key(schema, memory[4:], memory[4:], out=torch.zeros(4))
    assert same_twice == apart


# --- context -------------------------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    # The other spelling imports Inductor's settings into the process that runs the tests.
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("default")


@contextlib.contextmanager
def float32_matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CONTEXTS = [default_dtype, deterministic, float32_matmul_precision, threads]


@pytest.mark.parametrize("change", CONTEXTS, ids=lambda change: change.__name__)
def test_each_part_of_the_context_changes_both_keys(change: Callable[[], Any]) -> None:
    """The key holds each setting that affects the generated code."""
    x = tensor()
    before = both_keys("aten::silu", x)
    context = call_context()
    with change():
        assert_different(before, both_keys("aten::silu", x))
        named = kernel_key(schema_of("aten::silu"), "CPU", [x])
    assert_same(before, both_keys("aten::silu", x))
    assert call_context() == context
    key = kernel_key(schema_of("aten::silu"), "CPU", [x])
    differing = {n for n, c in named.context if c != dict(key.context)[n]}
    assert differing == {change.__name__}


def test_a_key_for_any_thread_count_differs_from_all_others_in_the_count_alone() -> None:
    """Code that depends on the thread count has a key for each count; other code has one."""
    key = kernel_key(schema_of("aten::silu"), "CPU", [tensor()])
    free = key.with_threads("any")
    assert free.digest != key.digest
    assert free.with_threads(torch.get_num_threads()) == key
    assert free.arguments == key.arguments


def test_calls_whose_original_is_an_override_share_no_entry_with_others() -> None:
    """An earlier override is what a result must equal."""
    schema, values = schema_of("aten::silu"), [tensor()]
    plain, override = (kernel_key(schema, "CPU", values, overridden=o) for o in (False, True))
    assert plain.digest != override.digest
    assert plain.arguments == override.arguments


# --- what no key can hold ------------------------------------------------------------------------


def test_a_generator_is_unsupported_and_tells_so() -> None:
    schema = schema_of("aten::bernoulli")
    assert kernel_key(schema, "CPU", schema.bind([tensor()], {})).digest
    with pytest.raises(UnsupportedArgumentError, match="Generator") as caught:
        kernel_key(schema, "CPU", schema.bind([tensor()], {"generator": torch.Generator()}))
    assert caught.value.reason == "unsupported_argument_type"
    assert isinstance(caught.value, TypeError)
    with_one = table_key(schema, tensor(), generator=torch.Generator())
    assert with_one == table_key(schema, tensor(), generator=torch.Generator())
    assert with_one != table_key(schema, tensor())


def test_storages_streams_and_class_objects_are_unsupported() -> None:
    storage = schema_of("aten::set_.source_Storage")
    with pytest.raises(UnsupportedArgumentError, match=r"set_\.source_Storage: argument 'source'"):
        kernel_key(storage, "CPU", [tensor(), tensor().untyped_storage()])
    stream = schema_of("aten::record_stream")
    with pytest.raises(UnsupportedArgumentError, match="record_stream: argument 's' is Stream"):
        kernel_key(stream, "CPU", [tensor(), object()])


def test_a_scalar_that_is_no_number_is_unsupported() -> None:
    schema = schema_of("aten::add.Scalar")
    with pytest.raises(UnsupportedArgumentError, match="str"):
        kernel_key(schema, "CPU", schema.bind([tensor(), "1"], {}))


def test_an_absent_tensor_in_a_list_of_tensors_is_unsupported() -> None:
    with pytest.raises(UnsupportedArgumentError, match="NoneType"):
        kernel_key(schema_of("aten::cat"), "CPU", [[tensor(), None], 0])


def test_a_keyword_only_argument_may_have_any_name() -> None:
    """The generated function must not take an argument for one of its own names."""
    names = ["threads", "precision", "deterministic", "overlaps", "tensor_key", "scalar_key"]
    names += ["float_hex", "number_kind", "default_dtype", "Tensor", "tuple", "isinstance", "a0"]
    with torch.library._scoped_library("aoti_eager_test_key", "FRAGMENT") as library:
        listed = ", ".join(f"int {name}=1" for name in names)
        library.define(f"named(Tensor(a!) x, Scalar s, float[] f, *, {listed}) -> ()")
        schema = schema_of("aoti_eager_test_key::named")
        base = table_key(schema, tensor(), 1, [1.0])
        assert base == table_key(schema, tensor(), 1, [1.0], **dict.fromkeys(names, 1))
        for name in names:
            assert table_key(schema, tensor(), 1, [1.0], **{name: 2}) != base
