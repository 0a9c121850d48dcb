"""What a shared object's ELF headers say before it is opened.

``dlopen`` reports "No such file" for a file of another architecture, and a truncated file ends the
process with SIGBUS. The headers tell both cases beforehand.
"""

from __future__ import annotations

import platform
import re
import stat
import struct
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass
from ..errors import LibraryLoadError

# Functions that a library for the device calls, and libraries for other devices do not.
_DEVICE_SYMBOLS = (
    ("cuda", r"(cuda[A-Z]|cu[A-Z]|hip[A-Z]|aoti_torch_\w*cuda_(?!is_built))"),
    ("xpu", r"(zeModule|zeKernel|_ZN4sycl|aoti_torch_\w*(xpu|sycl)_)"),
    ("mps", r"aoti_torch_mps_"),
)
# Called by every library, whatever its device: these functions only return a number.
_DEVICE_TYPE_QUESTION = r"aoti_torch_device_type_\w+$"

_MACHINES = {
    "EM_X86_64": "x86_64",
    "EM_AARCH64": "aarch64",
    "EM_386": "i386",
    "EM_ARM": "arm",
    "EM_PPC64": "ppc64",
    "EM_S390": "s390x",
    "EM_RISCV": "riscv",
}
_UNDEFINED = 0  # SHN_UNDEF
_HOST_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "ppc64le": "ppc64", "riscv64": "riscv"}


@dataclass(frozen=True, slots=True)
class LibraryFile:
    """A shared object that can be opened here.

    Attributes:
        device_type: The device type its code runs on, as far as its imports tell: ``"cpu"``,
            ``"cuda"``, ``"xpu"`` or ``"mps"``.
        needs_proxy_executor: Whether it calls ops that have no C shim.
        exports: The functions and data it defines for other libraries.
    """

    device_type: str
    needs_proxy_executor: bool
    exports: frozenset[str]


def inspect_library_file(path: Path) -> LibraryFile:
    """Return what the headers of the shared object at ``path`` say.

    Raises:
        LibraryLoadError: It is missing, a directory, no ELF file, no shared object, of another
            architecture, or truncated.
    """
    # Imported on the first load: nothing else in the package reads ELF files.
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise LibraryLoadError(
                path, "is a directory; a kernel library (.so) or a .pt2 package is wanted"
            )
        if not stat.S_ISREG(status.st_mode):  # to open a pipe is to wait for its other end
            raise LibraryLoadError(path, "is no regular file")
        size = status.st_size
        with path.open("rb") as file:
            try:
                elf = ELFFile(file)
                _check_header(path, elf)
                _check_size(path, elf, size)
                imports, exports = _dynamic_symbols(elf)
            except ELFError as error:
                raise LibraryLoadError(path, _not_elf(path, size, error)) from error
            except LibraryLoadError:
                raise
            except Exception as error:
                # A damaged file can make the parser raise anything.
                raise LibraryLoadError(path, f"is a damaged ELF file: {error!r}") from error
    except LibraryLoadError:
        raise
    except OSError as error:
        raise LibraryLoadError(path, f"cannot be read: {error.strerror}") from error
    names = [name for name in imports if not re.match(_DEVICE_TYPE_QUESTION, name)]
    device_type = next(
        (
            device
            for device, calls in _DEVICE_SYMBOLS
            if any(re.match(calls, name) for name in names)
        ),
        "cpu",
    )
    return LibraryFile(
        device_type=device_type,
        needs_proxy_executor="aoti_torch_proxy_executor_call_function" in imports,
        exports=frozenset(exports),
    )


def _check_header(path: Path, elf: Any) -> None:
    if elf.elfclass != 64:
        raise LibraryLoadError(path, f"is an ELF file of {elf.elfclass} bits; 64 are supported")
    if elf["e_type"] != "ET_DYN":
        raise LibraryLoadError(path, f"is an ELF file but no shared object ({elf['e_type']})")
    machine = _MACHINES.get(elf["e_machine"], str(elf["e_machine"]))
    host = platform.machine().lower()
    host = _HOST_NAMES.get(host, host)
    if machine != host:
        raise LibraryLoadError(path, f"was built for {machine}, and this machine is {host}")


def _check_size(path: Path, elf: Any, size: int) -> None:
    ends = [segment["p_offset"] + segment["p_filesz"] for segment in elf.iter_segments()]
    # The section table is last in the file. The loader does not map it, but without it the file
    # was cut.
    ends.append(elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"])
    if max(ends) > size:
        raise LibraryLoadError(
            path, f"is truncated: its headers speak of {max(ends)} bytes, it has {size}"
        )


def _dynamic_symbols(elf: Any) -> tuple[set[str], set[str]]:
    """Return the names that a library imports and the names that it exports."""
    imports: set[str] = set()
    exports: set[str] = set()
    # Elf64_Sym: name, info, other, section, value, size. elftools' own loop makes an object of each
    # of thousands of symbols and takes most of a second.
    entry = struct.Struct(("<" if elf.little_endian else ">") + "IBBHQQ")
    for segment in elf.iter_segments("PT_DYNAMIC"):
        (names_size,) = (tag["d_val"] for tag in segment.iter_tags("DT_STRSZ"))
        names = _read(elf, segment.get_table_offset("DT_STRTAB")[1], names_size)
        symbols_size = segment.num_symbols() * entry.size
        symbols = _read(elf, segment.get_table_offset("DT_SYMTAB")[1], symbols_size)
        for start, _, _, section, _, _ in entry.iter_unpack(symbols):
            name = names[start : names.index(b"\0", start)].decode()
            (imports if section == _UNDEFINED else exports).add(name)
    return imports, exports


def _read(elf: Any, offset: int, size: int) -> bytes:
    elf.stream.seek(offset)
    content: bytes = elf.stream.read(size)
    return content


def _not_elf(path: Path, size: int, error: Exception) -> str:
    if size == 0:
        return "is empty; a kernel library (.so) or a .pt2 package is wanted"
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"\x7fELF":
        return f"is a damaged or truncated ELF file: {error}"
    if magic == b"PK\x03\x04":
        return "is a damaged or truncated .pt2 package: the zip archive has no end"
    return "is no shared object; a kernel library (.so) or a .pt2 package is wanted"
