"""The op of one tape: its kernel cache decides on the tape's library as on any op's.

Regions with equal tapes share the op, and so the library: twelve equal layers of a model have one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from .._base.op_library import new_op_library
from .._base.torch_compat import dispatcher
from .._base.torch_compat.dispatcher import OpOverload, op_function
from .._base.warn_once import warn_once
from .._dispatch import recheck
from .._dispatch.kernel_cache import KernelCache
from .._dispatch.key_state import COMPILING, QUEUED, RARE, Decline
from .._dispatch.table import TableKey
from .._functions.op_functions import define, forget
from .._functions.tape import NAMESPACE, SCHEMA, Tape, TapeFunction, op_name
from .._keys.kernel_key import call_context, tensor_component
from .._registration import registry
from .frame import Frame

_lock = threading.RLock()
_kernels: dict[str, RegionKernel] = {}  # by the op's name
# Kernels that no region has any more. They are taken out of the dispatcher by ``sweep``, because a
# garbage collection, which may have released them, runs in the middle of anything.
_unused: list[RegionKernel] = []
# Uses that were given up. A finalizer adds to them and takes no lock: a garbage collection runs in
# the middle of anything, also while this thread, or one that waits for this thread, holds the lock.
_released: deque[RegionKernel] = deque()


class RegionCache(KernelCache):
    """The kernel cache of a tape's op.

    A tape holds for the metadata and the settings of its recording: for any other key, the op's
    original runs, and no kernel is made.

    Attributes:
        recorded: The keys that the tape was recorded for.
    """

    # A region's forward is Python code: each process compares a library with it once.
    compares_always = True

    def __init__(self, op: OpOverload) -> None:
        self.recorded: set[TableKey] = set()
        self._keyset: Any = None  # of the op's calls: all are alike
        super().__init__(op, "CPU")

    def miss(
        self, key: TableKey, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the call's result, and decide on its key if the tape was recorded for the key."""
        self._keyset = keyset
        if key not in self.recorded:
            self.counters.misses.add()
            return self.original(keyset, args, kwargs)
        return super().miss(key, keyset, args, kwargs)

    def compare(self, inputs: list[Tensor]) -> None:
        """Compare the library with the original on these inputs, if it serves their key."""
        kernel = self.lookup(self.key(inputs))
        if kernel is not None and kernel.look is not None and self._keyset is not None:
            with recheck.at_once():
                kernel.look(kernel, self._keyset, (inputs,), {})


