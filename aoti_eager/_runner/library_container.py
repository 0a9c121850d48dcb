"""The container inside of a library of AOTInductor's."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._native.runner import RunnerLibrary
from ..errors import LibraryRunError
from .abi import (
    CONTAINER,
    LAST_ERROR,
    MODEL,
    KernelLibrary,
    NamedHandle,
    number_of,
    text_of,
)
from .constants import Constant, ConstantKind
from .container import named_handles, run_library
from .devices import Stream, on_device
from .tensor_handles import (
    borrowed_handle,
    delete_handles,
    device_type_number,
    dtype_of_number,
    new_handles,
    tensor_behind,
)


class LibraryContainer:
    """The container inside of a library.

    More than 12 methods, because it asks the C interface for all that ``Container`` has.
    """

    def __init__(
        self, library: KernelLibrary, num_models: int, device: torch.device, cubin_dir: Path | None
    ) -> None:
        self._library = library
        self._device = device
        handle = ctypes.c_void_p()
        with on_device(device):
            library.call(
                f"{CONTAINER}CreateWithDevice",
                f"creating {num_models} models",
                ctypes.byref(handle),
                num_models,
                str(device).encode(),
                str(cubin_dir).encode() if cubin_dir is not None else None,
            )
        self._handle = handle.value
        self._num_models = num_models
        self._run = library.function(f"{CONTAINER}Run")
        self.input_names: tuple[str, ...] = self._names("Input")
        self.output_names: tuple[str, ...] = self._names("Output")
        self.call_spec = self._call_spec()
        self.constants = self._constants()
        self.constants = self._with_layouts()

    def run(self, instance: int, inputs: list[Tensor], stream: Stream, boxed: bool) -> list[Tensor]:
        """Run one instance, of the container's own choice."""
        num_inputs, num_outputs = len(inputs), len(self.output_names)

        def call(handles: Any, outputs: Any) -> int:
            return int(
                self._run(self._handle, handles, num_inputs, outputs, num_outputs, stream, None)
            )

        return run_library(call, self._library.check, inputs, num_outputs, boxed)

    def native_library(self, in_full: bool) -> RunnerLibrary:
        """Return what C++ calls; the container chooses the instance, so all have one handle."""
        assert self._handle is not None
        return RunnerLibrary(
            container_run=self._library.address(f"{CONTAINER}Run"),
            model_run=0,
            last_error=self._library.address(LAST_ERROR),
            inputs=len(self.input_names),
            outputs=len(self.output_names),
            device_type=device_type_number(self._device.type),
            device_index=-1 if self._device.index is None else self._device.index,
            handles=[self._handle] * self._num_models,
            wanted=None,
        )

    def update(self, tensors: Mapping[str, Tensor], inactive: bool, user_managed: bool) -> None:
        """Put constants into a buffer: copies, or pointers to the user's memory."""
        kind = "UserManaged" if user_managed else ""
        if user_managed:
            handles: Any = [borrowed_handle(tensor) for tensor in tensors.values()]
        else:
            handles = new_handles(list(tensors.values()))
        try:
            pairs = named_handles(tensors, handles)
            with on_device(self._device):
                self._library.call(
                    f"{CONTAINER}Update{kind}ConstantBufferPairs",
                    "an update of constants",
                    self._handle,
                    pairs,
                    len(pairs),
                    inactive,
                    # No validation: the constants were checked before, with better messages.
                    False,
                )
        finally:
            delete_handles(handles)

    def extract(self, inactive: bool) -> dict[str, Tensor]:
        """Return the constants of a buffer by name; they share its memory."""
        entries = ctypes.POINTER(NamedHandle)()
        count = ctypes.c_size_t()
        self._library.call(
            f"{CONTAINER}ExtractConstantsMapEntries",
            "reading the constants",
            self._handle,
            ctypes.byref(entries),
            ctypes.byref(count),
            inactive,
        )
        found: dict[str, Tensor] = {}
        index = 0
        # Entries come in the order of the constants, under the exported program's names, which need
        # not be unique.
        for constant in self.constants:
            if index == count.value:
                break
            if not constant.folded and entries[index].name == constant.fqn.encode():
                found[constant.name] = tensor_behind(entries[index].handle)
                index += 1
        return found

    def fold(self, inactive: bool, stream: Stream) -> None:
        """Compute the folded constants of a buffer from its other constants."""
        if not any(constant.folded for constant in self.constants):
            return  # With nothing to fold, the container prints a warning.
        with on_device(self._device):
            self._library.call(
                f"{CONTAINER}RunConstantFolding",
                "folding the constants",
                self._handle,
                inactive,
                stream,
                None,
            )

    def swap(self) -> None:
        """Exchange the buffers."""
        self._library.call(f"{CONTAINER}SwapConstantBuffer", "swapping constants", self._handle)

    def free_inactive(self) -> None:
        """Free the inactive buffer's memory."""
        with on_device(self._device):
            self._library.call(
                f"{CONTAINER}FreeInactiveConstantBuffer", "freeing constants", self._handle
            )

    def close(self) -> None:
        """Delete the instances."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with on_device(self._device):
                self._library.call(f"{CONTAINER}Delete", "deleting the models", handle)

    def load_blob(self, address: int) -> None:
        """Load all constants of the active buffer, which must have none, from mapped memory.

        If the buffer has constants, this function of the library frees them and goes on using them.
        """
        with on_device(self._device):
            self._library.call(
                f"{MODEL}UpdateConstantsFromBlob", "loading constants", self._handle, address
            )
        self.constants = self._with_layouts()

    def blob_size(self) -> int:
        """Return the size in bytes of the file that ``load_blob`` wants.

        Raises:
            LibraryRunError: The library was not compiled for such a file.
        """
        return number_of(
            self._library, f"{CONTAINER}GetConstantsBlobSize", ctypes.c_uint64, self._handle
        )

    def _names(self, what: str) -> tuple[str, ...]:
        count = number_of(self._library, f"{CONTAINER}GetNum{what}s", ctypes.c_size_t, self._handle)
        name = f"{CONTAINER}Get{what}Name"
        return tuple(
            text_of(self._library, name, "reading a name", self._handle, i) for i in range(count)
        )

    def _call_spec(self) -> tuple[str, str]:
        texts = (ctypes.c_char_p(), ctypes.c_char_p())
        self._library.call(
            f"{CONTAINER}GetCallSpec",
            "reading the call spec",
            self._handle,
            ctypes.byref(texts[0]),
            ctypes.byref(texts[1]),
        )
        first, second = ((text.value or b"").decode(errors="replace") for text in texts)
        return first, second

    def _constants(self) -> tuple[Constant, ...]:
        library, handle = self._library, self._handle
        count = number_of(library, f"{CONTAINER}GetNumConstants", ctypes.c_size_t, handle)

        def number(what: str, kind: Any, index: int) -> int:
            return number_of(library, f"{CONTAINER}GetConstant{what}", kind, handle, index)

        def text(what: str, index: int) -> str:
            name = f"{CONTAINER}GetConstant{what}"
            return text_of(library, name, "reading a constant's name", handle, index)

        kinds = {int(kind) for kind in ConstantKind}
        return tuple(
            Constant(
                name=text("Name", i),
                fqn=text("OriginalFQN", i),
                dtype=dtype_of_number()[number("Dtype", ctypes.c_int32, i)],
                size_bytes=number("DataSize", ctypes.c_size_t, i),
                kind=ConstantKind(k if (k := number("Type", ctypes.c_int32, i)) in kinds else 0),
                folded=bool(number("FromFolded", ctypes.c_bool, i)),
            )
            for i in range(count)
        )

    def _with_layouts(self) -> tuple[Constant, ...]:
        """Return the constants with their layouts, which no function of the interface tells."""
        loaded = self.extract(inactive=False)
        absent = [c for c in self.constants if not c.folded and c.name not in loaded]
        probed = self._probe(absent) if absent else {}
        written = _layouts_in_source(self._library.path) if absent else {}
        return tuple(
            _with_layout(
                constant,
                loaded.get(constant.name),
                probed.get(constant.name),
                written.get(constant.name),
            )
            for constant in self.constants
        )

    def _probe(self, absent: Sequence[Constant]) -> dict[str, Tensor]:
        """Return tensors with the sizes of constants that have no value yet.

        The container takes the sizes from the library and everything else from the given tensor.
        So the given tensor has one element, with a stride of zero for as many dimensions as there
        may be.
        """
        ndim = 64
        probes = {
            c.name: torch.zeros(
                1 if c.size_bytes else 0, dtype=c.dtype, device=self._device
            ).as_strided((1 if c.size_bytes else 0,) * ndim, (0,) * ndim)
            for c in absent
        }
        try:
            self.update(probes, inactive=True, user_managed=False)
            return {name: t for name, t in self.extract(inactive=True).items() if name in probes}
        except LibraryRunError:
            return {}  # A constant on another device than the library's; then sizes stay unknown.
        finally:
            self.free_inactive()


def _layouts_in_source(library: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return the strides and offsets that the code expects of constants, as far as they are known.

    No function of the library tells them, and a tensor with other strides gives wrong results. But
    AOTInductor leaves the library's source beside the library, in packages too.
    """
    try:
        source = library.with_suffix(".cpp").read_text(errors="replace")
    except OSError:
        return {}
    names = dict(re.findall(r'constants_info_\[(\d+)\]\.name = "([^"]*)";', source))
    offsets = dict(re.findall(r"constants_info_\[(\d+)\]\.offset = (\d+);", source))
    strides = re.findall(r"constants_info_\[(\d+)\]\.stride = \{([\d, ]*)\};", source)
    return {
        names[index]: (
            tuple(int(number) for number in numbers.split(",") if number.strip()),
            int(offsets[index]),
        )
        for index, numbers in strides
        if index in names and index in offsets
    }


def _with_layout(
    constant: Constant,
    loaded: Tensor | None,
    probed: Tensor | None,
    written: tuple[tuple[int, ...], int] | None,
) -> Constant:
    if loaded is not None and loaded.layout is torch.strided:
        return replace(
            constant,
            sizes=tuple(loaded.shape),
            strides=tuple(loaded.stride()),
            storage_offset=int(loaded.storage_offset()),
            device=loaded.device,
        )
    if probed is not None:
        constant = replace(constant, sizes=tuple(probed.shape))
        if written is not None and len(written[0]) == probed.dim():
            return replace(constant, strides=written[0], storage_offset=written[1])
    return constant
