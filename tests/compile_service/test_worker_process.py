"""How a worker starts and ends: its pipes, its files, and what runs in it before our code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import config
from aoti_eager._base import child_process
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._base.deadline import Deadline
from aoti_eager._compile_service import worker_process
from aoti_eager._compile_service.requests import PartsRequest
from aoti_eager._compile_service.worker_process import WorkerProcess
from aoti_eager._native import build as native_build
from aoti_eager._store.store import Store
from aoti_eager.errors import CompileError

from ..support import forked_python, processes
from ..support.workers import until


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    """A worker that never comes to read anything."""
    monkeypatch.setattr(worker_process, "child_command", lambda *_: ["/bin/sleep", "1000"])
    worker = WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)
    yield worker
    worker.kill()


def test_a_long_request_to_a_worker_that_does_not_read_ends_in_time(
    sleeper: WorkerProcess,
) -> None:
    start = time.monotonic()
    request = PartsRequest(config.cache_dir, 1, 60.0, {"long": "x" * (4 << 20)})
    assert sleeper.ask(request, Deadline(0.3)) is None
    assert time.monotonic() - start < 20.0
    assert not sleeper.is_alive()


DEAD = """
import os, signal
from pathlib import Path
from aoti_eager._compile_service import cache_context
from aoti_eager._base.deadline import Deadline
from aoti_eager._store.store import Store
from aoti_eager._compile_service.requests import PartsRequest
from aoti_eager._compile_service.worker_process import WorkerProcess

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as command line tools do
worker = WorkerProcess(cache_context.current().target, 0, Path.cwd() / "store")
os.kill(worker._process.pid, signal.SIGKILL)
worker._process.wait()
print(worker.ask(PartsRequest(Path("store"), 1, 5.0), Deadline(5.0)), flush=True)
"""


def test_a_dead_worker_does_not_end_a_script_that_wants_to_end_by_sigpipe(tmp_path: Path) -> None:
    done = forked_python.run(
        [sys.executable, "-c", DEAD], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


def test_a_worker_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "child_command", lambda *_: ["/bin/sleep"])
    before = len(os.listdir("/proc/self/fd"))
    worker = WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    worker._process.send_signal(signal.SIGTERM)
    worker.kill()
    until(lambda: len(os.listdir("/proc/self/fd")) == before, "all is closed")


def test_a_worker_that_the_script_has_waited_for_is_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its number, which was its group's, may be another process's by now."""
    monkeypatch.setattr(worker_process, "child_command", lambda *_: ["/bin/sleep", "1000"])
    waited = threading.Event()  # Until then, nobody of ours has seen that it is gone.
    reap = WorkerProcess._reap
    monkeypatch.setattr(WorkerProcess, "_reap", lambda worker: waited.wait(60.0) and reap(worker))
    worker = WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)
    sent: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda group, number: sent.append(group))
        os.kill(worker.pid, signal.SIGKILL)
        os.waitpid(worker.pid, 0)
        worker._end_group(is_last=False)
        waited.set()
        worker.kill()
    assert sent == []


def test_a_compiler_that_was_waited_for_is_sent_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C comes when it has ended already."""

    class Interrupted(subprocess.Popen[bytes]):
        def communicate(self, *_: Any, **__: Any) -> Any:
            assert self.stderr is not None
            self.stderr.close()
            self.wait()
            raise KeyboardInterrupt

    sent: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: sent.append(group))
    with pytest.raises(KeyboardInterrupt):
        native_build._compile("/bin/true", tmp_path / "native.so", 60.0, Interrupted)
    assert sent == []


def test_a_worker_that_cannot_be_started_leaves_no_file_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_process, "child_command", lambda *_: ["/nonexistent"])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CompileError, match="cannot be started"):
        WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was"))
    with pytest.raises(CompileError, match="no Python interpreter"):
        WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has such a file")
def test_memory_that_runs_out_costs_a_worker_and_not_the_script() -> None:
    worker = WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)
    try:
        score = Path(f"/proc/{worker._process.pid}/oom_score_adj")
        until(lambda: score.read_text().strip() == "1000", "the worker comes first")
    finally:
        worker.kill()


def test_a_worker_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(module: str, function: str) -> list[str]:
        code = "from aoti_eager._compile_worker import main; main.IDLE_S = 0.1"
        return [sys.executable, "-c", f"import sys; {code}; main.{function}()"]

    monkeypatch.setattr(worker_process, "child_command", command)
    Store(config.cache_dir, lock_timeout_s=1.0).create()
    worker = WorkerProcess(cpu_target(cpu_features()), 0, config.cache_dir)
    scratch = worker._scratch.path
    assert scratch is not None
    assert scratch.parent == config.cache_dir / "tmp"
    # Nobody asks for it any more, and nothing of it is left: no zombie, no directory.
    until(lambda: not Path(f"/proc/{worker.pid}").exists(), "it has ended and was waited for")
    until(lambda: not scratch.exists(), "its directory is gone")
    assert not worker.is_alive()
    worker.kill()


def test_a_worker_that_has_no_scratch_leaves_the_temporary_directory_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where there is no room for one, the worker inherits the user's own directory."""
    precious = tmp_path / "users-own" / "precious.txt"
    precious.parent.mkdir()
    precious.write_bytes(b"x")
    monkeypatch.setenv("TMPDIR", str(precious.parent))
    with monkeypatch.context() as patched:

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr("tempfile.mkdtemp", fail)
        worker = WorkerProcess(cpu_target(cpu_features()), 0, tmp_path / "no-store")
    assert worker._scratch.path is None
    worker._requests.close()  # As when the script has ended: the worker cleans up.
    until(lambda: not worker.is_alive(), "it has ended")
    worker.kill()
    assert precious.exists()


