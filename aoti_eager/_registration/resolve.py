"""Turn what a user names into overloads that can be registered at a dispatch key."""

from __future__ import annotations

from collections.abc import Iterable

from .._base import gc_pause
from .._base.cpp_compiler import NO_COMPILER, compiler_on_path
from .._base.op_names import find_overload, find_packet, no_op
from .._base.torch_compat import dispatcher
from .._base.torch_compat.dispatcher import OpOverload, OpOverloadPacket
from .._base.warn_once import warn_once
from .._compile_service import cache_context, this_torch
from .._keys.schema import op_schema, qualified_name
from ..errors import (
    CompositeImplicitOpError,
    RegistrationError,
    StoreError,
)

Op = str | OpOverload | OpOverloadPacket


def check_dispatch_key(dispatch_key: str) -> None:
    keys = dispatcher.dense_backends()
    if dispatch_key not in keys:
        raise RegistrationError(
            f"dispatch key {dispatch_key!r}: kernels can be registered at a Dense backend key "
            f"only, one of {', '.join(keys)}"
        )


def resolve(ops: Op | Iterable[Op], key: str) -> tuple[list[OpOverload], dict[str, str]]:
    if isinstance(ops, str | OpOverload | OpOverloadPacket) or not isinstance(ops, Iterable):
        ops = [ops]
    wanted: dict[str, OpOverload] = {}
    skipped: dict[str, str] = {}
    for op in ops:
        if isinstance(op, str):
            op = find_overload(op) if "." in op.partition("::")[2] else find_packet(op)
        if isinstance(op, OpOverload):
            problem = _problem(op, key)
            if problem is not None:
                raise problem
            wanted[qualified_name(op)] = op
        elif isinstance(op, OpOverloadPacket):
            problems = []
            overloads = [getattr(op, name) for name in dispatcher.overload_names(op)]
            for overload in overloads:
                problem = _problem(overload, key)
                if problem is None:
                    wanted[qualified_name(overload)] = overload
                else:
                    problems.append(problem)
                    skipped[qualified_name(overload)] = str(problem)
            if len(problems) == len(overloads):
                raise problems[0]
        else:
            raise no_op(op, " or a list of these (what custom_op makes is registered)")
    return list(wanted.values()), skipped


def _problem(op: OpOverload, dispatch_key: str) -> RegistrationError | None:
    name = qualified_name(op)
    if dispatcher.has_kernel(name, dispatch_key):
        return None
    if has_composite_kernel(op, dispatch_key):
        with gc_pause.paused():
            from .._autograd.differentiable import is_differentiable

        if dispatch_key == "CPU" and is_differentiable(op_schema(op)):
            return None
        where = f"dispatch key {dispatch_key}" if dispatch_key != "CPU" else "such arguments"
        return refused_composite(op, where)
    if not dispatcher.has_computed_kernel(name, dispatch_key):
        return RegistrationError(f"{name}: has no kernel at dispatch key {dispatch_key}")
    return None


def has_composite_kernel(op: OpOverload, dispatch_key: str) -> bool:
    name = qualified_name(op)
    return not dispatcher.has_kernel(name, dispatch_key) and dispatcher.has_kernel(
        name, "CompositeImplicitAutograd"
    )


def refused_composite(op: OpOverload, where: str) -> CompositeImplicitOpError:
    return CompositeImplicitOpError(
        f"{qualified_name(op)}: is composite-implicit: it takes its gradients, autocast and "
        f"version counters from being decomposed, and in {where} a kernel of ours would break "
        "them: it is served on the CPU where it takes tensors and returns new ones, no lists; "
        "register the ops it decomposes into"
    )


def can_serve() -> bool:
    """Return whether any call could be served: there is a compiler, or an entry in the store.

    With a torch that this package was not checked with, none is served before the self-test.
    """
    if not this_torch.may_serve():
        return False
    if compiler_on_path() is not None:
        return True
    context = cache_context.current()
    try:
        if context.store.has_entries(context.environment):
            return True  # A miss will warn, if there is one.
    except StoreError as error:
        warn_once("store", str(error))
    warn_once("no_compiler", NO_COMPILER)
    return False
