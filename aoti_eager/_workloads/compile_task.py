"""One compile of a warm-up, as an executor runs it: text in, plain data out.

The process may be on another machine. Its answer need not be unpickled as an object of this
package, and no file system is shared.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .._base.cpp_compiler import compiler_identity
from .._base.cpu import Target, cpu_features, cpu_target
from .._compile_service.requested import RequestedCall, RequestedCode
from .._compile_service.requests import LibraryRequest
from .._compile_service.worker_pool import CompileService
from .._keys.kernel_key import KernelKey
from .._store.entry import Library, encode
from .._store.environment import Environment, current_environment
from .._store.new_entries import failed_entry, is_remembered, ready_entry
from .._store.store import Store
from .._store.stored_failures import met_now
from .._store.verdict import Verdict, encode_verdict
from ..config import config
from ..errors import CompileError
from .workload import Call

# Keys: ``entry`` (the document), ``library`` (bytes, or None), ``log``; for a library made here
# also ``verdict`` (the document). If there is nothing to store: ``reason`` and ``message``.
Answer = dict[str, Any]


def compile_task(
    call: Call, environment: Environment, target: Target, *, measured: bool = False
) -> str:
    """Return the compile of ``call`` as text, for ``compile_call`` or ``compile_here``.

    JSON in one piece: schedulers look into lists and dicts for their own futures.

    Args:
        call: The call to compile.
        environment: The environment of this process.
        target: The instruction set to compile for.
        measured: Whether the library is also timed, if the setting ``gate`` is on. Another
            machine's times are not believed.
    """
    return json.dumps(
        {
            "key": call.key.to_json(),
            "function": call.function,
            "schema": call.schema,
            "environment": dict(environment.components),
            "target": [target.name, target.march, target.vector_bits, sorted(target.requires)],
            "check": bool(config.check),
            "gate": measured and bool(config.gate),
            "timeout_s": config.compile_timeout_s,
        }
    )


def compile_call(task: str) -> Answer:
    """Return what came of one compile, in a process of an executor.

    The compile works in this process's own cache directory and leaves the precompiled headers
    there. A compile worker is started on first use and stays as long as this process.

    Args:
        task: What ``compile_task`` returned.
    """
    request = json.loads(task)
    host, op = socket.gethostname(), request["key"]["op"]
    target = _target(request)
    differing = current_environment().differing(_environment(request))
    if differing:
        parts = [
            f"{name} is {mine!r}, not {theirs!r}" for name, (mine, theirs) in differing.items()
        ]
        return {
            "reason": "other_environment",
            "message": f"{op}: {host} has another environment: {'; '.join(parts)}; set its "
            "processes up as the one that calls warm",
        }
    missing = target.requires - cpu_features()
    if missing or (target.march == "native" and cpu_target(cpu_features()) != target):
        problem = f"lacks {', '.join(sorted(missing))}" if missing else "is another model"
        return {
            "reason": "other_cpu",
            "message": f"{op}: the CPU of {host} {problem}, so kernels for {target.name} cannot be "
            "tried there; use machines like the one that calls warm",
        }
    store = Store(config.cache_dir, lock_timeout_s=config.lock_timeout_s)
    answer = compile_here(task, store=store, service=_service(target))
    answer.pop("verdict", None)  # Comparisons and times are this machine's only.
    if "message" in answer:
        answer["message"] = f"{answer['message']} (on {host})"
    return answer


_services: dict[tuple[int, Target], CompileService] = {}
_services_lock = threading.Lock()


def _service(target: Target) -> CompileService:
    """Return this process's compile workers; as many as the executor has threads in it."""
    with _services_lock:
        # By pid: a forked process must not use its parent's.
        service = _services.get((os.getpid(), target))
        if service is None:
            service = CompileService(target, workers=cores())
            _services[os.getpid(), target] = service
        return service


def compile_here(task: str, *, store: Store, service: CompileService) -> Answer:
    """Return what came of one compile, by the workers of ``service`` in a directory of ``store``.

    Args:
        task: What ``compile_task`` returned; it is for this environment and this CPU.
        store: Nothing is published to it.
        service: Compiles for the task's target.
    """
    request = json.loads(task)
    key, target = KernelKey.from_json(request["key"]), _target(request)
    made_for = (_environment(request), target.name, target.requires)
    try:
        # In the store: it is private to us, and verify removes what a killed process leaves.
        with store.workspace() as work:
            call = RequestedCall(
                key,
                store.root,
                check=request["check"],
                timeout_s=request["timeout_s"],
                function=request["function"],
                schema=request["schema"],
            )
            code = RequestedCode(call, gate=request["gate"])
            compiled = service.compile(LibraryRequest(code, work))
            content = compiled.library.read_bytes()
            if sha256(content) != compiled.sha256:
                raise OSError(f"{compiled.library}: is not the library that was tried")
    except CompileError as error:
        if not is_remembered(error):
            return {"reason": error.reason, "message": str(error)}
        remembered = met_now(compiler_identity())
        entry = failed_entry(
            key, *made_for, reason=error.reason, message=str(error), remembered=remembered
        )
        return {"entry": encode(entry), "library": None, "log": error.log}
    except OSError as error:  # A StoreError is one.
        return {"reason": "store_unwritable", "message": f"{key.op}: {error}"}
    entry = ready_entry(
        key,
        *made_for,
        outputs=compiled.outputs,
        calls_aten=compiled.calls_aten,
        parallel=compiled.parallel,
        compiler=compiled.compiler,
        identity=compiled.identity,
        lost_signs=compiled.lost_signs,
        checked=False,  # No live arguments here; the first call compares.
    )
    entry = replace(entry, library=Library(len(content), sha256(content)))
    verdict = Verdict(sha256(content), compared=compiled.compared)
    threads = dict(key.context)["threads"]
    verdict = verdict.with_times(compiled.times, threads, unmeasured=compiled.unmeasured)
    return {
        "entry": encode(entry),
        "library": content,
        "log": "",
        "verdict": encode_verdict(verdict),
    }


def sha256(content: bytes) -> str:
    """Return the digest of a library as an entry has it."""
    return hashlib.sha256(content).hexdigest()


def _environment(request: Mapping[str, Any]) -> Environment:
    return Environment(tuple(sorted(request["environment"].items())))


def _target(request: Mapping[str, Any]) -> Target:
    name, march, vector_bits, requires = request["target"]
    return Target(name, march, vector_bits, frozenset(requires))


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
