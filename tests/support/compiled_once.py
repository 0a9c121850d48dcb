"""What the tests of a run have compiled, so that a kernel which a second test needs is copied.

A test has an empty store of its own, and most of them want the same few kernels in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aoti_eager._base.cpp_compiler import compiler_identity
from aoti_eager._base.cpu import cpu_features
from aoti_eager._base.digest import json_digest
from aoti_eager._compile_service.replies import Compiled, Published
from aoti_eager._compile_service.requested import RequestedCode
from aoti_eager._compile_service.requests import EntryRequest, LibraryRequest
from aoti_eager._keys.guards import Guards
from aoti_eager._keys.kernel_key import ANY_THREADS, KernelKey
from aoti_eager._store.entry import decode, encode
from aoti_eager._store.environment import Environment, current_environment
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager._store.verdict import Verdicts, decode_verdict, encode_verdict, path_times
from aoti_eager.errors import CompileError, LockTimeoutError, StoreError

Compile = Callable[..., Compiled]
Publish = Callable[..., Published | None]


def remembering(compile_: Compile, directory: Path) -> Compile:
    """Return ``CompileService.compile`` with its libraries and lasting failures kept."""

    def compile_once(service: Any, request: LibraryRequest) -> Compiled:
        kept = directory / json_digest(
            [current_environment().digest, service._target.name, _asked(request.code)]
        )
        if not kept.exists():
            _keep(kept, lambda: compile_(service, request))
        document = json.loads((kept / "document.json").read_text())
        if "error" in document:
            raise CompileError(**document["error"], remember=True)
        pattern, guards = document["pattern"], document["guards"]
        library = request.work / "copied.so"
        shutil.copyfile(kept / "library", library)
        return Compiled(
            **{
                **document,
                "library": library,
                "outputs": tuple(document["outputs"]),
                "times": path_times(document["times"]),
                "pattern": pattern and KernelKey.from_json(pattern),
                "guards": guards and Guards.from_json(guards),
            }
        )

    return compile_once


def remembering_entries(publish: Publish, directory: Path) -> Publish:
    """Return ``CompileService.publish`` with its entries and lasting failures kept.

    A worker of low priority (only tests marked ``compiles`` have one) makes each entry anew.
    """

    def publish_once(service: Any, request: EntryRequest) -> Published | None:
        if service._nice:
            return publish(service, request)
        said = [service._target.name, compiler_identity(), _asked(request.code)]
        kept = directory / json_digest([request.origin.environment.digest, *said])
        if not kept.exists():
            return _keep_entry(kept, request, lambda: publish(service, request))
        try:
            return _copied_entry(kept, request)
        except LockTimeoutError:
            return None
        except StoreError:  # Read-only, say: the worker tells what is wrong.
            return publish(service, request)

    return publish_once


def _keep_entry(
    kept: Path, request: EntryRequest, publish: Callable[[], Published | None]
) -> Published | None:
    """Have a worker make an entry; keep the entry if it was made now, or has failed for good."""
    code, store = request.code, Store(request.root, lock_timeout_s=0.0)
    try:
        published = publish()
    except CompileError as error:
        if error.remember:
            pattern = code.call.key if code.plan is None else code.plan.pattern
            failed = _found(store, pattern, request.origin.environment)
            if failed is not None:
                said = {"reason": error.reason, "message": str(error), "log": error.log}
                _write(kept, store, failed, {"error": said})
        raise
    if published is not None and published.compiled:
        stored = store.read(published.entry)
        _write(kept, store, stored, {"error": None})
    return published


def _found(store: Store, key: KernelKey, environment: Environment) -> StoredEntry | None:
    """Return the entry of a key, ready or not."""
    for one in (key.with_threads(ANY_THREADS), key):
        found = store.find(one, environment, cpu_features())
        if found is not None:
            return found
    return None


def _write(kept: Path, store: Store, stored: StoredEntry, document: dict[str, Any]) -> None:
    staged = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}")
    staged.mkdir(parents=True)
    entry = stored.entry
    (staged / "entry.json").write_bytes(encode(entry))
    if entry.library is not None:
        shutil.copyfile(stored.library_path, staged / "library")
        verdict = Verdicts(store.root).get(entry.digest, entry.library.sha256)
        document["verdict"] = encode_verdict(verdict)
    (staged / "document.json").write_text(json.dumps(document))
    try:
        staged.rename(kept)
    except OSError:  # Another worker of the run was faster.
        shutil.rmtree(staged)


def _copied_entry(kept: Path, request: EntryRequest) -> Published:
    """Put a kept entry into the store of a request, as the worker would."""
    document = json.loads((kept / "document.json").read_text())
    entry, key = decode((kept / "entry.json").read_bytes()), request.code.call.key
    if entry.remembered is not None:
        # By the true time, as a worker knows it, whatever a test's own process takes for it.
        now = dataclasses.replace(entry.remembered, at=int(time.time()))
        entry = dataclasses.replace(entry, remembered=now)
    store = Store(request.root, lock_timeout_s=0.0, limits=request.limits)
    with store.locked(key):
        found = None
        if request.code.plan is None:
            found = _found(store, key, request.origin.environment)
        if found is not None:
            return Published(found.path, compiled=False)
        error = document["error"]
        with store.workspace() as work:
            library = None
            if entry.library is not None:
                library = work / "copied.so"
                shutil.copyfile(kept / "library", library)
            stored = store.publish(entry, work, library, "" if error is None else error["log"])
    if error is not None:
        raise CompileError(**error, remember=True)
    with contextlib.suppress(OSError):
        Verdicts(store.root).put(entry.digest, decode_verdict(document["verdict"]))
    return Published(stored.path, compiled=True)


def _asked(code: RequestedCode) -> dict[str, Any]:
    """Return what decides which library comes out, and with which times."""
    call = code.call.to_json()
    for name in ("root", "timeout_s", "native", "trial_timeout_s"):
        del call[name]
    if not code.gate:
        del call["is_native"]
    return {**code.to_json(), "call": call}


def remember_here(worker_pool: Any, directory: str) -> None:
    """Have this process, a child of a test's, compile as its test does."""
    service = worker_pool.CompileService
    service.compile = remembering(service.compile, Path(directory))
    service.publish = remembering_entries(service.publish, Path(directory))


def _keep(kept: Path, compile_: Callable[[], Compiled]) -> None:
    staged = kept.with_name(f"{kept.name}.{os.getpid()}")
    staged.mkdir(parents=True)
    try:
        compiled = compile_()
    except CompileError as error:
        if not error.remember:
            staged.rmdir()
            raise
        said = {"reason": error.reason, "message": str(error), "log": error.log}
        document: dict[str, Any] = {"error": said}
    else:
        shutil.copyfile(compiled.library, staged / "library")
        document = {
            **dataclasses.asdict(compiled),
            "library": None,
            "pattern": compiled.pattern and compiled.pattern.to_json(),
            "guards": compiled.guards and compiled.guards.to_json(),
        }
    (staged / "document.json").write_text(json.dumps(document))
    try:
        staged.rename(kept)
    except OSError:  # Another worker of the run was faster.
        shutil.rmtree(staged)
