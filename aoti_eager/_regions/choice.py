"""Which modules of a model are regions: the largest ones that may be, from the root down."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch

from .._base.data_class import dataclass

# A path's pattern (``encoder.*``), a class, or several of these.
Pattern = str | type


@dataclass(frozen=True, slots=True)
class Choice:
    """What ``include`` and ``exclude`` say.

    Attributes:
        include: Patterns of modules that may be regions; empty for all.
        exclude: Patterns of modules that are never served, nor what is in them.
    """

    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()

    def regions(self, module: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module]]:
        """Give the largest modules that may be regions, from ``module`` down, with their paths."""
        if self.is_excluded(path, module):
            return
        if self._may_be(path, module):
            yield path, module
        else:
            yield from self.inside(module, path)

    def inside(self, module: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module]]:
        """Give the largest modules within ``module`` that may be regions, with their paths."""
        for name, child in module.named_children():
            yield from self.regions(child, f"{path}.{name}" if path else name)

    def is_excluded(self, path: str, module: torch.nn.Module) -> bool:
        """Return whether a pattern excludes a module."""
        return _matches(self.exclude, path, module)

    def _may_be(self, path: str, module: torch.nn.Module) -> bool:
        if type(module).forward is torch.nn.Module.forward:
            return False  # A list of modules, for example: it is never called.
        if isinstance(module, torch.jit.ScriptModule):
            return False
        if self.include and not _matches(self.include, path, module):
            return False
        dot = f"{path}." if path else ""
        return not any(
            self.is_excluded(dot + name, one) for name, one in module.named_modules() if name
        )


def _matches(patterns: tuple[Pattern, ...], path: str, module: torch.nn.Module) -> bool:
    return any(
        fnmatchcase(path, one) if isinstance(one, str) else isinstance(module, one)
        for one in patterns
    )
