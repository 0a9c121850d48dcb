"""The C++ side of a ``ModelContainerRunner``: a call checks the inputs, runs, gives the outputs."""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Literal, cast

from torch import Tensor

from .._base.data_class import dataclass
from .._base.torch_compat.python_tensors import TensorObjects, tensor_objects
from .library import functions, is_loaded, last_error

# Takes the list of inputs, and the stream's address.
Run = Callable[[list[Tensor], int], "list[Tensor] | Literal[False] | None"]

Cells = ctypes.Array[ctypes.c_int64]
FREE = -1  # in a cell: C++ may take the instance, by csrc/runner.h


class _PythonStruct(ctypes.Structure):
    """``Python`` of csrc/python_list.h."""

    _fields_ = (
        ("list_size", ctypes.c_void_p),
        ("list_item", ctypes.c_void_p),
        ("list_new", ctypes.c_void_p),
        ("list_append", ctypes.c_void_p),
        ("list_set_slice", ctypes.c_void_p),
        ("number_as_pointer", ctypes.c_void_p),
        ("exception_set", ctypes.c_void_p),
        ("set_exception", ctypes.c_void_p),
        ("keep", ctypes.c_void_p),
        ("give_up", ctypes.c_void_p),
        ("release_gil", ctypes.c_void_p),
        ("take_gil", ctypes.c_void_p),
        ("wrap", ctypes.c_void_p),
        ("none", ctypes.c_void_p),
        ("is_false", ctypes.c_void_p),
        ("is_true", ctypes.c_void_p),
        ("runtime_error", ctypes.c_void_p),
        ("plain_types", ctypes.c_void_p * 2),
        ("type_offset", ctypes.c_size_t),
        ("tensor_offset", ctypes.c_size_t),
    )


class _LibraryStruct(ctypes.Structure):
    """``RunnerLibrary`` of csrc/runner.h."""

    _fields_ = (
        ("container_run", ctypes.c_void_p),
        ("model_run", ctypes.c_void_p),
        ("last_error", ctypes.c_void_p),
        ("inputs", ctypes.c_size_t),
        ("outputs", ctypes.c_size_t),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("handles", ctypes.c_void_p),
        ("instances", ctypes.c_size_t),
    )


@dataclass(frozen=True, slots=True)
class WantedInput:
    """What a library without checks of its own wants of an input.

    Attributes:
        dtype: The number of the ``c10::ScalarType``.
        sizes: The sizes; ``None`` is any number.
        strides: As many strides, alike.
    """

    dtype: int
    sizes: tuple[int | None, ...]
    strides: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class RunnerLibrary:
    """The addresses in a loaded library that C++ calls, and what the library takes.

    Attributes:
        container_run: Address of ``AOTInductorModelContainerRun``; 0 if there is only a model.
        model_run: Address of ``AOTInductorModelRun``, or 0.
        last_error: Address of ``AOTInductorGetLastError``.
        inputs: Number of inputs.
        outputs: Number of outputs.
        device_type: The number of the ``c10::DeviceType`` that inputs must be on.
        device_index: The index of that device; -1 on CPU.
        handles: The container or the model of each instance.
        wanted: One for each input; ``None`` if the library checks its inputs itself.
    """

    container_run: int
    model_run: int
    last_error: int
    inputs: int
    outputs: int
    device_type: int
    device_index: int
    handles: Sequence[int]
    wanted: Sequence[WantedInput] | None


def can_run() -> bool:
    """Return whether C++ is loaded, and can read Python's tensors in this process."""
    return is_loaded() and _has_told_places()


@functools.cache
def _has_told_places() -> bool:
    objects = tensor_objects()
    if objects is not None:
        functions().ae_python_set(ctypes.byref(_python_struct(objects)))
    return objects is not None


def _python_struct(objects: TensorObjects) -> _PythonStruct:
    functions_of_python = [
        ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _PYTHON
    ]
    return _PythonStruct(
        *functions_of_python,
        objects.wrap,
        *map(id, (None, False, True, RuntimeError)),
        (ctypes.c_void_p * 2)(*map(id, objects.plain_types)),
        objects.type_offset,
        objects.tensor_offset,
    )


# In the order of ``_PythonStruct``.
_PYTHON = (
    *("PyList_Size", "PyList_GetItem", "PyList_New", "PyList_Append", "PyList_SetSlice"),
    *("PyLong_AsVoidPtr", "PyErr_Occurred", "PyErr_SetString", "Py_IncRef", "Py_DecRef"),
    *("PyEval_SaveThread", "PyEval_RestoreThread"),
)

# Makes a function object of a ``PyMethodDef``. Calling it takes a tenth of a call through ctypes.
new_function = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.py_object
)(("PyCFunction_NewEx", ctypes.pythonapi))


class NativeRunner:
    """Runs of one loaded library, on instances that C++ may take.

    Args:
        library: What C++ calls; the caller keeps the library open as long as this object runs.
        cells: Whose each instance is, guarded by the GIL: ``FREE`` is C++'s to take, a positive
            number is the ident of the thread that runs it in C++, 0 is Python's. The last cell says
            whether C++ may take any.

    Attributes:
        run: Returns the outputs of a run; ``None`` if nothing ran, because C++ may take no instance
            or an input is not as it should be, or of a kind that only Python can judge; ``False``
            if the library has a message for this thread.
        boxed_run: The same, and takes the inputs over: if something ran, the list is empty, unless
            the library refused an input.

    Raises:
        NativePathError: C++ has no memory left.
    """

    def __init__(self, library: RunnerLibrary, cells: Cells) -> None:
        assert len(cells) == len(library.handles) + 1
        handles = (ctypes.c_void_p * len(library.handles))(*library.handles)
        struct = _LibraryStruct(
            library.container_run or None,
            library.model_run or None,
            library.last_error,
            library.inputs,
            library.outputs,
            library.device_type,
            library.device_index,
            ctypes.addressof(handles),
            len(handles),
        )
        wanted = None
        if library.wanted is not None:
            numbers = list(itertools.chain.from_iterable(map(_spelled, library.wanted)))
            wanted = (ctypes.c_int64 * len(numbers))(*numbers)
        self._cells = cells  # which C++ points to
        self._pointer = functions().ae_runner_new(ctypes.byref(struct), wanted, cells)
        if not self._pointer:
            raise last_error("a runner", "a library cannot be run")
        self.run, self.boxed_run = (
            cast(Run, new_function(functions().ae_runner_function(boxed), self._pointer, None))
            for boxed in (False, True)
        )

    def last_message(self) -> bytes:
        """Return the library's message about this thread's last run, which failed."""
        return functions().ae_last_error() or b""

    def __del__(self) -> None:
        pointer = getattr(self, "_pointer", None)
        if pointer and not sys.is_finalizing():
            functions().ae_runner_delete(pointer)


def alive() -> int:
    """Return how many runners C++ holds; a test's way to find leaks."""
    return int(functions().ae_runners_alive()) if is_loaded() else 0


def _spelled(wanted: WantedInput) -> list[int]:
    sizes, strides = (
        [-1 if n is None else n for n in one] for one in (wanted.sizes, wanted.strides)
    )
    return [wanted.dtype, len(sizes), *sizes, *strides]
