"""A Python function as data: what it uses is in the document, and what cannot be is refused."""

from __future__ import annotations

import functools
import json
import linecache
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._functions.description import Description, PythonFunction
from aoti_eager._functions.rebuilt import RebuiltFunction
from aoti_eager.errors import UnsupportedFunctionError

from ..support import function_ops
from ..support.function_ops import (
    closing_over,
    helper,
    scale,
    with_module,
    with_parameters_of,
)


def describe(function: Any) -> Description:
    return PythonFunction(lambda: function).describe()[0]


def state(function: Any) -> Any:
    return PythonFunction(lambda: function).snapshot()[0]


def rebuilt(function: Any) -> Callable[..., Any]:
    description, tensors = PythonFunction(lambda: function).describe()
    again = RebuiltFunction(json.loads(json.dumps(description.document)))
    return lambda *args, **kwargs: again.with_constants(tensors, args, kwargs)


X = torch.linspace(-2, 2, 64)


def with_defaults(x: Tensor, *, by: Any = (1.5, None, "a"), flag: bool = True) -> Tensor:
    """Use defaults of many kinds."""
    return x * by[0] if flag else x


TABLE = {"a": [1, 2.5, float("inf")], "b": (torch.float64, torch.device("cpu"))}


def with_table(x: Tensor) -> Tensor:
    return x.to(TABLE["b"][0]) * TABLE["a"][1]


def nested(x: Tensor) -> Tensor:
    def inner(y: Tensor) -> Tensor:
        return y * function_ops_eps

    return sum(inner(x) for _ in range(3)) + helper(x, by=len([1, 2]))


function_ops_eps = 0.25


@pytest.mark.parametrize(
    "function",
    [
        scale,
        closing_over(torch.ones(64) * 3),
        with_module(torch.nn.LayerNorm(64)),
        with_module(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())),
        with_parameters_of(torch.nn.Linear(64, 64)),
        with_defaults,
        with_table,
        nested,
    ],
    ids=lambda f: f.__name__,
)
def test_a_rebuilt_function_computes_the_same(function: Any) -> None:
    assert torch.equal(rebuilt(function)(X), function(X))


def test_constants_are_named_by_where_they_are_found() -> None:
    names = [name for name, _ in describe(scale).constants]
    assert names == ["WEIGHT"]
    linear = torch.nn.Linear(64, 64)
    names = [name for name, _ in describe(with_parameters_of(linear)).constants]
    assert names == ["linear.weight", "linear.bias"]


def test_constants_are_described_by_metadata_and_never_by_value() -> None:
    first, second = closing_over(torch.zeros(64)), closing_over(torch.ones(64))
    assert describe(first) == describe(second)
    assert state(first) == state(second)
    other = closing_over(torch.zeros(32))
    assert describe(first).constants != describe(other).constants
    assert state(first) != state(other)


def test_the_tensors_are_the_function_s_own() -> None:
    weight = torch.zeros(64)
    _, tensors = PythonFunction(lambda: closing_over(weight)).describe()
    assert tensors[0] is weight


def test_comments_and_layout_are_not_in_the_document(tmp_path: Any) -> None:
    def load(text: str, name: str) -> Any:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        namespace: dict[str, Any] = {"torch": torch}
        exec(compile(text, str(path), "exec"), namespace)  # noqa: S102
        return namespace["f"]

    plain = load("def f(x):\n    return torch.tanh(x) * 2\n", "plain")
    noisy = load(
        'def f(x):\n    """Doc."""\n    # why\n    return (torch.tanh(x)\n  * 2)\n', "noisy"
    )
    other = load("def f(x):\n    return torch.tanh(x) * 3\n", "other")
    assert describe(plain) == describe(noisy)
    assert describe(plain) != describe(other)


