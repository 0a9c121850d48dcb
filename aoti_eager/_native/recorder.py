"""Records the ops that one thread calls, with their arguments, results and tensors.

A recording lists the calls that a ``TorchDispatchMode`` would be called for. A mode would import
Dynamo; ``csrc/recorder.h`` is told of the calls by PyTorch's profiling callbacks, which are there
while a thread records, and at no other time.

The list is of what torch does without a mode, which is something else in few places: a mode makes
torch call ``detach`` for ``x.data`` and for a result that autograd saves, and take another way
through some composite ops (``quantile``, ``linalg.eigvals``, ``max_pool1d``, which is recorded as
itself). A lazily conjugated or negated tensor is given to an op as it is.

While a thread records, each tensor that a call took or gave is held weakly: the tensor's header
stays, so that its address belongs to no other tensor, and its data is freed as if nothing was
recorded. Everything is freed when the ``with`` block ends.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch

from .._base.data_class import dataclass
from .._base.torch_compat.tensors import LAYOUTS
from ..errors import NativePathError
from .library import functions, is_loaded, last_error

MAX_CALLS = 20_000
MAX_SIZE_BYTES = 1 << 30

# By the numbers that PyTorch stores in place of them.
_MEMORY_FORMATS = (
    torch.contiguous_format,
    torch.preserve_format,
    torch.channels_last,
    torch.channels_last_3d,
)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTensor:
    """One tensor that calls took or gave, with the metadata that it had at its first call.

    A tensor that a call made has the metadata with which the call returned it. Tensors are equal
    only to themselves.

    Attributes:
        index: The position in ``Recording.tensors``.
        impl: Address of the tensor, equal to ``tensor._cdata``.
        storage: Address of the tensor's ``StorageImpl``, ``tensor.untyped_storage()._cdata``; 0 if
            the tensor has none.
        version: The tensor's version counter; ``None`` for inference tensors.
        version_after: The counter at the end of the recording; also ``None`` if the tensor is gone.
        dtype: The tensor's dtype.
        sizes: The tensor's sizes; ``None`` if they are symbols, nested, or answered by a subclass.
        strides: The tensor's strides; ``None`` as for ``sizes``, and for layouts without strides.
        offset: Elements of the storage before the tensor's first.
        layout: The tensor's layout; ``None`` as for ``sizes``.
        device: The tensor's device; ``None`` if a subclass answers for it.
        requires_grad: Whether the tensor requires gradients.
        conj: Whether the tensor's values are to be conjugated when they are read.
        neg: Whether the tensor's values are to be negated when they are read.
        inference: Whether the tensor was made in inference mode.
        changed: Whether dtype, sizes, strides, offset, layout or storage were different at another
            call of the recording.
        number: The value of a Python number that reached the op as a tensor (``x * 2.0``).
        data: The values of the input of ``aten::lift_fresh``, which is what ``torch.tensor`` makes,
            as a flat list; ``None`` for other tensors and for more than 64 values.
    """

    index: int
    impl: int
    storage: int
    version: int | None
    version_after: int | None
    dtype: torch.dtype
    sizes: tuple[int, ...] | None
    strides: tuple[int, ...] | None
    offset: int
    layout: torch.layout | None
    device: torch.device | None
    requires_grad: bool
    conj: bool
    neg: bool
    inference: bool
    changed: bool
    number: complex | None
    data: list[Any] | None


@dataclass(frozen=True, slots=True)
class UnreadValue:
    """A value of a call that has no text: a generator, a symbolic size, an object of a class."""

    type_name: str


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of an op.

    Attributes:
        op: Name without overload, ``aten::add``.
        overload: ``Tensor``; empty for the default overload.
        arguments: One value for each argument of the schema, in its order, with defaults filled in.
            Tensors are ``RecordedTensor``; an undefined tensor is ``None``; lists are lists; what
            has no text is an ``UnreadValue``.
        results: One value for each result of the schema, spelled alike; empty if the op raised.
        raised: Whether the op raised an exception.
    """

    op: str
    overload: str
    arguments: list[Any]
    results: list[Any]
    raised: bool


