"""What the compile worker does for one request: compile, try, measure, publish (worker only)."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .._base.child_process import LONGEST_ANSWER
from .._base.cpp_compiler import compiler_identity
from .._base.printable import shortened
from .._compile_service.messages import MessageError
from .._compile_service.replies import (
    Busy,
    Compiled,
    Failure,
    Measured,
    PartsMade,
    Published,
    Reply,
)
from .._compile_service.requests import (
    EntryRequest,
    LibraryRequest,
    PartsRequest,
    Request,
    TimesRequest,
)
from .._compile_service.steps import MEASURING, TRYING
from .._functions.call_target import is_tape
from .._functions.tape import Tape
from .._keys.pattern_instances import size_class
from .._store.new_entries import (
    LONGEST_MESSAGE,
    failed_entry,
    is_remembered,
    ready_entry,
)
from .._store.store import Store, StoredEntry
from .._store.stored_failures import met_now
from .._store.verdict import Verdict, Verdicts
from ..errors import CompileError, LockTimeoutError, StoreError
from .job_context import stored_entry, use_directories
from .job_steps import steps
from .library_runs import LibraryRuns
from .new_library import LibraryMaker
from .plain_path import plain_path

# If another process compiles a key under the same lock, the caller asks for the key again later.
_LOCK_TIMEOUT_S = 0.05
# Waiting for an eviction of another process has this share of a request's time.
_WAIT_SHARE = 0.1

# At most this many characters of a log are sent: the last ones.
_LONGEST_LOG = 20_000


class CompileJobs:
    """Answers requests, one at a time.

    Args:
        vector_bits: See ``inductor_compat.prepare_worker``.
        scratch: The directory for temporary files that belong to no request.

    Attributes:
        work: The temporary directory of the request that is being answered.
        ending: Whether the parent is gone, so that an error says nothing about a key.
        lingers: Whether the parent is gone, or soon will be, and has asked us to finish.
    """

    def __init__(self, vector_bits: int, scratch: Path | None = None) -> None:
        self.work: Path | None = None
        self.scratch = scratch
        self._swept: set[Path] = set()
        self.ending = False
        self.lingers = False
        self._runs = LibraryRuns()
        self._maker = LibraryMaker(self._runs, vector_bits)

    def fork_servers(self) -> None:
        """Fork what can be forked while this process has no threads; see ``ForkServer.fork``."""
        self._runs.fork_measuring()

    def answer_line(self, request: Request | MessageError) -> str:
        """Return the reply to a request as a line of JSON, no longer than the reader's limit.

        Args:
            request: The request, or why a message is none.
        """
        if isinstance(request, MessageError):
            message = f"the compile worker got a request of another kind: {request}"
            reply: Reply = _failure("worker_died", message, "", False)
        else:
            reply = self.answer(request)
        line = json.dumps(reply.to_json()) + "\n"
        if len(line) > LONGEST_ANSWER:
            message = f"the answer of the compile worker has {len(line)} bytes: it is not sent"
            line = json.dumps(_failure("compile_failed", message, "", False).to_json()) + "\n"
        return line

    def answer(self, request: Request) -> Reply:
        """Return the reply to a request; an error becomes a reply, too."""
        self._sweep(request.root)
        try:
            match request:
                case LibraryRequest():
                    return self._compile_into_work(request)
                case EntryRequest():
                    return self._publish(request)
                case TimesRequest():
                    return self._measure_stored(request)
                case PartsRequest():
                    return self._make_parts(request)
        except CompileError as error:
            return _failure(error.reason, str(error), error.log, is_remembered(error))
        except StoreError as error:
            return _failure("store_unwritable", str(error), "", False)
        except Exception as error:  # noqa: BLE001 - the answer is the reason; the worker lives on
            text = traceback.format_exc()
            return _failure("compile_failed", f"{type(error).__name__}: {error}", text, False)

    def _sweep(self, root: Path) -> None:
        """Remove the leftovers of killed processes in a store, once in this process."""
        if root not in self._swept:
            self._swept.add(root)
            with contextlib.suppress(StoreError):  # The store is read-only, or does not exist yet.
                Store(root, lock_timeout_s=_LOCK_TIMEOUT_S).remove_stale_work()

    # -- a library in the caller's directory --

    def _compile_into_work(self, request: LibraryRequest) -> Compiled:
        with self._working_in(request.work):
            return self._maker.made(request.code, request.work)

    # -- an entry in the store --

    def _publish(self, request: EntryRequest) -> Published | Busy:
        """Return the path of the key's entry: found, or compiled and published here."""
        key = request.code.call.key
        store = Store(
            request.root,
            lock_timeout_s=_LOCK_TIMEOUT_S,
            limits=request.limits,
            longest_wait_s=_WAIT_SHARE * request.timeout_s,
        )
        try:
            with store.locked(key):
                found = None
                if request.code.plan is None:
                    found = stored_entry(store, key, request.origin.environment)
                if found is not None:
                    return Published(found.path, compiled=False)
                with store.workspace() as work, self._working_in(work):
                    return self._compile_and_publish(request, store, work)
        except LockTimeoutError:
            return Busy()

    def _compile_and_publish(self, request: EntryRequest, store: Store, work: Path) -> Published:
        key = request.code.call.key
        origin = request.origin
        made_for = (origin.environment, origin.target, origin.requires)
        try:
            made = self._maker.made(request.code, work)
        except CompileError as error:
            if is_remembered(error) and not self.ending:
                plan = request.code.plan
                failure = failed_entry(
                    key if plan is None else plan.pattern,
                    *made_for,
                    reason=error.reason,
                    message=f"{key.op}: {error}",  # As the script says it now.
                    remembered=met_now(compiler_identity()),
                    guards=None if plan is None else plan.guards,
                )
                store.publish(failure, work, None, error.log)
            raise
        entry = ready_entry(
            key if made.pattern is None else made.pattern,
            *made_for,
            outputs=made.outputs,
            calls_aten=made.calls_aten,
            parallel=made.parallel,
            compiler=made.compiler,
            identity=made.identity,
            lost_signs=made.lost_signs,
            checked=False,
            guards=made.guards,
            tape=_listing(request),
        )
        if self.ending:
            raise CompileError("worker_died", "the process that asked is gone", remember=False)
        stored = store.publish(entry, work, made.library, "", sha256=made.sha256)
        _put_verdict(request, store, stored, made)
        return Published(stored.path, True, made.times, made.unmeasured)

    # -- what all libraries have in common --

    def _make_parts(self, request: PartsRequest) -> PartsMade:
        """Make the parts that libraries of ops and of functions share; return if any was made."""
        self._maker.prepare()
        from . import inductor_compat

        if not inductor_compat.WRITES_THIN:
            return PartsMade(False)
        from .float_flags import contraction
        from .thin_codegen import compile_command
        from .thin_header import make_parts, stub_library

        plain = plain_path(request.root)
        headers = plain / "toolchain" / "headers"
        was_made = False
        store = Store(request.root, lock_timeout_s=_LOCK_TIMEOUT_S)
        with store.workspace() as work, self._working_in(work):
            written = plain / work.relative_to(request.root)
            use_directories(written, headers)
            for is_function in (False, True):
                options = {**contraction(is_function), **request.options}
                with inductor_compat.settings(options):
                    command = compile_command(written)
                was_made |= make_parts(command, headers, request.timeout_s)
                stub_library(command[0], headers, written)
        return PartsMade(was_made)

    # -- a library that exists --

    def _measure_stored(self, request: TimesRequest) -> Measured:
        self._runs.start_measuring()  # The server imports torch during the trial.
        call, library, numbers = request.call, request.library, request.numbers
        # A library that was run on this model of processor before needs no second trial.
        steps.plan(*(() if request.compared else (TRYING,)), MEASURING)
        steps.begin(TRYING)
        compared = request.compared or self._runs.tried(call, library, numbers).compared
        steps.begin(MEASURING)
        (times,), unmeasured = self._runs.measured(call, [library], numbers)
        measured = Measured(times, compared=compared, unmeasured=unmeasured)
        if self.lingers:
            with contextlib.suppress(OSError):
                _keep_verdict(request, measured)
        return measured

    @contextlib.contextmanager
    def _working_in(self, work: Path) -> Iterator[None]:
        self.work = work
        try:
            yield
        finally:
            self.work = None
            if self.scratch is not None:
                os.environ["TMPDIR"] = str(self.scratch)
            tempfile.tempdir = None


