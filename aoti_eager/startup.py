"""``import aoti_eager.startup``, in ``sitecustomize``: ``AOTI_EAGER_ENABLE`` serves whole scripts.

The import does nothing unless the variable is set. If it is, ops are served as by ``enable``, as
soon as the process has imported torch; a process that never does loads nothing. The variable is
``1`` or the name of a preset. Processes that this one starts do not inherit it, unless the value
ends in ``+children``.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ._base.warn_once import log
from ._enable.variable import VARIABLE, take_preset


class _AtTorch(MetaPathFinder):
    """Waits until torch is imported."""

    def __init__(self, preset: str, children: bool) -> None:
        self._chosen = preset, children

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of torch, with a loader that serves ops when torch is there."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenEnable(spec.loader, *self._chosen)
        return spec


class _ThenEnable(Loader):
    """Loads torch as ``loader`` does, and has ops served then."""

    def __init__(self, loader: Loader, preset: str, children: bool) -> None:
        self._loader = loader
        self._chosen = preset, children

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what torch's own loader returns."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run torch's own import, and serve ops."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _enable(*self._chosen)


def _enable(preset: str, children: bool) -> None:
    try:  # The imports, too: this torch may lack a private name.
        from ._enable.op_set import DEFAULT_PRESET
        from ._enable.scripts import enable

        enable(preset or DEFAULT_PRESET, children=children)
    except Exception as error:  # noqa: BLE001 - a script that says nothing of us runs on
        log.warning("%s: ops are not served: %s", VARIABLE, error)


def _start() -> None:
    found = take_preset()
    if found is None:
        return
    if "torch" in sys.modules:
        _enable(*found)
    else:
        sys.meta_path.insert(0, _AtTorch(*found))


_start()
