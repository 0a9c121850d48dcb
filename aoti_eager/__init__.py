"""aoti_eager: PyTorch eager ops, served from a persistent cache of AOTInductor kernel libraries."""

from __future__ import annotations

from ._library import Registration, impl, register, registered_ops, stats
from ._stats import OpStats
from .config import config

__all__ = [
    "OpStats",
    "Registration",
    "config",
    "impl",
    "register",
    "registered_ops",
    "stats",
]
