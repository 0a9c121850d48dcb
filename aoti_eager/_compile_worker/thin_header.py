"""The parts that all thin kernel libraries share, made once and kept in the store's toolchain.

The header is most of the text that a kernel's compiler reads. A kernel takes half a second with the
precompiled header and two seconds without; precompiling takes five. So the first kernels of an
empty machine are compiled without the header, while it is precompiled. The C interface, equal in
all libraries, is an object of its own. A part is used as long as it matches its record, which is
written last. Worker only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from .._base.cpu import cpu_features
from .._base.file_lock import FileLock
from .._base.recorded_files import are_recorded, write_record
from .._base.scratch_directory import scratch_directory
from .._base.store_format import STUB_FILE, STUB_RECORD
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory
from . import inductor_compat as inductor

HEADER = Path(__file__).parent / "csrc" / "thin_library.h"
INTERFACE = HEADER.with_name("thin_interface.cpp")

# Where headers lie in a store.
_PLACE = ("toolchain", "headers")
# A stub has a few kilobytes.
_STUB_LIMIT = 1 << 20
# Parts that match their record, and with which the compiler fails, are made anew this often in one
# process; then the process compiles without them.
_MOST_DISCARDS = 2

# One thread per header that this process has begun to precompile and has not seen finished.
_builds: dict[Path, threading.Thread] = {}
_discards: Counter[Path] = Counter()


@dataclass(frozen=True, slots=True)
class CommonParts:
    """The parts of one compiler with its flags.

    Attributes:
        header: The file to include; its precompiled form lies beside it.
        interface: The object to link.
    """

    header: Path
    interface: Path


def common_parts(command: list[str], headers: Path) -> CommonParts | None:
    """Return the parts once they have been made; ``None`` until then.

    Args:
        command: The compiler and its flags, without files; each has parts of its own.
        headers: The directory that keeps them.
    """
    header = headers / f"thin-{_digest(command)}.h"
    if not _is_whole(header):
        _begin(command, header)
        if not _is_whole(header):
            return None
    build = _builds.get(header)
    if build is not None and not build.is_alive():
        del _builds[header]  # A header that is damaged or deleted later is made again.
    return CommonParts(header, header.with_suffix(".o"))


def make_parts(command: list[str], headers: Path, timeout_s: float) -> bool:
    """Make the parts unless they are there; return whether they were made.

    Args:
        command: As for ``common_parts``.
        headers: As for ``common_parts``.
        timeout_s: Seconds to wait for another process that is making them.

    Raises:
        CppCompileError: The compiler fails.
        TimeoutError: The other process takes longer.
        OSError: The parts cannot be kept.
    """
    header = headers / f"thin-{_digest(command)}.h"
    if _is_whole(header):
        return False
    with open_directory(headers, create=True) as directory:
        lock = FileLock(directory, f"{header.stem}.lock")
    try:
        lock.acquire(timeout_s)
        _make(command, header)
    finally:
        lock.close()
    return True


def discard_parts(parts: CommonParts) -> None:
    """Remove parts with which the compiler fails."""
    _discards[parts.header] += 1
    with contextlib.suppress(OSError), open_directory(parts.header.parent) as directory:
        _remove_parts(directory, parts.header)


def _digest(command: list[str]) -> str:
    # The compiler does not check whether torch's headers have changed since the precompiling.
    made_of = [
        *(command, inductor.compiler_description()),
        *(str(torch.__version__), torch.version.git_version),
    ]
    if any("native" in flag for flag in command):
        # The store may be moved to another CPU, whose flags say ``native``, too.
        made_of.append(sorted(cpu_features()))
    described = json.dumps(made_of).encode()
    sources = HEADER.read_bytes() + INTERFACE.read_bytes()
    return hashlib.sha256(described + sources).hexdigest()[:24]


def _names(header: Path) -> tuple[str, str, str]:
    """Return the names of the header, its precompiled form and the interface's object."""
    return header.name, f"{header.name}.gch", f"{header.stem}.o"


def _is_whole(header: Path) -> bool:
    try:
        with open_directory(header.parent) as directory:
            return are_recorded(directory, f"{header.stem}.json", _names(header))
    except OSError:
        return False


