"""A forked Python is as a started one for what a script does; what it cannot be is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support import forked_python

SCRIPT = """\
import inspect, sys
def function(): pass
print(__name__, __file__, sys.argv, sys.path[0], inspect.getsource(function))
"""
PLACES = "import os, sys; print(__name__, sys.argv, sys.path, sys.orig_argv, os.getcwd())"
ENDS = {
    "a status": "import sys; sys.exit(3)",
    "words": "import sys; sys.exit('words')",
    "atexit": "import atexit; atexit.register(print, 'bye')",
    "at once": "import os; print('lost'); os._exit(4)",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "a thread": "import threading as t, time; t.Thread(target=lambda: print('late')).start()",
    "files": "import os; print(sorted(os.listdir('/proc/self/fd')))",
    "input": "print(input().upper())",
    "below": "import os, sys; sys.stderr.write('said'); os.system('echo $VARIABLE')",
    "nothing of ours": "import sys; print([m for m in sys.modules if m.startswith('aoti_eager')])",
    "who handles": "import signal; print([signal.getsignal(n) for n in range(1, 30)])",
}


def both(*arguments: str, **options: Any) -> list[tuple[int, str, str]]:
    """Return how a started and a forked Python end: status and what is printed."""
    command = [sys.executable, *arguments]
    options = {"capture_output": True, "text": True, "input": "a line\n", **options}
    return [
        (done.returncode, done.stdout, done.stderr)
        for run in (subprocess.run, forked_python.run)
        for done in [run(command, **options)]
    ]


@pytest.mark.parametrize("how", ENDS)
def test_a_script_ends_as_in_a_process_of_its_own(how: str) -> None:
    started, forked = both("-c", ENDS[how], env={**os.environ, "VARIABLE": "7"})
    assert forked == started


def test_a_script_is_where_it_is_started(tmp_path: Path) -> None:
    started, forked = both("-c", PLACES, "one", "-c", cwd=tmp_path)
    assert forked == started
    (tmp_path / "script.py").write_text(SCRIPT)
    for arguments in (["script.py", "one"], ["-m", "script", "one"]):
        started, forked = both(*arguments, cwd=tmp_path)
        assert forked == started
        assert "__main__" in forked[1]


def test_a_script_has_the_umask_of_its_test() -> None:
    before = os.umask(0o027)
    try:
        started, forked = both("-c", "import os; print(oct(os.umask(0)))")
    finally:
        os.umask(before)
    assert forked == started == (0, "0o27\n", "")


def test_an_error_has_its_status_and_its_traceback() -> None:
    """Above it, the traceback has the lines of ours by which the script was run."""
    for code in ("1 / 0", "raise KeyboardInterrupt"):
        started, forked = both("-c", code)
        assert forked[0] == started[0] != 0
        assert forked[2].endswith(started[2].partition("\n")[2])


def test_warnings_are_as_asked_for() -> None:
    for options in (["-W", "error"], ["-W", "ignore", "-W", "error::UserWarning"], []):
        for kind in ("UserWarning", "FutureWarning"):
            code = f"import sys, warnings; print(sys.warnoptions); warnings.warn('w', {kind})"
            started, forked = both(*options, "-c", code)
            assert forked[:2] == started[:2]


def test_torch_is_there_and_was_not_imported_for_it() -> None:
    code = "import sys; print('torch' in sys.modules); import torch; print(torch.ones(2) + 1)"
    done = forked_python.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\ntensor([2., 2.])\n", "")


def test_a_child_is_spoken_to_ended_and_waited_for() -> None:
    command = [sys.executable, "-c", "print(input() * 2, flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with forked_python.popen(command, start_new_session=True, **pipes) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("ab\n")
        child.stdin.flush()
        assert child.stdout.readline() == "abab\n"
        assert child.poll() is None
        assert os.getsid(child.pid) == child.pid
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.01)
        child.kill()
        assert child.wait() == child.poll() == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        forked_python.run([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, timeout=0.01)
    with pytest.raises(subprocess.CalledProcessError):
        forked_python.run([sys.executable, "-c", "raise SystemExit(1)"], check=True)


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["-S"], {}),
        ([], {"PYTHONPATH": "/nowhere"}),
        ([], {"OMP_NUM_THREADS": "1"}),
        ([], {"TORCH_LOGS": "+aoti_eager"}),
        ([], {"AE_TEST_MARK": "1"}),
    ],
)
def test_what_counts_at_a_start_is_started(arguments: list[str], variables: dict[str, str]) -> None:
    command = [sys.executable, *arguments, "-c", "import sys; print('torch' in sys.modules)"]
    environment = {**os.environ, **variables}
    done = forked_python.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n"
