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
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .._base.cpu import Target
from .._base.warn_once import log
from .._compile_service import cache_context
from .._compile_service.cache_context import CacheContext
from .._compile_service.worker_pool import CompileService
from .._dispatch.certificates import refusal as certificate_refusal
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._keys.schema import parsed_schema
from .._store.entry import Entry, Status, decode
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
from .compile_task import (
    compile_call,
    compile_here,
    compile_task,
    cores,
    sha256,
)
from .report import WarmFailure, WarmReport
from .workload import (
    Call,
    Workload,
    distinct,
    load_workload,
)

# Called with the number of compiles that have ended, and the number of all compiles.
Progress = Callable[[int, int], None]

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

# Limits for an answer, in bytes: an executor's process may be anybody's, and may have gone wrong.
_LARGEST_ENTRY = 4 << 20
_LARGEST_LIBRARY = 64 << 20
_KEPT_LOG = 1 << 20
# Characters.
_LONGEST_REASON = 100
_KEPT_MESSAGE = 10_000

# What reading a document raises that is no entry, besides what ``decode`` says.
_NOT_AN_ENTRY = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


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
            _Compiles(self._executor, compile_call).run(self, pending)

    def _run_here(self, pending: Sequence[Call]) -> None:
        assert self._jobs is not None
        jobs = min(self._jobs, len(pending))
        # Not the workers that serve the calls of this process: these end with the warm-up.
        service = CompileService(self._context.target, workers=jobs)
        compile_ = functools.partial(compile_here, store=self._context.store, service=service)
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="aoti_eager-warm")
        compiles = _Compiles(pool, compile_)
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
            got = _received(answer)
            if isinstance(got, _Nothing):
                self.fail(call, got.reason, got.message)
                return
            entry = self._checked(call, got)
            self._publish(entry, got.library, got.log)
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
        for key in _keys(call.key):
            try:
                found = store.find(key, self._environment, self._context.features)
                found = standing(store, found)
                if found is not None and found.entry.status is Status.READY:
                    store.check_library(found)
            except EntryDamagedError as error:
                log.warning("%s; it is removed and made anew", error)
                self._context.discard(error)
                continue
            except CacheFormatError as error:
                log.warning("%s; it is passed over", error)
                continue
            if found is not None:
                self._present += 1
                return True
        return False

    def _checked(self, call: Call, got: _Made) -> Entry:
        """Return the entry of an answer, if it is the one that was asked for; it is unchecked.

        Raises:
            EntryDamagedError: The entry is another one, or its library is.
            CacheFormatError: A newer version made it.
        """
        try:
            entry = decode(got.entry)
        except _NOT_AN_ENTRY as error:
            raise EntryDamagedError(f"is no entry: {error!r:.200}") from error
        if entry.key not in _keys(call.key):
            raise EntryDamagedError("is an entry of another call")
        if entry.environment != self._environment:
            raise EntryDamagedError("is an entry of another environment")
        if (entry.target, entry.requires) != (
            self._context.target.name,
            self._context.target.requires,
        ):
            raise EntryDamagedError(f"is for {entry.target}, not {self._context.target.name}")
        if entry.guards is not None:
            raise EntryDamagedError("is a kernel for several sizes, which was not asked for")
        if entry.status is Status.QUARANTINED:
            raise EntryDamagedError("is quarantined, which is for a library that served here")
        if (entry.status is Status.READY) != (got.library is not None):
            raise EntryDamagedError("has a library and should not, or the other way round")
        if got.library is not None and (
            entry.library is None or sha256(got.library) != entry.library.sha256
        ):
            raise EntryDamagedError("has a library with another digest")
        # Whatever the entry says: there was no call whose arguments a result could be compared on.
        return replace(entry, checked=False)

    def _publish(self, entry: Entry, content: bytes | None, compile_log: str) -> None:
        store = self._context.store
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

    def _keep_verdict(self, entry: Entry, document: object) -> None:
        """Keep what a process of ours has measured on this machine."""
        if entry.library is None or not isinstance(document, str):
            return
        with contextlib.suppress(OSError, *NOT_A_VERDICT):  # Else it is measured again.
            verdict = decode_verdict(document)
            if verdict.library == entry.library.sha256:
                self._context.verdicts.put(entry.digest, verdict)


@dataclass(frozen=True, slots=True)
class _Made:
    """An answer with an entry to publish: its document, its library if it has one, the log."""

    entry: bytes
    library: bytes | None
    log: str
    verdict: object


