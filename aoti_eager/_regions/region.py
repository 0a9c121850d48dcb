r"""One region: what becomes of a call of its forward.

call -> key of the arguments -> variant with the same state -> op of its tape -> results    (hit)
     \-> no variant: the forward runs and is recorded -> tape -> op -> store or queue
     \-> declined, pending, gradients wanted, a trace: the forward runs
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .._base.determinism import is_deterministic
from .._base.torch_compat import tracing
from .._native import library as native_library
from .arguments import UnreadableArgumentError, read_arguments
from .current_settings import settings
from .fast_call import MISSED, FastCall, fast_call
from .gradients import GradientNeed, wants_gradients
from .recorded_call import RecordedCallResult, is_recording, record_call
from .region_kernel import Frame, acquire, release
from .stop import MAY_PASS, OF_THE_MOMENT, Stop
from .stopped_calls import StoppedCalls, StoppedKind
from .target import Target
from .variant import Variant
from .varying import warn_of_difference, warn_of_failure, what_varies
from .waiting import Waiting

# So many recordings that change attributes or print do not stop a region: the first calls of a
# module may warn, or make a mask and keep it.
_PASSING = 2

Call = tuple[Sequence[Any], Mapping[str, Any], list[Tensor]]


class Region:
    """A module or a function whose calls one kernel library may serve, for each key.

    Args:
        target: What is called.
        path: The module's path in the fused model, or the function's name.
        strict: Whether a call in which the region stops raises.
        dry_run: Whether calls are recorded, and nothing is compiled or served.

    Attributes:
        plain_calls: How many calls ran as they are for a mode, a trace, autocast, or a setting.
        waits_for_gradients: How many calls ran as they are because they need gradients.
        capped: Why no further kinds of arguments are recorded; ``None`` while they are.
        dry_run_of: What a dry run has recorded, in words; empty if it has recorded nothing.
        stopped: Which calls are not served, and why.
        is_on: Whether calls may be served; a region that was undone passes all calls on.
        by_key: What was recorded, by the key of a call's arguments.
        needs_gradients: Whether a call needs gradients.

    More than 12 methods, because calls have many ways, and each needs what the others know.
    """

    def __init__(
        self, target: Target, path: str, *, strict: bool = False, dry_run: bool = False
    ) -> None:
        self.target = target
        self.path = path
        self.strict = strict
        self.dry_run = dry_run
        self.dry_run_of = ""
        self.capped: Stop | None = None
        self._calls = 0
        self.waits_for_gradients = 0
        self.plain_calls = 0
        self.stopped = StoppedCalls(target, path, strict=strict)
        self.stopped.has_hope = self._has_hope
        # That of the only variant that may be served, while its library is being made.
        self._waiting: Waiting | None = None
        self._fast: FastCall | None = None  # for calls that are like the last ones
        self._last_served: Variant | None = None
        self._being_recorded: dict[Any, object] = {}
        self.is_on = True
        self.by_key: dict[Any, list[Variant]] = {}
        self.needs_gradients = GradientNeed(target)
        self._releases: list[weakref.finalize[..., Region]] = []  # of the variants' kernels
        self._passing = 0  # recordings with effects that may be those of the first calls

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the forward returns for these arguments, computed by a library if one serves.

        Raises:
            RegionStoppedError: The region stops in this call, and is strict.
        """
        self._calls += 1
        fast = self._fast
        if fast is not None:
            result = fast(args, kwargs)
            if result is not MISSED:
                return result
            if fast.left <= 0:
                self._fast = None
        forward, training = self.target.forward, self.target.training
        if not self.is_on or settings.is_off or is_recording() or not tracing.is_plain_eager():
            self.plain_calls += 1
            return forward(*args, **kwargs)
        if self._waiting is not None:
            if self._waiting.is_resting():
                return forward(*args, **kwargs)
            self._waiting = None
        if self.needs_gradients.is_as_before():
            self.waits_for_gradients += 1
            return forward(*args, **kwargs)
        try:
            own, given = read_arguments(args, kwargs)
        except UnreadableArgumentError as error:
            key: Any = training, str(error)
            stop = Stop("unsupported_argument", f"an argument is {error}")
            self.stopped.pass_or_stop(key, stop)
            return forward(*args, **kwargs)
        key = training, own
        call = args, kwargs, given
        for variant in self.by_key.get(key, ()):
            inputs = variant.inputs(given)
            if inputs is None or (variant.is_contested and not variant.has_key(inputs)):
                continue
            return self._run(variant, inputs, key, call)
        if self.stopped.passes(key):
            return forward(*args, **kwargs)
        return self._record(key, call)

    def close(self) -> None:
        """Pass all calls on from now on, and let go of the libraries."""
        self.is_on = False
        self._fast = None
        for one in self._releases:
            one()
        self.by_key = {}

    @property
    def calls(self) -> int:
        """Return how many calls came here, or passed by as their mode is given up."""
        return self._calls + self.stopped.passed_by

    def _has_hope(self, training: bool | None) -> bool:
        """Return whether a library serves, or may serve, calls of a mode."""
        listed = [found for key, found in list(self.by_key.items()) if key[0] == training]
        return any(one.stopped is None for found in listed for one in found)

    @property
    def variants(self) -> list[Variant]:
        """Return all variants that were recorded."""
        return [one for listed in list(self.by_key.values()) for one in listed]

    # -- a call with a variant --

    def _run(self, variant: Variant, inputs: list[Tensor], key: Any, call: Call) -> Any:
        args, kwargs, given = call
        forward = self.target.forward
        if wants_gradients(inputs):
            self.waits_for_gradients += 1
            return forward(*args, **kwargs)
        if variant.stopped is not None:
            return self._run_stopped(variant, variant.stopped, inputs, key, call)
        if variant.waiting.is_resting():
            return forward(*args, **kwargs)
        variant.calls += 1
        kernel = variant.kernel
        if kernel.has_candidate or variant.is_to_be_recorded(again=settings.rerecord):
            return self._record_again(variant, inputs, key, call)
        gate = settings.gate
        if not kernel.is_serving and kernel.is_open:
            return self._record_again(variant, inputs, key, call)
        if not kernel.may_serve or (gate and kernel.is_serving and variant.times.wants_plain):
            self._look_for_refusal(variant, key)
            if variant.is_pending:
                self._rest(variant)
            if not gate:
                return forward(*args, **kwargs)
            begin = time.perf_counter()
            result = forward(*args, **kwargs)
            variant.times.add(time.perf_counter() - begin, served=False)
            return result
        frame = Frame(forward, args, kwargs, given)
        if variant.times.is_complete or not gate:
            fresh = kernel.call(inputs, frame)
        else:
            begin = time.perf_counter()
            fresh = kernel.call(inputs, frame)
            if not frame.has_run:
                stop = variant.times.add(time.perf_counter() - begin, served=True)
                if stop is not None:
                    variant.stopped = self.stopped.stopped(key, stop)
                    self.stopped.note(stop)
        if frame.has_run:
            # Parameters have other dtypes or layouts than at the recording: the next such call is
            # recorded as a variant of its own.
            variant.is_contested |= not variant.has_key(inputs)
            return frame.result
        variant.hits += 1
        is_ready = variant.times.is_complete or not gate
        if is_ready and variant is self._last_served and self.is_on:
            self._fast = fast_call(variant, forward, args, kwargs)
        self._last_served = variant
        return variant.build(fresh, given)

    def _run_stopped(
        self, variant: Variant, kind: StoppedKind, inputs: list[Tensor], key: Any, call: Call
    ) -> Any:
        """Return the forward's result; now and then, see whether the reason has gone."""
        args, kwargs, _ = call
        is_of_moment = kind.stop.reason in OF_THE_MOMENT
        if self.stopped.is_due(kind) and kind.may_go:
            if not is_of_moment:
                self.stopped.keep(key, kind)
                with contextlib.suppress(ValueError):  # Another thread has taken it out.
                    self.by_key.get(key, []).remove(variant)
                return self._record(key, call)
            variant.stopped = None
            variant.kernel.ask_again(inputs)
            return self._record_again(variant, inputs, key, call)
        if is_of_moment and not variant.waiting.is_resting():
            if variant.kernel.refusal is None:
                variant.stopped = None  # A setting has changed, or the queue has room.
            else:
                variant.waiting.rest()
        return self.target.forward(*args, **kwargs)

    def _rest(self, variant: Variant) -> None:
        """Have calls run as they are for a while, as the variant's library is being made."""
        variant.waiting.rest()
        if not any(one.stopped is None and one is not variant for one in self.variants):
            self._waiting = variant.waiting

    def _look_for_refusal(self, variant: Variant, key: Any) -> None:
        """Stop the variant if its library was refused."""
        refusal = variant.kernel.refusal
        if refusal is None:
            return
        stop = Stop(refusal.reason, refusal.message)
        variant.stopped = variant.stopped or self.stopped.stopped(key, stop)
        if stop.reason in OF_THE_MOMENT:
            variant.refusals += 1
            if variant.refusals == 1:
                return  # The children are tried if the second look finds the same.
        self.stopped.note(stop)

    # -- recordings --

    def _record(self, key: Any, call: Call) -> Any:
        """Return the forward's result; the call becomes a variant if a library may serve it."""
        args, kwargs, given = call
        if self.dry_run_of or not native_library.is_loaded():
            return self.target.forward(*args, **kwargs)
        if self.needs_gradients.is_there(given):
            self.waits_for_gradients += 1
            return self.target.forward(*args, **kwargs)
        if len(self.variants) >= settings.region_cap:
            if self.capped is None:
                self.capped = Stop("too_many_signatures", what_varies(self.by_key, key))
            return self.target.forward(*args, **kwargs)
        mine = object()
        if self._being_recorded.setdefault(key, mine) is not mine:  # By another thread.
            return self.target.forward(*args, **kwargs)
        try:
            return self._recorded(key, call)
        finally:
            self._being_recorded.pop(key, None)

    def _recorded(self, key: Any, call: Call) -> Any:
        args, kwargs, given = call
        try:
            recorded = record_call(self.target, args, kwargs, given)
        except Stop as stop:  # Before the forward ran.
            self.stopped.stop(key, stop)
            recorded = None
        if recorded is None:  # Or somebody else watches this thread: a later call is recorded.
            return self.target.forward(*args, **kwargs)
        try:
            self._keep(key, recorded, given)
        except Stop as stop:
            self._passing += stop.reason in MAY_PASS
            if stop.reason not in MAY_PASS or self._passing > _PASSING or self.dry_run:
                self.stopped.stop(key, stop)
        except Exception as error:
            if settings.strict:
                raise
            self._failed(key, error)
        return recorded.result

    def _keep(self, key: Any, recorded: RecordedCallResult, given: list[Tensor]) -> None:
        """Make a variant of a recorded call, and ask the store for its library."""
        tape, state, results = recorded.read()
        if not self.is_on:
            return  # Undone in this very call.
        if self.dry_run:
            count = sum(isinstance(one, str) for one in tape.inputs)
            self.dry_run_of = f"{len(tape.tape.calls)} calls of ops, {count} parameters and buffers"
            return
        read, changed = state.generate(f"{self.path or self.target.name}", tape.inputs)
        inputs = read(given)
        if inputs is None:
            raise Stop("not_recorded", f"its state changes by itself: {changed()}")
        kernel = acquire(tape.tape, inputs)
        self._releases.append(weakref.finalize(self, release, kernel))
        kernel.add_key(inputs)
        variant = Variant(tape, kernel, read, changed, results)
        self.by_key.setdefault(key, []).append(variant)
        kernel.offer(inputs, results.fresh)

    def _record_again(self, variant: Variant, inputs: list[Tensor], key: Any, call: Call) -> Any:
        """Return the forward's result; the tape of this call must be the variant's."""
        args, kwargs, given = call
        if not variant.has_key(inputs):
            variant.is_contested = True  # Parameters, or settings of torch's, are others.
            return self._record(key, call)
        begin = time.perf_counter()
        try:
            recorded = record_call(self.target, args, kwargs, given)
        except Stop:
            recorded = None
        if recorded is None:
            return self.target.forward(*args, **kwargs)
        try:
            tape, _, results = recorded.read()
            difference = variant.differs(tape, results)
            if difference:
                raise Stop("tape_differs", difference)
            variant.kernel.offer(inputs, results.fresh)
        except Stop as stop:
            variant.stopped = self.stopped.stopped(key, stop)
            if stop.reason == "tape_differs" and not variant.stopped.calls:
                warn_of_difference(self.path, self.target.name, stop)
            self.stopped.note(stop)
        except Exception as error:
            if settings.strict:
                raise
            self._failed(key, error)
        variant.put_off(time.perf_counter() - begin)
        self._look_for_refusal(variant, key)
        return recorded.result

    # -- the end --

    def _failed(self, key: Any, error: Exception) -> None:
        warn_of_failure(self.path, self.target.name, error)
        if is_deterministic(error):
            self.stopped.stop(key, Stop("not_recorded", repr(error)))
