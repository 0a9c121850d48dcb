"""Which modules of a model are regions: the largest ones that may be, from the root down."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch

from .._base.data_class import dataclass
from .module_tree import children, each_named, each_path, is_scripted, joined

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

    def regions(
        self, module: torch.nn.Module, path: str, root: torch.nn.Module | None = None
    ) -> Iterator[tuple[str, torch.nn.Module]]:
        """Give the largest modules that may be regions, from ``module`` down, with their paths.

        Args:
            module: The module.
            path: The path of the module in the fused model.
            root: The fused model; ``None`` if it is unknown, or the module itself.
        """
        yield from self._found(module, path, self._excluded(module, path, root), ())

    def inside(
        self, module: torch.nn.Module, path: str, root: torch.nn.Module | None = None
    ) -> Iterator[tuple[str, torch.nn.Module]]:
        """Give the largest modules within ``module`` that may be regions; see ``regions``."""
        excluded = self._excluded(module, path, root)
        for name, child in children(module):
            yield from self._found(child, joined(path, name), excluded, (id(module),))

    def _found(
        self, module: torch.nn.Module, path: str, excluded: frozenset[int], around: tuple[int, ...]
    ) -> Iterator[tuple[str, torch.nn.Module]]:
        if id(module) in around or id(module) in excluded or is_scripted(module):
            return
        if self._may_be(path, module, excluded):
            yield path, module
            return
        for name, child in children(module):
            yield from self._found(child, joined(path, name), excluded, (*around, id(module)))

    def _may_be(self, path: str, module: torch.nn.Module, excluded: frozenset[int]) -> bool:
        forward = inspect.getattr_static(type(module), "forward", None)
        if forward is torch.nn.Module.forward:
            return False  # A list of modules, for example: it is never called.
        if "forward" not in vars(module) and not isinstance(forward, types.FunctionType):
            return False  # Not called with the module: a static method, a property, an op.
        if self.include and not _matches(self.include, path, module):
            return False
        return not excluded or all(id(one) not in excluded for _, one in each_named(module))

    def _excluded(
        self, module: torch.nn.Module, path: str, root: torch.nn.Module | None
    ) -> frozenset[int]:
        """Return the modules that are excluded by any of their paths, and all within them."""
        if not self.exclude:
            return frozenset()
        start = (module, path) if root is None else (root, "")
        return frozenset(
            id(inner)
            for where, one in each_path(*start)
            if _matches(self.exclude, where, one)
            for _, inner in each_named(one)
        )


def _matches(patterns: tuple[Pattern, ...], path: str, module: torch.nn.Module) -> bool:
    return any(
        fnmatchcase(path, one) if isinstance(one, str) else isinstance(module, one)
        for one in patterns
    )
