"""aoti_eager: PyTorch eager ops, served from a persistent cache of AOTInductor kernel libraries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _collector

try:
    from . import errors
    from ._custom_op import CustomOp, custom_op
    from ._device_backends import (
        CompileRequest,
        load_runner,
        register_compile_backend,
        register_runner,
    )
    from ._explain import Explanation, explain
    from ._library import Registration, impl, register, registered_ops, stats, wait
    from ._marks import mark_dynamic, mark_static, unmark
    from ._op_constants import constants, update_constants
    from ._runner import ModelContainerRunner
    from ._stats import OpStats
    from .config import config
finally:
    _collector.resume()  # Also where an import fails.

if TYPE_CHECKING:
    from . import cache

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


def __getattr__(name: str) -> Any:
    """Return the module ``cache``, which a script that only calls ops never needs to import."""
    if name == "cache":
        return importlib.import_module(".cache", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
