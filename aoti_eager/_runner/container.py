"""The interface of containers: model instances over one set of constants. There are three kinds.

``LibraryContainer`` is the container that AOTInductor puts into its libraries. ``ModelContainer``
does the same in Python for a library that has only a model (a thin one, on CPU). ``ProxyContainer``
is for a library that calls ops without a C shim: it needs a proxy executor, which only torch's own
runner can make; and for a library of torch 2.12, whose constants only that runner can change. No
container is thread-safe by itself; the runner in front of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..errors import LibraryRunError
from .abi import NamedHandle
from .tensor_handles import (
    array_type,
    delete_handles,
    new_handles,
    tensors_of,
)

if TYPE_CHECKING:
    from .._native.runner import RunnerLibrary
    from .constants import Constant
    from .devices import Stream


class Container(Protocol):
    """Model instances over one set of constants; ``inactive`` chooses between two buffers."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    call_spec: tuple[str, str]
    constants: tuple[Constant, ...]

    def run(self, instance: int, inputs: list[Tensor], stream: Stream, boxed: bool) -> list[Tensor]:
        """Run one instance; with ``boxed``, take the inputs over and empty the list."""

    def native_library(self, in_full: bool) -> RunnerLibrary | None:
        """Return what C++ calls to run an instance; ``None`` if C++ cannot.

        Args:
            in_full: Whether C++ is to check dtypes, sizes and strides where the library does not.
        """

    def update(self, tensors: Mapping[str, Tensor], inactive: bool, user_managed: bool) -> None:
        """Put constants, by their names in the library, into a buffer."""

    def extract(self, inactive: bool) -> dict[str, Tensor]:
        """Return the constants of a buffer by name; they share its memory."""

    def fold(self, inactive: bool, stream: Stream) -> None:
        """Compute the folded constants of a buffer from its other constants."""

    def swap(self) -> None:
        """Exchange the buffers; nothing may run."""

    def free_inactive(self) -> None:
        """Free the inactive buffer's memory."""

    def close(self) -> None:
        """Delete the instances; nothing may run."""


def run_library(
    run: Callable[[Any, Any], int],
    check: Callable[[int, str], None],
    inputs: list[Tensor],
    num_outputs: int,
    boxed: bool,
) -> list[Tensor]:
    """Return the outputs of ``run``, which takes arrays of input and output handles."""
    handles = new_handles(inputs)
    if boxed:
        inputs.clear()
    outputs = array_type(num_outputs)()
    try:
        check(run(handles, outputs), "a run")
    except LibraryRunError as error:
        if error.library_message.startswith("input_handles["):
            # The library checks the inputs before it takes them over; later it frees them itself.
            refused = tensors_of(handles)
            if boxed:
                inputs.extend(refused)
        raise
    except BaseException:
        delete_handles(outputs)  # Ctrl-C came during the run, and nobody gets its outputs.
        raise
    return tensors_of(outputs)


def named_handles(tensors: Mapping[str, Tensor], handles: Sequence[int]) -> Any:
    """Return an array of ``AOTInductorConstantMapEntry``."""
    pairs = (NamedHandle * len(tensors))()
    for pair, name, handle in zip(pairs, tensors, handles, strict=True):
        pair.name, pair.handle = name.encode(), handle
    return pairs