@dataclass(frozen=True, slots=True)
class _Nothing:
    """An answer without an entry, and why."""

    reason: str
    message: str


def _received(answer: object) -> _Made | _Nothing:
    """Return what ``compile_call`` should have returned, in its types and of a plausible size.

    Raises:
        EntryDamagedError: ``answer`` is something else.
    """
    if type(answer) is not dict:
        raise EntryDamagedError(f"is a {type(answer).__name__}, not a dict")
    if "entry" not in answer:
        reason, message = answer.get("reason"), answer.get("message")
        if type(reason) is not str or type(message) is not str or len(reason) > _LONGEST_REASON:
            raise EntryDamagedError("has neither an entry nor a reason and a message in words")
        return _Nothing(reason, message[:_KEPT_MESSAGE])
    entry, library, log_ = answer["entry"], answer.get("library"), answer.get("log")
    for name, value, largest in (
        ("entry", entry, _LARGEST_ENTRY),
        ("library", library, _LARGEST_LIBRARY),
    ):
        if value is None and name == "library":
            continue
        if type(value) is not bytes:
            raise EntryDamagedError(f"has a {type(value).__name__} as its {name}, not bytes")
        if len(value) > largest:
            raise EntryDamagedError(
                f"has {len(value)} bytes as its {name}; up to {largest} are taken"
            )
    if type(log_) is not str:
        raise EntryDamagedError(f"has a {type(log_).__name__} as its log, not words")
    # Cut before it is encoded, too: it may be of any length, and hold what no file can.
    kept = log_[:_KEPT_LOG].encode("utf-8", "replace")[:_KEPT_LOG].decode("utf-8", "ignore")
    return _Made(entry, library, kept, answer.get("verdict"))


class _Compiles:
    """The compiles that an executor was given."""

    def __init__(self, executor: Executor, compile_: Callable[..., object]) -> None:
        self._executor = executor
        self._compile = compile_
        self._calls: dict[Future[Any], Call] = {}
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()

    def unfinished(self) -> list[Future[Any]]:
        """Return the futures that have no result yet."""
        return [future for future in self._calls if not future.done()]

    def run(self, warming: Warming, pending: Sequence[Call]) -> None:
        """Have all of ``pending`` compiled; ``warming`` takes each as soon as it is there."""
        progress = warming.progress
        total = len(pending)
        progress(0, total)
        try:
            for call in pending:
                self._submit(warming, call)
            progress(total - len(self._calls), total)
            while self._calls:
                self._take(warming, self._done.get())
                progress(total - len(self._calls), total)
        except BaseException:
            for future in self._calls:
                future.cancel()
            raise

    def _submit(self, warming: Warming, call: Call) -> None:
        try:
            future = self._executor.submit(self._compile, warming.task(call))
        except RuntimeError as error:  # Shut down or broken: it takes no more.
            warming.fail(call, "executor", f"{call.key.op}: the executor: {error}")
            return
        self._calls[future] = call
        # Not as_completed: it needs more than a future's public interface.
        future.add_done_callback(self._done.put)

    def _take(self, warming: Warming, future: Future[Any]) -> None:
        call = self._calls[future]
        try:
            answer = future.result()
        except CancelledError:
            warming.fail(call, "executor", f"{call.key.op}: the executor cancelled it")
        except Exception as error:  # noqa: BLE001 - a lost worker is each executor's own exception
            message = f"{call.key.op}: the executor: {type(error).__name__}: {error}"
            warming.fail(call, "executor", message)
        else:
            warming.take(call, answer)
        del self._calls[future]


def _is_refused(call: Call, target: Target) -> bool:
    """Return whether the certificates let no kernel serve ``call``.

    What a file says about a call may make no sense; then the compile reports what is wrong.
    """
    try:
        schema = parsed_schema(call.schema)
        return certificate_refusal(schema, call.key, target, required=config.certified) is not None
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _keys(key: KernelKey) -> tuple[KernelKey, KernelKey]:
    """Return the keys that an entry of a call with ``key`` may have."""
    return key.with_threads(ANY_THREADS), key


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
        _backend_of(cache_dir),
        executor=executor,
        jobs=jobs,
        progress=progress,
    )
    warming.run()
    return warming.report()


def _backend_of(cache_dir: str | os.PathLike[str] | None) -> CacheContext:
    context = cache_context.current()
    if cache_dir is None:
        return context
    root = Path(cache_dir).expanduser().absolute()
    return replace(context, store=Store(root, lock_timeout_s=config.lock_timeout_s))