@pytest.mark.parametrize(
    ("name", "value"), [("EPS", 1e-5), ("EPS", 1), ("EPS", True), ("helper", functools.partial)]
)
def test_another_value_of_what_it_uses_is_another_function(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    before = state(scale)
    document = describe(scale)
    monkeypatch.setattr(function_ops, name, value)
    assert state(scale) != before
    if name == "EPS":
        assert describe(scale) != document


def test_numbers_carry_their_type_and_the_sign_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for value in (0.0, -0.0, 0, False, None, float("nan")):
        monkeypatch.setattr(function_ops, "EPS", value)
        seen.append((state(scale), describe(scale).context()[1]))
    assert len(set(seen)) == len(seen)
    assert (state(scale), describe(scale).context()[1]) == seen[-1], "NaN equals itself"


def test_a_list_that_changes_changes_the_state() -> None:
    values = [1.0, 2.0]

    def summed(x: Tensor) -> Tensor:
        return x * values[1]

    before = state(summed), describe(summed)
    values[1] = 3.0
    assert state(summed) != before[0]
    assert describe(summed) != before[1]


def test_the_mode_of_a_module_is_a_part_of_it() -> None:
    module = torch.nn.Dropout(0.5)
    function = with_module(module)
    before = state(function), describe(function)
    module.eval()
    assert state(function) != before[0]
    assert describe(function) != before[1]


class OwnModule(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def printing(x: Tensor) -> Tensor:
    print("called")
    return x * 2


def undefined(x: Tensor) -> Tensor:
    return x * nowhere  # type: ignore[name-defined]  # noqa: F821


def importing(x: Tensor) -> Tensor:
    import math

    return x * math.pi


calls = 0


def counting_calls(x: Tensor) -> Tensor:
    global calls
    calls += 1
    return x * 2


def random_module(x: Tensor) -> Tensor:
    return x * random.random()


def generator(x: Tensor) -> Any:
    yield x


def recursive(x: Tensor, n: int = 2) -> Tensor:
    return recursive(x, n - 1) * 2 if n else x


def with_set(x: Tensor) -> Tensor:
    return x * len(SET)


SET = {1, 2}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * 2, "is a lambda"),
        (printing, "uses 'print', which may do more"),
        (undefined, "uses 'nowhere', which has no value"),
        (importing, "imports modules inside"),
        (counting_calls, "assigns to calls outside"),
        (random_module, r"uses random.random"),
        (generator, "is a generator"),
        (recursive, "too deep"),
        (with_set, r"uses SET, a builtins.set"),
        (with_module(OwnModule()), "uses module, a module of class OwnModule"),
        (closing_over(torch.ones(4).to_sparse()), "uses weight, a tensor that is not plain"),
        (closing_over(torch.ones(4, dtype=torch.cfloat).conj()), "that is not plain"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_sent_is_refused_and_named(function: Any, message: str) -> None:
    with pytest.raises(UnsupportedFunctionError, match=message):
        describe(function)


def test_a_function_without_source_is_refused() -> None:
    namespace: dict[str, Any] = {}
    exec("def f(x):\n    return x * 2\n", namespace)  # noqa: S102
    with pytest.raises(UnsupportedFunctionError, match="no source that can be read"):
        describe(namespace["f"])


@pytest.mark.parametrize(
    "edited", ["def g(y, z):\n    return y * 3\n", "def f(x):\n    return x * 3\n"]
)
def test_a_file_that_was_edited_meanwhile_is_refused(tmp_path: Any, edited: str) -> None:
    path = tmp_path / "edited.py"
    path.write_text("def f(x):\n    return x * 2\n")
    namespace: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)  # noqa: S102
    path.write_text(edited)
    linecache.clearcache()
    with pytest.raises(UnsupportedFunctionError, match="was its file edited"):
        describe(namespace["f"])


def test_a_module_with_hooks_is_refused() -> None:
    module = torch.nn.Linear(4, 4)
    module.register_forward_hook(lambda *args: None)
    with pytest.raises(UnsupportedFunctionError):
        describe(with_module(module))


def test_an_op_whose_kernel_is_disabled_has_no_function() -> None:
    with pytest.raises(UnsupportedFunctionError, match="disabled or was replaced"):
        PythonFunction(lambda: None).describe()


def asks_for_grad(x: Tensor) -> Tensor:
    return x * 2 if x.requires_grad else x


def asks_for_grad_mode(x: Tensor) -> Tensor:
    return x * 2 if torch.is_grad_enabled() else x


def asks_for_threads(x: Tensor) -> Tensor:
    return x * torch.get_num_threads()


def asks_for_offset(x: Tensor) -> Tensor:
    return x * x.storage_offset()


def strided(x: Tensor) -> Tensor:
    return x.as_strided((2,), (1,), 0) * 2


def saving(x: Tensor) -> Tensor:
    torch.save(x, "file")
    return x * 2


def seeding(x: Tensor) -> Tensor:
    torch.manual_seed(7)
    return x * 2


def trying(x: Tensor) -> Tensor:
    try:
        return x * 2
    except RuntimeError:
        return x


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


def reading_a_private_name(x: Tensor) -> Tensor:
    return x * x._version


def writing_to_a_global_dict(x: Tensor) -> Tensor:
    TABLE["a"][0] = 2
    return x * 2


def asking_for_the_type(x: Tensor) -> Tensor:
    return x * 2 if isinstance(x, torch.nn.Parameter) else x


def helped(x: Tensor) -> Tensor:
    return x * getattr(helper, "gain", 2.0)


def checked(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@checked
def decorated(x: Tensor) -> Tensor:
    return x * 2


def with_an_attribute(x: Tensor) -> Tensor:
    return x * 2


with_an_attribute.gain = 3  # type: ignore[attr-defined]


Generator = torch.Generator


def making_an_object(x: Tensor) -> Tensor:
    return x * (Generator() is not None)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (making_an_object, "uses Generator, a torch"),
        (asks_for_grad, "uses .requires_grad"),
        (asks_for_grad_mode, "uses torch.is_grad_enabled"),
        (asks_for_threads, "uses torch.get_num_threads"),
        (asks_for_offset, "uses .storage_offset"),
        (strided, "uses .as_strided"),
        (saving, "uses torch.save"),
        (seeding, "uses torch.manual_seed"),
        (trying, "has a try or with"),
        (without_grad, "has a try or with"),
        (reading_a_private_name, "uses ._version"),
        (writing_to_a_global_dict, "assigns to a part of 'TABLE'"),
        (asking_for_the_type, "uses torch.nn.Parameter|uses 'isinstance'"),
        (helped, "uses 'getattr'"),
        (decorated, "is made by a decorator"),
        (with_an_attribute, "has attributes: gain"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_in_no_key_may_not_be_asked_for(function: Any, message: str) -> None:
    with pytest.raises(UnsupportedFunctionError, match=message):
        describe(function)


def test_another_function_of_the_same_name_in_the_file_is_not_it(tmp_path: Any) -> None:
    path = tmp_path / "two.py"
    one, two = "def f(x):\n    return x * 2\n", "def f(x):\n    return x * 3\n"
    path.write_text(one + two)
    namespace: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)  # noqa: S102
    path.write_text(two + one)
    linecache.clearcache()
    with pytest.raises(UnsupportedFunctionError, match="was its file edited"):
        describe(namespace["f"])
