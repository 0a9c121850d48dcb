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
