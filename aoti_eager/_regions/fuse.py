"""``fuse``: serve whole modules, or functions, by one kernel library each."""

from __future__ import annotations

import copy
import functools
import operator
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from .._registration.preparation import prepare
from ..errors import FuseError
from .choice import Choice, Pattern
from .current_settings import settings
from .fused_forward import FusedForward
from .fusion import Fusion, fusion_of
from .module_tree import is_scripted
from .report import FusionReport

_Patterns = Pattern | Iterable[Pattern] | None


class FusedFunction:
    """A function whose calls one kernel library may serve, for each kind of arguments.

    Attributes:
        report: What became of the function; ``report.undo()`` has the function itself run.
        region: The region of the function's calls.
    """

    def __init__(self, function: Callable[..., Any], fusion: Fusion) -> None:
        self.report = FusionReport(fusion.outcome)
        self.region = fusion.add_function(function, getattr(function, "__qualname__", ""))
        functools.update_wrapper(self, function)
        self._function, self._fusion = function, fusion
        self._name = getattr(function, "__name__", "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        if is_dynamo_compiling():  # First: the tracer follows the plain function alone.
            return self._function(*args, **kwargs)
        stopped = self.region.stopped
        if (stopped.given_up or stopped.waiting is not None) and stopped.passes_unseen(None):
            return self._function(*args, **kwargs)
        return self.region.call(args, kwargs)

    # -- methods --

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Return the method of an object: a fused function that the object keeps."""
        if instance is None or not isinstance(self._function, types.FunctionType):
            return self  # As what is no function of Python's, but is called like one.
        state = getattr(instance, "__dict__", None)
        if not isinstance(state, dict):
            return types.MethodType(self, instance)
        place = f"_fused_{self._function.__qualname__}"
        bound = state.get(place)
        # A shallow copy of the object has the method of the original.
        if not isinstance(bound, _FusedMethod) or bound.instance is not instance:
            bound = state[place] = _FusedMethod(self, self._function, instance, self._fusion)
        return bound

    # -- copies: a function is its own copy --

    def __copy__(self) -> FusedFunction:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        path = str(getattr(self._function, "__qualname__", ""))
        found: Any = sys.modules.get(getattr(self, "__module__", ""))
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is self:
            return path  # By its name, as functions are.
        return operator.itemgetter(0), ([self._function],)  # The plain function.


class _FusedMethod(FusedFunction):
    """A decorated method of one object.

    Attributes:
        instance: The object.
    """

    def __init__(
        self, unbound: FusedFunction, function: Callable[..., Any], instance: Any, fusion: Fusion
    ) -> None:
        super().__init__(types.MethodType(function, instance), fusion.for_copy())
        self.instance = instance
        self._unbound = unbound
        self._name = unbound._name

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._unbound.__get__(copy.deepcopy(self.instance, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.instance, self._name)


def fuse(
    target: torch.nn.Module | Callable[..., Any],
    *,
    include: _Patterns = None,
    exclude: _Patterns = None,
    dry_run: bool = False,
    strict: bool = False,
) -> Any:
    """Serve whole modules, or a function, by one kernel library each, and return what is known.

    The first call of a module records what eager does; a library is made in the background, and
    serves calls with arguments of the same sizes and types. The largest modules come first: where
    one cannot be served, its children are tried. Nothing about the model changes but ``forward`` of
    the chosen instances: parameters, state_dict, hooks, copies and pickles stay what they are.

    Calls that need gradients, or run under autocast, functorch or a tracer, run as before.

    Args:
        target: A module, which is changed in place, or a function.
        include: Modules that may be served: patterns of paths (``"encoder.*"``), classes, or a list
            of these; all if ``None``.
        exclude: Modules that are never served, nor anything within them; spelled like ``include``.
        dry_run: Record each module once, and say what would stop it; nothing is compiled or served.
        strict: Raise in the call in which a region is found to be impossible.

    Returns:
        For a module, a report: print it, or undo the change by ``report.undo()``. For a function, a
        function to be called in its place, which has the report as its attribute ``report``.

    Raises:
        FuseError: ``target`` is no module and no function; a pattern is no text and no class, or no
            module matches; the model is fused already, with other options.
        ConfigError: A setting holds a value that it does not take.
    """
    choice = Choice(_patterns("include", include), _patterns("exclude", exclude))
    prepare()
    settings.refresh()
    if isinstance(target, torch.nn.Module):
        return _fused_module(target, Fusion(target, choice, dry_run=dry_run, strict=strict))
    if not callable(target) or isinstance(target, type):
        raise FuseError(
            f"fuse: got {type(target).__name__}; a torch.nn.Module or a function is wanted"
        )
    if include is not None or exclude is not None:
        raise FuseError("fuse: include and exclude are for modules, and a function has none")
    return FusedFunction(target, Fusion(None, choice, dry_run=dry_run, strict=strict))


def _fused_module(model: torch.nn.Module, fusion: Fusion) -> FusionReport:
    if is_scripted(model):
        raise FuseError(
            f"fuse: the {type(model).__name__} is TorchScript's; eager modules are served"
        )
    before = fusion_of(model)
    if before is not None and before.gives_way:
        before.undo()
    elif before is not None:
        if before.options != fusion.options:
            raise FuseError(
                "fuse: the model is fused already, with other options; call undo() of the report "
                "that fuse returned then"
            )
        return FusionReport(before.outcome)
    forward = vars(model).get("forward")
    if isinstance(forward, FusedForward) and not forward.is_copy and not forward.regions.gives_way:
        raise FuseError(
            f"fuse: the {type(model).__name__} is a part of a model that is fused already; call "
            "undo() of that model's report first, or choose modules by include there"
        )
    fusion.add_all(model)
    if not fusion.regions:
        choice = fusion.options[0]
        raise FuseError(
            f"fuse: no module of the {type(model).__name__} matches: {choice} (a module counts "
            "if its forward is a method that is called with the module)"
        )
    return FusionReport(fusion.outcome)


def _patterns(name: str, given: _Patterns) -> tuple[Pattern, ...]:
    if given is None:
        return ()
    listed = [given] if isinstance(given, str | type) else list(given)
    for one in listed:
        if not isinstance(one, str | type):
            raise FuseError(
                f"fuse: {name} has a {type(one).__name__}; patterns of paths and classes are wanted"
            )
    return tuple(listed)
