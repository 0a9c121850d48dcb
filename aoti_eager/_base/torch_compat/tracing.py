"""Tracing: fakes, symbols, dispatch modes, and whether a trace is going on."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import forward_ad

# The global forward pre-hooks that this package has set. They change no call of a module, so they
# do not count as hooks. While the list and torch's dict change, the list is never the longer one: a
# foreign hook is never taken for ours.
own_module_hooks: list[int] = []
# The code of a module's call; it has no public name.
_MODULE_CALL = torch.nn.Module._call_impl.__code__


def is_tracing() -> bool:
    """Return whether this thread is inside Dynamo, export, AOTAutograd or a dispatch mode.

    No public function covers all of them (``torch.compiler.is_compiling`` is False in AOTAutograd's
    and Inductor's own parts). This is called on a miss only, never on a hit.
    """
    if torch._guards.TracingContext.try_get() is not None:
        return True
    return bool(torch._C._len_torch_dispatch_stack()) or torch.compiler.is_compiling()


def is_plain_eager() -> bool:
    """Return whether this thread runs plain eager code.

    Then no trace, mode, autocast, functorch or forward-mode differentiation is on. These questions
    have no public functions, but for ``is_autocast_enabled`` and ``is_compiling``. This is called
    in each call of a region.
    """
    c = torch._C
    return not (
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or torch.is_autocast_enabled("cpu")
        or c._get_tracing_state() is not None
        or c._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
    )


def why_not_plain() -> str:
    """Return in words why ``is_plain_eager`` is false in this call; empty if it is true."""
    c = torch._C
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    if c._len_torch_dispatch_stack() or c._len_torch_function_stack():
        return "under a mode of torch's"
    if c._functorch.peek_interpreter_stack() is not None:
        return "under a transform of torch.func"
    if forward_ad._current_level >= 0:
        return "under forward-mode differentiation"
    return "" if is_plain_eager() else "within a trace"


def is_fx_tracing() -> bool:
    """Return whether ``torch.fx`` traces a model symbolically: arguments are proxies."""
    fx = sys.modules.get("torch.fx._symbolic_trace")
    return fx is not None and bool(fx._is_fx_tracing_flag)


# The fake modes that a call is under, and which tensors they take, have no public name.
@contextlib.contextmanager
def real_tensors_allowed() -> Iterator[None]:
    """Let the ``FakeTensorMode``s of a call take real tensors as constants, as export does."""
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    modes = [one for one in _get_current_dispatch_mode_stack() if isinstance(one, FakeTensorMode)]
    modes += [found for found in (detect_fake_mode(),) if found is not None]
    before = [one.allow_non_fake_inputs for one in modes]
    for one in modes:
        one.allow_non_fake_inputs = True
    try:
        yield
    finally:
        for one, was in zip(modes, before, strict=True):
            one.allow_non_fake_inputs = was


# Fake tensors, and the errors that tracing raises where data would be needed, have no public names.
# They are imported where they are used, because a warm process needs neither.
def fake_mode() -> Any:
    """Return a mode in which new tensors have metadata and no data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def symbolic_functions() -> Any:
    """Return the module with the functions that torch adds to sympy for sizes."""
    import torch.utils._sympy.functions

    return torch.utils._sympy.functions


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that an op raises in ``fake_mode`` if its result depends on data."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
    )

    return DataDependentOutputException, DynamicOutputShapeException


def has_global_module_hooks() -> bool:
    """Return whether somebody has set global hooks, which run around every module's forward."""
    module = torch.nn.modules.module
    before = len(module._global_forward_pre_hooks)
    return bool(module._global_forward_hooks) or before != len(own_module_hooks)


def watch_module_calls(see: Callable[[torch.nn.Module, Any], None]) -> Callable[[], None]:
    """Have ``see`` called before each call of a module; return the function that ends that.

    Args:
        see: Gets the module and its positional arguments, and returns ``None``.
    """
    handle = torch.nn.modules.module.register_module_forward_pre_hook(see)
    own_module_hooks.append(handle.id)

    def end() -> None:
        if handle.id in own_module_hooks:
            own_module_hooks.remove(handle.id)
        handle.remove()

    return end


def is_outermost_module_call(frame: types.FrameType | None) -> bool:
    """Return whether no other call of a module surrounds the one that ``frame`` is inside of.

    Only the stack knows: a depth that is counted would need a hook after each call, too.
    """
    calls = 0
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            calls += 1
            if calls == 2:
                return False
        frame = frame.f_back
    return True


def is_compiled_module(module: torch.nn.Module) -> bool:
    """Return whether a module is what ``torch.compile`` has made of another one."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def dispatch_mode(handler: Callable[[Any, Any, Any], Any]) -> Any:
    """Return a mode in which ``handler`` runs each op: it gets the overload and its arguments.

    The class of such modes has no public name. torch wraps a ``__torch_dispatch__`` that the class
    body defines in a function that imports torch._dynamo, which takes seconds; so the method is set
    after the class was made.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Handled(TorchDispatchMode):  # type: ignore[no-untyped-call]
        pass

    def run(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return handler(func, args, kwargs or {})

    Handled.__torch_dispatch__ = run  # type: ignore[method-assign]
    return Handled()  # type: ignore[no-untyped-call]
