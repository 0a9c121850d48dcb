"""Opens the C++ hit path's library and declares its functions to ctypes.

``csrc/native.cpp`` and ``csrc/beside_ops.cpp`` define the functions. Calls go through ctypes, which
releases the GIL; a hit makes no such call. Calling a function while the hit path is not loaded is a
programming error.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import threading
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass, field
from .._base.sealed_library import LIBRARY_LIMIT, SealedLibrary
from .._base.trusted_files import open_directory
from ..errors import NativePathError

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_TEXT = ctypes.c_char_p

# name -> result type, argument types
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ae_last_error": (_TEXT, ()),
    "ae_op_new": (
        _POINTER,
        (*(_TEXT,) * 5, _SIZE, _POINTER, ctypes.c_int32, ctypes.c_int32),
    ),
    "ae_op_install": (ctypes.c_int32, (_POINTER,)),
    "ae_op_is_typed": (ctypes.c_int32, (_POINTER,)),
    "ae_op_uninstall": (None, (_POINTER,)),
    "ae_op_delete": (None, (_POINTER,)),
    "ae_op_set_state": (None, (_POINTER, ctypes.c_int32)),
    "ae_op_set_table": (None, (_POINTER, _POINTER)),
    "ae_op_set_counters": (None, (_POINTER, _POINTER, _POINTER)),
    "ae_autograd_new": (_POINTER, (*(_TEXT,) * 6, _SIZE, _SIZE, ctypes.c_int32)),
    "ae_autograd_install": (ctypes.c_int32, (_POINTER,)),
    "ae_autograd_uninstall": (None, (_POINTER,)),
    "ae_autograd_delete": (None, (_POINTER,)),
    "ae_autograd_put": (None, (_POINTER, _TEXT, _SIZE, _POINTER)),
    "ae_autograd_put_decline": (None, (_POINTER, _TEXT, _SIZE)),
    "ae_autograd_nodes": (ctypes.c_int64, (_POINTER,)),
    "ae_autograd_clear": (None, (_POINTER,)),
    "ae_table_new": (_POINTER, ()),
    "ae_table_delete": (None, (_POINTER,)),
    "ae_table_put_library": (
        None,
        (
            *(_POINTER, _TEXT, _SIZE, _POINTER, _POINTER, _SIZE, ctypes.c_uint64),
            *(_TEXT, _SIZE, _TEXT, _SIZE, ctypes.c_int32),
        ),
    ),
    "ae_table_put_decline": (None, (_POINTER, _TEXT, _SIZE, _POINTER, _TEXT, _SIZE)),
    "ae_table_remove": (None, (_POINTER, _TEXT, _SIZE)),
    "ae_table_remove_pattern": (None, (_POINTER, _TEXT, _SIZE)),
    "ae_matches": (ctypes.c_int32, (_TEXT, _SIZE, _TEXT, _SIZE)),
    "ae_table_clear": (None, (_POINTER,)),
    "ae_table_size": (_SIZE, (_POINTER,)),
    "ae_released": (_SIZE, (_POINTER, _SIZE)),
    "ae_counter_new": (_POINTER, ()),
    "ae_counter_delete": (None, (_POINTER,)),
    "ae_counter_value": (ctypes.c_uint64, (_POINTER,)),
    "ae_ask_for_barriers": (None, ()),
    "ae_passing_add": (None, (ctypes.c_int32,)),
    "ae_passing": (ctypes.c_int32, ()),
    "ae_set_failed": (None, (_POINTER,)),
    "ae_rest_looks": (None, (ctypes.c_int64,)),
    "ae_next_look": (ctypes.c_uint64, (ctypes.c_uint64,)),
    "ae_put_off": (ctypes.c_uint64, (ctypes.c_uint64,)),
    "ae_recorded_key": (_SIZE, (_POINTER, _SIZE)),
    "ae_recorded_by_typed": (ctypes.c_int32, ()),
    "ae_alive": (None, (_POINTER,)),
    "ae_recording_begin": (_POINTER, (_SIZE, _SIZE)),
    "ae_recording_end": (_POINTER, (_POINTER, _POINTER)),
    "ae_recording_tensors_alive": (ctypes.c_char_p, (_POINTER,)),
    "ae_recording_delete": (None, (_POINTER,)),
    "ae_is_recording": (ctypes.c_int32, ()),
    "ae_recordings_alive": (ctypes.c_int64, ()),
    "ae_python_set": (None, (_POINTER,)),
    "ae_runner_new": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "ae_runner_delete": (None, (_POINTER,)),
    "ae_runner_function": (_POINTER, (ctypes.c_int32,)),
    "ae_thread_state_function": (_POINTER, ()),
    "ae_runners_alive": (ctypes.c_int64, ()),
}

_library: Any = None
_loaded: tuple[Path, str] | None = None


@dataclass(frozen=True, slots=True)
class NativeFile:
    """The hit path's library file: its path, the digest of its bytes, and the bytes."""

    path: Path
    sha256: str
    content: bytes = field(repr=False, compare=False)


def read(path: Path, sha256: str) -> NativeFile:
    """Return the file at ``path``, whose bytes have the digest ``sha256``.

    Raises:
        NativePathError: The digest is another one, others could have written the file, or it
            cannot be read.
    """
    try:
        with open_directory(path.parent) as directory:
            content = directory.read(path.name, LIBRARY_LIMIT)
    except OSError as error:
        raise NativePathError(f"{path}: the native hit path cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise NativePathError(f"{path}: the native hit path is another by now")
    return NativeFile(path, sha256, content)


def load(file: NativeFile) -> None:
    """Open a private copy of the hit path's library; it stays open until the process ends.

    Raises:
        NativePathError: The library cannot be opened here.
    """
    global _library, _loaded
    if _library is not None:
        return
    try:
        with SealedLibrary(file.content, file.path) as copy:
            library = ctypes.CDLL(copy.name)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativePathError(
            f"{file.path}: the native hit path cannot be loaded: {error}"
        ) from error
    library.ae_set_failed(_on_failed)
    # In another thread, because Linux takes milliseconds to set barriers up. A writer that needs a
    # barrier before then sets them up itself, and waits.
    with contextlib.suppress(RuntimeError):  # The system has no more threads, or Python is ending.
        threading.Thread(
            target=library.ae_ask_for_barriers, name="aoti_eager-barriers", daemon=True
        ).start()
    _library, _loaded = library, (file.path, file.sha256)


def functions() -> Any:
    """Return the functions of the hit path, which must be loaded."""
    return _library


def is_loaded() -> bool:
    """Return whether the C++ hit path can be used in this process."""
    return _library is not None


def loaded() -> tuple[Path, str] | None:
    """Return the path and the digest of the library that is open, or ``None``."""
    return None if _library is None else _loaded


# Thread ident -> op and message of a run that failed in C++ in that thread. Next, C++ enters the
# Python kernel of the op, which looks here first of all. An empty message means that the run did
# not fail: the hit is to be compared with the original.
failures: dict[int, tuple[int, str]] = {}


def _keep_failure(op: int, message: bytes) -> None:
    failures[threading.get_ident()] = op, message.decode(errors="replace")


_on_failed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)(_keep_failure)


def last_error(name: str, what: str) -> NativePathError:
    """Return the hit path's message about its last failure, as an exception."""
    message = (_library.ae_last_error() or b"").decode(errors="replace")
    return NativePathError(f"{name}: {what} by the native hit path: {message}")
