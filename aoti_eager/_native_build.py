"""The C++ hit path's library: built once by the compiler that makes kernels, kept in the store.

It lies beside what compiling kernels needs, in a directory of its own for each version of torch and
of our sources, and in one below for each compiler. It holds no path and no Python, so a machine
without a compiler takes one that another machine built::

    toolchain/native/<torch and sources>/<compiler>/{native.so, native.json}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import torch

from ._key import json_digest
from ._store import make_private
from .errors import NativePathError

_SOURCES = Path(__file__).parent / "csrc"
_NAMES = (
    "counters.h",
    "epochs.h",
    "gradient.h",
    "key.h",
    "native.cpp",
    "op.h",
    "pattern.h",
    "pattern_list.h",
    "registration.h",
    "table.h",
    "torch_compat.h",
)
LIBRARY_FILE = "native.so"
RECORD_FILE = "native.json"

# For any CPU of the architecture: a machine with another one may be given the store.
_FLAGS = (
    *("-std=c++20", "-O2", "-g0", "-w", "-fPIC", "-shared"),
    # No symbols that meet another library's.
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
)

BUILD_TIMEOUT_S = 300.0

Start = Callable[..., "subprocess.Popen[bytes]"]


def build_directory(toolchain: Path) -> Path:
    """Return the directory of this torch and these sources, inside of a store's ``toolchain``."""
    sources = [hashlib.sha256((_SOURCES / name).read_bytes()).hexdigest() for name in _NAMES]
    made_of = [
        str(torch.__version__),
        torch.version.git_version,
        f"{platform.machine()}-{sys.platform}",
        list(_FLAGS),
        sources,
    ]
    return toolchain / "native" / json_digest(made_of)[:24]


def find(toolchain: Path, compiler: str | None) -> Path | None:
    """Return the library that ``compiler`` built, if it is there and whole.

    Args:
        toolchain: A directory that is ours alone to write: what is found is run.
        compiler: Path of the C++ compiler; ``None`` takes any compiler's library.
    """
    directory = build_directory(toolchain)
    if compiler is not None:
        digest = _compiler_digest(compiler)
        return None if digest is None else _checked(directory / digest)
    found = (_checked(path) for path in sorted(directory.glob("*")) if path.is_dir())
    return next((path for path in found if path is not None), None)


def build(
    toolchain: Path,
    compiler: str,
    *,
    timeout_s: float = BUILD_TIMEOUT_S,
    start: Start = subprocess.Popen,
) -> Path:
    """Return the library, built unless another process has built it meanwhile.

    Args:
        toolchain: Where to keep it; created if missing.
        compiler: Path of the C++ compiler.
        timeout_s: Seconds until the compiler is killed, and that another process is waited for.
        start: Starts the compiler, as ``subprocess.Popen``, in a process group of its own.

    Raises:
        NativePathError: The compiler failed or took too long; or there is no room or no right.
    """
    digest = _compiler_digest(compiler)
    if digest is None:
        raise NativePathError(f"{compiler}: the C++ compiler is gone")
    final = build_directory(toolchain) / digest
    try:
        make_private(final.parent)
        with (
            filelock.FileLock(f"{final}.lock", timeout=timeout_s),
            _scratch(final) as work,
        ):
            found = _checked(final)
            if found is not None:
                return found
            seconds = _compile(compiler, work / LIBRARY_FILE, timeout_s, start)
            record = {
                "sha256": _sha256(work / LIBRARY_FILE),
                "torch": str(torch.__version__),
                "compiler": Path(compiler).name,  # the store has nobody's paths
                "seconds": round(seconds, 1),
            }
            (work / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
            if final.exists():  # Damaged, or it would have been found.
                shutil.rmtree(final)
            # Renamed last: whoever finds the directory finds all of it.
            work.rename(final)
    except filelock.Timeout as error:
        raise NativePathError(
            f"{final}: another process is building the native hit path for {timeout_s:g} s"
        ) from error
    except OSError as error:
        raise NativePathError(
            f"{final}: the native hit path cannot be kept: {error.strerror or error}"
        ) from error
    return final / LIBRARY_FILE


@contextlib.contextmanager
def _scratch(final: Path) -> Iterator[Path]:
    prefix = f".build-{final.name}-"
    for left in final.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)  # Under the lock: its process was killed.
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _compile(
    compiler: str,
    output: Path,
    timeout_s: float,
    start: Start,
) -> float:
    root = Path(torch.__file__).parent
    include = root / "include"
    command = [
        compiler,
        *_FLAGS,
        *([] if "clang" in Path(compiler).resolve().name else ["-fno-gnu-unique"]),
        *(f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"),
        # Messages name the source that they come from, and the library is shipped.
        *(f"-ffile-prefix-map={_SOURCES}=csrc", f"-ffile-prefix-map={include}=include"),
        str(_SOURCES / "native.cpp"),
        *("-o", str(output)),
        # By their names only: the process has them loaded, wherever they lie.
        *(f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]
    nice = shutil.which("nice")
    begun = time.monotonic()
    process = start(
        # Behind the script's own work: nothing waits for it.
        [nice, "-n", "10", *command] if nice else command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Nothing of the compiler's is left in a directory that others can write to.
        env={**os.environ, "TMPDIR": str(output.parent)},
    )
    try:
        _, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.communicate()
        raise NativePathError(
            f"{compiler}: the native hit path is not compiled after {timeout_s:g} s"
        ) from error
    if process.returncode:
        lines = errors.decode(errors="replace").splitlines()
        said = next((line for line in lines if "error" in line), " ".join(lines[-1:]))
        raise NativePathError(
            f"{compiler}: the native hit path cannot be compiled (exit status "
            f"{process.returncode}): {said.strip()}"
        )
    return time.monotonic() - begun


def _checked(directory: Path) -> Path | None:
    """Return a published library whose bytes are those that were built."""
    try:
        record = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
        whole = record["sha256"] == _sha256(directory / LIBRARY_FILE)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return directory / LIBRARY_FILE if whole else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compiler_digest(compiler: str) -> str | None:
    """Return what tells this compiler from another, without starting it; ``None`` if it is gone."""
    path = Path(compiler).resolve()
    try:
        status = path.stat()
    except OSError:
        return None
    return json_digest([str(path), status.st_size, status.st_mtime_ns])[:16]
