"""Imports that wait until a call needs them: a fork waits for those that are under way."""

from __future__ import annotations

import subprocess
import sys

FORKS = """
import os, threading
from aoti_eager._base.late_import import importing

forking, inside, order = threading.Event(), threading.Event(), []
# Hooks before a fork run in the reverse order: this one runs before the package's.
os.register_at_fork(before=forking.set)

def imports():
    with importing():
        inside.set()
        forking.wait()
        order.append("imported")

thread = threading.Thread(target=imports)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    with importing():  # Nobody holds it here.
        os._exit(0 if order == ["imported"] else 1)
thread.join()
print(os.waitpid(child, 0)[1], order)
with importing():
    print("and again")
"""


def test_a_fork_waits_for_the_import_of_another_thread() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["0 ['imported']", "and again"], done.stderr
