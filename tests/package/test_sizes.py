"""The package's sizes: no long module, function or class, unless its docstring says why."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import aoti_eager

PACKAGE = Path(aoti_eager.__file__).parent
# A demo's script that a wheel has beside the modules is no module of the package.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "_examples")

MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 60
MOST_METHODS = 12

Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def data_lines(tree: ast.AST) -> int:
    """Return how many lines are text for another program, or a table of plain values.

    A table is a display of literals that a module assigns to a name.
    """
    spans: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and is_text(node):
            spans |= lines_of(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            spans -= lines_of(node)  # A docstring.
    for node in tree.body if isinstance(tree, ast.Module) else ():
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_plain(node.value):
            spans |= lines_of(node)
    return len(spans)


def lines_of(node: ast.AST) -> set[int]:
    """Return the numbers of a node's lines, if it has several."""
    first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
    return set(range(first, last + 1)) if last > first else set()


def is_text(node: ast.Constant | ast.JoinedStr) -> bool:
    """Return whether a string has a line for each line of its source: no message is one."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    words = [one.value for one in parts if isinstance(one, ast.Constant)]
    breaks = sum(one.count("\n") for one in words if isinstance(one, str))
    return breaks >= max(1, len(lines_of(node)) - 1)


def is_plain(node: ast.expr | None) -> bool:
    if node is None:
        return False
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def scopes(tree: ast.Module) -> Iterator[Scope]:
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def method_names(node: ast.ClassDef) -> set[str]:
    return {
        one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def limits(scope: Scope, text: str) -> tuple[str, bool]:
    """Return what a reason for ``scope`` begins with, and whether it needs a reason."""
    if isinstance(scope, ast.ClassDef):
        return f"More than {MOST_METHODS} methods", len(method_names(scope)) > MOST_METHODS
    if isinstance(scope, ast.Module):
        lines, most = len(text.splitlines()), MOST_LINES
    else:
        assert scope.end_lineno is not None
        lines, most = scope.end_lineno - scope.lineno + 1, MOST_LINES_OF_A_FUNCTION
    # Nearly all are short enough with their data, which takes long to count.
    return f"Longer than {most} lines", lines > most and lines - data_lines(scope) > most


def problems(text: str, name: str) -> list[str]:
    """Return what is too large in a module without a reason, or has a reason and is not."""
    found = []
    for scope in scopes(ast.parse(text)):
        beginning, is_large = limits(scope, text)
        where = name if isinstance(scope, ast.Module) else f"{name}: {scope.name}"
        says = ast.get_docstring(scope) or ""
        has_reason = re.search(rf"(^|\s){beginning}, because\s[^\n]\S[^.]*\.\Z", says) is not None
        if is_large and not has_reason:
            found.append(
                f"{where}: {beginning.lower()}, and its docstring does not end in a reason"
            )
        elif f"{beginning}, because" in says and not is_large:
            found.append(f"{where}: says {beginning.lower()!r}, and is not")
    return found


def test_every_file_of_the_package_is_looked_at() -> None:
    listed = {path.relative_to(PACKAGE.parent).as_posix() for path in FILES}
    root = PACKAGE.parent
    done = subprocess.run(
        ["git", "ls-files", "aoti_eager/*.py"], cwd=root, capture_output=True, text=True
    )
    assert listed >= {name for name in done.stdout.split() if (root / name).exists()}
    assert len(listed) > 180


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_large_says_why(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8"), name_of(path)) == []


# --- the rule itself -----------------------------------------------------------------------------

LINE = "x = f()\n"
REASON = '"""A module.\n\nLonger than 350 lines, because it is one thing.\n"""\n'


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (LINE * 350, 0),
        (LINE * 351, 1),
        (REASON + LINE * 351, 0),
        (REASON + LINE, 1),  # A reason that has outlived its cause.
        ('"""Longer than 350 lines."""\n' + LINE * 351, 1),
        ('"""Longer than 350 lines, because so. And more."""\n' + LINE * 351, 1),
        # Text for another program and tables do not count.
        ('TEXT = """\n' + "text\n" * 400 + '"""\n', 0),
        ('TEXT = f"""\n' + "text of {x}\n" * 400 + '"""\n', 0),
        ("x = f(\n" + "'a message'\n" * 400 + ")\n", 1),
        ("TABLE = [\n" + "1,\n" * 400 + "]\n", 0),
        ("TABLE = [\n" + "f(),\n" * 400 + "]\n", 1),
        ("def f():\n" + f"    {LINE}" * 59, 0),
        ("def f():\n" + f"    {LINE}" * 60, 1),
        ("async def f():\n" + f"    {LINE}" * 60, 1),
        ("class C:\n def g(self):\n  def f():\n" + f"   {LINE}" * 60, 2),
        ("class C:\n" + "".join(f" def f{i}(self): pass\n" for i in range(12)), 0),
        ("class C:\n" + "".join(f" def f{i}(self): pass\n" for i in range(13)), 1),
        ("class C:\n" + " @property\n def f(self): pass\n" * 13, 0),
    ],
)
def test_the_rule(text: str, number: int) -> None:
    assert len(problems(text, "module")) == number
