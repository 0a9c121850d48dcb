"""The constants of a kernel library: which ones the library needs, and whether given tensors fit.

AOTInductor's container copies a given tensor's whole storage into its own buffer and uses the
tensor's strides unchecked. So this module checks the tensor and lays out its storage. Pure: nothing
is loaded or called.
"""

from __future__ import annotations

import difflib
import enum
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .._base.data_class import dataclass
from ..errors import (
    AotiEagerWarning,
    ConstantError,
    MissingConstantsError,
    UnknownConstantError,
)
from .tensor_handles import has_own_data

# AOTInductor pads the places of constants to multiples of this.
_PADDING_BYTES = 64
# AOTInductor turns numbers and rows of up to so many elements into numbers in the code.
_LARGEST_INLINED = 8


class ConstantKind(enum.IntEnum):
    """What a constant was in the exported program; AOTInductor's numbers."""

    UNKNOWN = 0
    PARAMETER = 1
    BUFFER = 2
    TENSOR_CONSTANT = 3
    FOLDED = 4


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant that a library needs.

    Attributes:
        name: Its name in the library, ``l_weight``.
        fqn: Its name in the exported program, ``l.weight``.
        dtype: Its dtype.
        size_bytes: The most bytes that its storage may have.
        kind: What it was in the exported program.
        folded: Whether the library computes it from the other constants; callers never give it.
        sizes, strides: Its layout; ``None`` where the library does not tell.
        storage_offset: Where it begins in its storage, in elements.
        device: Where it must be; ``None`` where the library does not tell.
    """

    name: str
    fqn: str
    dtype: torch.dtype
    size_bytes: int
    kind: ConstantKind
    folded: bool
    sizes: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    storage_offset: int = 0
    device: torch.device | None = None

    @property
    def may_be_missing(self) -> bool:
        """Return whether a full update may omit the constant, as AOTInductor's container allows."""
        return self.kind in (ConstantKind.BUFFER, ConstantKind.TENSOR_CONSTANT) or (
            self.kind is ConstantKind.PARAMETER and self.size_bytes == 0
        )


