"""The self-test's process: it is started here, and what it says becomes an ``Outcome``.

``_commands/self_test.py`` is its program; ``untested_torch`` decides when it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .._base import scheduling
from .._base.at_exit import at_exit
from .._base.child_process import child_command
from .._base.cpp_compiler import compiler_on_path
from .._base.data_class import dataclass
from .._base.determinism import FATAL_SIGNALS, is_passing_text
from .._base.printable import shortened
from ..config import config

# Seconds that a self-test may take: on a slow machine, a compile takes one of its minutes.
SELF_TEST_TIMEOUT_S = 900.0
_PROGRAM = "aoti_eager._commands.self_test"
# Most characters of the child's words in a message.
_WORDS = 600
# Of ``_enable``, a room above: the self-test serves what it is about, and nothing else.
_ENABLE = "AOTI_EAGER_ENABLE"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a self-test has found.

    Attributes:
        passed: Whether calls may be served.
        message: What was found, in words.
        path: The hit path that was tested, ``"C++"`` or ``"Python"``.
        is_lasting: Whether another process would find the same: then the outcome is kept.
    """

    passed: bool
    message: str
    path: str = "Python"
    is_lasting: bool = False


_running: set[subprocess.Popen[str]] = set()
# Whether Python ends: then no outcome is used.
is_ending = False


def self_test(
    kinds: Sequence[str] = (),
    timeout_s: float | None = None,
    *,
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Serve calls in a process of its own and return what became of them; never raises.

    Args:
        kinds: Names of the calls in ``_commands/self_test.py``; all if empty.
        timeout_s: Seconds until the process is killed; ``None`` for ``SELF_TEST_TIMEOUT_S``.
        variables: Environment variables on top of this process's.
    """
    timeout_s = SELF_TEST_TIMEOUT_S if timeout_s is None else timeout_s
    environment = {
        **{name: value for name, value in os.environ.items() if name != _ENABLE},
        **settings_variables(),
        "AOTI_EAGER_STRICT": "0",  # Without the C++ path, the test is one of the Python path.
        "AOTI_EAGER_UNTESTED_TORCH": "1",
        **(variables or {}),
    }
    try:
        process = subprocess.Popen(
            child_command(_PROGRAM, "serve_child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
    except (OSError, MemoryError, subprocess.SubprocessError) as error:
        return Outcome(False, f"the self-test cannot be started: {error!r}")
    _running.add(process)
    if is_ending:  # Nobody would end it later.
        _kill(process)
    if threading.current_thread() is not threading.main_thread():
        with contextlib.suppress(OSError):  # Nobody waits for it.
            os.setpriority(os.PRIO_PGRP, process.pid, scheduling.LOWEST)
    try:
        said, complained = process.communicate(json.dumps(list(kinds)), timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        with process:  # Closes its pipes.
            pass
        return Outcome(False, f"the self-test has not ended after {timeout_s:g} s")
    except BaseException:  # Ctrl-C.
        _kill(process)
        raise
    finally:
        _running.discard(process)
    return _outcome(process.returncode, said, complained)


def settings_variables() -> dict[str, str]:
    """Return the variables by which the child's settings are this process's."""
    return {
        "AOTI_EAGER_CACHE_DIR": str(config.cache_dir),
        "AOTI_EAGER_CPU_TARGET": str(config.cpu_target),
        # The path that is to serve: the child waits until the C++ path is built.
        "AOTI_EAGER_NATIVE": "0" if config.native == "0" or not compiler_on_path() else "1",
    }


def _outcome(status: int, said: str, complained: str) -> Outcome:
    try:
        answer: dict[str, Any] = json.loads(said.splitlines()[-1])
        problems = [str(one) for one in answer["problems"]]
        version, served = str(answer["torch"]), str(answer["served"])
        path, is_lasting = str(answer["path"]), answer["is_lasting"] is True
    except (ValueError, KeyError, TypeError, IndexError):
        words = shortened(complained.strip()[-_WORDS:], _WORDS)
        message = f"the self-test ended with status {status}: {words}"
        # A crash is an answer: wrong code caused it. Somebody else sends any other signal.
        is_lasting = _signal_name(status) in FATAL_SIGNALS and not is_passing_text(complained)
        return Outcome(False, message, is_lasting=is_lasting)
    if version != str(torch.__version__):
        return Outcome(False, f"the self-test ran with torch {version}")
    if problems:
        return Outcome(False, shortened("; ".join(problems), _WORDS), path, is_lasting)
    return Outcome(True, f"{served}; hit path: {path}", path, is_lasting=True)


def _signal_name(status: int) -> str:
    """Return the name of the signal that has ended a process; empty if none has."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return ""


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)


is_ending = False


def _end() -> None:
    global is_ending
    is_ending = True
    for process in list(_running):
        _kill(process)


at_exit(_end)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # They are the parent's.
