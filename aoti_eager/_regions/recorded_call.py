"""Runs a forward once and records what it does: calls of ops, Python code, changed attributes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat.tracing import has_global_module_hooks
from .._native import recorder
from ..errors import NativePathError
from .arguments import UnreadableArgumentError, read_arguments
from .reader import StateReader
from .readiness import is_ready
from .results import Results, outliving
from .snapshot import Snapshot
from .stop import Stop
from .tape_of import RecordedTape, tape_of
from .target import Target, hooked
from .watch import Watch

# A recording takes half a millisecond for each call of an op, and a few dozen microseconds for each
# module and tensor: what has more of them would wait seconds for its first result. Its children
# have fewer.
MOST_CALLS, MOST_SIZE_BYTES, MOST_PARTS = 5_000, 1 << 26, 5_000

# Threads that are inside of a recording: what they call is a part of it.
recording_threads: set[int] = set()


def is_recording() -> bool:
    """Return whether this thread is inside of a recording."""
    return bool(recording_threads) and get_ident() in recording_threads


class RecordedCallResult:
    """A forward that has run.

    Attributes:
        result: What it returned.
    """

    def __init__(
        self,
        target: Target,
        given: Sequence[Tensor],
        result: Any,
        recording: recorder.Recording,
        watch: Watch,
        before: Snapshot,
        arguments: Arguments,
    ) -> None:
        self.result = result
        self._arguments = arguments
        self._target, self._given = target, given
        self._recording, self._watch, self._before = recording, watch, before

    @property
    def makes_gradients(self) -> bool:
        """Return whether an op of the call has made a tensor that requires gradients."""
        found = [one for call in self._recording.calls for one in call.results]
        results = [one for two in found for one in (two if isinstance(two, list) else [two])]
        made = {id(one) for one in results}
        # A view of a parameter says that it requires gradients, also where none are computed.
        given = {one.storage for one in self._recording.tensors if id(one) not in made}
        return any(
            isinstance(one, recorder.RecordedTensor)
            and one.requires_grad
            and one.storage not in given
            for one in results
        )

    def read(self) -> tuple[RecordedTape, StateReader, Results]:
        """Return the tape, the state that it depends on, and the results.

        Raises:
            Stop: No library may serve the call.
        """
        target, watch = self._target, self._watch
        odd = next((one for one in self._given if one.layout is not torch.strided), None)
        if odd is not None:
            raise Stop("unsupported_argument", f"an argument is {odd.layout}")
        if watch.failure:
            raise Stop("not_recorded", watch.failure)
        if watch.leak:
            raise Stop("data_leaves", f"it calls {watch.leak}")
        if watch.fickle:
            raise Stop("python_state", f"it {watch.fickle}")
        if watch.effect:
            raise Stop("side_effect", f"it calls {watch.effect}")
        if watch.stored:
            raise Stop("side_effect", f"it changes {watch.stored}")
        changed = self._before.change()
        if changed is not None:
            raise Stop("writes_attribute", f"it changes {changed}")
        if has_global_module_hooks():
            raise Stop("hooks", "hooks for all modules are set")
        for path, module in target.modules():
            if hooked(module, is_root=module is target.module):
                raise Stop("hooks", f"{path} has forward hooks")
        results = Results(self.result, self._given)
        state = StateReader(target, watch.mentioned, watch.own)
        tape = tape_of(self._recording, self._given, state, results)
        if any(tensor.requires_grad for tensor in results.fresh):
            raise Stop("result_needs_gradients", "a result requires gradients")
        self._arguments.check(self._given, self.result)
        self._check_containers()
        # Last: an argument or an attribute that keeps a tensor has a reason of its own.
        kept = self._recording.kept
        if kept:
            sizes = list(kept[0].sizes or ())
            raise Stop("side_effect", f"somebody keeps a tensor of {sizes} that it has made")
        return tape, state, results

    def _check_containers(self) -> None:
        """Raise if a list or dict of the result is there elsewhere: a served call makes new ones.

        Raises:
            Stop: One is.
        """
        seen: set[int] = set()
        for one in _containers([self.result]):
            path = self._before.attribute_that_is(one)
            if path is not None:
                raise Stop("result_is_shared", f"it returns {path} itself")
            if id(one) in seen:
                raise Stop("result_is_shared", "a list or dict is twice in the result")
            seen.add(id(one))


class Arguments:
    """The arguments of a call, as they were before the call.

    Args:
        args: The positional arguments.
        kwargs: The keyword arguments.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._args, self._kwargs = args, kwargs
        self._key, given = read_arguments(args, kwargs)
        self._memory = _memory(given)

    def check(self, given: Sequence[Tensor], result: Any) -> None:
        """Raise if the call has changed one of them, but for a tensor's values, or returns a list.

        Raises:
            Stop: It has.
        """
        try:
            key, tensors = read_arguments(self._args, self._kwargs)
        except UnreadableArgumentError as error:
            raise Stop("writes_argument", f"it puts into an argument {error}") from error
        if key != self._key or any(a is not b for a, b in zip(tensors, given, strict=True)):
            raise Stop("writes_argument", "it changes a list or dict that is an argument")
        if _memory(tensors) != self._memory:
            raise Stop("writes_argument", "it gives an argument other memory, as x.data = y does")
        mine = {id(one) for one in _containers([*self._args, *self._kwargs.values()])}
        if any(id(one) in mine for one in _containers([result])):
            raise Stop("writes_argument", "it returns a list or dict that is an argument")


