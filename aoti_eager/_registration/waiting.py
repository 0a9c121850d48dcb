"""Waits for what workers and the builder of the C++ hit path are doing."""

from __future__ import annotations

import time

from .._base.late_import import importing
from .._compile_service import native_path, queue, this_torch
from .._compile_service.remote_wait import wait_for_remotes
from . import registry


def wait(timeout_s: float | None = None) -> bool:
    """Wait for the work in the background, and use its results; return whether all of it is done.

    The work is the kernels that the mode ``background`` has queued, and those that it would queue
    after more calls (``compile_after``), because a caller that waits for kernels wants them. The
    kernels are made and measured, and serve from the next call of their key on, which compares them
    with the original. The work is also the build of the C++ hit path, which then serves ops that
    were registered before it was built, the self-test of a torch that was not checked, and what
    goes to and comes from remote tiers. Like
    ``register``, call this while no other thread calls the ops.

    Args:
        timeout_s: Seconds to wait at most; ``None`` for no limit.

    Raises:
        NativePathError: The build failed, and ``config.strict`` is on; otherwise a failed build
            gives one warning.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    is_tested = this_torch.wait(timeout_s)
    wait_for_remotes(timeout_s)  # First: what comes from there is not compiled.
    with importing():
        from .._dispatch import rare

    counted = -1
    while True:
        is_full, before, counted = rare.rares.ask_for_all(), counted, len(rare.rares)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        done = queue.background.wait(left)
        # If a round has queued nothing, the next one would not either: for example, Python is
        # ending.
        if not is_full or not done or counted == before:
            break
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    done = wait_for_remotes(left) and done  # Again: new kernels go there.
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    done = native_path.wait(left) and done
    if native_path.prepare(foreground_s=0.0):
        registry.switch_to_native()
    for tell in queue.after_wait:
        tell()
    return done and is_tested
