"""An import of ours triggers no garbage collection, neither meanwhile nor soon after."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc
from aoti_eager._base import gc_pause

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
gc.collect()
gc.set_threshold(1000, 1, 1)
collections.clear()
with gc_pause.paused():
    made = [[] for _ in range(20_000)]
more = [[] for _ in range(500)]
print(collections, gc.isenabled(), gc.get_freeze_count())

gc.freeze()
frozen = gc.get_freeze_count()
with gc_pause.paused():
    pass
print(frozen > 20_000, gc.get_freeze_count() == frozen)

gc.disable()
with gc_pause.paused():
    pass
print(gc.isenabled())
"""


def test_what_was_imported_is_old_and_what_a_script_froze_stays_frozen() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["[] True 0", "True True", "False"], done.stderr
