"""An opened kernel library: AOTInductor's C functions, with errors as exceptions.

Calls go through ctypes, which releases the GIL during each call.
"""

from __future__ import annotations

import ctypes
import functools
import os
from _ctypes import dlclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.sealed_library import SealedLibrary
from .._base.torch_compat.aotinductor import is_in_interface
from ..errors import (
    LibraryLoadError,
    LibraryRunError,
    MissingSymbolError,
    RunnerError,
)
from .tensor_handles import last_torch_error

if TYPE_CHECKING:
    from .elf import LibraryFile

_HANDLE = ctypes.c_void_p
_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_BOOL = ctypes.c_bool
_TEXT = ctypes.c_char_p

# name -> argument types. Every function returns an error code.
CONTAINER = "AOTInductorModelContainer"
MODEL = "AOTInductorModel"
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    f"{CONTAINER}CreateWithDevice": (_POINTER, _SIZE, _TEXT, _TEXT),
    f"{CONTAINER}Delete": (_HANDLE,),
    f"{CONTAINER}Run": (_HANDLE, _POINTER, _SIZE, _POINTER, _SIZE, _HANDLE, _HANDLE),
    f"{CONTAINER}RunSingleThreaded": (
        _HANDLE,
        _POINTER,
        _SIZE,
        _POINTER,
        _SIZE,
        _HANDLE,
        _HANDLE,
    ),
    f"{CONTAINER}GetNumInputs": (_HANDLE, _POINTER),
    f"{CONTAINER}GetInputName": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}GetNumOutputs": (_HANDLE, _POINTER),
    f"{CONTAINER}GetOutputName": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}GetCallSpec": (_HANDLE, _POINTER, _POINTER),
    f"{CONTAINER}GetNumConstants": (_HANDLE, _POINTER),
    f"{CONTAINER}GetConstantName": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}GetConstantOriginalFQN": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}GetConstantFromFolded": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}GetConstantType": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}GetConstantDtype": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}GetConstantDataSize": (_HANDLE, _SIZE, _POINTER),
    f"{CONTAINER}ExtractConstantsMapEntries": (_HANDLE, _POINTER, _POINTER, _BOOL),
    f"{CONTAINER}UpdateConstantBufferPairs": (_HANDLE, _POINTER, _SIZE, _BOOL, _BOOL),
    f"{CONTAINER}UpdateUserManagedConstantBufferPairs": (_HANDLE, _POINTER, _SIZE, _BOOL, _BOOL),
    f"{CONTAINER}RunConstantFolding": (_HANDLE, _BOOL, _HANDLE, _HANDLE),
    f"{CONTAINER}SwapConstantBuffer": (_HANDLE,),
    f"{CONTAINER}FreeInactiveConstantBuffer": (_HANDLE,),
    f"{MODEL}CreateV2": (_POINTER, _POINTER, _SIZE),
    f"{MODEL}Run": (_HANDLE, _POINTER, _POINTER),
    f"{MODEL}UpdateConstantsMapV2": (_HANDLE, _POINTER, ctypes.c_int32),
    f"{MODEL}Delete": (_HANDLE,),
}
# Changing constants by C functions takes these; a library of torch 2.12 lacks them.
CONSTANTS_FUNCTIONS = (
    f"{CONTAINER}ExtractConstantsMapEntries",
    f"{CONTAINER}UpdateConstantBufferPairs",
)
# Exported only by libraries whose constants lie in a separate file.
BLOB_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    f"{CONTAINER}GetConstantsBlobSize": (_HANDLE, _POINTER),
    f"{MODEL}UpdateConstantsFromBlob": (_HANDLE, _POINTER),
}
LAST_ERROR = "AOTInductorGetLastError"
CONTAINER_FUNCTIONS = tuple(name for name in FUNCTIONS if name.startswith(CONTAINER))
MODEL_FUNCTIONS = tuple(name for name in FUNCTIONS if not name.startswith(CONTAINER))

# Exported by the cache's thin libraries, for the C++ hit path.
BORROWING_RUN = "aoti_eager_run"

# Exported by libraries that have a model and no container: what they take and give, as JSON.
MANIFEST = "aoti_eager_manifest"


class NamedHandle(ctypes.Structure):
    """``AOTInductorConstantMapEntry``: a constant's name and a tensor handle."""

    _fields_ = (("name", ctypes.c_char_p), ("handle", ctypes.c_void_p))


