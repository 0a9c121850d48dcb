"""The C++ hit path's library: built once by the compiler that makes kernels, kept in the store.

The library lies in the store's ``toolchain``. Each version of torch and of the sources has a
directory, with a directory for each compiler inside. The library contains no path and does not
depend on Python, so a machine without a compiler can use a library that another machine built::

    toolchain/native/<torch and sources>/<compiler>/{native.so, native.json}

A wheel can carry libraries, in directories of the same names below ``_carried``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .._base.digest import json_digest
from .._base.file_lock import locked
from .._base.printable import printable
from .._base.scratch_directory import scratch_directory
from .._base.sealed_library import LIBRARY_LIMIT
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory
from ..errors import NativePathError, UntrustedFileError
from .library import NativeFile

_SOURCES = Path(__file__).parent / "csrc"
# What the compiler is started with, each on a core of its own: two take about equally long. More
# would read torch's headers, half of the work, once more each.
_UNITS = ("native", "beside_ops")
# The libraries that a wheel carries; hatch_build.py puts them there.
CARRIED = Path(__file__).parents[1] / "_carried"
LIBRARY_FILE, RECORD_FILE = "native.so", "native.json"

# No flags for this CPU alone: a machine with another CPU may use the same store.
_FLAGS = (
    *("-std=c++20", "-O2", "-g0", "-w", "-fPIC"),
    # As torch is built: without it, some of torch's classes have members that torch does not set.
    "-DNDEBUG",
    # No symbols that could clash with another library's.
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    # Torch's headers then include only the ops that they use and not all 3,000, which saves half of
    # the compiler's time.
    "-DAT_PER_OPERATOR_HEADERS",
)

_FLAGS_OF_GCC = (
    # Unique symbols would keep the library from being closed.
    "-fno-gnu-unique",
    # Fewer garbage collections in gcc: they take a tenth of its time and free next to nothing.
    *("--param", "ggc-min-expand=1000", "--param", "ggc-min-heapsize=1048576"),
)

BUILD_TIMEOUT_S = 300.0
# A lock file is made before it is locked: a lock file younger than this, in seconds, may belong to
# a process that is just beginning to build.
_BEGINNING_S = 5.0

_RECORD_LIMIT = 1 << 16  # bytes; a longer record is not read

_LINKED = ("-ltorch_cpu", "-lc10")
# The path of a toolchain in a store.
_BASE = ("toolchain",)
_DIGEST = "[0-9a-f]{16}"

Start = Callable[..., "subprocess.Popen[bytes]"]


def build_directory(toolchain: Path) -> Path:
    """Return the directory for this torch and these sources in a store's ``toolchain``."""
    sources = {name: _digest_of(os.path.join(_SOURCES, name)) for name in source_names()}
    made_of = [
        str(torch.__version__),
        torch.version.git_version,
        f"{platform.machine()}-{sys.platform}",
        [*_FLAGS, *_FLAGS_OF_GCC, *_LINKED],
        list(_UNITS),
        sources,
    ]
    return toolchain / "native" / json_digest(made_of)[:24]


def source_names() -> list[str]:
    """Return the names of all source files in ``csrc``, from which the library is made."""
    return sorted(name for name in os.listdir(_SOURCES) if name.endswith((".h", ".cpp")))


def _digest_of(path: str) -> str:
    # Without pathlib, which takes a process's first call ten times as long as the reading.
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def find(toolchain: Path, compiler: str | None) -> NativeFile | None:
    """Return the library that ``compiler`` built, if it exists, is undamaged and can be trusted.

    Args:
        toolchain: The directory of that name in a store.
        compiler: Path of the C++ compiler; ``None`` takes any compiler's library.
    """
    try:
        with open_directory(build_directory(toolchain)) as directory:
            if compiler is not None:
                digest = _compiler_digest(compiler)
                return None if digest is None else _checked(directory, digest)
            found = (_checked(directory, name) for name in sorted(directory.names()))
            return next((file for file in found if file is not None), None)
    except OSError:
        return None


