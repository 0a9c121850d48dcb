"""What serves a key's calls once its entry is known: a kernel, or the original for a reason.

Mode ``sync`` and the background decide by the same functions.
"""

from __future__ import annotations

import logging

from .._base.data_class import dataclass
from .._base.warn_once import warn_once
from .._compile_service import cache_context
from .._compile_service.cache_context import CacheContext
from .._store.entry import Entry, Status
from .._store.verdict import PathTime
from ..config import config
from ..errors import (
    CompileError,
    EntryDamagedError,
    LockTimeoutError,
    RunnerError,
    StoreError,
    UntrustedFileError,
)
from .gate import Gate, Judged
from .kernel import Kernel
from .kernel_loading import load
from .kernel_request import KernelRequest

log = logging.getLogger("aoti_eager")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a key keeps its original.

    Attributes:
        reason: The decline reason.
        message: The reason in words.
        entry: The entry whose library was refused: of a dynamic specialisation, all calls of the
            size class are declined.
    """

    reason: str
    message: str
    entry: Entry | None = None


def kernel_or_refusal(
    call: KernelRequest, judged: Judged, context: CacheContext
) -> Kernel | Refusal:
    """Return the kernel of an entry, or why its library does not serve the call.

    The caller compares the kernel with the original before it serves, if ``Gate.wants_check``.

    Raises:
        EntryDamagedError: The library is not the one that was stored.
    """
    found, entry = judged.found, judged.found.entry
    if entry.status is not Status.READY:
        reason = entry.reason or "mismatch"
        return Refusal(reason, entry.message or reason)
    if judged.loses:
        return Refusal(*refused(judged.taken, judged.verdict.unmeasured), entry)
    try:
        kernel = load(call, found, context)
    except EntryDamagedError:
        raise
    except (RunnerError, OSError) as error:  # No memory for a copy, say.
        return Refusal("library_unloadable", str(error))
    if kernel.parallel and cache_context.is_forked():
        return Refusal("forked", "OpenMP's threads stayed with the parent")
    kernel.gated = judged.gated or not call.toolchain.works_in_background
    kernel.saves_us = 0.0 if judged.taken is None else judged.taken.saves_us
    return kernel


def put(call: KernelRequest, kernel: Kernel) -> None:
    """Use ``kernel``, unless a setting that has changed since it was chosen rules it out."""
    call.table.put(call.table_key, kernel)
    ruled_out = kernel.is_dynamic and config.dynamic is False
    if ruled_out or (Gate(call).is_on and not kernel.gated):
        # The kernel cache may have dropped such kernels before this one was in the table.
        call.table.drop_kernels(lambda one: one is kernel)


def refused(taken: PathTime | None, unmeasured: str = "") -> tuple[str, str]:
    """Return the reason and message of declining a library that does not beat the original.

    Args:
        taken: The library's times; ``None`` if it has none.
        unmeasured: Why the library has no times, if that is known.
    """
    if taken is None:
        why = f": {unmeasured}" if unmeasured else ""
        return "unmeasured", f"its library could not be timed against the original{why}"
    return "slower", f"its library takes {taken}"


def refusal_of(op: str, error: Exception, *, uses_store: bool = False) -> Refusal:
    """Return why a key keeps its original after an error of ours; what users can mend is warned of.

    Args:
        op: The op.
        error: What was raised while the key's kernel was looked up, made or loaded.
        uses_store: Whether an error of the system can only come from the store's files.
    """
    if isinstance(error, CompileError):
        if error.log:
            log.debug("%s: %s: %s", op, error.reason, error.log)
        if not error.remember and not cache_context.is_ending():
            warn_once(error.reason, f"{error}; originals run instead")
        return Refusal(error.reason, str(error))
    if isinstance(error, RunnerError):
        return Refusal("library_unloadable", str(error))
    if isinstance(error, LockTimeoutError):
        warn_once("locked", f"{error}; originals run instead")
        return Refusal("locked", str(error))
    if isinstance(error, StoreError | UntrustedFileError) or (
        uses_store and isinstance(error, OSError)
    ):
        log.info("%s: %s", op, error)
        warn_once("store", f"{error}; kernels are not kept, originals run instead")
        return Refusal("store_unwritable", str(error))
    log.error("%s: internal error", op, exc_info=error)
    warn_once("internal_error", f"{op}: {error!r}; the original runs instead")
    return Refusal("internal_error", repr(error))
