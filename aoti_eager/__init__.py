"""aoti_eager: PyTorch eager ops, served from a persistent cache of AOTInductor kernel libraries."""

from __future__ import annotations

from . import cache, errors
from ._explain import Explanation, explain
from ._library import Registration, impl, register, registered_ops, stats
from ._stats import OpStats
from .config import config

__all__ = [
    "Explanation",
    "OpStats",
    "Registration",
    "cache",
    "config",
    "errors",
    "explain",
    "impl",
    "register",
    "registered_ops",
    "stats",
]
