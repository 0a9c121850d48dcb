"""The compile worker: a process that turns keys into kernel libraries, one at a time.

It reads one JSON request a line from standard input and answers one a line. No op is registered
here and no state of the caller's threads exists, so autocast, inference mode and dispatch modes of
the caller cannot leak into a trace. It ends when its standard input does, and takes the compilers
it started with it; so a parent that was killed leaves no orphan.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

from ._child import child_command


def main() -> None:
    """Serve until standard input ends."""
    # Compiling in this process only: a pool of Inductor's own would outlive its use.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What compilers print must not be taken for an answer.
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    start = requests.get()
    trial = TrialServer()
    compiler = _Compiler(start, trial)
    while True:
        answer = compiler.answer(requests.get())
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _read_requests(requests: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    # The parent is gone or has closed us: nobody waits for what is running.
    os.killpg(0, signal.SIGKILL)


class TrialServer:
    """The process of ``_trial.py``, started again whenever it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> subprocess.Popen[str]:
        """Start the server and return its process."""
        environment = dict(os.environ)
        checker = ctypes.util.find_library("c_malloc_debug")
        if checker is not None:
            # Fills memory and checks what lies behind a block when it is freed.
            environment["LD_PRELOAD"] = checker
            environment["GLIBC_TUNABLES"] = "glibc.malloc.check=3:glibc.malloc.perturb=165"
        self._process = subprocess.Popen(
            child_command("aoti_eager._trial", "serve"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        return self._process

    def close(self) -> None:
        """End the server; the next ``run`` starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the trial's ``reason`` and ``message``, or nothing if the library passed."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError as error:
            line = ""
            problem = str(error)
        else:
            problem = "it ended without an answer"
        if not line:
            self.close()
            message = f"the trial process died: {problem}"
            return {"reason": "crashed", "message": message, "remember": False}
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Compiler:
    def __init__(self, start: dict[str, Any], trial: TrialServer) -> None:
        warnings.simplefilter("ignore")
        # Imported here: two seconds, in which the trial server imports torch beside us.
        from . import _inductor_compat

        _inductor_compat.prepare_worker(start["vector_bits"])
        self._trial = trial

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        from .errors import AotiEagerError, CompileError

        log = Path(request["work"]) / "compile.log"
        saved = os.dup(2)
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 2)
        try:
            return self._compile(request)
        except CompileError as error:
            return _failure(error.reason, str(error), log, error.remember)
        except AotiEagerError as error:
            return _failure("compile_failed", str(error), log, False)
        except OSError as error:
            return _failure("store_unwritable", str(error), log, False)
        except Exception as error:  # noqa: BLE001 - the answer is the reason; the worker lives on
            traceback.print_exc()
            return _failure("compile_failed", f"{type(error).__name__}: {error}", log, True)
        finally:
            os.dup2(saved, 2)
            os.close(saved)

    def _compile(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        from ._call_target import call_target
        from ._key import KernelKey
        from ._lowering import lower
        from ._template import call_template
        from .errors import CompileError

        key = KernelKey.from_json(request["key"])
        op, schema = call_target(key.op, request["function"], request["schema"])
        _use_directories(Path(request["work"]), Path(request["headers"]))
        context = dict(key.context)
        torch.set_default_dtype(getattr(torch, context["default_dtype"]))
        torch.use_deterministic_algorithms(context["deterministic"], warn_only=True)
        torch.set_float32_matmul_precision(context["float32_matmul_precision"])
        template = call_template(schema, key)
        lowered = lower(
            op, template, Path(request["work"]), Path(request["headers"]), request["options"]
        )
        failure = self._trial.run(
            {
                "key": request["key"],
                "library": str(lowered.library),
                "outputs": lowered.outputs,
                "check": request["check"],
                "timeout_s": request["trial_timeout_s"],
                "function": request["function"],
                "schema": request["schema"],
            }
        )
        if failure:
            raise CompileError(
                failure["reason"], failure["message"], remember=failure.get("remember", True)
            )
        return {
            "library": str(lowered.library),
            "outputs": lowered.outputs,
            "calls_aten": lowered.calls_aten,
            "parallel": lowered.parallel,
            "compiler": lowered.compiler,
        }


def _use_directories(work: Path, headers: Path) -> None:
    """Keep everything that Inductor and the C++ compiler write inside the store."""
    from . import _inductor_compat

    tempfile.tempdir = str(work)
    os.environ["TMPDIR"] = str(work)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
    _inductor_compat.use_headers(headers)
    _inductor_compat.remember_probes(headers.with_name("probes"))


def _failure(reason: str, message: str, log: Path, remember: bool) -> dict[str, Any]:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return {"reason": reason, "message": message, "log": text[-20_000:], "remember": remember}