def _memory(tensors: Sequence[Tensor]) -> list[int]:
    """Return where the data of tensors lie."""
    return [one.data_ptr() if one.layout is torch.strided else 0 for one in tensors]


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    """Give the lists and dicts among values, and those within them."""
    for one in values:
        if isinstance(one, list | dict):
            yield one
        if isinstance(one, list | tuple | dict):
            yield from _containers(one.values() if isinstance(one, dict) else one)


def record_call(
    target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Tensor]
) -> RecordedCallResult | None:
    """Return a recorded call of the target's forward; ``None``, and no call, if that is impossible.

    Args:
        target: What is called.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.
        given: The tensors among the arguments.

    Raises:
        Stop: The call cannot be recorded; the forward has not run.
    """
    if not Watch.is_possible():
        return None
    ident = get_ident()
    try:
        if not is_ready(target, given):
            return None
        parts = target.part_count()
        if parts > MOST_PARTS:
            raise Stop(
                "too_large", f"it has {parts} modules and tensors, and {MOST_PARTS} are most"
            )
        before, arguments = Snapshot(target), Arguments(args, kwargs)
        watch = Watch()
        watch.numpy_random.add(before.take_values())
        watch.numpy_random.add_classes([module for _, module in target.modules()])
    except Stop:
        raise
    except Exception as error:
        raise Stop("not_recorded", f"its attributes cannot be looked at: {error!r}") from error
    recording = recorder.record(max_calls=MOST_CALLS, max_size_bytes=MOST_SIZE_BYTES)
    try:
        recording.__enter__()
    except NativePathError:  # Somebody else records this thread.
        return None
    recording_threads.add(ident)
    try:
        result = watch.run(lambda: target.forward(*args, **kwargs))
        recording.results = outliving(result)
    finally:
        recording_threads.discard(ident)
        _end(recording)
    return RecordedCallResult(target, given, result, recording, watch, before, arguments)


def _end(recording: recorder.Recording) -> None:
    """End a recording; the forward's result, or its error, goes on whatever becomes of it."""
    try:
        recording.__exit__(None, None, None)
    except Exception as error:  # noqa: BLE001 - of a text that cannot be read, for example
        recording.stopped = f"it cannot be read: {error!r}"


def _after_fork() -> None:
    recording_threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
