"""Walks through a model's modules by identity and by every path.

torch's own walks ask modules for their hashes, which a class may lack or answer in its own way, and
name a module that lies in two places once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def children(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Give the modules that a module holds, by each of their names."""
    held = getattr(module, "_modules", None)  # A module that is not built yet has none.
    for name, child in list(held.items()) if held else ():
        if child is not None:
            yield name, child


def joined(path: str, name: str) -> str:
    """Return the path of what a module at ``path`` holds under a name."""
    return f"{path}.{name}" if path else name


def each_path(
    module: torch.nn.Module, path: str, around: tuple[int, ...] = ()
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Give a module and all modules within it, with every path that leads to them.

    Args:
        module: The module.
        path: The path of the module.
        around: The modules that it lies in; a module that lies in itself is given once.
    """
    if id(module) in around:
        return
    yield path, module
    for name, child in children(module):
        yield from each_path(child, joined(path, name), (*around, id(module)))


def each_named(
    module: torch.nn.Module, path: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Give a module and all modules within it, each once, with the first path that leads there.

    Args:
        module: The module.
        path: The path of the module.
        seen: The modules that were given already, by ``id``.
    """
    seen = set() if seen is None else seen
    if id(module) not in seen:
        seen.add(id(module))
        yield path, module
        for name, child in children(module):
            yield from each_named(child, joined(path, name), seen)


def is_scripted(module: torch.nn.Module) -> bool:
    """Return whether a module is TorchScript's: its calls run no Python, and its state is C++'s."""
    return isinstance(module, torch.jit.ScriptModule)
