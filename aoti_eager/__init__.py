"""aoti_eager: PyTorch eager ops, served from a persistent cache of AOTInductor kernel libraries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._base import gc_pause

with gc_pause.paused():
    from . import errors
    from ._base import at_exit as at_exit  # Its handler comes after those of the script.
    from .config import config

if TYPE_CHECKING:
    from . import cache
    from ._commands.explain import Explanation, explain
    from ._compile_service.compile_request import CompileRequest
    from ._compile_service.device_backends import (
        load_runner,
        register_compile_backend,
        register_runner,
    )
    from ._dispatch.counters import OpStats
    from ._dispatch.dynamic_marks import mark_dynamic, mark_static, unmark
    from ._enable.scripts import disable, enable, use
    from ._regions.explanation import RegionExplanation
    from ._regions.fuse import fuse
    from ._regions.report import FusionReport, RegionState
    from ._registration.custom_op import CustomOp, custom_op
    from ._registration.op_constants import constants, update_constants
    from ._registration.registry import (
        Registration,
        impl,
        register,
        registered_ops,
        stats,
    )
    from ._registration.waiting import wait
    from ._runner.runner import ModelContainerRunner

__all__ = [
    "CompileRequest",
    "CustomOp",
    "Explanation",
    "FusionReport",
    "ModelContainerRunner",
    "OpStats",
    "RegionExplanation",
    "RegionState",
    "Registration",
    "cache",
    "config",
    "constants",
    "custom_op",
    "disable",
    "enable",
    "errors",
    "explain",
    "fuse",
    "impl",
    "load_runner",
    "mark_dynamic",
    "mark_static",
    "register",
    "register_compile_backend",
    "register_runner",
    "registered_ops",
    "stats",
    "unmark",
    "update_constants",
    "use",
    "wait",
]

# Module -> what it has of these. All but settings and errors is imported when it is used first: who
# imports the package and has no use for it pays next to nothing.
_MODULES = {
    "_regions.fuse": ("fuse",),
    "_regions.explanation": ("RegionExplanation",),
    "_regions.report": ("FusionReport", "RegionState"),
    "_enable.scripts": ("disable", "enable", "use"),
    "_registration.custom_op": ("CustomOp", "custom_op", "made_op"),  # The last for pickles.
    "_compile_service.device_backends": (
        "load_runner",
        "register_compile_backend",
        "register_runner",
    ),
    "_compile_service.compile_request": ("CompileRequest",),
    "_commands.explain": ("Explanation", "explain"),
    "_registration.registry": (
        "Registration",
        "impl",
        "register",
        "registered_ops",
        "stats",
    ),
    "_registration.waiting": ("wait",),
    "_dispatch.dynamic_marks": ("mark_dynamic", "mark_static", "unmark"),
    "_registration.op_constants": ("constants", "update_constants"),
    "_runner.runner": ("ModelContainerRunner",),
    "_dispatch.counters": ("OpStats",),
    "cache": ("cache",),
}
_LATER = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Return what is imported at its first use."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = _stand_in(name)
    if found is None:
        try:
            with gc_pause.paused():
                module = importlib.import_module(f".{_LATER[name]}", __name__)
        except (ImportError, AttributeError) as error:
            found = _stand_in(name, error)
            if found is None:
                raise
        else:
            found = module if name == _LATER[name] else getattr(module, name)
    globals()[name] = found
    return found


def _stand_in(name: str, error: Exception | None = None) -> Any:
    """Return what runs originals, where this torch lacks a private name; else ``None``.

    Args:
        name: A public name.
        error: What importing the module of the name has raised.
    """
    from ._base import checked_torch as checked

    if checked.is_checked():
        return None
    missing = checked.missing_names()
    if not missing and error is None:
        return None
    from . import _originals

    _originals.explain_once(", ".join(missing[:3]) or str(error))
    return _originals.standing_in(name)


def __dir__() -> list[str]:
    """Return the names, those of what is not imported yet among them."""
    return sorted({*globals(), *_LATER})
