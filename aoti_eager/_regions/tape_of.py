"""Turns a recording of one eager call into a tape, and finds out where its tensors come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._base.data_class import dataclass
from .._base.digest import Component
from .._base.op_names import find_overload
from .._functions.tape import Tape
from .._functions.tape_call import TapeCall, tape_call
from .._functions.tape_memory import ConstantMemory
from .._functions.tape_rules import refusal
from .._keys.aliasing import shares_storage, storage_key
from .._keys.kernel_key import scalar_component
from .._native.recorder import RecordedCall, RecordedTensor, UnreadValue, tensors_in
from ..errors import TapeError, UnknownOpError, UnsupportedArgumentError
from .overrides import first_overridden
from .stop import Stop

if TYPE_CHECKING:
    from .._native.recorder import Recording
    from .reader import StateReader
    from .results import Results

# Ops that give memory without values; a tape keeps only those whose memory it uses.
_EMPTY = ("aten::empty", "aten::new_empty")

# Ops that change a tensor's sizes in place. ``linear`` and ``matmul`` call them on their results:
# where no input is changed, the tape has the view that the tensor becomes.
_VIEWS = {
    "aten::squeeze_": "aten::squeeze",
    "aten::unsqueeze_": "aten::unsqueeze",
    "aten::t_": "aten::t",
    "aten::transpose_": "aten::transpose",
}


@dataclass(frozen=True, slots=True)
class RecordedTape:
    """A tape, and where its inputs are in a call.

    Attributes:
        tape: The tape.
        inputs: For each input: the index among a call's tensors, or a path in the region's target.
    """

    tape: Tape
    inputs: tuple[int | str, ...]


def tape_of(
    recording: Recording, given: Sequence[Tensor], state: StateReader, results: Results
) -> RecordedTape:
    """Return the tape of a recorded call.

    Args:
        recording: What was recorded.
        given: The tensors among the call's arguments.
        state: The state of the region's target, before the call.
        results: The call's results.

    Raises:
        Stop: No library may serve the call.
    """
    if recording.stopped is not None:
        reason = "too_large" if recording.stopped.startswith("too ") else "not_recorded"
        raise Stop(reason, recording.stopped)
    overridden = first_overridden(recording.calls)
    if overridden is not None:
        raise Stop("overridden", f"{overridden} is not torch's own kernel in this process")
    if any(tensor._cdata in state.paths for tensor in given):
        raise Stop("argument_is_state", "an argument is a parameter, a buffer or an attribute")
    elsewhere = next((one for one in recording.tensors if str(one.device) != "cpu"), None)
    if elsewhere is not None and elsewhere.device is None:
        raise Stop("unsupported_tensor", "it has a tensor of a subclass of torch.Tensor")
    if elsewhere is not None:
        raise Stop("unsupported_device", f"it has a tensor on {elsewhere.device}")
    writer = _Writer(given, state.paths)
    for one in _used(recording.calls):
        writer.add(one)
    outputs = [writer.output(tensor) for tensor in results.fresh]
    try:
        tape = Tape.of(len(writer.inputs), writer.calls, outputs)
    except TapeError as error:
        raise Stop("not_recorded", str(error)) from error
    if not tape.calls:
        raise Stop("too_small", "no call of an op")
    if not writer.inputs:
        raise Stop("unknown_tensor", "no tensor is an input of it")
    found = refusal(tape)
    if found is not None:
        raise Stop(*found)
    _check_memory(recording, results)
    if len(tape.calls) < 2:
        raise Stop("too_small", "a single call of an op")
    if not results.fresh:
        raise Stop("unsupported_result", "no result is a new tensor")
    if _are_shared(results.fresh, given):
        raise Stop("result_is_shared", "a result shares memory with an argument or another result")
    return RecordedTape(tape, tuple(writer.inputs))


def _check_memory(recording: Recording, results: Results) -> None:
    """Raise if a tensor was given other memory by what is no call of an op: ``x.data = y``.

    Raises:
        Stop: One was.
    """
    by_view = {
        one.impl
        for call in recording.calls
        if call.op in _VIEWS
        for one in tensors_in(call.arguments[:1])
    }
    fresh = {tensor._cdata: tensor for tensor in results.fresh}
    for one in recording.tensors:
        result = None if one.impl in by_view else fresh.get(one.impl)
        if (one.changed and one.impl not in by_view) or (
            result is not None and result.untyped_storage()._cdata != one.storage
        ):
            raise Stop("changes_metadata", "a tensor gets other memory or sizes, as by x.data = y")


class _Writer:
    """Writes the calls of a recording, and finds the source of each tensor.

    Attributes:
        calls: The calls as they are written on a tape.
        inputs: Where the tape's inputs are in a call; see ``RecordedTape``.
    """

    def __init__(self, given: Sequence[Tensor], paths: Mapping[int, str]) -> None:
        self.calls: list[TapeCall] = []
        self.inputs: list[int | str] = []
        self._known: dict[int, Component] = {}  # address of a TensorImpl -> source
        self._given = {tensor._cdata: index for index, tensor in reversed([*enumerate(given)])}
        self._paths = paths
        self._constants = ConstantMemory()

    def add(self, call: RecordedCall) -> None:
        """Write a recorded call, unless it does nothing but give the same number in each call."""
        name = f"{call.op}.{call.overload}" if call.overload else call.op
        if call.raised:
            raise Stop("not_recorded", f"{name} raised an error")
        for value in call.arguments:
            if isinstance(value, UnreadValue):
                reason = "random" if value.type_name == "Generator" else "not_recorded"
                raise Stop(reason, f"{name} takes a {value.type_name}")
        becomes = self._view(call)
        if becomes is not None:
            name = becomes + name.removeprefix(call.op)
        is_constant = call.op == "aten::lift_fresh"
        try:
            written = tape_call(
                find_overload(name),
                call.arguments,
                lambda one: _constant(one) if is_constant else self._source(one, name),
            )
        except (UnsupportedArgumentError, UnknownOpError, TapeError) as error:
            raise Stop("not_recorded", f"{name}: {error}") from error
        if self._constants.gives_number(written):
            return
        number, place = len(self.calls), 0
        self.calls.append(written)
        self._constants.add(number, written)
        for result in call.results:
            for one in result if isinstance(result, list) else [result]:
                if isinstance(one, RecordedTensor):
                    source: Component = {"result": [number, place]}
                    if becomes is None:
                        self._known.setdefault(one.impl, source)
                    else:
                        self._known[one.impl] = source
                place += 1

    def _view(self, call: RecordedCall) -> str | None:
        """Return the op that makes the view which a call in place has turned its tensor into."""
        known = self._known.get(call.arguments[0].impl) if call.op in _VIEWS else None
        return None if known is None or "result" not in known else _VIEWS[call.op]

    def output(self, tensor: Tensor) -> Component:
        """Return the source of a result of the region."""
        source = self._known.get(tensor._cdata)
        if source is None:
            raise Stop("unknown_tensor", "a result was not made by a call of an op")
        return source

    def _source(self, tensor: RecordedTensor, op: str) -> Component:
        if tensor.number is not None:
            return {"number": scalar_component(tensor.number)}
        known = self._known.get(tensor.impl)
        if known is None:
            place = self._given.get(tensor.impl, self._paths.get(tensor.impl))
            if place is None:
                raise Stop(
                    "unknown_tensor",
                    f"{op} reads a tensor of {list(tensor.sizes or ())} that is no argument, "
                    "parameter, buffer or attribute",
                )
            known = self._known[tensor.impl] = {"input": len(self.inputs)}
            self.inputs.append(place)
        return known


def _constant(tensor: RecordedTensor) -> Component:
    """Return the source of what ``torch.tensor`` has made of Python's numbers."""
    if tensor.data is None or tensor.sizes is None:
        raise Stop("unknown_tensor", "it makes a tensor of more than 64 numbers of Python's")
    dtype = str(tensor.dtype).removeprefix("torch.")
    values = [scalar_component(value) for value in tensor.data]
    return {"data": {"dtype": dtype, "sizes": list(tensor.sizes), "values": values}}


def _used(calls: Sequence[RecordedCall]) -> list[RecordedCall]:
    """Return the calls without those that make memory which nothing uses.

    ``torch.tensor`` makes such memory: its values are a constant of the tape.
    """
    read: set[int] = set()
    for call in calls:
        if call.op != "aten::lift_fresh":
            read.update(one.impl for one in tensors_in(call.arguments))
    return [
        call
        for call in calls
        if call.op not in _EMPTY or any(one.impl in read for one in tensors_in(call.results))
    ]


def _are_shared(fresh: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    keys = [storage_key(tensor) for tensor in fresh]
    kept = [key for key in keys if key is not None]
    return len(set(kept)) < len(kept) or shares_storage(fresh, given)
