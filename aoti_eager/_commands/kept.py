"""Make the kernels of the kept queue, which processes wanted and did not get, with all cores."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import replace

from .._base.op_names import find_overload
from .._compile_service.cache_context import CacheContext
from .._compile_service.worker_pool import CompileService
from .._dispatch.resumed import Outcome, Resumed
from .._registration.registry import Registration, find_cache, register
from .._store.kept_queue import (
    read_wanted,
    record_of,
)
from .._store.wanted_calls import (
    Wanted,
)
from .._workloads.compile_task import cores
from .._workloads.report import WarmFailure, WarmReport
from ..errors import ConfigError, RegistrationError

# Called with the number of keys that are done, and the number of all keys.
Progress = Callable[[int, int], None]


class KeptWarming:
    """One warm-up by the kept queue: ``run`` does it, ``report`` says how far it came.

    The ops are registered meanwhile, as in the scripts that wanted the keys, so kernels are made
    and measured as in these scripts. An op that a script makes is not here, and its keys wait for
    the script.

    Args:
        context: The store, and the target to compile for.
        jobs: Compiles at a time; by default one a core.
        progress: Told after each key.

    Raises:
        ConfigError: ``jobs`` is no positive number.
    """

    def __init__(
        self, context: CacheContext, *, jobs: int | None = None, progress: Progress | None = None
    ) -> None:
        if jobs is not None and (type(jobs) is not int or jobs < 1):
            raise ConfigError(f"jobs is {jobs!r}; wanted a positive number of compiles at a time")
        self._context = context
        self._jobs = jobs or cores()
        self._progress = progress or (lambda done, total: None)
        self._keys = sorted(
            (one for one in read_wanted(context.store.root).values() if not one.is_rare),
            key=lambda one: (-one.calls, one.digest),
        )
        self._outcomes: list[tuple[Wanted, Outcome]] = []
        self._seconds = 0.0

    def run(self) -> None:
        """Make the kernels that are wanted.

        Raises:
            StoreError: The store cannot be written.
            OSError: Keys that are done cannot be taken out of the kept queue.
            KeyboardInterrupt: Ctrl-C; what was published stays, and the rest is kept.
        """
        started = time.monotonic()
        try:
            if self._keys:
                with self._context.store.workspace():
                    pass  # A store that cannot be written is found now.
                self._run()
        finally:
            self._seconds = time.monotonic() - started
            if self._outcomes:
                record_of(self._context.store.root).keep()

    def report(self) -> WarmReport:
        """Return what has become of the keys so far."""
        kinds = Counter(outcome.kind for _, outcome in self._outcomes)
        declined = Counter(
            outcome.reason for _, outcome in self._outcomes if outcome.kind == "declined"
        )
        failed = tuple(
            WarmFailure(key.op, key.digest, outcome.reason, f"{key.op}: {outcome.message}")
            for key, outcome in self._outcomes
            if outcome.kind in ("failed", "passed over")
        )
        return WarmReport(
            calls=len(self._keys),
            compiled=kinds["compiled"],
            present=kinds["present"],
            declined=dict(declined),
            failed=failed,
            remaining=len(self._keys) - len(self._outcomes),
            seconds=self._seconds,
            jobs=self._jobs,
        )

    def _run(self) -> None:
        registrations: list[Registration] = []
        service = CompileService(self._context.target, workers=self._jobs)
        # With normal priority: no script runs beside the compiles.
        context = replace(self._context, own_service=service)
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="aoti_eager-warm")
        futures: dict[Future[None], Resumed] = {}
        try:
            keys = list(self._registered(registrations, context))
            total = len(self._keys)
            self._progress(len(self._outcomes), total)
            futures = {pool.submit(functools.partial(_finish, one)): one for one in keys}
            for future in as_completed(futures):
                one = futures[future]
                if one.outcome is not None:
                    self._outcomes.append((one.wanted, one.outcome))
                self._progress(len(self._outcomes), total)
        finally:
            service.ended = True
            for future in futures:
                future.cancel()
            service.close()
            # A thread may have been about to start a worker.
            while wait(futures, timeout=0.2).not_done:
                service.close()
            pool.shutdown(cancel_futures=True)
            for registration in registrations:
                registration.unregister()

    def _registered(
        self, registrations: list[Registration], context: CacheContext
    ) -> list[Resumed]:
        """Return the keys whose ops are here; other keys are counted as failed."""
        missing: dict[str, str] = {}
        for op in sorted({one.op for one in self._keys}):
            try:
                registrations.append(register(op))
            except RegistrationError as error:
                missing[op] = (
                    f"is not here; `aoti-eager run --wait SCRIPT` finishes a script's own: {error}"
                )
        found = []
        for one in self._keys:
            if one.op in missing:
                self._outcomes.append((one, Outcome("failed", "op_not_here", missing[one.op])))
                continue
            cache = find_cache(find_overload(one.op), "CPU")
            assert cache is not None  # It has just been registered.
            found.append(Resumed(one, cache, cache.table, context))
        return found


def _finish(key: Resumed) -> None:
    """Go on with one key until it is done."""
    while (delay := key.run()) is not None:
        time.sleep(delay)
