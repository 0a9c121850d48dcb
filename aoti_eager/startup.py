"""``import aoti_eager.startup``, in ``sitecustomize``: ``AOTI_EAGER_ENABLE`` serves whole scripts.

The import does nothing unless the variable is set. If it is, ops are served as by ``enable``, as
soon as the process has imported torch; a process that never does loads nothing. The variable is
``1`` or the name of a preset. Processes that this one starts do not inherit it, unless the value
ends in ``+children``.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ._base.warn_once import log
from ._enable.variable import VARIABLE, give_back, take_preset


class _AtTorch(MetaPathFinder):
    """Waits until torch is imported; stays on the path, and finds nothing any more then.

    To take a finder out while another thread imports something would hide a module from it.
    """

    def __init__(self, preset: str, children: bool) -> None:
        self._chosen = preset, children
        self._waits = True
        self._asking: set[int] = set()  # threads that ask the other finders

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of torch, with a loader that serves ops when torch is there.

        Who only asks whether there is a torch gets such a spec, too, and imports nothing.
        """
        thread = get_ident()
        if name != "torch" or not self._waits or thread in self._asking:
            return None
        self._asking.add(thread)
        try:
            found = (one.find_spec(name, path, target) for one in self._others())
            spec = next((one for one in found if one is not None), None)
        finally:
            self._asking.discard(thread)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenEnable(spec.loader, self)
        return spec

    def _others(self) -> list[Any]:
        """Return the finders behind this one; all, where a tool has put this one into its own.

        The tool's finder asks this one again, which finds nothing then.
        """
        finders = list(sys.meta_path)
        place = next((place for place, one in enumerate(finders) if one is self), -1)
        return [one for one in finders[place + 1 :] if hasattr(one, "find_spec")]

    def has_come(self) -> None:
        """Serve ops: torch is imported."""
        waited, self._waits = self._waits, False
        if waited:
            _enable(*self._chosen)

    def stand_aside(self) -> tuple[str, bool] | None:
        """Serve nothing; return what was to be served, ``None`` if ops are served already."""
        waited, self._waits = self._waits, False
        return self._chosen if waited else None


class _ThenEnable(Loader):
    """Loads torch as ``loader`` does, and has ops served then."""

    def __init__(self, loader: Loader, waiting: _AtTorch) -> None:
        self._loader = loader
        self._waiting = waiting

    def __getattr__(self, name: str) -> Any:
        """Return what torch's own loader has: its path, its code."""
        if name == "_loader":  # Not set yet: a copy is being made.
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what torch's own loader returns."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run torch's own import, and serve ops."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._waiting.has_come()


def _enable(preset: str, children: bool) -> None:
    try:  # The imports, too: this torch may lack a private name.
        from ._enable.op_set import DEFAULT_PRESET
        from ._enable.scripts import enable

        enable(preset or DEFAULT_PRESET, children=children)
    except Exception as error:  # noqa: BLE001 - a script that says nothing of us runs on
        log.warning("%s: ops are not served: %s", VARIABLE, error)


_waiting: _AtTorch | None = None


def stand_aside() -> None:
    """Leave the variable to the command line, which serves its script itself."""
    found = None if _waiting is None else _waiting.stand_aside()
    if found is not None:
        give_back(found)


def _start() -> None:
    global _waiting
    found = take_preset()
    if found is None:
        return
    if "torch" in sys.modules:
        _enable(*found)
    else:
        _waiting = _AtTorch(*found)
        sys.meta_path.insert(0, _waiting)


_start()
