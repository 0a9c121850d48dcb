"""The cores that the workers of a test run share: a test has its part of them, or all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest


class Machine:
    """The cores, which the workers of a run share: a test has its part of them, or all."""

    def __init__(self, directory: Path) -> None:
        # Numbers, not files: they stay open until the run ends, and nobody closes them.
        self._door = os.open(directory / "door.lock", os.O_RDWR | os.O_CREAT)
        self._lock = os.open(directory / "machine.lock", os.O_RDWR | os.O_CREAT)

    @contextlib.contextmanager
    def held(self, how: int) -> Iterator[None]:
        """Hold the machine by ``fcntl.LOCK_SH`` or ``LOCK_EX``."""
        # The door is passed one at a time, and held shut by who waits to be alone: it comes next.
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._lock, how)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Unlocked, not only closed: a child of the test's may have the file open, too.
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within a test: the other workers wait, so that times mean something."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        try:
            with self.held(fcntl.LOCK_EX):
                yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_SH)


_machines: list[Machine] = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test begin when no other worker's test wants the machine to itself."""
    if not _machines:
        base = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        _machines.append(Machine(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base))
    with _machines[0].held(fcntl.LOCK_SH):
        return (yield)


@pytest.fixture
def machine() -> Machine:
    """The cores; a test that measures time takes them by ``with machine.alone()``."""
    return _machines[0]