def resolve(
    library: str, constants: Sequence[Constant], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return ``given`` by the constants' names in the library.

    A constant may be called by its name in the library or by its name in the exported program.

    Raises:
        UnknownConstantError: There is no such constant.
        ConstantError: A constant is given twice, or the library computes the constant itself.
    """
    by_name = {constant.name: constant for constant in constants}
    by_fqn = {constant.fqn: constant for constant in constants}
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        # The library's name of one constant can be the program's name of another. The program's
        # name comes first: callers get it from their model or from ``extract_constants_map``.
        constant = by_fqn.get(name) or by_name.get(name)
        if constant is None:
            listed = near(str(name), _fqns(constants))
            raise UnknownConstantError(
                f"{library}: has no constant {name!r}{_why_absent(tensor)}{listed}", (name,)
            )
        if constant.folded:
            raise ConstantError(
                f"{library}: constant {name!r} is folded: the library computes it from the others",
                (name,),
            )
        if constant.name in found:
            raise ConstantError(
                f"{library}: constant {constant.fqn!r} is given twice, also as {constant.name!r}",
                (name,),
            )
        found[constant.name] = tensor
    return found


def check_full_update(library: str, constants: Iterable[Constant], given: Iterable[str]) -> None:
    """Warn if ``given`` lacks optional constants, and raise if it lacks required ones.

    Raises:
        MissingConstantsError: Parameters are missing; the error names all of them.
    """
    names = set(given)
    absent = [c for c in constants if not c.folded and c.name not in names]
    required = tuple(c.fqn for c in absent if not c.may_be_missing)
    if required:
        raise MissingConstantsError(
            f"{library}: a full update lacks {_listed(required)}; give them too, or pass "
            "validate_full_update=False to update only what is given",
            required,
        )
    if absent:
        names_kept = _listed([c.fqn for c in absent])
        warnings.warn(
            f"{library}: the update lacks {names_kept}, which keep their values",
            AotiEagerWarning,
            stacklevel=4,
        )


def fitted(library: str, constant: Constant, tensor: Tensor) -> Tensor:
    """Return ``tensor`` as the container needs it: right device and strides, compact storage.

    Raises:
        ConstantError: Its dtype, sizes or layout cannot be those of the constant.
    """
    _check(library, constant, tensor)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if constant.device is not None:
        tensor = tensor.to(constant.device)
    strides = constant.strides if constant.strides is not None else _dense_strides(tensor)
    compact = (
        tensor.stride() == strides
        and tensor.storage_offset() == 0
        and tensor.untyped_storage().nbytes() == _extent(tensor.shape, strides) * tensor.itemsize
    )
    if not compact:
        copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
        tensor = copy.copy_(tensor)
    if tensor.untyped_storage().nbytes() > max(constant.size_bytes, 0):
        raise ConstantError(
            f"{library}: constant {constant.fqn!r} has {tensor.untyped_storage().nbytes()} bytes, "
            f"and the library has room for {constant.size_bytes}",
            (constant.fqn,),
        )
    return tensor


def check_user_managed(library: str, constant: Constant, tensor: Tensor) -> None:
    """Raise if the library cannot use the tensor's own memory as it is.

    Raises:
        ConstantError: Its dtype, sizes, strides, device or alignment are not the constant's.
    """
    _check(library, constant, tensor)
    strides = constant.strides if constant.strides is not None else _dense_strides(tensor)
    # Strides of sizes 0 and 1 are never followed.
    differs = any(
        size > 1 and got != want
        for size, got, want in zip(tensor.shape, tensor.stride(), strides, strict=True)
    )
    if differs or tensor.is_conj() or tensor.is_neg():
        raise ConstantError(
            f"{library}: constant {constant.fqn!r} has strides {tuple(tensor.stride())}, and the "
            f"library's code is for {strides}; a user-managed constant is not copied, so pass a "
            "tensor of that layout, or user_managed=False",
            (constant.fqn,),
        )
    if constant.device is not None and tensor.device != constant.device:
        raise ConstantError(
            f"{library}: constant {constant.fqn!r} is on {tensor.device}, and the library needs it "
            f"on {constant.device}",
            (constant.fqn,),
        )
    if tensor.device.type != "cpu" and tensor.data_ptr() % 16:
        raise ConstantError(
            f"{library}: constant {constant.fqn!r} begins at an address that is no multiple of 16, "
            "which code for GPUs assumes; pass a copy, or user_managed=False",
            (constant.fqn,),
        )


def _check(library: str, constant: Constant, tensor: Tensor) -> None:
    problem = None
    if not isinstance(tensor, Tensor):
        problem = f"is {type(tensor).__name__}; a tensor is wanted"
    elif tensor.layout is not torch.strided or tensor.is_nested:
        problem = f"has layout {tensor.layout}; a strided tensor is wanted"
    elif not has_own_data(tensor):
        problem = f"has no data of its own ({type(tensor).__name__}); a plain tensor is wanted"
    elif tensor.dtype != constant.dtype:
        problem = f"has dtype {tensor.dtype}; {constant.dtype} is wanted"
    elif constant.sizes is not None and tuple(tensor.shape) != constant.sizes:
        problem = f"has sizes {tuple(tensor.shape)}; {constant.sizes} is wanted"
    elif constant.sizes is None and not _fills(constant, tensor):
        problem = (
            f"has {tensor.numel() * tensor.itemsize} bytes; the library keeps "
            f"{constant.size_bytes} for it"
        )
    if problem is not None:
        raise ConstantError(f"{library}: constant {constant.fqn!r} {problem}", (constant.fqn,))


def _fills(constant: Constant, tensor: Tensor) -> bool:
    """Return whether ``tensor`` fills the constant's place, up to AOTInductor's padding."""
    size_bytes = tensor.numel() * tensor.itemsize
    return size_bytes <= constant.size_bytes < size_bytes + _PADDING_BYTES


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of a dense copy of ``tensor`` that keeps the order of dimensions."""
    return tuple(torch.empty_like(tensor, device="meta").stride())


def _extent(sizes: Sequence[int], strides: Sequence[int]) -> int:
    if 0 in sizes:
        return 0
    return sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1


def near(name: str, names: Sequence[str]) -> str:
    """Return the end of a message about an unknown ``name``: similar names, or all names."""
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"; did you mean {', '.join(map(repr, close))}?"
    return f"; it has {_listed(names)}" if names else "; it has no constants"


def _why_absent(tensor: object) -> str:
    """Return the part of a message that says that an unknown constant may be in the code."""
    if not isinstance(tensor, Tensor) or tensor.dim() > 1 or tensor.numel() > _LARGEST_INLINED:
        return ""
    return (
        f"; AOTInductor turns weights of up to {_LARGEST_INLINED} elements, as this one, into "
        "numbers in the code, which no update reaches: if that is it, compile the model with "
        'inductor_configs={"always_keep_tensor_constants": True}'
    )


def _fqns(constants: Sequence[Constant]) -> list[str]:
    return [constant.fqn for constant in constants if not constant.folded]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
