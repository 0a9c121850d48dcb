"""A share of the processor for what is compiled beside a script that leaves no core free.

A worker has the lowest priority: of a core that the script uses, it gets one and a half percent,
and a kernel would take minutes. So a worker that waits for a core gets windows: for a part of each
second, the worker counts as much as the script. A worker that has a core to itself gets none.
"""

from __future__ import annotations

import os
import threading
import time

from .._base import scheduling
from .._base.handover import beside_script, let_others_run

# A window of so long in each period. The system takes no changes within a tenth of a second.
PERIOD_S, WINDOW_S = 1.0, 0.12
# A worker gets windows if it waited for more than this share of the time in which it had work ...
_WAITING = 0.3
# ... unless it ran for this share of the time: then it has a core, for which its processes wait.
_HAS_CORE = 0.6
# How often the end of a window is tried at once: another process's change may put it off.
_MOST_TRIES, _TRY_S = 100, 0.02


class Share:
    """Windows for sessions at work; a thread while there are any.

    Args:
        period_s: Seconds from the beginning of a window to that of the next.
        window_s: Seconds that one lasts.
    """

    def __init__(self, period_s: float = PERIOD_S, window_s: float = WINDOW_S) -> None:
        self._period_s = period_s
        self._window_s = window_s
        # Session -> the time of the last look in seconds, and how long the session had run and
        # waited by then, in nanoseconds. Sessions that had a window last are last.
        self._sessions: dict[int, tuple[float, int, int]] = {}
        # Sessions that still have the script's priority: the system has refused the change.
        self._to_lower: set[int] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, session: int) -> None:
        """Put a session's work behind the script's, and give the session windows until ``end``."""
        if not scheduling.has_groups():
            return
        lowered = scheduling.give_way(session)
        let_others_run()
        with self._changed:
            self._sessions[session] = time.monotonic(), *scheduling.waits(session)
            if not lowered:
                self._to_lower.add(session)
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="aoti_eager-share", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # No threads left: the session gets no windows.
                    return
                self._thread = thread
            self._changed.notify_all()

    def end(self, session: int) -> None:
        """Stop giving windows to a session."""
        with self._changed:
            self._sessions.pop(session, None)
            self._changed.notify_all()

    def _run(self) -> None:
        with beside_script():
            self._open_windows()

    def _open_windows(self) -> None:
        while self._has_work():
            time.sleep(self._period_s - self._window_s)
            with self._changed:
                for session in [one for one in self._sessions if not scheduling.is_there(one)]:
                    del self._sessions[session]
                sessions = list(self._sessions)
            # Not under the lock, which ``begin`` waits for: the system's files are read.
            waiting = [one for one in sessions if self._waits(one)]
            with self._changed:
                late = self._to_lower - set(waiting)
            for session in late:
                self._lower(session)
            opened = [one for one in waiting if scheduling.set_group_nice(one, 0)]
            if not opened:
                continue
            time.sleep(self._window_s)
            for session in opened:
                self._close(session)
            with self._changed:
                # The system may refuse all changes but the first: sessions take turns to be first.
                for session in opened:
                    if session in self._sessions:
                        self._sessions[session] = self._sessions.pop(session)

    def _has_work(self) -> bool:
        """Wait for sessions; after a while without any, return false and give up the thread."""
        with self._changed:
            if self._changed.wait_for(
                lambda: bool(self._sessions or self._to_lower), timeout=10 * self._period_s
            ):
                return True
            self._thread = None
            return False

    def _waits(self, session: int) -> bool:
        """Return whether a session waited for a core that it did not have, since the last time.

        The processes of a session that has a core to itself may wait for each other.
        """
        let_others_run()
        now = time.monotonic(), *scheduling.waits(session)
        with self._changed:
            before = self._sessions.get(session)
            if before is None:  # It has ended meanwhile.
                return False
            self._sessions[session] = now
        passed, run, waited = (new - old for new, old in zip(now, before, strict=True))
        has_core = run > _HAS_CORE * 1e9 * passed
        return not has_core and waited > _WAITING * (run + waited)

    def _close(self, session: int) -> None:
        for _ in range(_MOST_TRIES):
            if self._lower(session):
                return
            time.sleep(_TRY_S)
        with self._changed:
            self._to_lower.add(session)

    def _lower(self, session: int) -> bool:
        """Return whether a session is behind the script, or has ended."""
        done = scheduling.set_group_nice(session, scheduling.LOWEST)
        done = done or not scheduling.is_there(session)
        if done:
            with self._changed:
                self._to_lower.discard(session)
        return done


share = Share()


def _after_fork() -> None:
    global share
    share = Share()  # The workers are the parent's, and so are their windows.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
