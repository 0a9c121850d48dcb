"""The compile worker: a process that turns keys into kernel libraries, one at a time.

It reads one JSON request a line from standard input and answers one a line. No op is registered
here and no state of the caller's threads exists, so autocast, inference mode and dispatch modes of
the caller cannot leak into a trace. It ends when its standard input or its parent does, takes the
compilers it started with it, and removes what they were writing; so a parent that was killed leaves
nothing. A parent that ends in order may leave it some seconds to finish what it is at.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing that imports torch: the script may have ended before that is done.
from .._base import scheduling
from .._store.work_directories import SCRATCH_VARIABLE, remove_scratch
from .parent_watch import ParentWatch, watch_parent

if TYPE_CHECKING:
    from .jobs import CompileJobs

# Seconds without a request after which a worker ends.
IDLE_S = 60.0
# What cannot be removed is left to the next worker's sweep.
_MOST_REMOVALS = 20


def main() -> None:
    """Serve until standard input ends."""
    os.umask(0o077)  # What compilers write here is linked and loaded: it is the user's alone.
    parent, vector_bits, nice = (int(argument) for argument in sys.argv[1:])
    # Not the temporary directory, which may be the user's own.
    named = os.environ.get(SCRATCH_VARIABLE)
    scratch = Path(named) if named else None
    watch = watch_parent(parent, scratch)
    # Compiling in this process only: a pool of Inductor's own would outlive its use.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    # A handler of ours, which compilers that we start do not inherit: see ``_end``.
    signal.signal(signal.SIGTERM, lambda *_: None)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What compilers print must not be taken for an answer.
    with contextlib.suppress(OSError):
        os.nice(nice)
    with contextlib.suppress(OSError):
        # What is tried on large tensors may need all the memory there is: it is for us to end then,
        # not for the script. Our children are the same.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    from .jobs import CompileJobs

    jobs = CompileJobs(vector_bits, scratch)
    requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
    lingers = threading.Event()
    watch.ready()  # Before a request is read: it must not take one to linger for none.
    arguments = (requests, jobs, lingers, watch)
    threading.Thread(target=_read_requests, args=arguments, daemon=True).start()
    threading.Thread(target=_watch, args=(parent, jobs, lingers, watch), daemon=True).start()
    while True:
        try:
            request = requests.get(timeout=IDLE_S)
        except queue.Empty:
            break  # Its memory is worth more than the seconds that the next one takes to start.
        if request is None:
            break
        answer = jobs.answer_line(request)
        with contextlib.suppress(OSError):  # Nobody reads any more: standard input ends, too.
            answers.write(answer)
            answers.flush()
    _end(jobs, watch)


def _read_requests(
    requests: queue.Queue[dict[str, Any] | None],
    jobs: CompileJobs,
    lingers: threading.Event,
    watch: ParentWatch,
) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["kind"] == "linger":
            jobs.lingers = True
            lingers.set()
            watch.let_go()
            requests.put(None)  # After what has come until now, nothing is begun.
            _end_at(request["until"], jobs, watch)
        requests.put(request)
    _end(jobs, watch)


def _watch(parent: int, jobs: CompileJobs, lingers: threading.Event, watch: ParentWatch) -> None:
    """End with the parent though a child that it has forked keeps our standard input open."""
    while os.getppid() == parent:
        time.sleep(1.0)
    # What it has said last may not have been read yet.
    if not lingers.wait(1.0):
        _end(jobs, watch)


def _end_at(until: float, jobs: CompileJobs, watch: ParentWatch) -> None:
    """Go on without the parent, behind everything else, for a while: then end, whatever is done.

    Args:
        until: The time, by the system's monotonic clock, which all processes share.
        jobs: What is being done.
        watch: The watcher of this process, which has been let go of.
    """
    # The parent may have gone in the midst of one of our windows (``_compile_service.share``).
    while not scheduling.give_way(os.getpid()) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(max(0.0, until - time.monotonic()))
    _end(jobs, watch)


def _end(jobs: CompileJobs, watch: ParentWatch) -> None:
    """End with everything that was started: the parent is gone, or has closed us."""
    jobs.ending = True
    left: set[Path] = set()
    # A compile that is under way goes on in its thread, and writes, until this process ends.
    for _ in range(_MOST_REMOVALS):
        left |= {path for path in (jobs.work, jobs.scratch) if path is not None}
        # The compilers first, which would go on writing; our own handler keeps this process.
        os.killpg(0, signal.SIGTERM)
        for path in left:
            remove_scratch(path)
        if not any(os.path.lexists(path) for path in left):
            break
    watch.end()
    os.killpg(0, signal.SIGKILL)
