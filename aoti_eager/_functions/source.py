"""Reads the source of a Python function, and checks that the source is the code that runs."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from ..errors import UnsupportedFunctionError
from .allowed_names import Lookup, check_names


def function_source(function: types.FunctionType, lookup: Lookup) -> str:
    """Return a function's code in a form that neither comments nor line breaks change.

    Decorators, annotations, defaults and the docstring are left out.

    Args:
        function: The function.
        lookup: Gives the value of a global or free name of the function.

    Raises:
        UnsupportedFunctionError: The function has no source, or its source does more than compute a
            result from what is in the function's key.
    """
    name = function.__name__
    if name == "<lambda>":
        raise UnsupportedFunctionError("is a lambda; define it with def")
    if hasattr(function, "__wrapped__"):
        raise UnsupportedFunctionError(f"is made by a decorator around {name}")
    if vars(function):
        raise UnsupportedFunctionError(f"{name} has attributes: {', '.join(vars(function))}")
    try:
        text = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(text)
        _check_source_is_current(function)
    except (OSError, TypeError, SyntaxError) as error:
        raise UnsupportedFunctionError(
            f"has no source that can be read, as of exec and at a prompt ({error}): define it in a "
            "file, or in a notebook's cell"
        ) from error
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise UnsupportedFunctionError(f"is no plain function ({type(definition).__name__})")
    definition.decorator_list = []
    definition.returns = None
    arguments = definition.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        argument.annotation = None
    # Defaults are values, and the document has them beside the source.
    arguments.defaults = []
    arguments.kw_defaults = [None] * len(arguments.kwonlyargs)
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:] or [ast.Pass()]
    _check_statements(definition)
    check_names(definition, lookup)
    return ast.unparse(definition)


def _check_statements(definition: ast.FunctionDef) -> None:
    """Refuse statements that could have an effect besides the result, or be missed by a trace."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Global | ast.Nonlocal):
            raise UnsupportedFunctionError(f"assigns to {', '.join(node.names)} outside of itself")
        for kinds, what in _REFUSED:
            if isinstance(node, kinds):
                raise UnsupportedFunctionError(f"{what} (line {node.lineno} of it)")
    local = {n.id for n in ast.walk(definition) if isinstance(n, ast.Name) and _is_store(n)}
    local |= {n.arg for n in ast.walk(definition) if isinstance(n, ast.arg)}
    for node in ast.walk(definition):
        if isinstance(node, ast.Subscript | ast.Attribute) and _is_store(node):
            root: ast.AST = node
            while isinstance(root, ast.Subscript | ast.Attribute):
                root = root.value
            if isinstance(node, ast.Attribute):
                raise UnsupportedFunctionError(f"assigns to an attribute, {node.attr!r}")
            if isinstance(root, ast.Name) and root.id not in local:
                raise UnsupportedFunctionError(f"assigns to a part of {root.id!r}")


_REFUSED: tuple[tuple[type[Any] | tuple[type[Any], ...], str], ...] = (
    ((ast.Import, ast.ImportFrom), "imports modules inside of its body"),
    ((ast.Yield, ast.YieldFrom, ast.Await), "is a generator or a coroutine"),
    ((ast.Try, ast.With, ast.AsyncWith), "has a try or with statement"),
    (ast.ClassDef, "defines a class"),
)


def _is_store(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)


def _check_source_is_current(function: types.FunctionType) -> None:
    """Refuse source that is not the code that runs: the file was edited, or a decorator made it."""
    code = function.__code__
    # Compile the whole file, because a function's code depends on the file's imports.
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    same = [
        one
        for one in _codes_of_file(text, code.co_filename)
        # Compare lines, too: a function of the same name may be elsewhere in the file.
        if one.co_name == code.co_name and one.co_firstlineno == code.co_firstlineno
    ]
    if not any(_is_same_code(one, code) for one in same):
        raise UnsupportedFunctionError(
            "its source is not what runs; was its file edited since it was imported?"
        )


@functools.lru_cache(maxsize=16)
def _codes_of_file(text: str, name: str) -> tuple[types.CodeType, ...]:
    return tuple(_codes_in(compile(text, name, "exec", dont_inherit=True)))


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes_in(constant)


def _is_same_code(first: types.CodeType, second: types.CodeType) -> bool:
    """Return whether two code objects do the same; line numbers may differ."""

    def content(code: types.CodeType) -> tuple[Any, ...]:
        plain = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        return code.co_code, code.co_names, code.co_varnames, repr(plain)

    inner = [c for c in first.co_consts if isinstance(c, types.CodeType)]
    others = [c for c in second.co_consts if isinstance(c, types.CodeType)]
    return (
        content(first) == content(second)
        and len(inner) == len(others)
        and all(map(_is_same_code, inner, others))
    )
