"""Which releases of torch this package was checked with, and what another torch lacks."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# Releases with which the tests passed: tests/versions/run.sh.
CHECKED = ("2.12", "2.13", "2.14")


def is_checked() -> bool:
    """Return whether this torch is one of the releases in ``CHECKED``; nightly builds are not."""
    match = re.fullmatch(r"(\d+\.\d+)(\.\d+)*(\+\S*)?", str(torch.__version__))
    return match is not None and match[1] in CHECKED


@functools.cache
def missing_names() -> list[str]:
    """Return the private names in ``torch_compat`` that the torch at hand lacks, sorted.

    A name that is looked up by ``getattr`` or within ``try`` may be missing, and is left out. So
    are names of modules that are not imported yet: the self-test, in a process of its own, imports
    them. Reading the files takes milliseconds: ask only in a torch that was not checked.
    """
    missing: set[str] = set()
    for path in sorted((Path(__file__).parent / "torch_compat").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        missing.update(_missing(tree))
    return sorted(missing)


def _missing(tree: ast.Module) -> Iterator[str]:
    optional = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Attribute):
            names = _chain(node)
            if names[:1] == ["torch"] and not _has(torch, names[1:]):
                yield ".".join(names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch."):
            module = sys.modules.get(str(node.module))
            for alias in node.names:
                if module is not None and not _has(module, [alias.name]):
                    yield f"{node.module}.{alias.name}"


def _chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return [*before, node.attr] if before else []
    return []


def _has(found: Any, names: list[str]) -> bool:
    for name in names:
        if not hasattr(found, name):
            # A module that nobody has imported is no attribute of its package.
            return isinstance(found, ModuleType) and _is_module(f"{found.__name__}.{name}")
        found = getattr(found, name)
    return True


def _is_module(name: str) -> bool:
    base = Path(torch.__file__).parent.joinpath(*name.split(".")[1:])
    return base.is_dir() or base.with_suffix(".py").is_file()
