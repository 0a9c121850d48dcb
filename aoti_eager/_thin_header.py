"""What all thin kernel libraries have in common, made once and kept in the store's toolchain.

The header is most of what a kernel's compiler reads: half a second with its precompiled form, two
without, and five to precompile it. So the first kernels of an empty machine are compiled without,
beside it; the C interface, the same in all, is an object of its own. Worker only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path

import filelock
import torch

from . import _inductor_compat as inductor
from ._environment import cpu_features

_HEADER = Path(__file__).parent / "csrc" / "thin_library.h"
INTERFACE = _HEADER.with_name("thin_interface.cpp")
# One for each header that this process has begun to precompile, whatever became of it.
_builds: dict[Path, threading.Thread] = {}


def common_parts(command: list[str], headers: Path) -> tuple[Path, Path | None]:
    """Return the header to include, and the interface's object, once it has been made.

    By then the header has its precompiled form beside it.

    Args:
        command: The compiler and its flags, without files; each has parts of its own.
        headers: Where they are kept.
    """
    text = _HEADER.read_bytes()
    # The compiler does not look whether torch's headers are still those that went into it.
    made_of = [
        *(command, inductor.compiler_description()),
        *(str(torch.__version__), torch.version.git_version),
    ]
    if any("native" in flag for flag in command):
        # The store may come to another CPU, which says native, too.
        made_of.append(sorted(cpu_features()))
    described = json.dumps(made_of).encode()
    digest = hashlib.sha256(described + text + INTERFACE.read_bytes()).hexdigest()
    header = headers / f"thin-{digest[:24]}.h"
    interface, compiled = header.with_suffix(".o"), header.with_suffix(".h.gch")
    if interface.exists() and compiled.exists():
        return header, interface
    if not header.exists():
        # Also where its directory was deleted after a build: it is built again.
        _builds.pop(header, None)
        headers.mkdir(parents=True, exist_ok=True)
        _write(header, text)
    if header not in _builds:
        _begin(command, header)
    return header, interface if interface.exists() else None


def _begin(command: list[str], header: Path) -> None:
    lock_file = header.with_suffix(".lock")
    # Somebody's process ended before the header was done. Scripts that end soon would never have
    # it; so this one waits.
    was_cut_off = lock_file.exists()
    lock = filelock.FileLock(lock_file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        return  # Another worker is at it.
    thread = threading.Thread(target=_precompile, args=(command, header, lock))
    thread.daemon = True
    _builds[header] = thread
    thread.start()
    if was_cut_off:
        thread.join()


def _precompile(command: list[str], header: Path, lock: filelock.BaseFileLock) -> None:
    """Make the parts; where that fails, kernels go on being compiled without."""
    temporary = header.with_suffix(f".{os.getpid()}.tmp")
    # Not in the work directory of the kernel, which may be gone before.
    environment = {**os.environ, "TMPDIR": str(header.parent)}
    try:
        for left in header.parent.glob(f"{header.stem}.*.tmp"):
            left.unlink(missing_ok=True)  # Of a process that was ended: we have the lock.
        for part, what in (
            (header.with_suffix(".o"), ("-c", str(INTERFACE))),
            (header.with_suffix(".h.gch"), ("-x", "c++-header", str(header))),
        ):
            if not part.exists():
                call_compiler([*command, *what, "-o", str(temporary)], environment)
                # Renamed last: the compiler takes whatever it finds under the name.
                temporary.replace(part)
    except (OSError, inductor.CppCompileError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    finally:
        lock.release()


def stub_library(compiler: str, headers: Path) -> Path:
    """Return an empty library with the name of torch's, to link against."""
    stub = headers / "stub" / "libtorch_cpu.so"
    if not stub.exists():
        stub.parent.mkdir(parents=True, exist_ok=True)
        temporary = stub.with_suffix(f".{os.getpid()}.tmp")
        soname = f"-Wl,-soname,{stub.name}"
        call_compiler([compiler, "-shared", "-x", "c++", os.devnull, soname, "-o", str(temporary)])
        temporary.replace(stub)
    return stub


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def call_compiler(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run the compiler.

    Raises:
        CppCompileError: It failed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise inductor.CppCompileError(command, done.stderr)
