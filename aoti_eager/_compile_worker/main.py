"""The compile worker: a process that turns keys into kernel libraries, one at a time.

The worker reads one JSON request per line from standard input and writes one reply per line. No op
is registered here and no state of the caller's threads exists, so autocast, inference mode and
dispatch modes of the caller cannot leak into a trace. The worker ends when its standard input or
its parent does, takes the compilers that it started with it, and removes the files that they were
writing; so a parent that was killed leaves nothing. A parent that ends in order may leave the
worker some seconds to finish its request.
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
from typing import TYPE_CHECKING, TextIO

# No module here imports torch: the script may have ended before that import is done.
from .._base import gc_pause, scheduling
from .._store.work_directories import SCRATCH_VARIABLE, remove_scratch
from .parent_watch import ParentWatch, watch_parent

if TYPE_CHECKING:
    from .._compile_service.messages import MessageError
    from .._compile_service.requests import Linger, Request
    from .jobs import CompileJobs

    # ``None`` is the end; an error says why a line is no request.
    Requests = queue.Queue[Request | MessageError | None]

# Seconds without a request after which a worker ends.
IDLE_S = 60.0
# Files that cannot be removed are left to the next worker's sweep.
_MOST_REMOVALS = 20


def main() -> None:
    """Serve until standard input ends."""
    os.umask(0o077)  # Files of compilers are linked and loaded: only the user may access them.
    parent, vector_bits, nice = (int(argument) for argument in sys.argv[1:])
    # Only the directory that the variable names: the temporary one may be the user's own.
    named = os.environ.get(SCRATCH_VARIABLE)
    scratch = Path(named) if named else None
    watch = watch_parent(parent, scratch)
    # Compiling in this process only: a pool of Inductor's own would outlive its use.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    # With a handler instead of SIG_IGN, compilers that we start do not inherit it: see ``_end``.
    signal.signal(signal.SIGTERM, lambda *_: None)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # A compiler's output must not be read as a reply.
    with contextlib.suppress(OSError):
        os.nice(nice)
    with contextlib.suppress(OSError):
        # A trial on large tensors may need all the memory that the machine has. Then Linux must end
        # this process or its children, which inherit the value, and not the script.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with gc_pause.paused():
        from .job_steps import steps
        from .jobs import CompileJobs

    jobs = CompileJobs(vector_bits, scratch)
    jobs.fork_servers()  # Before a thread is started and Inductor imported.
    requests: Requests = queue.Queue()
    lingers = threading.Event()
    watch.ready()  # Before a request is read: it must not take one to linger for none.
    arguments = (requests, jobs, lingers, watch)
    threading.Thread(target=_read_requests, args=arguments, daemon=True).start()
    threading.Thread(target=_watch, args=(parent, jobs, lingers, watch), daemon=True).start()
    while True:
        try:
            request = requests.get(timeout=IDLE_S)
        except queue.Empty:
            break  # An idle worker's memory costs more than the seconds to start the next worker.
        if request is None:
            break
        with steps.told_to(lambda step: _write(answers, json.dumps(step.to_json()) + "\n")):
            answer = jobs.answer_line(request)
        _write(answers, answer)
    _end(jobs, watch)


def _write(answers: TextIO, line: str) -> None:
    with contextlib.suppress(OSError):  # The reader is gone: standard input ends, too.
        answers.write(line)
        answers.flush()


def _read_requests(
    requests: Requests,
    jobs: CompileJobs,
    lingers: threading.Event,
    watch: ParentWatch,
) -> None:
    from .._compile_service.requests import Linger

    for line in sys.stdin:
        request = _decoded(line)
        if isinstance(request, Linger):
            jobs.lingers = True
            lingers.set()
            watch.let_go()
            requests.put(None)  # After what has come until now, nothing is begun.
            _end_at(request.until, jobs, watch)
        else:
            requests.put(request)
    _end(jobs, watch)


def _decoded(line: str) -> Request | Linger | MessageError:
    """Return the message in a line, or the error that says why the line has none."""
    from .._compile_service.messages import MessageError
    from .._compile_service.requests import read_request

    try:
        return read_request(json.loads(line))
    except MessageError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever a line holds: the reader goes on
        return MessageError(f"no message: {error!r}")


def _watch(parent: int, jobs: CompileJobs, lingers: threading.Event, watch: ParentWatch) -> None:
    """End with the parent though a child that it has forked keeps our standard input open."""
    while os.getppid() == parent:
        time.sleep(1.0)
    # The parent's last request, which may be ``linger``, may not have been read yet.
    if not lingers.wait(1.0):
        _end(jobs, watch)


def _end_at(until: float, jobs: CompileJobs, watch: ParentWatch) -> None:
    """Go on without the parent, behind everything else, for a while: then end, whatever is done.

    Args:
        until: The time, by the system's monotonic clock, which all processes share.
        jobs: What is being done.
        watch: The watcher of this process, which has been let go of.
    """
    # The parent may have ended during one of our windows (``_compile_service.share``).
    while not scheduling.give_way(os.getpid()) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(max(0.0, until - time.monotonic()))
    _end(jobs, watch)


def _end(jobs: CompileJobs, watch: ParentWatch) -> None:
    """End with everything that was started: the parent is gone, or has closed us."""
    jobs.ending = True
    left: set[Path] = set()
    # A running compile continues in its thread, and writes files, until this process ends.
    for _ in range(_MOST_REMOVALS):
        left |= {path for path in (jobs.work, jobs.scratch) if path is not None}
        # End the compilers first: they would write more files. Our handler keeps this process.
        os.killpg(0, signal.SIGTERM)
        for path in left:
            remove_scratch(path)
        if not any(os.path.lexists(path) for path in left):
            break
    watch.end()
    os.killpg(0, signal.SIGKILL)