def _listing(request: EntryRequest) -> str:
    """Return the listing of a region's tape; nothing for any other call."""
    call = request.code.call
    if not is_tape(call.function):
        return ""
    ((_, inputs),) = call.key.arguments
    return Tape.from_document(call.function or {}).listing(inputs)


def _put_verdict(request: EntryRequest, store: Store, stored: StoredEntry, made: Compiled) -> None:
    """Write what was found about a library that was just published."""
    library, call = stored.entry.library, request.code.call
    if library is None:
        return
    verdict = Verdict(library.sha256, compared=made.compared).with_times(
        made.times,
        call.threads,
        None if made.guards is None else size_class(call.key),
        made.unmeasured,
    )
    with contextlib.suppress(OSError):  # Without a verdict, the library is measured again.
        Verdicts(store.root).put(stored.entry.digest, verdict)


def _keep_verdict(request: TimesRequest, measured: Measured) -> None:
    """Write the verdict here: the script that asked has ended."""
    verdicts = Verdicts(request.root)
    verdict = verdicts.get(request.digest, request.library.sha256)
    verdict = replace(verdict, compared=verdict.compared or measured.compared)
    verdict = verdict.with_times(
        measured.times, request.call.threads, request.size, measured.unmeasured
    )
    verdicts.put(request.digest, verdict)


def _failure(reason: str, message: str, log: str, remember: bool) -> Failure:
    return Failure(reason, shortened(message, LONGEST_MESSAGE), log[-_LONGEST_LOG:], remember)