class Recording:
    """The calls of one thread in a ``with`` block.

    Attributes:
        calls: The calls, in their order; empty inside of the block, and if the recording stopped.
        tensors: Each tensor of the calls once.
        stopped: Why the recording was given up, or ``None``.
        results: The addresses of the ``TensorImpl`` of tensors that outlive the block by right; set
            within the block, if ``kept`` is wanted.
        kept: The other tensors that calls of the block have made and that are alive at its end.
    """

    def __init__(self, max_calls: int = MAX_CALLS, max_size_bytes: int = MAX_SIZE_BYTES) -> None:
        self.calls: list[RecordedCall] = []
        self.tensors: list[RecordedTensor] = []
        self.stopped: str | None = None
        self.kept: list[RecordedTensor] = []
        self.results: frozenset[int] | None = None
        self._bounds = max_calls, max_size_bytes
        self._native: int | None = None

    def __enter__(self) -> Recording:
        """Begin to record this thread's calls.

        Raises:
            NativePathError: This thread is recording already, or the C++ hit path is not loaded.
        """
        if not is_loaded():
            raise NativePathError("calls cannot be recorded: the native hit path is not loaded")
        native = functions().ae_recording_begin(*self._bounds)
        if not native:
            raise last_error("record", "calls cannot be recorded")
        self._native = native
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the recording and read it; an exception of the block goes on.

        Raises:
            NativePathError: The block ends in another thread than it began in.
        """
        native, self._native = self._native, None
        length = ctypes.c_size_t()
        text = functions().ae_recording_end(native, ctypes.byref(length))
        if not text:
            raise last_error("record", "the recording cannot be read")
        try:
            self._read(ctypes.string_at(text, length.value))
            if self.results is not None:
                self.kept = self._made_and_alive(native, self.results)
                if self.kept:
                    # A cycle of references, of a function that calls itself for example, may hold
                    # them. What was made just now is young: the oldest objects are left alone.
                    gc.collect(1)
                    self.kept = self._made_and_alive(native, self.results)
        finally:
            functions().ae_recording_delete(native)

    def _made_and_alive(self, native: int | None, results: frozenset[int]) -> list[RecordedTensor]:
        text = functions().ae_recording_tensors_alive(native)
        alive = {self.tensors[place].impl for place in json.loads(text or b"[]")}
        seen: set[int] = set()
        found = []
        for call in self.calls:
            # The argument of lift_fresh is a tensor that ``torch.tensor`` makes.
            if call.op != "aten::lift_fresh":
                seen.update(one.impl for one in tensors_in(call.arguments))
            for one in tensors_in(call.results):
                if one.impl not in seen and one.impl in alive and one.impl not in results:
                    found.append(one)
                seen.add(one.impl)
        return found

    def _read(self, document: bytes) -> None:
        # An op's string need not be UTF-8.
        found = json.loads(document.decode(errors="surrogateescape"))
        self.stopped = found["stopped"]
        tensors = self.tensors = [_tensor(i, one) for i, one in enumerate(found["tensors"])]
        self.calls = [_call(one, tensors) for one in found["calls"]]


def tensors_in(values: Sequence[Any]) -> Iterator[RecordedTensor]:
    """Give the tensors among the arguments or the results of a call."""
    for value in values:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, RecordedTensor):
                yield one


def record(*, max_calls: int = MAX_CALLS, max_size_bytes: int = MAX_SIZE_BYTES) -> Recording:
    """Return a context manager that records the ops that this thread calls in its ``with`` block.

    Calls on other threads are not recorded, and nothing is recorded in a child of a fork.

    Args:
        max_calls: Most calls; a recording with more is given up.
        max_size_bytes: Most bytes that the recording itself may hold, which are its text and the
            headers of the tensors; a recording that holds more is given up.
    """
    return Recording(max_calls, max_size_bytes)


def is_recording() -> bool:
    """Return whether this thread records its calls."""
    return is_loaded() and bool(functions().ae_is_recording())


def alive() -> int:
    """Return how many recordings C++ holds; a test's way to find leaks."""
    return int(functions().ae_recordings_alive()) if is_loaded() else 0


def _value(spelled: Any, tensors: list[RecordedTensor]) -> Any:
    """Return the value that ``csrc/tape_text.h`` has spelled."""
    if isinstance(spelled, list):
        return [_value(one, tensors) for one in spelled]
    if not isinstance(spelled, dict):
        return spelled
    ((kind, value),) = spelled.items()
    if kind == "t":
        return tensors[value]
    if kind == "f":
        return float.fromhex(value)
    if kind == "c":
        return complex(*map(float.fromhex, value))
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "layout":
        return LAYOUTS[value]
    if kind == "memory_format":
        return _MEMORY_FORMATS[value]
    if kind == "device":
        return torch.device(value)
    return UnreadValue(value)


def _call(spelled: list[Any], tensors: list[RecordedTensor]) -> RecordedCall:
    op, overload, arguments, results, raised = spelled
    if op == "aten::_reshape_alias":
        # A short cut of ``reshape`` for a view, which torch does not take while there is a mode.
        op, arguments = "aten::view", arguments[:2]
    return RecordedCall(
        op,
        overload,
        [_value(one, tensors) for one in arguments],
        [_value(one, tensors) for one in results],
        raised,
    )


def _tensor(index: int, spelled: list[Any]) -> RecordedTensor:
    impl, storage, version, version_after, dtype, sizes, strides, offset, layout = spelled[:9]
    device, requires_grad, conj, neg, inference, changed, number, data = spelled[9:]
    return RecordedTensor(
        index=index,
        impl=impl,
        storage=storage,
        version=None if version < 0 else version,
        version_after=None if version_after < 0 else version_after,
        dtype=getattr(torch, dtype),
        sizes=None if sizes is None else tuple(sizes),
        strides=None if strides is None else tuple(strides),
        offset=offset,
        layout=None if layout < 0 else LAYOUTS[layout],
        device=torch.device(device) if device else None,
        requires_grad=requires_grad,
        conj=conj,
        neg=neg,
        inference=inference,
        changed=changed,
        number=_value(number, []),
        data=_value(data, []),
    )
