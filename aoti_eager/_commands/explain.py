"""Why a call hits, misses or is declined: its key, the nearest entry and what differs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from typing import overload as typed_overload

import torch

from .._autograd.kernel import gradients_of
from .._base.op_names import (
    find_overload,
    find_packet,
    no_op,
    overloads_of,
)
from .._base.torch_compat.dispatcher import OpOverload, OpOverloadPacket, dispatched_call
from .._compile_service import cache_context, this_torch
from .._dispatch import rare
from .._dispatch.certificates import refusal as certificate_refusal
from .._dispatch.decision import refused
from .._dispatch.kernel import Kernel
from .._dispatch.kernel_cache import KernelCache
from .._dispatch.kernel_request import may_be_dynamic
from .._dispatch.key_state import BEING_COMPILED, COMPARING, MEASURING, QUEUED, RARE, Progress
from .._dispatch.specialisations import Specialisations
from .._keys.call_template import call_template
from .._keys.declines import REASONS, call_decline, op_decline
from .._keys.kernel_key import ANY_THREADS, KernelKey, kernel_key
from .._keys.pattern_instances import (
    size_class,
)
from .._keys.schema import OpSchema, op_schema
from .._registration.registry import find_cache
from .._store.entry import Status
from .._store.store import StoredEntry
from .._store.stored_failures import still_holds
from .._store.verdict import PathTime
from .._workloads import left_out as left_out_module
from ..config import config
from ..errors import AotiEagerError, UnsupportedArgumentError, UnsupportedFunctionError
from .nearest import Nearest, nearest_entry

if TYPE_CHECKING:
    from .._regions.explanation import RegionExplanation
    from .._regions.fuse import FusedFunction


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happens to a call, and why.

    Attributes:
        op: Qualified name of the overload that the call reaches.
        registered: Whether this process serves it.
        verdict: ``"hit"`` (a loaded kernel serves it), ``"stored"`` (the store has its kernel, and
            the next call loads it, or has it measured or compared first), ``"declined"``, or
            ``"miss"``.
        reason: The decline reason, one of docs/declines.md; ``None`` unless declined.
        message: The verdict in words.
        key: The canonical key; ``None`` where the call can have none.
        nearest: The nearest stored entry of the op, on a miss.
        left_out: Why ``run`` does not register the op, in words, where it is not registered.
        state: The state of a key without a decision: ``"queued"``, ``"compiling"``,
            ``"measuring"``, or ``"comparing"``, for which the key waits for its next call; ``None``
            for all other keys.
        gradient: What happens to the gradient, in words, if the call wants a gradient and the op
            has a compiled one: then all other attributes describe the call without a gradient.
    """

    op: str
    registered: bool
    verdict: str
    reason: str | None
    message: str
    key: KernelKey | None = None
    nearest: Nearest | None = field(default=None)
    gradient: str | None = None
    state: str | None = None
    left_out: str | None = None

    def __str__(self) -> str:
        why = self.reason or self.state
        lines = [f"{self.op}: {self.verdict}" + (f" ({why})" if why else "")]
        lines.append(f"  {self.message}")
        if not self.registered:
            lines.append("  the op is not registered in this process")
        if self.left_out is not None:
            lines.append(f"  {self.left_out}")
        if self.gradient is not None:
            lines.append(f"  its gradient: {self.gradient}")
        if self.key is not None:
            lines.append(f"  key {self.key.digest}")
            lines += [f"    {name} = {value}" for name, value in self.key.components().items()]
        if self.nearest is not None:
            lines.append(f"  nearest entry {self.nearest.digest} ({self.nearest.status})")
            for name, (mine, theirs) in self.nearest.differing.items():
                lines.append(f"    {name}: {mine} here, {theirs} there")
        return "\n".join(lines)


@typed_overload
def explain(
    op: torch.nn.Module | FusedFunction, *args: Any, **kwargs: Any
) -> RegionExplanation: ...


@typed_overload
def explain(
    op: str | OpOverload | OpOverloadPacket, *args: Any, dispatch_key: str = "CPU", **kwargs: Any
) -> Explanation: ...


