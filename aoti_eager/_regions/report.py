"""What ``fuse`` says about each region: served, on the way, or stopped and why."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from .._base.data_class import dataclass
from .._compile_service import this_torch
from .._keys.declines import REASONS
from .._registration.preparation import why_not_native
from .current_settings import settings
from .region import UNBUILT
from .region_kernel import sweep
from .stop import STOPS, Stop

if TYPE_CHECKING:
    from .call_times import CallTimes
    from .region import Region
    from .variant import Variant


@dataclass(frozen=True, slots=True)
class RegionState:
    """One region at the moment of the report.

    Attributes:
        path: The module's path in the fused model; empty for the model itself.
        name: The name of the module's class, or of the function.
        state: ``"not called"``, ``"recorded"``, ``"compiling"``, ``"comparing"``, ``"served"``,
            ``"needs gradients"``, ``"runs as before"``, ``"stopped"``, or ``"undone"``.
        reason: Why the region stopped or runs as before, or why further kinds of arguments are not
            served, one of docs/regions.md or docs/declines.md; else empty.
        message: The reason in words.
        calls: How often the region was called.
        hits: How many calls a library has served.
        speed: How many times as fast as the forward a served call is; ``None`` if not measured.
        plain_s: Seconds that the forward takes, at best; ``None`` if not measured.
        served_s: Seconds that a served call of the same kind takes, at best.
        ops: The ops of the region's tapes, as ``stats()`` and the verb ``list`` name them.
        step: Of a region that is ``"compiling"``: the step that its worker is in, and the seconds
            in that step; ``"queued"`` before a worker has the library. Else empty.
    """

    path: str
    name: str
    state: str
    reason: str
    message: str
    calls: int
    hits: int
    speed: float | None
    plain_s: float | None = None
    served_s: float | None = None
    ops: tuple[str, ...] = ()
    step: str = ""

    @property
    def why(self) -> str:
        """Return the reason and what it means, or another remark; empty if there is none."""
        if self.reason:
            return f"({self.reason}): {self.message or explanation(self.reason)}"
        return f"({self.message})" if self.message else ""

    @property
    def progress(self) -> str:
        """Return the state, and the step of a region that is compiling."""
        return f"{self.state}: {self.step}" if self.step else self.state

    def __str__(self) -> str:
        words = [self.progress, *filter(None, [self.why])]
        counts = f"{self.calls} calls, {self.hits} served"
        if self.speed is not None:
            counts += f", {self.speed:.2f} times as fast"
        return f"{self.path or '(the model)'}  {self.name}  {' '.join(words)}; {counts}"


class Regions(Protocol):
    """What a report needs of the regions that it is about."""

    def states(self) -> Sequence[RegionState]:
        """Return the state of each region."""

    def undo(self) -> None:
        """Give every module its own forward back."""


class Outcome:
    """What is known of regions, without holding the model: what they are, or were at their end.

    Attributes:
        regions: Returns the regions; ``None`` if they have ended.
    """

    def __init__(self, regions: Regions) -> None:
        self.regions = weakref.ref(regions)
        self._kept: Sequence[RegionState] = ()

    def states(self) -> Sequence[RegionState]:
        """Return the state of each region, or the last ones if the model is gone."""
        regions = self.regions()
        return self._kept if regions is None else regions.states()

    def keep(self, regions: Regions) -> None:
        """Keep the states of regions that end."""
        self._kept = regions.states()

    def undo(self) -> None:
        """Give every module its own forward back, and let go of libraries that nobody has."""
        regions = self.regions()
        if regions is None:
            sweep()  # Those of a model that is gone.
        else:
            regions.undo()


def explanation(reason: str) -> str:
    """Return what a reason means."""
    return STOPS.get(reason) or REASONS.get(reason, reason)


# What the report says of a region whose calls have taken too little time yet.
_WAITS = "its calls have not taken enough time yet to make a library pay"
# What the report says of all regions while this torch may not serve.
REFUSED = Stop(this_torch.REASON, REASONS[this_torch.REASON])
# What the report says of a module that has its own forward back.
_AS_IT_IS = "it runs as it is"


def region_state(
    region: Region, *, is_placed: bool = True, is_withdrawn: bool = False
) -> RegionState:
    """Return the state of a region.

    Args:
        region: The region.
        is_placed: Whether the module's calls come to the region.
        is_withdrawn: Whether they do not any more because no library can serve the module.
    """
    variants = region.variants
    timed = _timed(variants)
    hopeful = [one for one in variants if one.stop is None]
    training, first = region.target.training, region.stopped.first
    stop = first.get(training) or next(
        iter([*first.values(), *(one.stop for one in variants if one.stop is not None)]), None
    )
    state, message = "not called", ""
    if not region.is_on:
        state = "undone"
    elif not is_placed and not is_withdrawn:
        state, stop = "stopped", Stop("replaced", STOPS["replaced"])
    elif settings.is_refused and region.calls:
        state, stop = "runs as before", REFUSED
    elif any(one.kernel.is_serving for one in hopeful):
        state = "served"
    elif (training in first or variants) and not hopeful:
        state = "stopped"
    elif any(one.kernel.has_candidate for one in hopeful):
        state = "comparing"
    elif any(one.kernel.is_compiling for one in hopeful):
        state = "compiling"
    elif training in first:
        state = "stopped"
    elif variants or region.dry_run_of:
        state, message = "recorded", region.dry_run_of or _what_is_missing(hopeful)
    elif region.waits_for_gradients:
        state = "needs gradients"
        message = "call it under torch.inference_mode() or torch.no_grad()"
    elif region.calls and region.why_plain:
        state, message = "runs as before", _as_before(region)
    stop = stop if state == "stopped" or stop is REFUSED else region.capped
    if stop is not None:
        message = f"{stop}; {_AS_IT_IS}" if is_withdrawn else str(stop)
    return RegionState(
        path=region.path,
        name=region.target.name,
        state=state,
        reason=stop.reason if stop is not None else "",
        message=message,
        calls=region.calls,
        hits=sum(one.hits for one in variants),
        speed=None if timed is None else timed.speed,
        plain_s=None if timed is None else timed.plain_s,
        served_s=None if timed is None else timed.served_s,
        ops=tuple(dict.fromkeys(one.kernel.name for one in variants)),
        step=_step(hopeful) if state == "compiling" else "",
    )


def _timed(variants: Sequence[Variant]) -> CallTimes | None:
    """Return the times of the variant that gains most; ``None`` if none was timed."""
    return max(
        (one.times for one in variants if one.times.speed is not None and one.hits),
        key=lambda one: one.speed or 0.0,
        default=None,
    )


def _what_is_missing(hopeful: Sequence[Variant]) -> str:
    """Return what recorded calls wait for."""
    return _WAITS if any(one.kernel.waits_for_calls for one in hopeful) else ""


def _as_before(region: Region) -> str:
    """Return why calls of a region ran as before."""
    why = why_not_native() if region.why_plain == UNBUILT else ""
    return f"its calls came {region.why_plain}" + (f": {why}" if why else "")


def _step(variants: Sequence[Variant]) -> str:
    return next((one.kernel.step for one in variants if one.kernel.is_compiling), "")


class FusionReport:
    """What is known of the regions of one call of ``fuse``; a context manager that undoes them.

    ``print`` it for a line a region.

    More than 12 methods, because reports are text, context managers, and their own copies.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    @property
    def _fusion(self) -> Regions | None:
        return self._outcome.regions()

    @property
    def regions(self) -> Sequence[RegionState]:
        """Return the state of each region, from the root down."""
        return self._outcome.states()

    def __str__(self) -> str:
        return "\n".join(map(str, self.regions))

    def __repr__(self) -> str:
        return f"<FusionReport of {len(self.regions)} regions; print it>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FusionReport) and other._outcome is self._outcome

    def __hash__(self) -> int:
        return id(self._outcome)

    def __copy__(self) -> FusionReport:
        return self

    def __deepcopy__(self, memo: object) -> FusionReport:
        return self  # That of the same regions: what a copied model has is not in it.

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # A pickle of a model that has a report needs no region.

    def undo(self) -> None:
        """Give every module its own forward back; a second call does nothing.

        Libraries that no other model uses are released, unless a thread is calling one.
        """
        self._outcome.undo()

    def __enter__(self) -> FusionReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()
