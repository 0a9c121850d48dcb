r"""One region: what becomes of a call of its forward.

call -> key of the arguments -> variant with the same state -> op of its tape -> results    (hit)
     \-> no variant: the forward runs and is recorded -> tape -> op -> store or queue
     \-> declined, pending, gradients wanted, a trace: the forward runs

Longer than 350 lines, because the ways of a call lead into each other.
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
from .._compile_service import native_path
from ..errors import RegionStoppedError
from .arguments import UnreadableArgumentError, read_arguments
from .current_settings import settings
from .fast_call import MISSED, FastCall, fast_call
from .frame import Frame
from .gradients import GradientNeed, state_wants_gradients, wants_gradients
from .kinds import Kinds
from .recorded_call import RecordedCallResult, is_recording, record_call
from .recording_time import RecordingTime
from .recordings import Recordings
from .region_kernel import acquire, release
from .replayed import check_replay
from .stop import MAY_PASS, OF_THE_MOMENT, Stop
from .stopped_calls import StoppedCalls, StoppedKind
from .target import Target
from .variant import Variant
from .varying import warn_of_difference, warn_of_failure, what_varies
from .waiting import Waiting

# So many recordings that change attributes or print do not stop a region: the first calls of a
# module may warn, or make a mask and keep it.
_PASSING = 2
_UNWATCHED = "beside a profiler or debugger of Python's, or before its parameters had sizes"
_LATER = "while other modules were recorded"
# What regions say of calls before the C++ path was loaded.
UNBUILT = "without the C++ path"

Call = tuple[Sequence[Any], Mapping[str, Any], list[Tensor]]


class Region:
    """A module or a function whose calls one kernel library may serve, for each key.

    Args:
        target: What is called.
        path: The module's path in the fused model, or the function's name.
        strict: Whether a call in which the region stops raises.
        dry_run: Whether calls are recorded, and nothing is compiled or served.
        recording_time: The time for recordings that regions share; ``None`` for no limit.

    Attributes:
        why_plain: Why calls ran as they are, in words; empty if there was no such call.
        waits_for_gradients: How many calls ran as they are because they need gradients.
        capped: Why no further kinds of arguments are recorded; ``None`` while they are.
        dry_run_of: What a dry run has recorded, in words; empty if it has recorded nothing.
        stopped: Which calls are not served, and why.
        is_on: Whether calls may be served; a region that was undone passes all calls on.
        needs_gradients: Whether a call needs gradients.

    More than 12 methods, because calls have many ways, and each needs what the others know.
    """

    def __init__(
        self,
        target: Target,
        path: str,
        *,
        strict: bool = False,
        dry_run: bool = False,
        recording_time: RecordingTime | None = None,
    ) -> None:
        self.target = target
        self.path = path
        self.strict = strict
        self.dry_run = dry_run
        self.dry_run_of = ""
        self.capped: Stop | None = None
        self._calls = 0
        self.waits_for_gradients = 0
        self.why_plain = ""
        self.stopped = StoppedCalls(target, path, strict=strict)
        self.stopped.has_hope = self._has_hope
        # While nothing can be served: no C++ path, calls that need gradients, mode ``off``.
        self._rests = Waiting()
        self._fast: FastCall | None = None  # for calls that are like the last ones
        self._last_served: Variant | None = None
        self._recordings = Recordings()
        self._recording_time = recording_time or RecordingTime(is_limited=False)
        self._is_timing = False  # whether served calls of a variant are timed
        self.is_on = True
        self._kinds = Kinds()
        self.needs_gradients = GradientNeed(target)
        self._releases: list[weakref.finalize[..., Region]] = []  # of the variants' kernels
        self._passing = 0  # recordings with effects that may be those of the first calls

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the forward returns for these arguments, computed by a library if one serves.

        Raises:
            RegionStoppedError: The region stops in this call, and is strict.
        """
        self._calls += 1
        # A recording around this call would see that somebody reads a clock.
        begin = time.perf_counter() if self._is_timing and not is_recording() else 0.0
        fast = self._fast
        if fast is not None:
            result = fast(args, kwargs)
            if result is not MISSED:
                if begin:
                    self._time(fast.variant, fast.key, begin)
                if fast.left <= 0 and fast.error is not None:
                    self._unbuilt(fast.variant, fast.key, fast.error)
                return result
            if fast.left <= 0:
                self._fast = None
        forward, training = self.target.forward, self.target.training
        if not self.is_on or is_recording():
            return forward(*args, **kwargs)
        if settings.is_off or not tracing.is_plain_eager():
            self.why_plain = self.why_plain or tracing.why_not_plain() or settings.why_off
            if settings.is_off:
                self.stopped.rest(self._rests)
            return forward(*args, **kwargs)
        if not self._kinds.by_key and self._recording_time.is_spent():
            self.why_plain = self.why_plain or _LATER
            return forward(*args, **kwargs)
        if self.needs_gradients.is_as_before():
            self.waits_for_gradients += 1
            self.stopped.rest(self._rests, with_gradients=True)
            return forward(*args, **kwargs)
        try:
            own, given = read_arguments(args, kwargs)
        except UnreadableArgumentError as error:
            if tracing.is_fx_tracing():
                self.why_plain = "within a trace of torch.fx"
                return forward(*args, **kwargs)
            key: Any = training, str(error)
            stop = Stop("unsupported_argument", f"an argument is {error}")
            self.stopped.pass_or_stop(key, stop)
            return forward(*args, **kwargs)
        key = training, own
        call = args, kwargs, given
        listed = self._kinds.by_key.get(key)
        if listed:
            for variant in listed:
                inputs = variant.inputs(given)
                if inputs is None or (variant.is_unsure and not variant.has_key(inputs)):
                    continue
                if variant is not listed[0]:
                    self._kinds.to_front(key, variant)
                return self._run(variant, inputs, key, call, begin)
            self._miss(key)
        if self._recording_time.is_spent() or self.stopped.passes(key):
            return forward(*args, **kwargs)
        return self._record(key, call)

    def close(self) -> None:
        """Pass all calls on from now on, and let go of the libraries."""
        self.is_on = False
        self._fast = None
        self.stopped.let_go()
        for one in self._releases:
            one()
        self._kinds = Kinds()

    @property
    def by_key(self) -> dict[Any, list[Variant]]:
        """Return what was recorded, by the keys of calls' arguments."""
        return self._kinds.by_key

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
        return self._kinds.variants

    # -- a call with a variant --

    def _miss(self, key: Any) -> None:
        """Count a call whose state is no variant's."""
        found = self.stopped.by_key.get(key)
        # Not where calls with another state than the variants' are stopped for another reason.
        may_drop = found is None or found.stop.reason == "too_many_signatures"
        stop = self._kinds.miss(key, may_drop=may_drop and self.capped is not None)
        if stop is not None:
            self.stopped.stop(key, stop)

    def _run(
        self, variant: Variant, inputs: list[Tensor], key: Any, call: Call, begin: float
    ) -> Any:
        args, kwargs, given = call
        forward = self.target.forward
        if variant.missed:
            variant.missed = 0
        if wants_gradients(inputs) and not variant.gives_none:
            self.waits_for_gradients += 1
            # A parameter wants them, and no other way through the region is known: all calls do.
            if len(self.by_key) == 1 and state_wants_gradients(inputs, given):
                self.stopped.rest(self._rests, with_gradients=True)
            return forward(*args, **kwargs)
        if variant.stopped is not None:
            variant.is_unsure = variant.is_contested
            return self._run_stopped(variant, variant.stopped, inputs, key, call)
        if variant.waiting.is_resting():
            return forward(*args, **kwargs)
        variant.calls += 1
        kernel = variant.kernel
        is_asked_for = kernel.has_candidate or (not kernel.is_serving and kernel.is_open)
        if variant.is_to_be_recorded(again=settings.rerecord) or (
            is_asked_for and not variant.has_raised
        ):
            if not self._recording_time.is_spent():
                return self._record_again(variant, inputs, key, call)
            if not (variant.is_replayed and kernel.is_serving):
                return forward(*args, **kwargs)
        gate = settings.gate
        if not kernel.may_serve or (gate and kernel.is_serving and variant.times.wants_plain):
            return self._run_plain(variant, key, call)
        frame = Frame(forward, args, kwargs, given)
        fresh = kernel.call(inputs, frame)
        if frame.has_run:
            # Parameters have other dtypes or layouts than at the recording: the next such call is
            # recorded as a variant of its own.
            if not variant.has_key(inputs):
                variant.is_contested = variant.is_unsure = True
            return frame.result
        variant.is_unsure = False  # C++ has compared the inputs with the recording's.
        variant.hits += 1
        try:
            result = variant.build(fresh, given)
        except Exception as error:  # noqa: BLE001 - of a container of the user's
            self._unbuilt(variant, key, error)
            return forward(*args, **kwargs)
        self._choose_way(variant, key, call, begin)
        return result

    def _run_plain(self, variant: Variant, key: Any, call: Call) -> Any:
        """Return the forward's result; its time may decide whether a library serves."""
        args, kwargs, _ = call
        forward = self.target.forward
        self._look_for_refusal(variant, key)
        if variant.is_pending:
            self._rest(variant)
        if not settings.gate:
            return forward(*args, **kwargs)
        begin = time.perf_counter()
        result = forward(*args, **kwargs)
        variant.times.add(time.perf_counter() - begin, served=False)
        return result

    def _choose_way(self, variant: Variant, key: Any, call: Call, begin: float) -> None:
        """Have the next calls that are like this one, which was served, take the short way.

        The gate takes the time of the way that calls go.
        """
        args, kwargs, _ = call
        is_timed = settings.gate and variant.is_timed
        fast = None
        if self.is_on and (is_timed or variant is self._last_served):
            fast = fast_call(variant, key, self.target, args, kwargs)
            before, self._fast = self._fast, fast
            if before is not None:
                before.end()
        self._last_served = variant
        if is_timed and fast is None:
            self._time(variant, key, begin)

    def _time(self, variant: Variant, key: Any, begin: float) -> None:
        """Take the time of a served call into account: all of it, from its arguments on."""
        if begin and variant.is_timed:
            stop = variant.times.add(time.perf_counter() - begin, served=True)
            if stop is not None:
                variant.stopped = self.stopped.stopped(key, stop)
                self.stopped.note(stop)
        self._is_timing = any(one.is_timed for one in self.variants)

    def _run_stopped(
        self, variant: Variant, kind: StoppedKind, inputs: list[Tensor], key: Any, call: Call
    ) -> Any:
        """Return the forward's result; now and then, see whether the reason has gone."""
        args, kwargs, _ = call
        is_of_moment = kind.stop.reason in OF_THE_MOMENT
        if not self._recording_time.is_spent() and self.stopped.is_due(kind) and kind.may_go:
            if not is_of_moment:
                self.stopped.keep(key, kind)
                self._kinds.remove(key, variant)
                try:
                    return self._record(key, call)
                finally:
                    variant.release()  # After: an equal tape goes on with what its op knows.
            variant.stopped = None
            variant.kernel.ask_again(inputs)
            return self._record_again(variant, inputs, key, call)
        if is_of_moment and not variant.waiting.is_resting():
            if variant.kernel.refusal is None:
                variant.stopped = None  # A setting has changed, or the queue has room.
            else:
                self._rest(variant)
        return self.target.forward(*args, **kwargs)

    def _rest(self, variant: Variant) -> None:
        """Have calls run as they are for a while, as the variant cannot be served meanwhile."""
        if any(one.stopped is None and one is not variant for one in self.variants):
            variant.waiting.rest()
        else:
            self.stopped.rest(variant.waiting)

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
        if self.dry_run_of or not native_path.take_built():
            self.why_plain = self.why_plain if self.dry_run_of else UNBUILT
            if not self.dry_run_of:
                self.stopped.rest(self._rests)
            return self.target.forward(*args, **kwargs)
        # First, as the next question may walk through all modules.
        is_full = self._kinds.is_full(key, settings.region_cap, self.stopped.by_key)
        if is_full and self.capped is not None:
            return self.target.forward(*args, **kwargs)
        if self.needs_gradients.is_there(given):
            self.waits_for_gradients += 1
            return self.needs_gradients.seen(self.target.forward(*args, **kwargs))
        if is_full:
            self.capped = Stop("too_many_signatures", what_varies(self.by_key, key))
            return self.target.forward(*args, **kwargs)
        if self._recording_time.is_spent() or not self._recordings.begin(key):
            return self.target.forward(*args, **kwargs)
        try:
            with self._recording_time.counted():
                return self._recorded(key, call)
        finally:
            self._recordings.end(key)

    def _recorded(self, key: Any, call: Call) -> Any:
        args, kwargs, given = call
        try:
            recorded = record_call(self.target, args, kwargs, given)
        except Stop as stop:  # Before the forward ran.
            self.stopped.stop(key, stop)
            recorded = None
        except BaseException as error:
            if self._recordings.raised(key):
                with contextlib.suppress(RegionStoppedError):  # The user's error goes on.
                    self.stopped.stop(key, Stop("raises", f"it raised {type(error).__name__}"))
            raise
        self._recordings.returned(key)
        if recorded is None:  # Or somebody else watches this thread: a later call is recorded.
            self.why_plain = self.why_plain or _UNWATCHED
            return self.target.forward(*args, **kwargs)
        try:
            self._keep(key, recorded, given)
        except Stop as stop:
            self._passing += stop.reason in MAY_PASS
            if self.needs_gradients.was_wrong(stop):
                pass  # The forward gives gradients after all: later calls wait for no_grad.
            elif stop.reason not in MAY_PASS or self._passing > _PASSING or self.dry_run:
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
        self.needs_gradients.check(recorded)
        if self.dry_run:
            count = sum(isinstance(one, str) for one in tape.inputs)
            self.dry_run_of = f"{len(tape.tape.calls)} calls of ops, {count} parameters and buffers"
            return
        read, guard = state.generate(f"{self.path or self.target.name}", tape.inputs)
        inputs = read(given)
        if inputs is None:
            raise Stop("not_recorded", f"its state changes by itself: {guard.first_change()}")
        kernel = acquire(tape.tape, inputs)
        variant = Variant(tape, kernel, read, guard, results)
        variant.gives_none = wants_gradients(inputs)
        variant.release = weakref.finalize(self, release, kernel)
        self._releases = [one for one in self._releases if one.alive] + [variant.release]
        kernel.add_key(inputs)
        self._kinds.add(key, variant, again=key in self.stopped.by_key)
        self._is_timing = True
        kernel.offer(inputs, results.fresh)

    def _record_again(self, variant: Variant, inputs: list[Tensor], key: Any, call: Call) -> Any:
        """Return the forward's result; the tape of this call must be the variant's."""
        given = call[2]
        if not variant.has_key(inputs):
            # Parameters, or settings of torch's, are others.
            variant.is_contested = variant.is_unsure = True
            found = self._kinds.match(key, given)
            return self._run(*found, key, call, 0.0) if found else self._record(key, call)
        with self._recording_time.counted():
            return self._recorded_again(variant, inputs, key, call)

    def _recorded_again(self, variant: Variant, inputs: list[Tensor], key: Any, call: Call) -> Any:
        args, kwargs, given = call
        begin = time.perf_counter()
        try:
            recorded = record_call(self.target, args, kwargs, given)
        except Stop:
            recorded = None
        except BaseException:
            variant.has_raised = True
            variant.put_off(time.perf_counter() - begin)
            raise
        if recorded is None:
            return self.target.forward(*args, **kwargs)
        variant.has_raised = False
        try:
            tape, _, results = recorded.read()
            difference = variant.differs(tape, results)
            if difference:
                raise Stop("tape_differs", difference)
            if not variant.is_replayed:
                check_replay(tape.tape, inputs, results.fresh)
                variant.is_replayed = True
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

    def _unbuilt(self, variant: Variant, key: Any, error: Exception) -> None:
        """Stop a variant whose results, served, cannot be put together."""
        stop = Stop("not_recorded", f"its results cannot be put together: {error!r}")
        variant.stopped = self.stopped.stopped(key, stop)
        self._failed(key, error)

    def _failed(self, key: Any, error: Exception) -> None:
        warn_of_failure(self.path, self.target.name, error)
        if is_deterministic(error):
            self.stopped.stop(key, Stop("not_recorded", repr(error)))