# --- what runs in a worker before our code -------------------------------------------------------

# Without importing the package: it would take seconds each time.
PARENT = """
import json, runpy, subprocess, sys

child = runpy.run_path(sys.argv[1])
code = "import json, sys; print(json.dumps(list(sys.flags)))"
command = [sys.executable, *child["interpreter_options"](), "-c", code]
flags = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
done = subprocess.run(child["child_command"]("platform", "node"), check=True)
print(json.dumps({"parent": list(sys.flags), "child": flags}))
"""


@pytest.fixture
def intruder(tmp_path: Path) -> dict[str, str]:
    """Variables by which a plain interpreter runs code that leaves ``intruder/was-here``."""
    path = tmp_path / "intruder"
    path.mkdir()
    code = f"open({str(path / 'was-here')!r}, 'w').close()\n"
    (path / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(path)}


@pytest.mark.parametrize(
    "options",
    [
        ["-I"],
        ["-E"],
        ["-s"],
        ["-S"],
        ["-B"],
        ["-X", "utf8=1"],
        ["-X", "utf8=0"],
        pytest.param(
            ["-P"], marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="it has no -P")
        ),
    ],
    ids=" ".join,
)
def test_a_child_starts_with_the_flags_that_this_process_has(
    options: list[str], intruder: dict[str, str], tmp_path: Path
) -> None:
    runs_it = options[0] not in ("-I", "-E", "-S")
    done = subprocess.run(
        [sys.executable, *options, "-c", PARENT, str(child_process.__file__)],
        env={**os.environ, **intruder},
        capture_output=True,
        text=True,
        check=True,
    )
    flags = json.loads(done.stdout)
    assert flags["child"] == flags["parent"]
    assert (tmp_path / "intruder" / "was-here").exists() is runs_it


def test_flags_of_the_script_alone_are_not_passed_on() -> None:
    command = [sys.executable, "-O", "-W", "error", "-c", PARENT, str(child_process.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    flags = json.loads(done.stdout)
    optimize = flags["parent"].index(1)
    assert flags["child"] == [*flags["parent"][:optimize], 0, *flags["parent"][optimize + 1 :]]


@pytest.mark.full
@pytest.mark.compiles
def test_workers_of_an_isolated_python_run_nothing_that_pythonpath_names(
    intruder: dict[str, str], cache_dir: Path, tmp_path: Path
) -> None:
    """The worker, and the process in which it tries and times a library."""
    variables = {"AOTI_EAGER_MODE": "sync", "AOTI_EAGER_GATE": "1", "AOTI_EAGER_DYNAMIC": "0"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", processes.WORK],
        env={**os.environ, **variables, **intruder, "AOTI_EAGER_CACHE_DIR": str(cache_dir)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1])["compiles"] == processes.KEYS
    assert not (tmp_path / "intruder" / "was-here").exists()


@pytest.mark.full
@pytest.mark.both_paths
def test_a_script_directory_that_shadows_the_standard_library_does_not_break_the_worker(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """`python -m` and `-c` put the current directory first; a types.py there ends Python."""
    for name in ("types.py", "enum.py", "queue.py"):
        (tmp_path / name).write_text("raise ImportError('the wrong module')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text("""
import torch, aoti_eager
x = torch.randn(8, 8)
with aoti_eager.register("aten::silu"):
    torch.ops.aten.silu(x), torch.ops.aten.silu(x)
assert aoti_eager.stats()["aten::silu"].hits >= 1, aoti_eager.stats()
""")
    environment = {**os.environ, "AOTI_EAGER_CACHE_DIR": str(shared_cache_dir)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
