"""``enable(regions=True)``: the root modules of a whole script are fused, and nobody names them."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import replace

import torch

from .._base.warn_once import warn_once
from .._registration.preparation import prepare
from .choice import Choice
from .current_settings import settings
from .fusion import Fusion
from .region_kernel import sweep
from .report import RegionState
from .root_search import RootSearch

# A kind of region: the root's class, path, class, state and reason.
_Kind = tuple[str, str, str, str, str]


class RootFusion(Fusion):
    """The regions of one root module; what is known of them outlives the module."""

    gives_way = True

    def __init__(self, root: torch.nn.Module | None, root_name: str) -> None:
        super().__init__(root, Choice(), dry_run=False, strict=False)
        self.root_name = root_name

    def new(self) -> RootFusion:
        """Return the regions of a copy; ``disable`` undoes them, even if the original is gone."""
        copied = RootFusion(None, self.root_name)
        _roots.fusions.add(copied)
        return copied

    def __del__(self) -> None:
        """Keep what is known: a garbage collection ends the model and these regions together."""
        _keep(self)
        super().__del__()


class _Roots:
    """What has become of root modules in this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.search: RootSearch | None = None
        self.children = False
        self.fusions: weakref.WeakSet[RootFusion] = weakref.WeakSet()
        self.ended: dict[_Kind, RegionState] = {}


_roots = _Roots()


def enable(*, children: bool = False) -> bool:
    """Serve the modules that a script calls by kernel libraries, without naming them.

    Return whether modules are looked for: they are not where nothing can be served.

    A module whose call is the outermost one on its thread is fused (``fuse``) when it is called for
    the second time. The search for such modules pauses after 20,000 calls of modules without a new
    one, goes on when a module is built, and ends when ``torch.compile`` is used. ``fuse`` may be
    called for any of these modules, and takes it over.

    Call this before other threads call modules.

    Args:
        children: Whether modules that are fused stay so in forked children.

    Raises:
        ConfigError: A setting holds a value that it does not take.
    """
    if not prepare():
        return is_begun()
    settings.refresh()
    with _roots.lock:
        search = _roots.search or RootSearch(_fuse_root)
        search.start()
        _roots.search, _roots.children = search, children
    return True


def is_begun() -> bool:
    """Return whether ``enable`` has begun a search in this process, which may pause or have ended.

    A forked child has none, though its parent's modules may be fused in it.
    """
    return _roots.search is not None


def keep_in_children(children: bool) -> None:
    """Choose anew whether modules that are fused stay so in forked children."""
    with _roots.lock:
        _roots.children = children


def disable() -> None:
    """Give the modules that ``enable`` has fused their forwards back, and look for no others."""
    with _roots.lock:
        search, _roots.search = _roots.search, None
    if search is not None:
        search.stop()
    for fusion in list(_roots.fusions):
        fusion.undo()
    sweep()  # The libraries of models that are gone.


def region_states() -> dict[str, list[RegionState]]:
    """Return the regions of all root modules, by the root's class; equal ones are summed up."""
    found = dict(_roots.ended)
    for fusion in list(_roots.fusions):
        _add(found, fusion)
    listed: dict[str, list[RegionState]] = {}
    for (root, *_), state in found.items():
        listed.setdefault(root, []).append(state)
    return listed


def _fuse_root(module: torch.nn.Module) -> None:
    fusion = RootFusion(module, type(module).__name__)
    try:
        fusion.add_all(module)
    except Exception as error:  # noqa: BLE001 - nobody has asked for this module to be fused
        warn_once(f"root {type(error).__name__}", f"{fusion.root_name} is not fused: {error!r}")
        return
    if fusion.regions:
        _roots.fusions.add(fusion)


def _keep(fusion: RootFusion) -> None:
    # No lock: a garbage collection runs in the middle of anything. Lost is a count at worst.
    _add(_roots.ended, fusion)


def _add(found: dict[_Kind, RegionState], fusion: RootFusion) -> None:
    for one in fusion.states():
        kind = (fusion.root_name, one.path, one.name, one.state, one.reason)
        before = found.get(kind)
        if before is not None:
            speeds = [speed for speed in (before.speed, one.speed) if speed is not None]
            one = replace(
                one,
                calls=before.calls + one.calls,
                hits=before.hits + one.hits,
                speed=max(speeds, default=None),
            )
        found[kind] = one


def _after_fork() -> None:
    """Look for no modules in a forked child, and give forwards back if children are not served.

    The kernels stay in the dispatcher, whose lock a thread of the parent may have held.
    """
    _roots.lock = threading.RLock()
    search, _roots.search = _roots.search, None
    if search is not None:
        search.after_fork()
    if not _roots.children:
        for fusion in list(_roots.fusions):
            fusion.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
