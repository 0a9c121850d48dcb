"""Compile a workload ahead of time, in local threads or by any ``concurrent.futures.Executor``.

Each answer is compared with what was asked for and published to the caller's own store, one entry
after another. So whatever ends a warm-up, running it again goes on where it was. An executor's
comparisons and times are not believed: a call first compares and measures here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from .._base.cpu import Target
from .._base.warn_once import log
from .._compile_service import cache_context
from .._compile_service.cache_context import CacheContext
from .._compile_service.worker_pool import CompileService
from .._dispatch.certificates import refusal as certificate_refusal
from .._keys.schema import parsed_schema
from .._store.entry import Entry, Status
from .._store.limits import current_limits
from .._store.store import Store
from .._store.stored_failures import standing
from .._store.verdict import NOT_A_VERDICT, decode_verdict
from ..config import config
from ..errors import (
    CacheFormatError,
    ConfigError,
    EntryDamagedError,
    LockTimeoutError,
    StoreError,
)
from .compile_answer import Nothing, entry_of, keys_of, received
from .compile_task import compile_call, compile_here, compile_task, cores
from .executor_compiles import ExecutorCompiles, Progress
from .report import WarmFailure, WarmReport
from .workload import Call, Workload, distinct, load_workload

# Errors of a file system about one name or place in it, and not about itself.
_OF_ONE_CALL = frozenset(
    {
        errno.ENAMETOOLONG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENOTDIR,
    }
)


class Warming:
    """One warm-up: ``run`` does it, ``report`` says how far it came, also after a Ctrl-C.

    Args:
        workload: The calls; damaged lines of its file count as failed.
        context: The store that gets the entries, and the target to compile for.
        executor: Runs the compiles; ``None`` for threads of this process.
        jobs: Compiles at a time without an executor; by default one a core, because unlike the
            compiles beside a script (the setting ``workers``) they have the machine to themselves.
        progress: Told after each compile.

    Raises:
        ConfigError: ``jobs`` is no positive number, or given with an executor.
    """

    def __init__(
        self,
        workload: Workload,
        context: CacheContext,
        *,
        executor: Executor | None = None,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if executor is not None and jobs is not None:
            raise ConfigError(
                f"jobs is {jobs!r}, but an executor is given, which decides how many compiles run "
                "at a time; leave one of them out"
            )
        if jobs is not None and (type(jobs) is not int or jobs < 1):
            raise ConfigError(f"jobs is {jobs!r}; wanted a positive number of compiles at a time")
        self._calls = distinct(workload.calls)
        self._context = context
        self._environment = context.environment
        self._executor = executor
        self._jobs = (jobs or cores()) if executor is None else None
        self.progress = progress or (lambda done, total: None)
        self._compiled = self._present = 0
        self._declined: Counter[str] = Counter()
        self._failed = [WarmFailure("?", "", "damaged_line", str(n)) for n in workload.damaged]
        self._number = len(self._calls) + len(self._failed)
        self._seconds = 0.0

    def run(self) -> None:
        """Compile what has no entry yet.

        Raises:
            StoreError: The store cannot be read or written.
            KeyboardInterrupt: Ctrl-C; what was published stays, our processes have ended.
        """
        started = time.monotonic()
        try:
            self._run()
        finally:
            self._seconds = time.monotonic() - started

    def report(self) -> WarmReport:
        """Return what has become of the calls so far."""
        ended = self._compiled + self._present + self._declined.total() + len(self._failed)
        return WarmReport(
            calls=self._number,
            compiled=self._compiled,
            present=self._present,
            declined=dict(self._declined),
            failed=tuple(self._failed),
            remaining=self._number - ended,
            seconds=self._seconds,
            jobs=self._jobs,
        )

    def _run(self) -> None:
        pending = [call for call in self._calls if not self._has_ended(call)]
        if not pending:
            return
        with self._context.store.workspace():
            pass  # A store that cannot be written is found now, not after the first compile.
        if self._executor is None:
            self._run_here(pending)
        else:
            ExecutorCompiles(self._executor, compile_call).run(self, pending)

    def _run_here(self, pending: Sequence[Call]) -> None:
        assert self._jobs is not None
        jobs = min(self._jobs, len(pending))
        # Not the workers that serve the calls of this process: these end with the warm-up.
        service = CompileService(self._context.target, workers=jobs)
        compile_ = functools.partial(compile_here, store=self._context.store, service=service)
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="aoti_eager-warm")
        compiles = ExecutorCompiles(pool, compile_)
        try:
            compiles.run(self, pending)
        finally:
            service.ended = True
            service.close()
            # A thread may have been about to start a worker.
            while wait(compiles.unfinished(), timeout=0.2).not_done:
                service.close()
            pool.shutdown(cancel_futures=True)

    # -- one call --

    def task(self, call: Call) -> str:
        """Return the compile of ``call``, for ``compile_call``."""
        return compile_task(
            call, self._environment, self._context.target, measured=self._executor is None
        )

    def take(self, call: Call, answer: object) -> None:
        """Publish what ``compile_call`` returned for ``call``, and count it.

        Raises:
            StoreError: The store cannot be written.
        """
        try:
            got = received(answer)
            if isinstance(got, Nothing):
                self.fail(call, got.reason, got.message)
                return
            entry = entry_of(got, call.key, self._environment, self._context.target)
            _publish(self._context.store, entry, got.library, got.log)
        except EntryDamagedError as error:
            self.fail(call, "wrong_answer", f"{call.key.op}: what came back {error}")
        except CacheFormatError as error:
            self.fail(call, "newer_entry", str(error))
        except (OSError, UnicodeError) as error:
            self._fail_or_raise(call, error)
        else:
            if self._executor is None:
                self._keep_verdict(entry, got.verdict)
            if entry.status is Status.READY:
                self._compiled += 1
            else:
                self._declined[entry.reason or "mismatch"] += 1

    def fail(self, call: Call, reason: str, message: str) -> None:
        """Count ``call`` as failed."""
        self._failed.append(WarmFailure(call.key.op, call.key.digest, reason, message))

    def _fail_or_raise(self, call: Call, error: OSError | UnicodeError) -> None:
        """Count ``call`` as failed if ``error`` is about it alone; raise it if about the store."""
        if isinstance(error, UnicodeError | LockTimeoutError):
            of_one_call = True
        elif error.errno is None:  # Raised by the store itself, maybe about its root.
            of_one_call = self._context.store.is_trusted()
        else:
            of_one_call = error.errno in _OF_ONE_CALL
        if not of_one_call:
            raise error
        self.fail(call, "unstorable", f"{call.key.op}: the store cannot hold it: {error}")

    def _has_ended(self, call: Call) -> bool:
        """Return whether nothing is to be compiled for ``call``; it is counted then."""
        try:
            return self._is_settled(call)
        except (OSError, UnicodeError) as error:
            self._fail_or_raise(call, error)
            return True

    def _is_settled(self, call: Call) -> bool:
        if call.key.dispatch_key != "CPU" or "backend" in dict(call.key.context):
            # The script brings the compiler, which makes these kernels when the script runs.
            self._declined["unsupported_device"] += 1
            return True
        if _is_refused(call, self._context.target):
            self._declined["uncertified"] += 1
            return True
        store = self._context.store
        for key in keys_of(call.key):
            try:
                found = store.find(key, self._environment, self._context.features)
                found = standing(store, found)
                if found is not None and found.entry.status is Status.READY:
                    store.check_library(found)
            except FileNotFoundError:
                continue  # Another process has evicted the entry meanwhile.
            except EntryDamagedError as error:
                log.warning("%s; it is removed and made anew", error)
                self._context.discard(error)
                continue
            except CacheFormatError as error:
                log.warning("%s; it is passed over", error)
                continue
            if found is not None:
                store.note_use(found)  # What is warmed is wanted.
                self._present += 1
                return True
        is_there = _is_in_a_tier(call, self._context)
        self._present += is_there
        return is_there

    def _keep_verdict(self, entry: Entry, document: object) -> None:
        """Keep what a process of ours has measured on this machine."""
        if entry.library is None or not isinstance(document, str):
            return
        with contextlib.suppress(OSError, *NOT_A_VERDICT):  # Else it is measured again.
            verdict = decode_verdict(document)
            if verdict.library == entry.library.sha256:
                self._context.verdicts.put(entry.digest, verdict)


def _is_in_a_tier(call: Call, context: CacheContext) -> bool:
    """Return whether a directory behind the store has the kernel; then it is copied."""
    if context.tiers is None:
        return False
    found = context.tiers.find(keys_of(call.key), context.environment, context.features)
    if found is None or found.entry.status is not Status.READY:
        return False
    context.tiers.copy(found)
    return True


def _publish(store: Store, entry: Entry, content: bytes | None, compile_log: str) -> None:
    with store.workspace() as work:
        library = None
        if content is not None:
            library = work / "warmed.so"
            try:
                library.write_bytes(content)
            except OSError as error:
                raise StoreError(
                    error.errno, f"{library}: cannot be written: {error.strerror}"
                ) from error
        store.publish(entry, work, library, compile_log)


def _is_refused(call: Call, target: Target) -> bool:
    """Return whether the certificates let no kernel serve ``call``.

    What a file says about a call may make no sense; then the compile reports what is wrong.
    """
    try:
        schema = parsed_schema(call.schema)
        return certificate_refusal(schema, call.key, target, required=config.certified) is not None
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return False


def warm(
    workload: str | os.PathLike[str] | Sequence[Call],
    executor: Executor | None = None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> WarmReport:
    """Compile the calls of a workload that have no entry yet, and return what became of them.

    A failed compile raises nothing, nor does a damaged line of the file: both are in the report.
    Ctrl-C ends the warm-up (``KeyboardInterrupt``) and loses nothing that was done: the same call
    goes on from there.

    Args:
        workload: A file that ``run --record`` wrote, or calls (``read_workload``).
        executor: Runs the compiles: any ``concurrent.futures.Executor``, so of Dask, Ray or MPI,
            too. Its processes need this package, torch and a C++ compiler, an equal environment
            and a CPU that has this one's instruction set; no file system is shared. By default,
            threads of this process.
        jobs: Compiles at a time without an executor; by default one a core.
        progress: Called as ``progress(done, total)``, first with ``done`` zero.
        cache_dir: The store's directory.

    Raises:
        WorkloadError: The file cannot be read, or is no workload.
        ConfigError: ``jobs`` is no positive number, or given with an executor.
        StoreError: The store cannot be read or written.
    """
    warming = Warming(
        load_workload(workload)
        if isinstance(workload, str | os.PathLike)
        else Workload(tuple(workload)),
        _context_of(cache_dir),
        executor=executor,
        jobs=jobs,
        progress=progress,
    )
    warming.run()
    return warming.report()


def _context_of(cache_dir: str | os.PathLike[str] | None) -> CacheContext:
    context = cache_context.current()
    root = context.store.root if cache_dir is None else Path(cache_dir).expanduser().absolute()
    store = Store(
        root,
        lock_timeout_s=config.lock_timeout_s,
        preferred_target=context.target.name if cache_dir is None else "",
        limits=current_limits(),
    )
    # The tiers are those of the settings' cache directory.
    return replace(context, store=store, tiers=context.tiers if cache_dir is None else None)
