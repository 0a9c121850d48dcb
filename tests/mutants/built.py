"""Mutants compiled, each once, with the worker's command, and what became of each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from aoti_eager._compile_worker.fork_server import ForkServer
from aoti_eager._compile_worker.thin_header import HEADER, make_stub

from .captured import Captured
from .mutate import Mutant
from .search import differs

# What a mutant came to. One that does not compile, or never differs, is no mutant.
FOUND, MISSED, SAME, NO_CODE = "found", "missed", "the same", "no code"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant, and by what."""

    verdict: str
    message: str


def judged(
    kernel: Captured, mutant: Mutant, directory: Path, server: ForkServer, trial: str
) -> Outcome:
    """Return what became of a mutant: from the directory, if this trial has seen it already.

    Args:
        kernel: What it was made from.
        mutant: The fault.
        directory: Where libraries and outcomes are kept.
        server: The trial's server.
        trial: A digest of the trial's code.
    """
    library = built(kernel, mutant, directory)
    if library is None:
        return Outcome(NO_CODE, "")
    seen = library.with_name(f"{library.stem}-{trial}.json")
    if seen.exists():
        return Outcome(**json.loads(seen.read_text()))
    answer = server.run(asked(kernel, library))
    if "reason" in answer:
        outcome = Outcome(FOUND, f"{answer['reason']}: {answer['message']}")
    else:
        outcome = _not_found(kernel, library)
    seen.write_text(json.dumps({"verdict": outcome.verdict, "message": outcome.message}))
    return outcome


def _not_found(kernel: Captured, library: Path) -> Outcome:
    searched = library.with_name(f"{library.stem}-search.json")
    if not searched.exists():
        found = differs(Path(kernel.request["library"]), library, kernel.request)
        searched.write_text(json.dumps(found))
    found = json.loads(searched.read_text())
    return Outcome(MISSED if found else SAME, found)


def asked(kernel: Captured, library: Path) -> dict[str, object]:
    """Return what the trial is asked of a library in place of the kernel's."""
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    return {**kernel.request, "library": str(library), "sha256": digest, "timeout_s": 120.0}


def built(kernel: Captured, mutant: Mutant, directory: Path) -> Path | None:
    """Return the library of a mutant; ``None`` where the compiler refuses it."""
    source = mutant.source(kernel.source)
    text = json.dumps([source, kernel.command]).encode()
    library = directory / f"{hashlib.sha256(text).hexdigest()[:20]}.so"
    refused = library.with_suffix(".refused")
    if library.exists() or refused.exists():
        return library if library.exists() else None
    directory.mkdir(parents=True, exist_ok=True)
    file = library.with_suffix(".cpp")
    file.write_text(source)
    header = _header(kernel.command, directory)
    stub = _stub(kernel.command[0], directory)
    new = library.with_suffix(f".{os.getpid()}")
    command = [
        *kernel.command,
        *("-include", str(header), str(file), "-shared", "-o", str(new)),
        *(f"-L{stub}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        refused.write_text(done.stderr[-2000:])
        return None
    new.rename(library)
    return library


def _header(command: list[str], directory: Path) -> Path:
    """Return the precompiled header of a command, made once."""
    digest = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:12]
    header = directory / f"thin-{digest}.h"
    compiled = header.with_name(f"{header.name}.gch")
    if not compiled.exists():
        header.write_bytes(HEADER.read_bytes())
        new = compiled.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-x", "c++-header", str(header), "-o", str(new)], check=True)
        new.rename(compiled)
    return header


def _stub(compiler: str, directory: Path) -> Path:
    stub = directory / "stub"
    if not stub.exists():
        with contextlib.suppress(FileExistsError):
            return make_stub(compiler, directory)
    return stub
