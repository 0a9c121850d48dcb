"""What stands in place of a module's ``forward`` while the module is a region."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.compiler import is_dynamo_compiling

from .._base.torch_compat.replicas import on_replica
from .recorded_call import recording_threads
from .region import Region
from .target import Fused, Target

# Attributes of a bound method that torch.export and torch.jit look at.
_OF_METHODS = frozenset({"__code__", "__defaults__", "__kwdefaults__", "__func__", "__globals__"})


class Regions(Protocol):
    """What a fused forward needs of the regions that it belongs to."""

    @property
    def gives_way(self) -> bool:
        """Return whether a later call of ``fuse`` may take the modules over."""

    def region(self, target: Target, path: str) -> Region:
        """Return a new region."""

    def for_copy(self) -> Regions:
        """Return what a copy of a module has in place of these regions."""

    def adopt(self, forward: FusedForward) -> None:
        """Take the forward of a copy: it is reported and undone with these regions."""

    def is_of(self, model: torch.nn.Module) -> bool:
        """Return whether these are the regions of a model."""


class FusedForward(Fused):
    """The ``forward`` of one module instance: each call goes through a region.

    A copy of the module has a region of its own; a pickle of the module has the module's plain
    forward, and can be loaded without this package.

    Args:
        module: The module.
        path: The module's path in the fused model.
        regions: The regions of the fused model.
        is_copy: Whether the module is a copy of the fused one, and is none of its regions.

    Attributes:
        is_withdrawn: Whether the module has its own forward back, as no library can serve it.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        path: str,
        regions: Regions,
        *,
        is_copy: bool = False,
    ) -> None:
        self._module = module
        self._path = path
        self.regions = regions
        self.is_copy = is_copy
        # An instance's own forward, if somebody has set one; else the class's.
        self.before = vars(module).get("forward")
        self._target = Target(self.before, module)
        self.region = regions.region(self._target, path)
        self._stopped = self.region.stopped
        self._stopped.on_hopeless = self.withdraw
        self.is_withdrawn = False
        functools.update_wrapper(self, self.plain, updated=())

    @property
    def plain(self) -> Callable[..., Any]:
        """Return the forward that runs without a library."""
        return self._target.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's forward returns."""
        if is_dynamo_compiling():  # First: the tracer follows the plain forward alone.
            return self.plain(*args, **kwargs)
        stopped = self._stopped
        module = self._module
        waiting = stopped.waiting
        # What ``passes_unseen`` would say of most calls: a function costs each of them as much.
        if (
            waiting is not None
            and not recording_threads
            and (not stopped.rests_with_gradients or torch.is_grad_enabled())
            and waiting.clock() < waiting.until_ns
        ):
            stopped.passed_by += 1
        elif not (stopped.given_up or waiting) or not stopped.passes_unseen(module.training):
            return self.region.call(args, kwargs)
        # As ``plain``, which costs three calls more.
        forward = self.before
        if forward is not None:
            return forward(*args, **kwargs)
        if kwargs:
            return type(module).forward(module, *args, **kwargs)
        if len(args) == 1:  # Most calls are such, and pass without a new tuple.
            return type(module).forward(module, args[0])
        return type(module).forward(module, *args)

    @property
    def __class__(self) -> Any:
        """Return the class of the plain forward, which TorchScript asks for."""
        return type(self.plain)

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise TypeError("the class of a fused forward cannot be changed")

    def __getattr__(self, name: str) -> Any:
        # TorchScript and export read the code of a forward: __code__, __globals__, __func__.
        if name == "_target":  # Not set yet: this object is being made.
            raise AttributeError(name)
        return getattr(self.plain, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.before is not None:
            return copy.deepcopy(self.before, memo)  # As if this module had not been fused.
        module = memo.get(id(self._module))
        if not isinstance(module, torch.nn.Module):
            # A class's own __deepcopy__ copies the attributes before there is a copy of the module.
            from .unbound_forward import UnboundForward

            return UnboundForward()
        regions = self.regions.for_copy()
        forward = FusedForward(module, self._path, regions, is_copy=True)
        regions.adopt(forward)
        return forward

    def __reduce__(self) -> tuple[Any, ...]:
        if self.before is not None:
            return functools.partial, (self.before,)
        # The loaded module has no forward of its own yet: this finds the class's, bound.
        return getattr, (self._module, "forward")

    def place(self) -> None:
        """Put this in place of the module's forward."""
        on_replica(_with_own_forward)
        self._module.forward = self

    def remove(self) -> None:
        """Put the module's forward back, unless somebody has replaced this meanwhile."""
        self.region.close()
        self._put_back()

    def withdraw(self) -> None:
        """Put the module's forward back, as no library can serve it: its calls cost nothing more.

        Any thread may be calling the module. The region stays, for the report.
        """
        self.is_withdrawn = self._put_back() or self.is_withdrawn

    def _put_back(self) -> bool:
        if not self.is_placed:
            return False
        if self.before is not None:
            self._module.forward = self.before
            return True
        # One step: whoever calls the module meanwhile finds this, or the class's forward.
        state = vars(self._module)
        found = state.pop("forward", None)
        if found is not None and found is not self:
            state.setdefault("forward", found)  # Set by another thread in between.
        return found is self

    @property
    def is_placed(self) -> bool:
        """Return whether the module's calls come here."""
        return vars(self._module).get("forward") is self


def _with_own_forward(replica: torch.nn.Module) -> None:
    """Give a replica the forward that its module has without us: ours has the module's tensors."""
    state = vars(replica)
    forward = state.get("forward")
    if isinstance(forward, FusedForward):
        del state["forward"]
        if forward.before is not None:
            state["forward"] = forward.before
