"""The regions of one call of ``fuse``: made, tried from the root down, and undone."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .._base.warn_once import warn_once
from .choice import Choice
from .fused_forward import FusedForward
from .module_tree import each_named
from .readiness import tensor_devices
from .recording_time import RecordingTime
from .region import Region
from .region_kernel import sweep
from .report import Outcome, RegionState, region_state
from .target import Target

_lock = threading.RLock()


class Fusion:
    """The regions of one model, or of one function.

    Args:
        model: The model; ``None`` for a function.
        choice: Which of its modules may be regions.
        dry_run: Whether calls are recorded, and nothing is compiled or served.
        strict: Whether a call in which a region stops raises.

    Attributes:
        options: The choice and the two flags.
        gives_way: Whether a later call of ``fuse`` may take the modules over: nobody has asked for
            these regions by name.
        outcome: What a report knows of these regions.

    More than 12 methods, because copies have regions of their own, and end with these.
    """

    gives_way = False

    def __init__(
        self, model: torch.nn.Module | None, choice: Choice, *, dry_run: bool, strict: bool
    ) -> None:
        self._model = None if model is None else weakref.ref(model)
        self.options = (choice, dry_run, strict)
        self._forwards: list[FusedForward] = []
        self._functions: list[Region] = []
        self._is_undone = False
        self._undone: list[RegionState] = []  # the last states of modules that are let go of
        self._copies: weakref.WeakSet[Fusion] = weakref.WeakSet()
        self._recording_time = RecordingTime()
        self.outcome = Outcome(self)

    def __del__(self) -> None:
        """Keep what is known: a report holds no model, and may outlive this."""
        self.outcome.keep(self)

    def is_of(self, model: torch.nn.Module) -> bool:
        """Return whether these are the regions of a model."""
        return self._model is not None and self._model() is model

    @property
    def regions(self) -> list[Region]:
        """Return all regions, from the root down."""
        # No lock: a garbage collection may ask, in the middle of anything.
        return [one.region for one in list(self._forwards)] + list(self._functions)

    def states(self) -> list[RegionState]:
        """Return the state of each region."""
        states = [
            region_state(
                one.region,
                is_placed=one.is_placed or self._is_undone,
                is_withdrawn=one.is_withdrawn,
            )
            for one in list(self._forwards)
        ]
        states = self._undone + states
        return states + [region_state(one) for one in list(self._functions)]

    def add_all(self, model: torch.nn.Module) -> None:
        """Make regions of the largest modules that may be regions."""
        with _lock:
            for path, module in self.options[0].regions(model, ""):
                self._add(path, module)

    def add_function(self, function: Callable[..., Any], name: str) -> Region:
        """Return a region for the calls of a function."""
        region = self.region(Target(function, None), name)
        self._functions.append(region)
        return region

    def region(self, target: Target, path: str) -> Region:
        """Return a new region with these options; copies of modules have such regions, too."""
        _, dry_run, strict = self.options
        # The model itself is recorded once in a call; its children may be thousands.
        is_child = bool(path) and target.module is not None
        shared = self._recording_time if is_child else None
        region = Region(target, path, strict=strict, dry_run=dry_run, recording_time=shared)
        region.stopped.on_first = lambda: self._try_children(target, path)
        return region

    def for_copy(self) -> Fusion:
        """Return what a copy of a module has in place of these regions, as long as these are on."""
        copied = self.new()
        copied._is_undone = self._is_undone
        self._copies.add(copied)
        return copied

    def new(self) -> Fusion:
        """Return regions with these options, and without a model."""
        choice, dry_run, strict = self.options
        return Fusion(None, choice, dry_run=dry_run, strict=strict)

    def adopt(self, forward: FusedForward) -> None:
        """Take the forward of a copy: it is reported and undone with these regions."""
        self._forwards.append(forward)
        if self._is_undone:
            forward.region.close()

    def undo(self) -> None:
        """Give every module its own forward back, copies included; a second call does nothing."""
        self.let_go()
        sweep()

    def let_go(self) -> None:
        """Give every module its own forward back, as ``undo``; kernels stay in the dispatcher."""
        with _lock:
            self._is_undone = True
            for one in self._forwards:
                one.remove()
            self._undone += [region_state(one.region) for one in self._forwards]
            self._forwards = []  # They hold the model.
            for region in self._functions:
                region.close()
            copies = list(self._copies)
        for copied in copies:
            copied.let_go()

    def _add(self, path: str, module: torch.nn.Module) -> None:
        before = vars(module).get("forward")
        if self._is_undone or (isinstance(before, FusedForward) and self._stays(before)):
            return
        if isinstance(before, FusedForward):
            before.remove()
        forward = FusedForward(module, path, self)
        self._forwards.append(forward)
        forward.place()

    def _stays(self, forward: FusedForward) -> bool:
        """Return whether a module that is fused already cannot be a region of these."""
        return not forward.is_copy and (self.gives_way or not forward.regions.gives_way)

    def _try_children(self, target: Target, path: str) -> None:
        if target.module is None:
            return
        root = None if self._model is None else self._model()
        try:
            with _lock:
                is_here = tensor_devices(target.module) <= {"cpu"}
                for inner, child in self.options[0].inside(target.module, path, root):
                    # Nothing is gained, and time is lost, where tensors are elsewhere.
                    if is_here or tensor_devices(child) == {"cpu"}:
                        self._add(inner, child)
        except Exception as error:  # noqa: BLE001 - the user's call goes on without regions there
            warn_once(
                f"children {type(error).__name__}",
                f"fuse: the modules within {path or target.name} are not served: {error!r}",
            )


def fusion_of(model: torch.nn.Module) -> Fusion | None:
    """Return the regions of a model that is fused already."""
    for _, module in each_named(model):
        forward = vars(module).get("forward")
        if isinstance(forward, FusedForward) and forward.regions.is_of(model):
            found = forward.regions
            assert isinstance(found, Fusion)
            return found
    return None


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
