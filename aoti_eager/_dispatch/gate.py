"""The gate: whether a call's library has been tried and compared here, and beats the original."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from .._base.data_class import dataclass
from .._base.handover import let_others_run
from .._compile_service.cache_context import CacheContext
from .._store.entry import Entry, Status
from .._store.store import StoredEntry
from .._store.verdict import PathTime, Verdict
from ..config import config
from .kernel_request import KernelRequest


@dataclass(frozen=True, slots=True)
class Judged:
    """A key's entry, and what is known of its library on this machine, if it has one.

    Attributes:
        found: The entry, ready or not.
        verdict: This processor's verdict on the library.
        taken: The times that decide; ``None`` if they are not known, or are not wanted.
        gated: Whether times were wanted; the setting may have changed since.
    """

    found: StoredEntry
    verdict: Verdict
    taken: PathTime | None
    gated: bool

    @property
    def loses(self) -> bool:
        """Return whether the library does not beat the original, as far as is known."""
        return self.gated and not (self.taken is not None and self.taken.wins)

    @property
    def is_unknown(self) -> bool:
        """Return whether the library has to be timed before it may serve."""
        return self.gated and self.taken is None


class Gate:
    """What is known of the libraries that may serve one call.

    Args:
        call: The call.
    """

    def __init__(self, call: KernelRequest) -> None:
        self._call = call

    @property
    def is_on(self) -> bool:
        """Return whether a kernel for the call has to be measured before it serves."""
        return bool(config.gate) and self._call.toolchain.works_in_background

    def judge(self, found: StoredEntry, context: CacheContext) -> Judged:
        """Return what is known of a stored library, without a worker."""
        gated = self.is_on  # Read once: a kernel must say by which value it was chosen.
        library = found.entry.library
        sha256 = "" if library is None else library.sha256
        verdict = context.verdicts.get(found.entry.digest, sha256)
        return Judged(found, verdict, self.time(verdict, found.entry), gated)

    def time(self, verdict: Verdict, entry: Entry) -> PathTime | None:
        """Return the times on the hit path that will serve, or ``None`` if they were not taken."""
        path = "python" if self._call.cache.native is None else "native"
        return verdict.time(path, self._call.threads, self._call.size(entry))

    def needs_worker(self, judged: Judged, *, is_awaited: bool) -> bool:
        """Return whether a worker has to try or time a stored library before a call may run it.

        A library from another machine has not been run on this one, and may not be safe to run. A
        call that waits (``is_awaited``) tries the library itself.
        """
        is_ready = judged.found.entry.status is Status.READY
        if not (is_ready and self._call.toolchain.works_in_background):
            return False
        if judged.is_unknown:
            return True
        return not (judged.loses or is_awaited) and self._is_untried(judged)

    def _is_untried(self, judged: Judged) -> bool:
        """Return whether the library would be run for the first time here, by a call."""
        return self.wants_check(judged.found.entry, judged.verdict) and not judged.verdict.compared

    def wants_check(self, entry: Entry, verdict: Verdict) -> bool:
        """Return whether a stored library must be compared in a call before it serves.

        A dynamic specialisation is compared in each size class: sums of many terms differ where
        sums of few terms do not.
        """
        size = self._call.size(entry)
        checked = (entry.checked and size is None) or verdict.is_checked(size)
        checked = checked and not self._call.cache.compares_always
        return (self._call.checks and not checked) or self._call.cache.original.overridden

    def measure(self, judged: Judged, context: CacheContext, *, background: bool) -> Judged:
        """Return what is known after a worker has tried and timed the library.

        Raises:
            CompileError: The library must not be used, or no worker could tell.
        """
        call, found = self._call, judged.found
        size = call.size(found.entry)
        measured = call.toolchain.measure(
            call.template,
            call.function,
            context,
            found.library_path,
            found.entry,
            background=background,
            compared=judged.verdict.compared,
            size=size,
        )
        let_others_run()
        compared = judged.verdict.compared or measured.compared
        judged = replace(judged, verdict=replace(judged.verdict, compared=compared))
        judged = self.with_times(judged, measured.times, measured.unmeasured)
        let_others_run()
        self.keep(judged.verdict, found, context)
        return judged

    def with_times(self, judged: Judged, times: Mapping[str, PathTime], unmeasured: str) -> Judged:
        """Return what is known after the library was timed, or could not be."""
        entry, threads = judged.found.entry, self._call.threads
        size = self._call.size(entry)
        verdict = judged.verdict.with_times(times, threads, size, unmeasured)
        # If the C++ hit path could not be timed, the times of Python's count: it is the slower one.
        taken = self.time(verdict, entry) or verdict.time("python", threads, size)
        return replace(judged, verdict=verdict, taken=taken)

    def keep_check(self, judged: Judged, context: CacheContext) -> None:
        """Write into the store that the library's results were compared in a call here.

        An override is compared in each process: its results say nothing about torch's op.
        """
        if not self._call.cache.original.overridden:
            size = self._call.size(judged.found.entry)
            let_others_run()
            self.keep(judged.verdict.with_check(size), judged.found, context)

    def keep(self, verdict: Verdict, found: StoredEntry, context: CacheContext) -> None:
        """Write a verdict into the store; if it cannot be written, only this process has it."""
        digest = found.entry.digest
        let_others_run()
        with contextlib.suppress(OSError):
            context.verdicts.put(digest, verdict)
