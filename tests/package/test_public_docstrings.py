"""What is public says of itself what it takes, gives and raises.

The first line says what comes back; every argument has its name in ``Args:`` (or, of a data class,
in ``Attributes:``), or in the text between backticks; errors of this package that a function raises
by its own checks are under ``Raises:``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aoti_eager
from aoti_eager import cache, errors

ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.AotiEagerError)
}


def public() -> Iterator[tuple[str, Any]]:
    """Give each public function, class and method under the name that it is found by."""
    found: dict[str, Any] = {}
    for module, names in ((aoti_eager, aoti_eager.__all__), (cache, cache.__all__)):
        for name in names:
            found[f"{module.__name__}.{name}"] = getattr(module, name)
    found["aoti_eager.config"] = type(aoti_eager.config)
    for name, value in found.items():
        if inspect.ismodule(value):
            continue
        yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and is_documented(member):
                    yield f"{name}.{attribute}", member


def is_documented(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)


PUBLIC = dict(public())


def function_of(value: Any) -> Callable[..., Any]:
    """Return the function whose code runs when ``value`` is called, or read."""
    if isinstance(value, property):
        assert value.fget is not None
        return value.fget
    if isinstance(value, classmethod | staticmethod):
        return value.__func__
    if inspect.isclass(value):
        function: Callable[..., Any] = value.__init__
        return function
    return inspect.unwrap(value)


def doc_of(value: Any) -> str:
    return inspect.getdoc(value) or ""


def section(doc: str, title: str) -> str:
    """Return the part of a docstring under ``Title:``, or what follows it on the line."""
    found = re.search(rf"^{title}:(.*(?:\n(?:    .*|))*)", doc, flags=re.M)
    return found[1] if found else ""


def arguments_of(value: Any) -> list[str]:
    if inspect.isclass(value) and not dataclasses.is_dataclass(value) and not own_init(value):
        return []
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    names = list(inspect.signature(function_of(value)).parameters)
    return [name for name in names if name not in ("self", "cls")]


def own_init(value: Any) -> bool:
    return "__init__" in vars(value)


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(PUBLIC) > 60


@pytest.mark.parametrize("name", PUBLIC)
def test_the_first_line_is_one_sentence(name: str) -> None:
    first, _, rest = doc_of(PUBLIC[name]).partition("\n")
    assert first.endswith((".", ":")), f"{name}: the first line is no sentence: {first!r}"
    assert not rest or rest.startswith("\n"), f"{name}: an empty line belongs after the first"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_spoken_of(name: str) -> None:
    value, doc = PUBLIC[name], doc_of(PUBLIC[name])
    if name in MADE_BY_US:
        return
    listed = section(doc, "Args") + section(doc, "Attributes")
    missing = [
        one
        for one in arguments_of(value)
        if not re.search(rf"^ +(?:\w+, )*{one}(?:, \w+)*: ", listed, flags=re.M)
        and f"``{one}" not in doc
    ]
    assert missing == []


# Handles, which nobody makes but the function that is named.
MADE_BY_US = {
    "aoti_eager.Registration": "register",
    "aoti_eager.CustomOp": "custom_op",
    "aoti_eager.FusionReport": "fuse",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_errors_of_its_own_checks_are_named(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value) and not own_init(value):
        return
    try:
        source = inspect.getsource(function_of(value))
    except (OSError, TypeError):  # A data class makes it.
        assert dataclasses.is_dataclass(value)
        return
    raised = set()
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            raised.add(getattr(called, "id", getattr(called, "attr", "")))
    told = section(doc_of(value), "Raises")
    assert [one for one in sorted(raised & ERRORS) if one not in told] == []
