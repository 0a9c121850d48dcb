"""One recorded way through a region: its tape, its guard, and what is known of its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .call_times import CallTimes
from .guard_source import GuardSource, Read
from .region_kernel import RegionKernel
from .results import Results
from .stop import Stop
from .stopped_calls import StoppedKind
from .tape_of import RecordedTape
from .waiting import Waiting

# Beyond this number of calls, one in so many is recorded again; fewer, where recordings would take
# more than this share of the time of served calls.
_LAST_POWER = 1024
_SHARE = 0.01


class Variant:
    """One recorded way through a region, for one key of arguments.

    Args:
        recorded: The tape and where its inputs are.
        kernel: The op of the tape.
        read: Checks the state of the region's target, and collects the tape's inputs.
        guard: What ``read`` was made of.
        results: The results of the recorded call.

    Attributes:
        kernel: The op of the tape.
        calls: How often the variant was called.
        hits: How many of these calls the library has served.
        is_contested: Whether calls with inputs of other metadata have come: then a call is the
            variant's only if the tape was recorded for such inputs.
        is_unsure: Whether the next call has to look at that; not after a served call, in which C++
            has looked.
        missed: How many calls in turn came with another state than any variant's.
        has_raised: Whether the last call that was recorded has raised an error.
        is_replayed: Whether the tape's ops were seen to give what the forward does.
        gives_none: Whether a call with gradients was recorded whose ops ran without them.
        release: Lets go of the kernel; a second call does nothing.
        times: The times of the variant's calls.
        read: Checks the state, and collects the inputs for a call's tensors; it may raise.
        build: Puts results together, of a library's results and the call's own tensors.
        stopped: The calls that no library serves, and why; ``None`` while one may serve them.
        refusals: How often a library was refused for a reason of the moment.
        waiting: When a call looks at the state of a library that is being made.

    More than 12 methods, because what is known of a tape, its calls and its library is asked apart.
    """

    def __init__(
        self,
        recorded: RecordedTape,
        kernel: RegionKernel,
        read: Read,
        guard: GuardSource,
        results: Results,
    ) -> None:
        self.kernel = kernel
        self.calls = 1
        self.hits = 0
        self.stopped: StoppedKind | None = None
        self.refusals = 0
        self.waiting = Waiting()
        self.is_contested = self.is_unsure = False
        self.missed = 0
        self.has_raised = self.gives_none = self.is_replayed = False
        self.release: Callable[[], object] = lambda: None
        self.times = CallTimes()
        self.build = results.builder()
        self._recorded = recorded
        self._results = results.shape()
        self.read, self._guard = read, guard
        self._next_record = 2

    @property
    def stop(self) -> Stop | None:
        """Return why no library serves the variant; ``None`` while one may."""
        stopped = self.stopped
        return None if stopped is None else stopped.stop

    @property
    def is_pending(self) -> bool:
        """Return whether the variant's library is being made: no call can change a thing."""
        kernel = self.kernel
        return not kernel.has_candidate and not kernel.is_serving and kernel.is_compiling

    @property
    def is_timed(self) -> bool:
        """Return whether times of calls decide, or may decide, on serving the variant."""
        return self.stop is None and not self.times.is_complete

    @property
    def listing(self) -> str:
        """Return the tape as text."""
        return self._recorded.tape.listing()

    def inputs(self, given: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the library's inputs for a call's tensors; ``None`` if the state has changed."""
        try:
            return self.read(given)
        except Exception:  # noqa: BLE001 - a part is gone, has another form, or a property raises
            return None

    def has_key(self, inputs: list[Tensor]) -> bool:
        """Return whether the tape was recorded for the metadata of these inputs."""
        try:
            return self.kernel.has_key(inputs)
        except Exception:  # noqa: BLE001 - a tensor of a subclass has no key
            return False

    def what_changed(self) -> str:
        """Return in words which part of the state is another one than at the recording."""
        return self._guard.first_change()

    @property
    def is_lost(self) -> bool:
        """Return whether a module or an object is gone that the state must have."""
        return self._guard.is_lost()

    def is_to_be_recorded(self, *, again: bool) -> bool:
        """Return whether this call is recorded; ``again`` if recordings go on after the second."""
        return self.calls >= self._next_record and (again or self._next_record == 2)

    def take_calls(self, most: int, *, again: bool) -> int:
        """Count calls ahead, and return how many: none of them is to be recorded."""
        taken = max(0, min(most, self._next_record - self.calls - 1)) if again else most
        self.calls += taken
        return taken

    def reads_all(self, count: int) -> bool:
        """Return whether each of a call's tensors is an input of the tape, and ``count`` are."""
        given = {one for one in self._recorded.inputs if isinstance(one, int)}
        return given == set(range(count))

    def put_off(self, taken_s: float) -> None:
        """Choose the next call to be recorded, after one that has taken ``taken_s`` seconds."""
        if self.calls < _LAST_POWER:
            self._next_record = 1 << self.calls.bit_length()
            return
        served_s = self.times.served_s or taken_s
        gap = max(_LAST_POWER, int(taken_s / (_SHARE * served_s)))
        self._next_record = self.calls + gap

    def differs(self, recorded: RecordedTape, results: Results) -> str:
        """Return the first difference of another recording, in words; empty if there is none."""
        mine, theirs = self._recorded, recorded
        if mine == theirs:
            same = results.shape() == self._results
            return "" if same else "its results are put together in another way"
        if mine.inputs != theirs.inputs:
            return "it reads other tensors"
        for number, (one, other) in enumerate(
            zip(mine.tape.calls, theirs.tape.calls, strict=False)
        ):
            if one != other:
                same = one.op == other.op
                what = f"{one.op} with other arguments" if same else f"{other.op}, not {one.op}"
                return f"call {number} is {what}"
        return f"it has {len(theirs.tape.calls)} calls, not {len(mine.tape.calls)}"
