"""The watcher of a worker: what is left of it when the worker ends before its script."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ENDS = """
import os
from aoti_eager._compile_worker.parent_watch import watch_parent

watch = watch_parent(os.getppid(), None)
watch.ready()
print(len(os.listdir("/proc/self/task")), flush=True)
watch.end()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left")
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there is no watcher")
def test_a_worker_that_ends_takes_its_watcher_along() -> None:
    """Else a script that is init, as in a container, keeps a zombie for each worker."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.PIPE,
    )
    assert done.stdout.splitlines()[-1:] == ["no child is left"], done.stderr


BEGINS = """
import os, sys, threading, types
from aoti_eager._compile_worker import main

class Watch:
    def ready(self):
        print("the watcher is told", flush=True, file=sys.stderr)

class Thread:
    def __init__(self, target, **options):
        self.name = target.__name__

    def start(self):
        print(self.name, flush=True, file=sys.stderr)
        if self.name == "_read_requests":
            os._exit(0)

jobs = types.ModuleType("aoti_eager._compile_worker.jobs")
jobs.CompileJobs = lambda *arguments: types.SimpleNamespace(fork_servers=lambda: None)
sys.modules[jobs.__name__] = jobs
main.watch_parent = lambda *arguments: Watch()
threading.Thread = Thread
sys.argv[1:] = [str(os.getppid()), "256", "0"]
main.main()
"""


def test_the_watcher_is_told_before_a_request_is_read() -> None:
    """Else it kills a worker that has just read that it may go on: nothing unread says so."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINS],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.stderr.splitlines() == ["the watcher is told", "_read_requests"]
