"""What stands in place of a module's ``forward`` while the module is a region."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Protocol

import torch

from .region import Region
from .target import Fused, Target

# Attributes of a bound method that torch.export and torch.jit look at.
_OF_METHODS = frozenset({"__code__", "__defaults__", "__kwdefaults__", "__func__", "__globals__"})


class Regions(Protocol):
    """What a fused forward needs of the report that it belongs to."""

    def region(self, target: Target, path: str) -> Region:
        """Return a new region."""

    def is_of(self, model: torch.nn.Module) -> bool:
        """Return whether this is the report of a model."""


class FusedForward(Fused):
    """The ``forward`` of one module instance: each call goes through a region.

    A copy of the module has a region of its own; a pickle of the module has the module's plain
    forward, and can be loaded without this package.

    Args:
        module: The module.
        path: The module's path in the fused model.
        report: The report of the fused model.
        is_copy: Whether the module is a copy of the fused one, and has no part in the report.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        path: str,
        report: Regions,
        *,
        is_copy: bool = False,
    ) -> None:
        self._module = module
        self._path = path
        self.report = report
        self.is_copy = is_copy
        # An instance's own forward, if somebody has set one; else the class's.
        self.before = vars(module).get("forward")
        plain = types.MethodType(type(module).forward, module)
        self.plain: Callable[..., Any] = plain if self.before is None else self.before
        self.region = report.region(Target(self.plain, module), path)
        functools.update_wrapper(self, self.plain, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's forward returns."""
        if torch.compiler.is_compiling():  # First: Dynamo traces what a region does up to here.
            return self.plain(*args, **kwargs)
        return self.region.call(args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # torch.export reads the code of a module's forward.
        if name in _OF_METHODS:
            return getattr(self.plain, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo.get(id(self._module))
        if not isinstance(copy, torch.nn.Module):
            return self
        if self.before is not None:
            return self.plain  # As if this module had not been fused.
        return FusedForward(copy, self._path, self.report, is_copy=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # The loaded module has no forward of its own yet: this finds the class's, bound.
        return getattr, (self._module, "forward")

    def place(self) -> None:
        """Put this in place of the module's forward."""
        self._module.forward = self

    def remove(self) -> None:
        """Put the module's forward back, unless somebody has replaced this meanwhile."""
        self.region.close()
        if not self.is_placed:
            return
        if self.before is None:
            del vars(self._module)["forward"]
        else:
            self._module.forward = self.before

    @property
    def is_placed(self) -> bool:
        """Return whether the module's calls come here."""
        return vars(self._module).get("forward") is self