def _begin(command: list[str], header: Path) -> None:
    if header in _builds or _discards[header] >= _MOST_DISCARDS:
        return
    if any(build.is_alive() for build in _builds.values()):
        return  # One header at a time: each takes a core.
    try:
        with open_directory(header.parent, create=True) as directory:
            lock = FileLock(directory, f"{header.stem}.lock")
        try:
            lock.acquire(0)
        except BaseException:
            lock.close()
            raise
    except OSError:
        return  # Another worker makes the header, or the directory cannot be written to.
    thread = threading.Thread(target=_precompile, args=(command, header, lock))
    thread.daemon = True
    _builds[header] = thread
    thread.start()
    # Another process ended before it had made the header. This process waits for the header:
    # otherwise scripts that end soon would never have one.
    if lock.existed and not _discards[header]:
        thread.join()


def _precompile(command: list[str], header: Path, lock: FileLock) -> None:
    """Make the parts; if that fails, kernels are compiled without them as before."""
    try:
        _make(command, header)
    except (OSError, inductor.CppCompileError):
        pass
    finally:
        lock.close()


def _make(command: list[str], header: Path) -> None:
    """Make the parts, under their lock."""
    with (
        open_directory(header.parent) as directory,
        scratch_directory(directory, header.stem.removeprefix("thin-"), *_PLACE) as work,
    ):
        # Another process may have made them before we had the lock.
        if _is_whole(header):
            return
        _remove_parts(directory, header)
        text, compiled, interface = _names(header)
        # At the header's final place: code names the file that it comes from.
        directory.write(text, HEADER.read_bytes())
        # Not in the kernel's work directory, which may be removed earlier.
        environment = {**os.environ, "TMPDIR": str(work.path)}
        for part, what in (
            (interface, ("-c", str(INTERFACE))),
            (compiled, ("-x", "c++-header", str(header))),
        ):
            call_compiler([*command, *what, "-o", str(work.path / part)], environment)
            os.chmod(part, 0o600, dir_fd=work.fd)
        for part in (interface, compiled):
            os.rename(part, part, src_dir_fd=work.fd, dst_dir_fd=directory.fd)
        # The record last: without it, the other files are not used.
        write_record(directory, f"{header.stem}.json", _names(header))


def _remove_parts(directory: Directory, header: Path) -> None:
    # The record first: without it, remaining files are not used.
    for name in (f"{header.stem}.json", *_names(header)):
        remove(directory, name, base=_PLACE)


# --- the stub ------------------------------------------------------------------------------------


def stub_library(compiler: str, headers: Path, work: Path) -> Path:
    """Return the directory of an empty library with the name of torch's, to link against.

    Args:
        compiler: The compiler that makes the stub.
        headers: The directory that keeps the stub.
        work: A directory for this compile alone.

    Raises:
        CppCompileError: The stub cannot be made.
    """
    stub = headers / "stub"
    try:
        with open_directory(stub, create=True) as directory:
            if not are_recorded(directory, STUB_RECORD, [STUB_FILE]):
                made = make_stub(compiler, work)
                discard_stub(headers)
                with open_directory(made) as fresh:
                    directory.write(STUB_FILE, fresh.read(STUB_FILE, _STUB_LIMIT))
                write_record(directory, STUB_RECORD, [STUB_FILE])
    except OSError:
        return make_stub(compiler, work)  # The stub cannot be kept.
    return stub


def make_stub(compiler: str, work: Path) -> Path:
    """Return the directory of a stub in ``work``; arguments and errors as for ``stub_library``."""
    directory = work / "stub"
    directory.mkdir(mode=0o700, exist_ok=True)
    stub = directory / STUB_FILE
    soname = f"-Wl,-soname,{STUB_FILE}"
    call_compiler([compiler, "-shared", "-x", "c++", os.devnull, soname, "-o", str(stub)])
    stub.chmod(0o600)
    return directory


def discard_stub(headers: Path) -> None:
    """Remove the stub that ``headers`` keeps."""
    with contextlib.suppress(OSError), open_directory(headers) as directory:
        for name in (STUB_RECORD, STUB_FILE):
            remove(directory, "stub", name, base=_PLACE)


# --- the compiler --------------------------------------------------------------------------------


def call_compiler(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run the compiler; only the user may access the files that it writes.

    Raises:
        CppCompileError: The compiler failed; the error has its output.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, umask=0o077
    )
    if done.returncode:
        said = done.stderr
        if done.returncode < 0:
            said += f"\n{signal.strsignal(-done.returncode)} signal terminated {command[0]}"
        raise inductor.CppCompileError(command, said)
