"""``python -m aoti_eager setup``: build what is built once a machine, before a script needs it.

It builds the C++ path of calls, and what all kernel libraries have in common: a precompiled header,
an object, and a record of what the compiler and this CPU can do together.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .._base.cpp_compiler import NO_COMPILER, compiler_on_path
from .._compile_service import cache_context, native_path
from .._compile_service.requests import PartsRequest
from .._compile_service.worker_pool import CompileService
from .._native import build as native_build
from ..config import config
from ..errors import AotiEagerError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``setup`` to ``parser``."""
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache's directory")
    parser.add_argument(
        "--into",
        metavar="DIR",
        type=Path,
        help="build only the C++ path, and keep it in DIR, for a wheel to carry",
    )


def main(options: argparse.Namespace) -> int:
    """Return 0, or 1 where there is no compiler.

    Raises:
        AotiEagerError: Something cannot be built, or the cache cannot be written.
    """
    config.validate()
    compiler = compiler_on_path()
    if compiler is None:
        print(f"aoti-eager: {NO_COMPILER}", file=sys.stderr)
        return 1
    if options.into is not None:
        into: Path = options.into.absolute()
        _step("the C++ path of calls", lambda: _build_native(into, compiler))
        print(f"ready: AOTI_EAGER_CARRY={into} pip wheel --no-deps .")
        return 0
    context = cache_context.current()
    context.store.create()
    _step("the C++ path of calls", lambda: _build_path(context.toolchain, compiler))
    _step("what kernel libraries share", lambda: _build_parts(context))
    print(f"ready: {context.store.root}")
    return 0


def _step(what: str, build: Callable[[], bool]) -> None:
    """Print what is built, then how it ended; ``build`` returns whether there was work to do."""
    print(f"{what}: ", end="", flush=True)
    begun = time.monotonic()
    try:
        was_built = build()
    except AotiEagerError:
        print("failed", flush=True)
        raise
    seconds = time.monotonic() - begun
    print(f"built in {seconds:.0f} s" if was_built else "there already", flush=True)


def _build_path(toolchain: Path, compiler: str) -> bool:
    return not native_path.load_carried() and _build_native(toolchain, compiler)


def _build_native(toolchain: Path, compiler: str) -> bool:
    if native_build.find(toolchain, compiler) is not None:
        return False
    native_build.build(toolchain, compiler)
    return True


def _build_parts(context: cache_context.CacheContext) -> bool:
    service = CompileService(context.target, workers=1)
    try:
        return service.make_parts(
            PartsRequest(context.store.root, torch.get_num_threads(), config.compile_timeout_s)
        )
    finally:
        service.close()
