"""aoti_eager: PyTorch eager ops, served from a persistent cache of AOTInductor kernel libraries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _collector

try:
    from . import errors
    from ._custom_op import CustomOp, custom_op
    from ._device_backends import load_runner, register_compile_backend, register_runner
    from ._device_compile import CompileRequest
    from ._library import Registration, impl, register, registered_ops, stats, wait
    from ._marks import mark_dynamic, mark_static, unmark
    from ._op_constants import constants, update_constants
    from ._stats import OpStats
    from .config import config
finally:
    _collector.resume()  # Also where an import fails.

if TYPE_CHECKING:
    from . import cache
    from ._explain import Explanation, explain
    from ._runner import ModelContainerRunner

__all__ = [
    "CompileRequest",
    "CustomOp",
    "Explanation",
    "ModelContainerRunner",
    "OpStats",
    "Registration",
    "cache",
    "config",
    "constants",
    "custom_op",
    "errors",
    "explain",
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
    "wait",
]

# By name, where it is: what a script that only calls ops never needs is imported when it is used.
_LATER = {
    "Explanation": "_explain",
    "ModelContainerRunner": "_runner",
    "cache": "cache",
    "explain": "_explain",
}


def __getattr__(name: str) -> Any:
    """Return what is imported at its first use."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LATER[name]}", __name__)
    found = module if name == _LATER[name] else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names, those of what is not imported yet among them."""
    return sorted({*globals(), *_LATER})