class KernelLibrary:
    """An opened kernel library.

    Args:
        path: A shared object.
        inspect: Whether to read the file's headers before the file is opened. Not needed for a
            file whose digest was checked.
        device_type: The device type that the library must be for, as far as its headers tell.
        name: The library's name in messages; the file of a package's library is named by a digest.
        sealed: A private copy of the file; the copy is opened in place of the file.

    Attributes:
        path, name: The library's file, and its name in messages.
        file: What the headers say; ``None`` if they were not read.
        identity: Device and inode. Opening the same file again gives the same library.

    Raises:
        LibraryLoadError: The file cannot be opened on this machine, or is no shared object.
        MissingSymbolError: The file is no kernel library; the error names the missing functions.
    """

    def __init__(
        self,
        path: Path,
        *,
        inspect: bool = True,
        device_type: str | None = None,
        name: str | None = None,
        sealed: SealedLibrary | None = None,
    ) -> None:
        self.path = path
        self.name = path.name if name is None else name
        self.file = _inspected(path) if inspect else None
        self.has_container = True
        if self.file is not None:
            # A thin library of the cache exports the container's functions for torch's own runner,
            # with no container behind them; the library's manifest says more.
            exports = self.file.exports
            self.has_container = (
                f"{CONTAINER}CreateWithDevice" in exports and MANIFEST not in exports
            )
            # Checked before the library is opened: opening a library runs its constructors.
            _check_exports(path, self.file, self.has_container)
            built_for = self.file.device_type
            if device_type not in (None, built_for):
                raise LibraryLoadError(
                    path, f"is a library for {built_for}, and device is {device_type!r}"
                )
        self.identity = _identity(path) if sealed is None else sealed.identity
        try:
            self._library = ctypes.CDLL(os.fspath(path) if sealed is None else sealed.name)
        except OSError as error:
            raise LibraryLoadError(path, f"cannot be opened: {error}") from error
        # A library of torch 2.12 prints its message, and does not keep it.
        self._last_error = getattr(self._library, LAST_ERROR, None)
        if self._last_error is not None:
            self._last_error.argtypes = [ctypes.c_void_p]

    @functools.cached_property
    def manifest(self) -> bytes:
        """Return the document behind ``aoti_eager_manifest``."""
        # A C string: from its first byte to the first zero.
        return ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(self._library, MANIFEST)))

    def function(self, name: str) -> Any:
        """Return a C function, ready to be called; its result is the error code."""
        function = getattr(self._library, name)
        function.argtypes = FUNCTIONS.get(name) or BLOB_FUNCTIONS[name]
        function.restype = ctypes.c_int32
        return function

    def has(self, name: str) -> bool:
        """Return whether the library exports a function of that name."""
        return hasattr(self._library, name)

    def address(self, name: str) -> int:
        """Return the address of a C function, 0 if there is none; valid until ``close``."""
        function = getattr(self._library, name, None)
        return 0 if function is None else int(ctypes.cast(function, ctypes.c_void_p).value or 0)

    def check(self, code: int, doing: str) -> None:
        """Raise the library's own message if ``code``, the result of a call just made, is an error.

        Check on the thread that made the call, before its next call: the message is thread-local.

        Raises:
            LibraryRunError: ``code`` is not zero.
        """
        if code != 0:
            raise self.error(doing, self.last_error())

    def error(self, doing: str, message: str) -> LibraryRunError:
        """Return the error of a call that failed with the library's ``message``."""
        return LibraryRunError(f"{self.name}: {doing} failed: {message}", message)

    def call(self, name: str, doing: str, *arguments: Any) -> None:
        """Call a C function.

        Raises:
            LibraryRunError: The function reported an error.
        """
        self.check(self.function(name)(*arguments), doing)

    def last_error(self) -> str:
        """Return the message of this thread's last failed call."""
        text = ctypes.c_char_p()
        if self._last_error is not None:
            self._last_error(ctypes.byref(text))
        return complete_message(text.value or b"")

    def close(self) -> None:
        """Give the library back to the loader; nothing in the library may be in use.

        The library usually stays mapped, because it has symbols that are unique in the process.
        Opening the same file again then gives the same library.
        """
        library, self._library = self._library, None  # type: ignore[assignment]
        if library is not None:
            dlclose(library._handle)


def _check_exports(path: Path, file: LibraryFile, has_container: bool) -> None:
    needed = CONTAINER_FUNCTIONS if has_container else (*MODEL_FUNCTIONS, MANIFEST)
    missing = [name for name in (*needed, LAST_ERROR) if name not in file.exports]
    if missing and has_container:
        # What this torch's AOTInductor does not give a library either, no compile can give it.
        missing = [name for name in missing if is_in_interface(name)]
    if missing:
        raise MissingSymbolError(path, tuple(missing), _missing(missing, has_container))


def _missing(names: list[str], has_container: bool) -> str:
    if not has_container and len(names) == len(MODEL_FUNCTIONS) + 2:
        return (
            "is a shared object but no kernel library: it has none of AOTInductor's functions "
            f"({CONTAINER}CreateWithDevice, {MODEL}CreateV2, ...)"
        )
    return f"lacks {', '.join(names)}; compile it again with this torch's AOTInductor"


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise LibraryLoadError(path, f"cannot be read: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _inspected(path: Path) -> LibraryFile:
    try:
        status = path.stat()
    except OSError as error:
        raise LibraryLoadError(path, f"cannot be read: {error.strerror}") from error
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    found = _inspections.get(identity)
    if found is None:
        # Imported here: the cache's own libraries are not inspected, their digests are checked.
        from .elf import inspect_library_file

        found = inspect_library_file(path)
        if len(_inspections) >= _INSPECTIONS_LIMIT:
            _inspections.clear()
        _inspections[identity] = found
    return found


# Reading a library's symbols takes a tenth of a second, opening it a thousandth.
_inspections: dict[tuple[int, int, int, int], LibraryFile] = {}
_INSPECTIONS_LIMIT = 64


def text_of(library: KernelLibrary, name: str, doing: str, *arguments: Any) -> str:
    """Return the text that a C function gives through its last argument.

    Raises:
        LibraryRunError: The call failed.
    """
    text = ctypes.c_char_p()
    library.call(name, doing, *arguments, ctypes.byref(text))
    return (text.value or b"").decode(errors="replace")


def number_of(library: KernelLibrary, name: str, kind: Any, *arguments: Any) -> int:
    """Return the number of ctypes type ``kind`` that a C function gives through its last argument.

    Raises:
        LibraryRunError: The call failed.
    """
    number = kind()
    library.call(name, name, *arguments, ctypes.byref(number))
    return int(number.value)


def complete_message(said: bytes) -> str:
    """Return a library's message about its last failure in this thread, with torch's own part."""
    message = said.decode(errors="replace").strip()
    if "API call failed" in message:
        # The library only knows which of torch's functions failed; torch knows why.
        message = f"{message}: {last_torch_error()}"
    return message or "the library gave no message"


def closed(path: Path) -> RunnerError:
    """Return the error of a use after ``close``."""
    return RunnerError(f"{path}: the runner is closed")
