"""What becomes of a call of a region, and why: its arguments' key, its tape, its library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .._base.data_class import dataclass
from .._base.torch_compat import tracing
from ..errors import RegistrationError
from .arguments import UnreadableArgumentError, read_arguments
from .current_settings import settings
from .fuse import FusedFunction
from .fused_forward import FusedForward
from .gradients import wants_gradients
from .module_tree import each_named
from .region import Region
from .report import REFUSED, explanation, region_state
from .variant import Variant
from .varying import what_varies


@dataclass(frozen=True, slots=True)
class RegionExplanation:
    """What happens to a call of a fused module or function, and why.

    Attributes:
        path: The region's path in the fused model; empty for the model itself.
        name: The name of the module's class, or of the function.
        verdict: ``"hit"`` (a loaded library serves the call), ``"miss"`` (the forward runs, and the
            call may bring a library nearer), or ``"declined"`` (the forward runs).
        reason: Why the call is declined, one of docs/regions.md or docs/declines.md; ``None`` where
            the verdict is another, or the call is not one of a region's at all.
        message: The verdict in words.
        key: What the key of the call's arguments consists of; empty if there is none.
        op: The op of the tape that the call runs, as ``stats()`` names it; ``None`` before a call
            was recorded.
        listing: The tape's calls, a line each; empty before a call was recorded.
        inside: The regions within the module, as they stand, if the module itself is no region, or
            is declined.
    """

    path: str
    name: str
    verdict: str
    reason: str | None
    message: str
    key: tuple[str, ...] = ()
    op: str | None = None
    listing: str = ""
    inside: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        lines = [f"{self.path or '(the model)'}  {self.name}: {self.verdict}{why}"]
        lines.append(f"  {self.message}")
        if self.key:
            lines += ["  key", *[f"    {one}" for one in self.key]]
        if self.op is not None:
            lines += [f"  tape of {self.op}", *[f"    {one}" for one in self.listing.splitlines()]]
        if self.inside:
            lines += ["  regions within it", *[f"    {one}" for one in self.inside]]
        return "\n".join(lines)


def may_be_region(target: Any) -> bool:
    """Return whether ``explain_region`` takes a target."""
    return isinstance(target, torch.nn.Module | FusedFunction)


def explain_region(
    target: torch.nn.Module | FusedFunction, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> RegionExplanation:
    """Return what happens to a call of a module or a function; nothing is run or counted.

    Args:
        target: A module that was fused, or lies within one; or what ``fuse`` made of a function.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.

    Raises:
        RegistrationError: Neither the module nor a module within it is fused.
    """
    if isinstance(target, FusedFunction):
        return _explained(target.region, args, kwargs)
    modules = [module for _, module in each_named(target)]
    inside = [one for one in map(_region_of, modules) if one is not None]
    mine, name = _region_of(target), type(target).__name__
    if not inside:
        raise RegistrationError(f"{name}: neither it nor a module within it is fused; see fuse")
    within = tuple(str(region_state(one)) for one in inside if one is not mine)
    if mine is None:
        message = "the module itself is no region"
        return RegionExplanation("", name, "declined", None, message, inside=within)
    found = _explained(mine, args, kwargs)
    if found.verdict != "declined" or not within:
        return found
    return replace(found, inside=within)


def _region_of(module: torch.nn.Module) -> Region | None:
    forward = vars(module).get("forward")
    return forward.region if isinstance(forward, FusedForward) else None


def _explained(region: Region, args: Sequence[Any], kwargs: Mapping[str, Any]) -> RegionExplanation:
    path, name = region.path, region.target.name
    message = _why_plain(region)
    if message:
        reason = REFUSED.reason if message == str(REFUSED) else None
        return RegionExplanation(path, name, "declined", reason, message)
    try:
        key, given = read_arguments(args, kwargs)
    except UnreadableArgumentError as error:
        reason, message = "unsupported_argument", f"an argument is {error}"
        return RegionExplanation(path, name, "declined", reason, message)
    shown, changed = tuple(repr(one) for one in key), ""
    key = region.target.training, key
    for variant in list(region.by_key.get(key, ())):
        inputs = variant.inputs(given)
        if inputs is None:
            changed = changed or variant.what_changed()
            continue
        if not all(tensor is not None for tensor in inputs):
            continue
        if variant.is_contested and not variant.has_key(inputs):
            changed = changed or "the types or sizes of parameters"
            continue
        op, listing = variant.kernel.name, variant.listing
        found = _of_variant(variant, needs=wants_gradients(inputs))
        return RegionExplanation(path, name, *found, shown, op, listing)
    stopped = region.stopped.by_key.get(key)
    if stopped is not None:
        message = f"{explanation(stopped.stop.reason)}: {stopped.stop}"
        return RegionExplanation(path, name, "declined", stopped.stop.reason, message, shown)
    if region.needs_gradients.is_there(given):
        message = _GRADIENTS
        return RegionExplanation(path, name, "declined", None, message, shown)
    if region.capped is not None:
        reason, message = region.capped.reason, f"{what_varies(region.by_key, key)}"
        return RegionExplanation(path, name, "declined", reason, message, shown)
    message = "the call is recorded, as no call of its kind was yet"
    if changed:
        message = f"the call is recorded, as this has changed since such a call was: {changed}"
    return RegionExplanation(path, name, "miss", None, message, shown)


_GRADIENTS = (
    "the call needs gradients, which no library of a region computes: call it under "
    "torch.inference_mode() or torch.no_grad()"
)


def _why_plain(region: Region) -> str:
    """Return why every call runs the forward at this moment; empty if not every call does."""
    if not region.is_on:
        return "its report was undone: the forward runs"
    if settings.is_refused:
        return str(REFUSED)
    if settings.is_off:
        return "the mode is off: the forward runs"
    if not tracing.is_plain_eager():
        return "autocast, a trace, functorch or a mode of torch's is on: the forward runs"
    if region.dry_run:
        return "a dry run: the forward runs"
    return ""


def _of_variant(variant: Variant, *, needs: bool) -> tuple[str, str | None, str]:
    """Return verdict, reason and message of a call whose kind was recorded."""
    kernel = variant.kernel
    if needs:
        return "declined", None, _GRADIENTS
    if variant.stop is not None:
        return "declined", variant.stop.reason, str(variant.stop)
    if kernel.has_candidate:
        return "miss", None, "its library is there, and is compared with the forward on this call"
    if kernel.is_serving:
        return "hit", None, f"a loaded library serves the call; {_times(variant)}"
    refusal = kernel.refusal
    if refusal is not None:
        return "declined", refusal.reason, f"{explanation(refusal.reason)}: {refusal.message}"
    if kernel.is_compiling:
        step = kernel.step
        message = "its library is being made in the background"
        return "miss", None, f"{message}: {step}" if step else message
    return "miss", None, "its library waits for more calls, or for a worker"


def _times(variant: Variant) -> str:
    plain_s, served_s = variant.times.plain_s, variant.times.served_s
    if plain_s is None or served_s is None:
        return "its calls were not timed in this process"
    return f"the forward takes {1e3 * plain_s:.3f} ms, a served call {1e3 * served_s:.3f}"
