"""The dispatcher: its ops, their kernels, libraries of registrations, schemas."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

from ..op_library import new_op_library
from .autograd import below_autograd

# The dispatcher lists its ops and its registrations only through torch._C.
all_op_names = torch._C._dispatch_get_all_op_names
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
has_computed_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key


# The dispatch keys are exposed as an enum, under a private module only.
DispatchKey = torch._C.DispatchKey


def privateuse1_device_type() -> str:
    """Return the device type behind the PrivateUse1 key ("privateuseone" until renamed)."""
    return str(torch._C._get_privateuse1_backend_name())


def is_torchs_own(kernel: Any) -> bool:
    """Return whether a kernel from ``torch.library.get_kernel`` was registered by torch itself.

    Only the kernel's repr tells: it names the source file of the registration. The repr of an
    override from Python or from an extension names another file.
    """
    origin = repr(kernel)
    return "/aten/src/ATen/" in origin or "/torch/csrc/" in origin


def is_custom_op_kernel(kernel: Any) -> bool:
    """Return whether a kernel from ``torch.library.get_kernel`` runs an op's Python function.

    Such an op was made by ``torch.library.custom_op`` or is defined by this package.
    """
    from_torch = "/torch/_library/custom_ops.py:" in repr(kernel)
    return from_torch or is_registered_by(kernel, new_op_library)


def is_registered_by(kernel: Any, maker: Callable[..., torch.library.Library]) -> bool:
    """Return whether a kernel's library was made in the file of the function ``maker``.

    Only the repr of a kernel from ``torch.library.get_kernel`` tells: it names the file and line of
    the call that made the ``torch.library.Library``.
    """
    return f"{inspect.getfile(maker)}:" in repr(kernel)


def is_from_python(kernel: Any) -> bool:
    """Return whether a kernel from ``torch.library.get_kernel`` was registered by Python code."""
    return ".py:" in repr(kernel)


def is_ours(kernel: Any) -> bool:
    """Return whether this package registered a kernel from ``torch.library.get_kernel``."""
    from_cpp = "aoti_eager/_native/csrc/registration.h:" in repr(kernel)
    return from_cpp or is_registered_by(kernel, new_library)


# torch.ops gives instances of these classes; the classes themselves are only in torch._ops.
OpOverload = torch._ops.OpOverload
OpOverloadPacket = torch._ops.OpOverloadPacket


def raw_schema(op: Any) -> Any:
    """Return the torch.FunctionSchema of an overload; the attribute has no public spelling."""
    return op._schema


def op_function(op: OpOverload) -> Callable[..., Any]:
    """Return the C++ function behind an overload: a call saves the overload's Python method."""
    function: Callable[..., Any] = op._op
    return function


def has_op(name: str) -> bool:
    """Return whether the dispatcher lists an overload of this qualified name.

    This asks for one name, because listing all overloads takes two milliseconds.
    """
    try:
        return bool(torch._C._dispatch_has_kernel(name))
    except (RuntimeError, ValueError, TypeError):  # Not a valid name, or none that C++ can take.
        return False


def is_defined(name: str) -> bool:
    """Return whether the dispatcher has a default overload of this qualified name."""
    try:
        torch._C._dispatch_find_schema_or_throw(name, "")
    except RuntimeError:
        return False
    return True


def type_in_schema(argument: Any) -> str:
    """Return the type of a schema's argument as schemas spell it; ``real_type`` is undocumented."""
    return str(argument.real_type.str())


def dispatch_key_of(device_type: str) -> str:
    """Return the name of the dispatch key of a device type: ``cuda`` -> ``CUDA``."""
    return str(torch._C._dispatch_key_for_device(device_type))


def destroy(library: torch.library.Library) -> None:
    """Take a library's kernels out of the dispatcher now, before the library is garbage."""
    library._destroy()  # type: ignore[no-untyped-call]


def dense_backends() -> tuple[str, ...]:
    """Return the names of the dispatch keys of Dense backends that run kernels, CPU first."""
    names = list(DispatchKey.__members__)
    start, end = names.index("StartOfDenseBackends"), names.index("EndOfDenseBackends")
    return tuple(name for name in names[start + 1 : end] if name != "Meta")


def is_alive(library: torch.library.Library | None) -> bool:
    """Return whether a library's kernels are still in the dispatcher.

    The kernels themselves cannot tell: torch keeps a reference to the last Python function of each
    op and key after its library is gone. ``m`` has no documentation, and is None once destroyed.
    """
    return library is not None and library.m is not None


def new_library(namespace: str, kind: str = "IMPL") -> torch.library.Library:
    """Return an empty library of implementations for ops of ``namespace``, or of new ops."""
    return torch.library.Library(namespace, kind)  # type: ignore[no-untyped-call]


def overload_names(packet: Any) -> list[str]:
    """Return the names of a packet's overloads that the dispatcher knows.

    torch.ops also lists overloads that only TorchScript has (``aten::add.str``).
    """
    base = packet._qualified_op_name
    return [
        name
        for name in packet.overloads()
        if has_op(base if name == "default" else f"{base}.{name}")
    ]


def dispatched_call(
    function: Any, args: Any, kwargs: Any, *, whole: bool = False
) -> tuple[Any, Any, Any]:
    """Return the first overload that a call of ``function`` dispatches, with its arguments.

    For an op that is composed of other ops, that is one of the other ops; with ``whole``, it is the
    op itself.

    Nothing is computed: the call ends at the dispatch. Only a dispatch mode sees arguments as a
    kernel would (an int in a float slot converted, a list around a single size); dispatch modes
    have no public name.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Captured(BaseException):
        pass

    class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            raise Captured(func, args, kwargs or {})

    try:
        # Gradient mode is off for ops: with it, an op with a compiled gradient shows a mode the ops
        # that its function consists of. A function that is no op keeps the mode, because the
        # function may ask for it and call other ops.
        is_op = isinstance(function, OpOverload | OpOverloadPacket)
        mode = torch.set_grad_enabled(torch.is_grad_enabled() and not is_op)
        with mode, below_autograd() if whole else contextlib.nullcontext(), Capture():  # type: ignore[no-untyped-call]
            function(*args, **kwargs)
    except Captured as captured:
        func, args, kwargs = captured.args
        return func, args, kwargs
    raise RuntimeError(f"{function} dispatches no op")


def custom_op_function(name: str, dispatch_key: str) -> Any:
    """Return the Python function that ``torch.library.custom_op`` runs for an op, or ``None``.

    The result is also ``None`` while the op's kernel for the device is disabled. The public
    ``CustomOpDef`` keeps its functions in private fields, each wrapped in one of torch's functions.
    """
    definition: Any = torch._library.custom_ops.OPDEFS.get(name)
    if definition is None or definition._disabled_kernel:
        return None
    functions = definition._backend_fns
    wrapped = functions.get(dispatch_key.lower(), functions.get(None))
    if wrapped is None:
        return None
    wrapped = inspect.unwrap(wrapped)
    cells = dict(zip(wrapped.__code__.co_freevars, wrapped.__closure__ or (), strict=True))
    function = cells["fn"].cell_contents if "fn" in cells else None
    return function if isinstance(function, types.FunctionType) else None


def parse_schema(text: str) -> Any:
    """Return the torch.FunctionSchema that ``text`` spells; there is no public parser."""
    return torch._C.parse_schema(text)
