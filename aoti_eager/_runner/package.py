"""Unpack a ``.pt2`` package of AOTInductor's: the library and the files that lie beside it.

A package is unpacked once per process, and its files stay until the process ends: an opened library
stays mapped, and the same library opened from another file would be mapped again.

A few megabytes of an archive can unpack to any number of gigabytes, so the unpacked size has
limits. The archive's tables are checked before anything is written, and the bytes are counted while
they are written, because the tables may lie.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import torch

from .._base.cpu import cpu_features
from ..errors import LibraryLoadError

_MODELS = "data/aotinductor/"

# AOTInductor's names of instruction sets -> the Linux kernel's names of CPU features.
_CPU_FEATURES = {
    "AVX2": ("avx2", "fma"),
    "AVX512": ("avx512f", "avx512dq", "avx512bw", "avx512vl"),
    "AVX512_VNNI": ("avx512_vnni",),
    "AMX": ("amx_tile",),
}


# torch writes packages without compression, and reads them with a library that knows these two.
# zipfile's other methods have no bound on the memory that one block takes.
_COMPRESSIONS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate"}
# Any package may unpack to the first size. Beyond it, the ratio is the limit: weights that compress
# well become a tenth of their size.
_SMALL_BYTES = 64 << 20
_MOST_RATIO = 50
# A package for a GPU has one file for each kernel.
_MOST_MEMBERS = 16_384
_LONGEST_METADATA = 1 << 20
# zipfile reads the table of contents at once. A table of _MOST_MEMBERS long names is shorter.
_LONGEST_READ = 16 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """One model of a package, unpacked.

    Attributes:
        library: The shared object.
        directory: Where the library and its files lie; also the directory of GPU binaries.
        weights: The file of the constants, if they are not in the library.
        metadata: What the compiler noted: device, platform, instruction set.
    """

    library: Path
    directory: Path
    weights: Path | None
    metadata: dict[str, str]


def is_package(path: Path) -> bool:
    """Return whether the file at ``path`` is a zip archive, as packages are."""
    try:
        return path.is_file() and zipfile.is_zipfile(path)
    except OSError:
        return False


def unpack(path: Path, model_name: str) -> Package:
    """Return the model ``model_name`` of the package at ``path``.

    Raises:
        LibraryLoadError: The package is damaged, has no such model, has no library for the model,
            or would unpack to more than is plausible or than there is room for. Nothing is left
            behind.
    """
    status = path.stat()
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, model_name)
    with _lock:
        found = _unpacked.get(identity)
        if found is None or not found.library.exists():
            found = _unpacked[identity] = _unpack(path, model_name)
        return found


def check_metadata(path: Path, package: Package, device: torch.device) -> None:
    """Raise if the package was compiled for another device or machine, as its metadata tells."""
    said = package.metadata
    built_for = said.get("AOTI_DEVICE_KEY", device.type)
    if built_for != device.type:
        raise LibraryLoadError(path, f"was compiled for {built_for}, and device is {str(device)!r}")
    system = said.get("AOTI_PLATFORM", sys.platform)
    if system != sys.platform:
        raise LibraryLoadError(path, f"was compiled for {system}, and this is {sys.platform}")
    machine = said.get("AOTI_MACHINE", platform.machine())
    if machine != platform.machine():
        raise LibraryLoadError(
            path, f"was compiled for {machine}, and this machine is {platform.machine()}"
        )
    features = cpu_features()
    if device.type != "cpu" or not any(name in features for name in ("sse2", "asimd")):
        return
    wanted = said.get("AOTI_CPU_ISA", "").split()
    lacking = [n for isa in wanted for n in _CPU_FEATURES.get(isa, ()) if n not in features]
    if lacking:
        raise LibraryLoadError(
            path,
            f"was compiled for {' '.join(wanted)}, and this CPU lacks {', '.join(lacking)}",
        )


def _unpack(path: Path, model_name: str) -> Package:
    directory = Path(tempfile.mkdtemp(prefix="aoti-eager-"))
    try:
        package = _unpack_into(path, model_name, directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    _directories.append((os.getpid(), directory))
    return package


def _unpack_into(path: Path, model_name: str, directory: Path) -> Package:
    try:
        with _Archive(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(path, archive, model_name)
            left = _check_sizes(path, [info for info, _ in members], directory)
            for member, name in members:
                with archive.open(member) as source, open(directory / name, "wb") as target:
                    limited = _Limited(source, left)
                    shutil.copyfileobj(limited, target, 1 << 20)
                    left = limited.left
            if left:
                raise zipfile.BadZipFile("it has fewer bytes than its table of contents says")
    except LibraryLoadError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        # RuntimeError: the archive is encrypted, or its compression is unknown to zipfile.
        raise LibraryLoadError(path, f"is a damaged package: {error}") from error
    except OSError as error:
        raise LibraryLoadError(path, f"cannot be unpacked into {directory}: {error}") from error
    libraries = sorted(directory.glob("*.so"))
    if len(libraries) != 1:
        raise LibraryLoadError(
            path,
            f"model {model_name!r} has {len(libraries)} libraries, one is wanted; compile it "
            "without aot_inductor.package_cpp_only",
        )
    library = libraries[0]
    return Package(
        library=library,
        directory=directory,
        weights=next(iter(sorted(directory.glob("*_weights.blob"))), None),
        metadata=_metadata(path, library),
    )


def _members(
    path: Path, archive: zipfile.ZipFile, model_name: str
) -> list[tuple[zipfile.ZipInfo, str]]:
    """Return the archive's members of one model, each with its name in the model's directory."""
    members: dict[str, list[tuple[zipfile.ZipInfo, str]]] = {}
    for info in archive.infolist():
        # Everything lies below a folder that is named for the package.
        _, _, inner = info.filename.partition("/")
        if inner.startswith(_MODELS) and not info.is_dir():
            model, _, name = inner.removeprefix(_MODELS).partition("/")
            # Only the last part, so that a name cannot lead out of the directory.
            members.setdefault(model, []).append((info, PurePosixPath(name).name))
    if model_name not in members:
        has = f"it has {', '.join(map(repr, sorted(members)))}" if members else "it has none"
        raise LibraryLoadError(path, f"has no AOTInductor model {model_name!r}; {has}")
    found = members[model_name]
    seen: set[str] = set()
    for _, name in found:
        if name in seen:
            # One would overwrite the other, and the library might read the wrong one.
            raise LibraryLoadError(
                path,
                f"its model has two files called {name!r}, and all files of a model lie side by "
                "side; make the package again by torch's aoti_compile_and_package",
            )
        seen.add(name)
    return found


def _check_sizes(path: Path, members: list[zipfile.ZipInfo], directory: Path) -> int:
    """Return how many bytes ``members`` become in ``directory``, by the archive's tables.

    Raises:
        LibraryLoadError: The members exceed a limit; the message says which.
    """
    if len(members) > _MOST_MEMBERS:
        raise LibraryLoadError(
            path, f"its model has {len(members)} files; up to {_MOST_MEMBERS} are allowed"
        )
    unknown = {member.compress_type for member in members} - _COMPRESSIONS.keys()
    if unknown:
        raise LibraryLoadError(
            path,
            f"is compressed by zip's method {min(unknown)}; {' and '.join(_COMPRESSIONS.values())} "
            "are supported, so make the package again by torch's aoti_compile_and_package",
        )
    wanted = sum(member.file_size for member in members)
    packed = path.stat().st_size
    allowed = max(_SMALL_BYTES, _MOST_RATIO * packed)
    if wanted > allowed:
        raise LibraryLoadError(
            path,
            f"would become {_mib(wanted)} from {_mib(packed)}; {_mib(allowed)} are allowed, which "
            f"is {_MOST_RATIO} times the package or {_mib(_SMALL_BYTES)}; if you trust it, pack it "
            "again without compression (zip -0)",
        )
    free = shutil.disk_usage(directory).free
    if wanted > free:
        raise LibraryLoadError(
            path,
            f"would become {_mib(wanted)}, and {directory.parent} has {_mib(free)} free; make room "
            "there, or set TMPDIR to a directory with more",
        )
    return wanted


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"


class _Archive(io.FileIO):
    """The package's file; one read never takes more than is plausible."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LONGEST_READ:
            raise zipfile.BadZipFile(f"its table of contents has {size} bytes")
        content = super().read(_LONGEST_READ if size is None or size < 0 else size)
        assert content is not None, "a regular file blocks"
        return content


class _Limited:
    """A stream that ends with an error where it has more than ``left`` bytes."""

    def __init__(self, source: IO[bytes], left: int) -> None:
        self._source = source
        self.left = left

    def read(self, size: int = -1, /) -> bytes:
        content = self._source.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise zipfile.BadZipFile("it has more bytes than its table of contents says")
        return content


def _metadata(path: Path, library: Path) -> dict[str, str]:
    file = library.with_name(f"{library.stem}_metadata.json")
    try:
        with file.open("rb") as opened:
            content = opened.read(_LONGEST_METADATA + 1)
        if len(content) > _LONGEST_METADATA:
            raise ValueError(f"it has more than {_LONGEST_METADATA} bytes")
        values = json.loads(content)
        return {str(name): str(value) for name, value in values.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise LibraryLoadError(path, f"its {file.name} is damaged: {error}") from error


_lock = threading.Lock()
_unpacked: dict[tuple[object, ...], Package] = {}
_directories: list[tuple[int, Path]] = []


@atexit.register
def _remove_directories() -> None:
    for pid, directory in _directories:
        if pid == os.getpid():  # not a forked child's to remove
            shutil.rmtree(directory, ignore_errors=True)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
