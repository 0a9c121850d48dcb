"""The file of constants that AOTInductor writes for ``"binary_blob"``: checked, and read."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConstantError, LibraryRunError
from .constants import Constant
from .container import Container
from .library_container import LibraryContainer

_NO_FILE = (
    "was not compiled for a file of constants "
    '(aot_inductor.package_constants_on_disk_format="binary_blob")'
)


def constants_of_file(
    name: str, container: Container, path: str | os.PathLike[str]
) -> tuple[LibraryContainer, list[Constant], int]:
    """Return the container that takes a file, the constants in the file, and the file's bytes.

    Args:
        name: The library's name, for messages.
        container: The loaded library.
        path: The file.

    Raises:
        ConstantError: The file has another size, or the library has no such file.
        OSError: The file cannot be read.
    """
    if not isinstance(container, LibraryContainer):
        raise ConstantError(f"{name}: {_NO_FILE}")
    try:
        want = container.blob_size()
    except LibraryRunError as error:
        raise ConstantError(f"{name}: {_NO_FILE}") from error
    size = os.stat(path).st_size
    constants = [c for c in container.constants if not c.folded]
    if size != want:
        raise ConstantError(
            f"{name}: {os.fspath(path)} has {size} bytes; the library's {len(constants)} constants "
            f"take {want}",
            tuple(c.fqn for c in constants),
        )
    return container, constants, size


def tensors_in_file(
    name: str, path: str | os.PathLike[str], size_bytes: int, constants: Sequence[Constant]
) -> dict[str, Tensor]:
    """Return copies of the constants in a file, by their names in the library.

    The library's own function is not used where a buffer has constants: it frees the constants that
    it loaded before and goes on using them.

    Args:
        name: The library's name, for messages.
        path: The file.
        size_bytes: The size that ``constants_of_file`` has checked.
        constants: The constants in the file, in its order.

    Raises:
        ConstantError: The library does not tell the layout of a constant.
    """
    content = torch.from_file(os.fspath(path), shared=False, size=size_bytes, dtype=torch.uint8)
    found: dict[str, Tensor] = {}
    begin = 0
    for constant in constants:
        if constant.sizes is None or constant.strides is None:
            raise ConstantError(
                f"{name}: constant {constant.fqn!r}: the library does not tell its layout before "
                "it was loaded into the active buffer",
                (constant.fqn,),
            )
        # Copied: GPU libraries do not pad, and data must begin at a multiple of its dtype's size.
        storage = content[begin : begin + constant.size_bytes].clone()
        usable = constant.size_bytes // constant.dtype.itemsize * constant.dtype.itemsize
        found[constant.name] = (
            storage[:usable]
            .view(constant.dtype)
            .as_strided(constant.sizes, constant.strides, constant.storage_offset)
        )
        begin += constant.size_bytes
    return found