class RegionKernel:
    """The op of one tape, for inputs of one kind.

    The name of the op stands for both, so that nothing that is decided for inputs of one kind
    holds for others: two models may have equal tapes, and weights of other sizes.

    Args:
        tape: The tape.
        name: The op's qualified name.

    Attributes:
        tape: The tape.
        name: The op's qualified name.
        cache: The op's kernel cache.
        users: How many variants have the kernel.

    More than 12 methods, because the states of a tape's library are one each.
    """

    def __init__(self, tape: Tape, name: str) -> None:
        self.tape = tape
        self.name = name
        self.users = 0
        # Thread ident -> the call that this thread has sent into the op.
        self._frames: dict[int, Frame] = {}
        self._is_closed = False
        self._replay: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
        self._library = new_op_library(NAMESPACE)
        op = define(self._library, name, SCHEMA, TapeFunction(tape))
        local = name.partition("::")[2]
        self._library.impl(local, self._original, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        # No gradient passes through a library; who needs gradients does not call the op.
        for key in ("Autograd", "ADInplaceOrView"):
            self._library.impl(local, torch.library.fallthrough_kernel, key)  # type: ignore[no-untyped-call]
        self.cache = RegionCache(op)
        self._registration = registry.register_cache(self.cache)
        self._call = op_function(op)

    def _original(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return what the op computes: by the forward of the call under way, or by a replay."""
        frame = self._frames.get(get_ident())
        if frame is not None and not frame.has_run:
            return frame.run()
        # A comparison runs the tape once more, in double precision for example.
        if self._replay is None:
            self._replay = self.tape.replay_function()
        return self._replay(inputs)

    def close(self) -> bool:
        """Take the op out of the dispatcher; return whether that was possible: no call is in it."""
        self._is_closed = True  # First: a thread that comes now sees that, or has a frame.
        if self._frames:
            return False
        self._registration.unregister()
        forget(self.name)
        dispatcher.destroy(self._library)
        return True

    def reopen(self) -> None:
        """Take calls again, after a ``close`` that was not possible."""
        self._is_closed = False

    def forget_calls(self) -> None:
        """Forget the calls under way: in a forked child, their threads are gone."""
        self._frames.clear()

    def add_key(self, inputs: list[Tensor]) -> None:
        """Note that the tape was recorded for such ``inputs``, and for the present settings."""
        self.cache.recorded.add(self.cache.key(inputs))

    def has_key(self, inputs: list[Tensor]) -> bool:
        """Return whether the tape was recorded for such ``inputs`` and the present settings."""
        return self.cache.key(inputs) in self.cache.recorded

    def call(self, inputs: list[Tensor], frame: Frame) -> list[Tensor]:
        """Return the library's results; those of the frame if no library serves."""
        ident, frames = get_ident(), self._frames
        before = frames.get(ident)
        frames[ident] = frame
        try:
            if self._is_closed:
                return frame.run()
            results: list[Tensor] = self._call(inputs)
            return results
        except Exception as error:
            if frame.has_run and not frame.has_result:
                raise  # The forward's own.
            warn_once(f"region's op {type(error).__name__}", f"fuse: {self.name}: {error!r}")
            return [] if frame.has_result else frame.run()
        finally:  # As ``_restore``, which costs a call more.
            if before is None:
                frames.pop(ident, None)
            else:
                frames[ident] = before

    def offer(self, inputs: list[Tensor], expected: list[Tensor]) -> None:
        """Have the op look for, make, or compare its library, in a call with known results.

        Args:
            inputs: The call's inputs.
            expected: What the region's forward has returned for them.
        """
        frame = Frame(lambda: expected, (), {}, ())
        if not self.cache.table.kernels:
            if self.may_serve:
                self.call(inputs, frame)
            return
        ident, frames = get_ident(), self._frames
        before = frames.get(ident)
        frames[ident] = frame
        try:
            if not self._is_closed:
                self.cache.compare(inputs)
        finally:
            _restore(frames, ident, before)

    def ask_again(self, inputs: list[Tensor]) -> None:
        """Forget why a library was refused: the next ``offer`` asks for it once more."""
        self.cache.table.forget_decline(self.cache.key(inputs))

    @property
    def is_serving(self) -> bool:
        """Return whether a library serves."""
        return bool(self.cache.table.kernels) and not self.cache.bypassed

    @property
    def is_open(self) -> bool:
        """Return whether nothing at all is known of the tape's library: nobody was asked."""
        return not self.cache.table.declines and not self.cache.bypassed

    @property
    def has_candidate(self) -> bool:
        """Return whether a library waits to be compared in a call."""
        return bool(self.cache.table.candidates)

    @property
    def may_serve(self) -> bool:
        """Return whether a call may be served, or brings the tape nearer to a decision."""
        cache, table = self.cache, self.cache.table
        if table.kernels or table.candidates:
            return not cache.bypassed
        if cache.bypassed:
            return False
        return all(one.reason == RARE for one in list(table.declines.values()))

    @property
    def waits_for_calls(self) -> bool:
        """Return whether the tape's calls are counted, as too few came to make a library pay."""
        return any(one.reason == RARE for one in list(self.cache.table.declines.values()))

    @property
    def refusal(self) -> Decline | None:
        """Return why no library will serve, if all keys were decided on in that way."""
        declines = list(self.cache.table.declines.values())
        if self.cache.table.kernels or not declines:
            return None
        return None if any(one.is_undecided for one in declines) else declines[-1]

    @property
    def is_compiling(self) -> bool:
        """Return whether a worker has been asked for the library."""
        declines = list(self.cache.table.declines.values())
        return bool(self.cache.table.awaited) or any(one.reason == COMPILING for one in declines)

    @property
    def step(self) -> str:
        """Return what is done to make the library, and for how long; empty if that is not known."""
        for progress in self.cache.table.progresses():
            if progress.state == QUEUED:
                return "queued"
            if progress.step:
                return progress.step
        return ""


def _restore(frames: dict[int, Frame], ident: int, before: Frame | None) -> None:
    if before is None:
        frames.pop(ident, None)
    else:
        frames[ident] = before


def _name_of(tape: Tape, inputs: Sequence[Tensor]) -> str:
    dtype, deterministic, precision, _, is_usual = call_context()
    components = [tensor_component(one) for one in inputs]
    return op_name(tape, components, str(dtype), deterministic, precision, is_usual)


def acquire(tape: Tape, inputs: Sequence[Tensor]) -> RegionKernel:
    """Return the op of a tape for such inputs, for one more user; equal ones have one op."""
    sweep()
    name = _name_of(tape, inputs)
    with _lock:
        found = _kernels.get(name)
        if found is None:
            # One that a thread was still calling when it lost its last user is taken back.
            found = next((one for one in _unused if one.name == name), None) or RegionKernel(
                tape, name
            )
            _unused[:] = [one for one in _unused if one is not found]
            found.reopen()
            _kernels[name] = found
        found.users += 1
        return found


def release(kernel: RegionKernel) -> None:
    """Give up one use of an op, in a finalizer; ``sweep`` takes out ops without users."""
    _released.append(kernel)


def sweep() -> None:
    """Take the ops without users out of the dispatcher, but for those that threads are calling."""
    with _lock:
        while _released:
            kernel = _released.popleft()
            kernel.users -= 1
            if kernel.users == 0 and _kernels.get(kernel.name) is kernel:
                del _kernels[kernel.name]
                _unused.append(kernel)
        for kernel in list(_unused):
            if kernel in _unused and not kernel.users:
                _unused.remove(kernel)  # First: what ``close`` releases may come here again.
                if not kernel.close():
                    _unused.append(kernel)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for kernel in [*_kernels.values(), *_unused]:
        kernel.forget_calls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
