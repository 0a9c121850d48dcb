"""``fuse``: serve whole modules, or functions, by one kernel library each."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, cast

import torch

from .._registration import registry
from ..errors import FuseError
from .choice import Choice, Pattern
from .current_settings import settings
from .fused_forward import FusedForward
from .region import Region
from .region_kernel import sweep
from .report import RegionState, region_state, report_text
from .target import Target

_Patterns = Pattern | Iterable[Pattern] | None

_lock = threading.RLock()


class FusionReport:
    """The regions of one call of ``fuse``; also a context manager that undoes them at its end.

    ``print`` it for a line a region.
    """

    def __init__(
        self, model: torch.nn.Module | None, choice: Choice, *, dry_run: bool, strict: bool
    ) -> None:
        # Not the model itself: the report may be kept for longer.
        self._model = None if model is None else weakref.ref(model)
        self.choice = choice
        self.options = (choice, dry_run, strict)
        self._dry_run, self._strict = dry_run, strict
        self._forwards: list[FusedForward] = []
        self._functions: list[Region] = []
        self._is_undone = False

    @property
    def regions(self) -> list[RegionState]:
        """Return the state of each region, from the root down."""
        with _lock:
            states = [
                region_state(one.region, is_placed=one.is_placed or self._is_undone)
                for one in self._forwards
            ]
            return states + [region_state(one) for one in self._functions]

    def __str__(self) -> str:
        return report_text(self.regions)

    def __repr__(self) -> str:
        return f"<FusionReport of {len(self.regions)} regions; print it>"

    def is_of(self, model: torch.nn.Module) -> bool:
        """Return whether this is the report of a model."""
        return self._model is not None and self._model() is model

    def undo(self) -> None:
        """Give every module its own forward back; a second call does nothing.

        Libraries that no other model uses are released, unless a thread is calling one.
        """
        with _lock:
            self._is_undone = True
            for one in self._forwards:
                one.remove()
            for region in self._functions:
                region.close()
        sweep()

    def __enter__(self) -> FusionReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    # -- regions --

    def add(self, path: str, module: torch.nn.Module) -> None:
        """Make a region of a module, unless the module is one."""
        with _lock:
            before = vars(module).get("forward")
            if self._is_undone or (isinstance(before, FusedForward) and not before.is_copy):
                return
            if isinstance(before, FusedForward):
                before.remove()
            forward = FusedForward(module, path, self)
            self._forwards.append(forward)
            forward.place()

    def add_function(self, function: Callable[..., Any], name: str) -> Region:
        """Return a region for the calls of a function."""
        region = self.region(Target(function, None), name)
        self._functions.append(region)
        return region

    def region(self, target: Target, path: str) -> Region:
        """Return a new region with this report's options; copies of modules have such regions."""
        region = Region(target, path, strict=self._strict, dry_run=self._dry_run)
        region.on_stop = self._try_children
        return region

    def _try_children(self, region: Region) -> None:
        module = region.target.module
        if module is not None:
            for path, child in self.choice.inside(module, region.path):
                self.add(path, child)


class FusedFunction:
    """A function whose calls one kernel library may serve, for each kind of arguments.

    Attributes:
        report: What became of the function; ``report.undo()`` has the function itself run.
    """

    def __init__(self, function: Callable[..., Any], report: FusionReport) -> None:
        self.report = report
        self._region = report.add_function(function, getattr(function, "__qualname__", ""))
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        if torch.compiler.is_compiling():  # First: Dynamo traces what a region does up to here.
            return self._region.target.forward(*args, **kwargs)
        return self._region.call(args, kwargs)


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
    registry.prepare()
    settings.refresh()
    model = target if isinstance(target, torch.nn.Module) else None
    report = FusionReport(model, choice, dry_run=dry_run, strict=strict)
    if not isinstance(target, torch.nn.Module):
        if not callable(target) or isinstance(target, type):
            raise FuseError(
                f"fuse: got {type(target).__name__}; a torch.nn.Module or a function is wanted"
            )
        if include is not None or exclude is not None:
            raise FuseError("fuse: include and exclude are for modules, and a function has none")
        return FusedFunction(target, report)
    with _lock:
        before = _report_of(target)
        if before is not None:
            if before.options != report.options:
                raise FuseError(
                    "fuse: the model is fused already, with other options; call undo() of the "
                    "report that fuse returned then"
                )
            return before
        for path, module in choice.regions(target, ""):
            report.add(path, module)
        if not report.regions:
            raise FuseError(f"fuse: no module of the {type(target).__name__} matches: {choice}")
    return report


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _report_of(model: torch.nn.Module) -> FusionReport | None:
    """Return the report of a model that is fused already."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, FusedForward) and forward.report.is_of(model):
            return cast(FusionReport, forward.report)
    return None


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
