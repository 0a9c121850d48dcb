"""What the tests of a run have compiled, so that a kernel which a second test needs is copied.

A test has an empty store of its own, and most of them want the same few kernels in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aoti_eager._base.digest import json_digest
from aoti_eager._compile_service.replies import Compiled
from aoti_eager._keys.guards import Guards
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._store.environment import current_environment
from aoti_eager._store.verdict import path_times
from aoti_eager.errors import CompileError

Compile = Callable[..., Compiled]


def remembering(compile_: Compile, directory: Path) -> Compile:
    """Return ``CompileService.compile`` with its libraries and lasting failures kept."""

    def compile_once(
        service: Any, key: KernelKey, work: Path, toolchain: Path, **options: Any
    ) -> Compiled:
        ignored = ["timeout_s"] if options.get("gate") else ["timeout_s", "is_native"]
        request = {name: value for name, value in options.items() if name not in ignored}
        kept = directory / json_digest(
            [key.to_json(), current_environment().digest, service._target.name, request]
        )
        if not kept.exists():
            _keep(kept, lambda: compile_(service, key, work, toolchain, **options))
        document = json.loads((kept / "document.json").read_text())
        if "error" in document:
            raise CompileError(**document["error"], remember=True)
        pattern, guards = document["pattern"], document["guards"]
        library = work / "copied.so"
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


def remember_here(worker_pool: Any, directory: str) -> None:
    """Have this process, a child of a test's, compile as its test does."""
    service = worker_pool.CompileService
    service.compile = remembering(service.compile, Path(directory))


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
