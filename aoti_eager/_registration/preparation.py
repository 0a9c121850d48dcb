"""What is prepared before anything of this package's serves: settings, C++ path, imports."""

from __future__ import annotations

from .._compile_service import native_path
from ..config import config
from . import registry
from .miss_imports import prepare_for_misses
from .resolve import can_serve


def why_not_native() -> str:
    """Return in words why calls do not go through C++; empty if they do, or may from now on."""
    return native_path.why_not_loaded()


def prepare() -> bool:
    """Return whether calls can be served; the C++ hit path serves from now on if there is one.

    Call it while no other thread calls the ops that are registered.

    Raises:
        ConfigError: A setting holds a value that it does not take.
    """
    config.validate()
    if not can_serve():
        return False
    if native_path.prepare():
        registry.switch_to_native()
    prepare_for_misses()
    return True