def explain(
    op: Any, *args: Any, dispatch_key: str = "CPU", **kwargs: Any
) -> Explanation | RegionExplanation:
    """Return what happens to the call ``op(*args, **kwargs)``; nothing is run, loaded or counted.

    Args:
        op: As for ``register``; of several overloads, PyTorch picks by the arguments. Or a module
            or function that was fused: then what is returned is a ``RegionExplanation``.
        args: The call's positional arguments.
        dispatch_key: The dispatch key that the call would be sent to.
        kwargs: The call's keyword arguments.

    Raises:
        UnknownOpError: There is no op of that name.
        RegistrationError: ``op`` is no op, and nothing that was fused.
        RuntimeError: PyTorch takes no such call.
    """
    if not isinstance(op, str | OpOverload | OpOverloadPacket):
        # Not at the top: who explains an op, or runs another verb, has no use for regions.
        from .._regions.explanation import explain_region, may_be_region

        if may_be_region(op):
            return explain_region(op, args, kwargs)
    if isinstance(op, str):
        op = find_overload(op) if "." in op.partition("::")[2] else find_packet(op)
    if not isinstance(op, OpOverload | OpOverloadPacket):
        raise no_op(op)
    asked = [op] if isinstance(op, OpOverload) else overloads_of(op)
    whole = any(gradients_of(one) is not None for one in asked)
    overload, seen_args, seen_kwargs = dispatched_call(op, args, kwargs, whole=whole)
    explained = _explained(overload, dispatch_key, seen_args, seen_kwargs)
    if not explained.registered:
        explained = replace(explained, left_out=_why_left_out(explained.op))
    gradients = gradients_of(overload)
    if gradients is None or dispatch_key != "CPU":
        return explained
    return replace(explained, gradient=gradients.explained(seen_args, seen_kwargs))


def _why_left_out(op: str) -> str | None:
    if op in {one.removesuffix(".default") for one in left_out_module.left_out}:
        return "all kernels of the op lose here, so run has left it out (--all-ops registers it)"
    if left_out_module.losing([op], cache_context.current()):
        return "all kernels of the op lose here: run leaves it out of scripts that it has looked at"
    return None


def _explained(
    overload: OpOverload, dispatch_key: str, seen_args: Any, seen_kwargs: Any
) -> Explanation:
    schema = op_schema(overload)
    cache = find_cache(overload, dispatch_key)
    registered = cache is not None
    reason = op_decline(overload, schema)
    if reason is None and this_torch.is_refused():
        reason = this_torch.REASON
    if reason is not None:
        return Explanation(schema.op, registered, "declined", reason, REASONS[reason])
    try:
        values = schema.bind(seen_args, seen_kwargs)
        overridden = cache is not None and cache.original.overridden
        more = (
            ()
            if cache is None
            else cache.key_context(cache.toolchain, cache.describe_function()[0])
        )
        key = kernel_key(schema, dispatch_key, values, overridden=overridden, more=more)
    except UnsupportedFunctionError as error:
        message = f"its function {error}"
        return Explanation(schema.op, registered, "declined", "unsupported_function", message)
    except UnsupportedArgumentError as error:
        return Explanation(schema.op, registered, "declined", error.reason, str(error))
    known = _in_tables(cache, seen_args, seen_kwargs)
    if known is not None:
        return replace(known, key=_stored_key(key))
    reason = call_decline(call_template(schema, key))
    if reason is not None:
        return Explanation(schema.op, registered, "declined", reason, REASONS[reason], key)
    target = cache_context.current().target
    refused_for = certificate_refusal(schema, key, target, required=config.certified)
    if refused_for is not None:
        return Explanation(schema.op, registered, "declined", "uncertified", refused_for, key)
    return _in_store(schema, key, cache)


_STATES = {
    QUEUED: "its kernel waits for a worker",
    BEING_COMPILED: "its kernel is being made in the background",
    MEASURING: "its kernel is there, and is being measured in the background",
    COMPARING: "its kernel is there, and is compared with the original on the next call",
}


def _in_tables(cache: KernelCache | None, args: Any, kwargs: Any) -> Explanation | None:
    if cache is None:
        return None
    key, op = cache.key(*args, **kwargs), cache.schema.op
    held = cache.state_of(key)
    if held is None:
        progress = cache.table.awaited.get(key)
        if progress is None:
            return None
        message = _with_step("its kernel is being made in a call that waits", progress)
        return Explanation(op, True, "miss", None, message, state=progress.state)
    if isinstance(held, Kernel):
        return Explanation(op, True, "hit", None, "a loaded kernel library serves the call")
    state = cache.table.state(key, held)
    if state is not None:
        message = _with_step(_STATES[state], held.progress)
        return Explanation(op, True, "miss", None, message, state=state)
    if held.reason == RARE:
        message = f"rare, called {rare.rares.calls_of(cache.table, key)} times: {held.message}"
        return Explanation(op, True, "miss", None, message, state=RARE)
    message = f"{REASONS.get(held.reason, '')}: {held.message}"
    return Explanation(op, True, "declined", held.reason, message)