def find_carried() -> NativeFile | None:
    """Return the library for this torch that came with the package, if it can be trusted."""
    return find(CARRIED, None) if CARRIED.is_dir() else None


def carried_for() -> list[str]:
    """Return the versions of torch for which the package came with a library, for a message.

    The versions are not used to choose a library: two builds of torch may have the same version.
    """
    versions = set()
    for record in CARRIED.glob(f"native/*/*/{RECORD_FILE}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            versions.add(printable(str(json.loads(record.read_bytes()[:_RECORD_LIMIT])["torch"])))
    return sorted(versions)


def was_cut_off(toolchain: Path, compiler: str) -> bool:
    """Return whether a build by ``compiler`` was begun, has not ended, and no process is at it.

    Args:
        toolchain: The directory of that name in a store.
        compiler: Path of the C++ compiler.
    """
    digest = _compiler_digest(compiler)
    name = f"{digest}.lock"
    try:
        with open_directory(build_directory(toolchain)) as directory:
            if name not in directory.names():
                return False
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            if abs(time.time() - status.st_mtime) < _BEGINNING_S:
                return False
            with locked(directory, name, 0):
                return True
    except OSError:
        return False  # Another process builds.


def build(
    toolchain: Path,
    compiler: str,
    *,
    timeout_s: float = BUILD_TIMEOUT_S,
    start: Start = subprocess.Popen,
) -> NativeFile:
    """Return the library, built unless another process has built it meanwhile.

    Args:
        toolchain: The directory of that name in a store, to keep the library in; created if
            missing.
        compiler: Path of the C++ compiler.
        timeout_s: Seconds until the compiler is killed; also seconds to wait for another process
            that builds.
        start: Starts the compiler, as ``subprocess.Popen``, in a process group of its own.

    Raises:
        NativePathError: The compiler failed or took too long, another process builds for too long,
            or there is no room or no permission.
    """
    digest = _compiler_digest(compiler)
    if digest is None:
        raise NativePathError(f"{compiler}: the C++ compiler is gone")
    final = build_directory(toolchain) / digest
    names = ("native", final.parent.name)
    try:
        with (
            open_directory(toolchain, create=True) as root,
            root.descend(*names, create=True) as directory,
            locked(directory, f"{digest}.lock", timeout_s),
            scratch_directory(directory, digest, *_BASE, *names) as work,
        ):
            found = _checked(directory, digest)
            if found is not None:
                return found
            seconds = _compile(compiler, work.path / LIBRARY_FILE, timeout_s, start)
            content = work.read(LIBRARY_FILE, LIBRARY_LIMIT)
            sha256 = hashlib.sha256(content).hexdigest()
            record = _record(sha256, len(content), compiler, seconds)
            work.write(RECORD_FILE, json.dumps(record, indent=1).encode())
            os.chmod(LIBRARY_FILE, 0o600, dir_fd=work.fd)
            # A directory of this name is damaged: ``_checked`` would have returned it otherwise.
            remove(root, *names, digest, base=_BASE)
            # Renamed last: a reader who finds the directory finds all of its files.
            os.rename(work.path.name, digest, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
    except TimeoutError as error:
        raise NativePathError(
            f"{final}: another process is building the native hit path for {timeout_s:g} s"
        ) from error
    except OSError as error:
        raise NativePathError(
            f"{final}: the native hit path cannot be kept: {error.strerror or error}"
        ) from error
    return NativeFile(final / LIBRARY_FILE, sha256, content)


def _record(sha256: str, size_bytes: int, compiler: str, seconds: float) -> dict[str, object]:
    """Return what is kept beside a library: its digest, and facts for a reader."""
    return {
        "sha256": sha256,
        "size_bytes": size_bytes,
        "torch": str(torch.__version__),
        "torch_build": torch.version.git_version,
        "platform": f"{platform.machine()}-{sys.platform}",
        "compiler": Path(compiler).name,  # No path: the store may be given to others.
        "seconds": round(seconds, 1),
    }


def _compile(
    compiler: str,
    output: Path,
    timeout_s: float,
    start: Start,
) -> float:
    begun = time.monotonic()
    process = start(
        ["/bin/sh", "-c", _script(compiler, output)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        umask=0o077,
        # The compiler's temporary files must not lie in a directory that others can write to.
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
    except BaseException:  # Ctrl-C does not reach the compiler, which has a session of its own.
        # With a return code, the number may belong to another process by now.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, 9)
        process.wait()
        raise
    if process.returncode:
        lines = errors.decode(errors="replace").splitlines()
        said = next((line for line in lines if "error" in line), " ".join(lines[-1:]))
        raise NativePathError(
            f"{compiler}: the native hit path cannot be compiled (exit status "
            f"{process.returncode}): {said.strip()}"
        )
    for name in _UNITS:
        output.with_name(f"{name}.o").unlink(missing_ok=True)
    return time.monotonic() - begun


def _script(compiler: str, output: Path) -> str:
    """Return a shell's script that compiles all units at once and links them.

    The shell leads the compilers' process group: by its number all of them are slowed down and
    ended. It waits for each, also where one fails: none outlives it.
    """
    root = Path(torch.__file__).parent
    include = root / "include"
    flags = (
        *_FLAGS,
        *(() if "clang" in Path(compiler).resolve().name else _FLAGS_OF_GCC),
        *(f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"),
        # Messages name their source file, and this machine's paths must not be shipped.
        *(f"-ffile-prefix-map={_SOURCES}=csrc", f"-ffile-prefix-map={include}=include"),
    )
    objects = [str(output.with_name(f"{name}.o")) for name in _UNITS]
    # Where memory runs out, the system is to end the compilers, and not the script.
    lines = ["{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null || :"]
    for name, unit in zip(_UNITS, objects, strict=True):
        command = (compiler, *flags, "-c", str(_SOURCES / f"{name}.cpp"), "-o", unit)
        lines.append(f"{shlex.join(command)} & {name}=$!")
    lines += [f"wait ${name}; {name}=$?" for name in _UNITS]
    lines += [f'[ "${name}" = 0 ] || exit "${name}"' for name in _UNITS]
    link = (
        *(compiler, "-shared", *objects, "-o", str(output)),
        # Linked by name only: the process has loaded these libraries, wherever they lie.
        *(f"-L{root / 'lib'}", *_LINKED),
    )
    return "\n".join([*lines, f"exec {shlex.join(link)}"])


def _checked(directory: Directory, digest: str) -> NativeFile | None:
    """Return a published library, or ``None`` if its bytes are not those that were built."""
    if not re.fullmatch(_DIGEST, digest):
        return None
    try:
        with directory.directory(digest) as found:
            return check_native(found)
    except OSError:
        return None


def check_native(found: Directory) -> NativeFile:
    """Return the library in a directory that ``build`` has published.

    Raises:
        FileNotFoundError: The library or its record is missing.
        UntrustedFileError: The library is not what was built, or others could have written it.
        OSError: The library cannot be read.
    """
    document = found.read(RECORD_FILE, _RECORD_LIMIT)
    try:
        sha256 = str(json.loads(document)["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UntrustedFileError(found.path / RECORD_FILE, "is no record of a library") from None
    content = found.read(LIBRARY_FILE, LIBRARY_LIMIT)
    path = found.path / LIBRARY_FILE
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UntrustedFileError(path, "is not the file that its record is of")
    return NativeFile(path, sha256, content)


def _compiler_digest(compiler: str) -> str | None:
    """Return a digest that tells this compiler from another; ``None`` if the compiler is gone.

    The compiler is not started: path, size and time of the last change are enough.
    """
    path = Path(compiler).resolve()
    try:
        status = path.stat()
    except OSError:
        return None
    return json_digest([str(path), status.st_size, status.st_mtime_ns])[:16]
