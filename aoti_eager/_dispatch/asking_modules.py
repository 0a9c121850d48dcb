"""The modules that ask for kernels: imported at a process's first miss, and not before."""

from __future__ import annotations

from threading import get_ident

from .._base.late_import import importing
from .._compile_service import cache_context

# Threads that wait for the compiler. A call that such a thread makes meanwhile (in a signal
# handler) must not wait for the compiler.
compiling: set[int] = set()

_is_prepared = False
_is_comparison_prepared = False


def prepare() -> None:
    """Import the modules that ask for kernels, so that calls need not wait for the import.

    A process whose kernels are all in the store never needs these modules.
    """
    global _is_prepared
    if not _is_prepared:
        with importing():
            from .._compile_service import replies, worker_pool  # noqa: F401
            from . import asking, candidate, pending, rare, resumed  # noqa: F401
        _is_prepared = True


def prepare_in_call() -> None:
    """Import what asks for kernels, in a call."""
    if not _is_prepared:
        ident = get_ident()
        compiling.add(ident)  # A signal handler's call meanwhile finds half of a module.
        try:
            prepare()
        finally:
            compiling.discard(ident)


def prepare_comparison(*, is_awaited: bool) -> bool:
    """Import what compares a library from the store with the original, and no more, in a call.

    Args:
        is_awaited: Whether the call may do what takes long. If not, nothing is imported in a forked
            child, as in ``prepare_unless_forked``.

    Returns:
        Whether the comparison is there.
    """
    global _is_comparison_prepared
    if _is_prepared or _is_comparison_prepared:
        return True
    if cache_context.is_forked() and not is_awaited:
        return False
    ident = get_ident()
    compiling.add(ident)
    try:
        with importing():
            from . import candidate  # noqa: F401
        _is_comparison_prepared = True
    finally:
        compiling.discard(ident)
    return True


def prepare_unless_forked() -> bool:
    """Import what asks for kernels, and return whether it is there; not in a forked child.

    A child gets no kernels in the background. Another thread of its parent may have been importing
    a module that ours need, which stays locked in the child for good.
    """
    if not _is_prepared and cache_context.is_forked():
        return False
    prepare_in_call()
    return True