def _with_step(message: str, progress: Progress | None) -> str:
    step = "" if progress is None else progress.step
    return f"{message}: {step}" if step else message


def _stored_key(key: KernelKey) -> KernelKey:
    """Return the key under which the store has a call's entry: with a thread count, or any."""
    context = cache_context.current()
    for candidate in (key.with_threads(ANY_THREADS), key):
        try:
            found = context.store.find(candidate, context.environment, context.features)
            if found is not None and still_holds(context.store, found):
                return candidate
        except AotiEagerError:
            continue
    return key


def _in_store(schema: OpSchema, key: KernelKey, cache: KernelCache | None) -> Explanation:
    registered = cache is not None
    context = cache_context.current()
    environment = context.environment
    for candidate in (key.with_threads(ANY_THREADS), key):
        try:
            found = context.store.find(candidate, environment, context.features)
        except AotiEagerError as error:
            return Explanation(key.op, registered, "miss", None, str(error), key)
        if found is not None and not still_holds(context.store, found):
            continue  # The call also skips it, and removes it.
        if found is not None and found.entry.status is Status.READY:
            taken = _time(found, key, cache)
            if taken is not None and not taken.wins:
                reason, message = refused(taken)
                return Explanation(key.op, registered, "declined", reason, message, candidate)
            message = "the store has its kernel library"
            return Explanation(key.op, registered, "stored", None, message, candidate)
        if found is not None:
            reason = found.entry.reason or "mismatch"
            message = found.entry.message or REASONS.get(reason, reason)
            return Explanation(key.op, registered, "declined", reason, message, candidate)
    if (behind := _in_tiers(key)) is not None:
        return Explanation(key.op, registered, "stored", None, behind, key)
    dynamic = Specialisations() if cache is None else cache.table.dynamic
    found = dynamic.kernels.find(schema, key, context)
    if found is not None:
        taken = _time(found, key, cache)
        if taken is not None and not taken.wins:
            return Explanation(key.op, registered, "declined", *refused(taken), key)
        message = f"the store has a kernel library for several sizes, {found.entry.digest}"
        return Explanation(key.op, registered, "stored", None, message, key)
    if cache is not None and not cache.bypassed and config.mode != "cache_only":
        dynamic, static = cache.table.dynamic, cache.table.static_count
        is_open = may_be_dynamic(cache, cache.toolchain)
        foreseen = dynamic.foreseen_refusal if is_open else dynamic.refusal
        refusal = foreseen(schema, key, static)
        if refusal is not None:
            message = f"{REASONS['specialisation_cap']}: {refusal}"
            return Explanation(key.op, registered, "declined", "specialisation_cap", message, key)
    nearest = nearest_entry(key, environment, context.features)
    message = "no entry has this key" if nearest else "the store has no entry of this op"
    return Explanation(key.op, registered, "miss", None, message, key, nearest)


def _in_tiers(key: KernelKey) -> str | None:
    """Return in words which tier has the kernel of a call; ``None`` if none has it."""
    context = cache_context.current()
    if context.tiers is None:
        return None
    keys = (key.with_threads(ANY_THREADS), key)
    found = context.tiers.find(keys, context.environment, context.features)
    tier = None if found is None else context.tiers.tier_of(found)
    if found is None or tier is None or found.entry.status is not Status.READY:
        return None
    return f"tier {tier.name} has its kernel library"


def _time(found: StoredEntry, key: KernelKey, cache: KernelCache | None) -> PathTime | None:
    """Return the times that the gate uses, if it is on and they were taken on this processor."""
    if not config.gate or (cache is not None and not cache.toolchain.works_in_background):
        return None
    library = found.entry.library
    verdict = cache_context.current().verdicts.get(
        found.entry.digest, "" if library is None else library.sha256
    )
    threads = int(dict(key.context)["threads"])
    size = None if found.entry.guards is None else size_class(key)
    if cache is None:  # For a process that registers the op: C++ most likely serves it.
        return verdict.time("native", threads, size) or verdict.time("python", threads, size)
    return verdict.time("python" if cache.native is None else "native", threads, size)
