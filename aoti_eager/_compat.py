"""Every private torch name this package uses, each with the reason it has no public twin.

Nothing else in the package spells ``torch._``: when torch moves a name, this file is what changes.
Nothing here imports ``torch._inductor``; the names that need it are in ``_inductor_compat.py``,
which only the compile worker imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._comparison import TensorLikePair, not_close_error_metas

# The dispatcher lists its ops and its registrations only through torch._C.
all_op_names = torch._C._dispatch_get_all_op_names
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
has_computed_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key


def set_deterministic_algorithms(wanted: bool) -> None:
    """Switch deterministic algorithms on or off, with warnings only.

    The public twin imports Inductor, which takes longer than compiling a kernel.
    """
    torch._C._set_deterministic_algorithms(wanted, warn_only=True)


# Whether a profiler records this thread; torch.profiler itself has no such question.
is_profiling = torch._C._autograd._profiler_enabled

# The public twins are Python functions around these; a call of each is on the hit path.
deterministic_algorithms = torch._C._get_deterministic_algorithms
float32_matmul_precision = torch._C._get_float32_matmul_precision

# The only runner of a kernel library that Python can reach without importing Inductor.
AOTIModelContainerRunnerCpu = torch._C._aoti.AOTIModelContainerRunnerCpu

# The dispatch keys are exposed as an enum, under a private module only.
DispatchKey = torch._C.DispatchKey


def privateuse1_device_type() -> str:
    """Return the device type behind the PrivateUse1 key ("privateuseone" until renamed)."""
    return str(torch._C._get_privateuse1_backend_name())


def is_torchs_own(kernel: Any) -> bool:
    """Return whether a kernel from ``torch.library.get_kernel`` was registered by torch itself.

    Only its repr tells: it names the source file of the registration. An override from Python or
    from an extension names another.
    """
    origin = repr(kernel)
    return "/aten/src/ATen/" in origin or "/torch/csrc/" in origin


def is_custom_op_kernel(kernel: Any) -> bool:
    """Return whether a kernel from ``torch.library.get_kernel`` is a Python function's of an op.

    That is one of ``torch.library.custom_op``'s, or of an op that this package defines.
    """
    origin = repr(kernel)
    return "/torch/_library/custom_ops.py:" in origin or "/aoti_eager/_op_functions.py:" in origin


def is_from_python(kernel: Any) -> bool:
    """Return whether a kernel from ``torch.library.get_kernel`` was registered by Python code."""
    return ".py:" in repr(kernel)


def is_ours(kernel: Any) -> bool:
    """Return whether a kernel from ``torch.library.get_kernel`` is one that we registered."""
    # The repr names the line that made the library: ours is made in this file, or in C++.
    origin = repr(kernel)
    return "/aoti_eager/_compat.py:" in origin or "aoti_eager/csrc/registration.h:" in origin


# What a Tensor subclass does in ``__torch_function__`` is for its user's calls, not for ours.
DisableTorchFunctionSubclass = torch._C.DisableTorchFunctionSubclass


def tensor_difference(actual: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return how ``actual`` differs from ``expected`` by ``torch.testing.assert_close``'s defaults.

    NaNs are equal, strides are compared. The public function imports torch.distributed first, which
    takes a second; the class below it does the same for two tensors.
    """
    errors = not_close_error_metas(
        actual, expected, pair_types=(TensorLikePair,), equal_nan=True, check_stride=True
    )
    return str(errors[0].to_error()) if errors else None


def is_tracing() -> bool:
    """Return whether this thread is inside Dynamo, export, AOTAutograd or a dispatch mode.

    There is no public question that covers all of them (``torch.compiler.is_compiling`` is False in
    AOTAutograd's and Inductor's own parts). Asked on a miss only, never on a hit.
    """
    if torch._guards.TracingContext.try_get() is not None:
        return True
    return bool(torch._C._len_torch_dispatch_stack()) or torch.compiler.is_compiling()


# There are no public words for any of these: a kernel above the backend has to say what of the
# dispatcher's keys comes next, and whether a transform is on its way through it.
below_autograd = torch._C._AutoDispatchBelowAutograd
_AFTER_AUTOGRAD = torch._C._after_autograd_keyset
_AFTER_VERSIONS = torch._C._after_ADInplaceOrView_keyset


def redispatch_below_autograd(op: Any, keyset: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of ``op`` without a gradient."""
    with below_autograd():
        return op.redispatch(keyset & _AFTER_AUTOGRAD, *args, **kwargs)


def redispatch_below_versions(op: Any, keyset: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of ``op`` after the versions of what it writes to were counted."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return op.redispatch(keyset & _AFTER_VERSIONS, *args, **kwargs)


def write_unseen(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copy ``values`` into a tensor whose version was counted already, and which autograd knows."""
    with below_autograd(), torch._C._AutoDispatchBelowADInplaceOrView():
        tensor.copy_(values)


def counts_writes(tensor: torch.Tensor) -> bool:
    """Return whether an op that is called now and writes to ``tensor`` counts that.

    The public ``increment_version`` counts always, and raises for tensors of inference mode.
    """
    key = torch._C.DispatchKey.ADInplaceOrView
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    return not excluded and bool(torch._C._dispatch_keys(tensor).has(key))


@functools.cache
def _autograd_keys() -> list[Any]:
    return [
        key
        for name, key in torch._C.DispatchKey.__members__.items()
        if name == "ADInplaceOrView" or name.startswith("Autograd")
    ]


@contextlib.contextmanager
def with_autograd() -> Iterator[None]:
    """Have autograd follow what a kernel below it does, which differentiates for itself."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _autograd_keys():
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def is_transforming() -> bool:
    """Return whether ``torch.func`` or forward-mode differentiation is on its way through a call.

    Each asks for another way to differentiate, and gets it from the ops that a function calls.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return bool(torch.autograd.forward_ad._current_level >= 0)


def is_batched(tensor: torch.Tensor) -> bool:
    """Return whether a tensor stands for a batch of them, whose own sizes and strides it hides."""
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor))


def has_saved_tensor_hooks() -> bool:
    """Return whether what autograd saves goes through hooks: a checkpoint's, an offload's."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def shares_memory(results: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a result shares its storage with an argument or with another result."""
    return bool(torch._C._any_output_is_alias_to_input_or_output(args, kwargs, results))


def _wrapped_templates() -> dict[type, Any]:
    """Return a wrapped number of each type; see ``wrapped_number``."""
    with torch.inference_mode(False), torch.enable_grad():
        scalar = torch.zeros((), requires_grad=True, device="cpu")
        saved = [torch.mul(scalar, n).grad_fn for n in (True, 1, 1.0, 1j)]
    return {type(one._saved_other.item()): one._saved_other for one in saved}  # type: ignore[union-attr]


_WRAPPED = _wrapped_templates()


def wrapped_number(value: complex) -> torch.Tensor:
    """Return the tensor that C++ makes of a number in a Tensor slot: it promotes as a number.

    No function gives one to Python, but a multiplication by a number saves one for its gradient,
    and what ``_make_subclass`` makes of that is still one after it was given another storage.
    """
    template = _WRAPPED[type(value)]
    data = torch.tensor(value, dtype=template.dtype, device="cpu")
    wrapped: torch.Tensor = torch.Tensor._make_subclass(torch.Tensor, template).set_(
        data.untyped_storage(), 0, (), ()
    )
    return wrapped


# Where a script sets them, and what messages call them by.
INDUCTOR_CONFIG = "torch._inductor.config"


# Settings that torch writes itself, and that shape no kernel's code: what AOTInductor puts into a
# package, and holds while it compiles one; how many processes compile; how DistributedDataParallel
# joins its messages; where a compiler for other devices was found.
_WRITTEN_BY_TORCH = frozenset(
    {
        "aot_inductor.metadata",
        "aot_inductor.output_path",
        "aot_inductor.package",
        "aot_inductor.serialized_in_spec",
        "aot_inductor.serialized_out_spec",
        "_fuse_ddp_bucket_size",
        "_fuse_ddp_communication",
        "compile_threads",
        "rocm.ck_dir",
    }
)


def inductor_settings() -> dict[str, Any]:
    """Return Inductor's settings that differ from their defaults, by dotted name.

    Those that torch writes itself are none of the user's, and left out.

    Empty while ``torch._inductor.config`` is not imported: then every setting has the default that
    the environment variables give it, and importing it to find that out would cost two seconds.
    """
    config = sys.modules.get(INDUCTOR_CONFIG)
    if config is None:
        return {}
    entries: Any = config._config
    own = set(_WRITTEN_BY_TORCH)
    if config.deterministic == deterministic_algorithms():
        own.add("deterministic")  # use_deterministic_algorithms sets both; a key has the mode.
    changed = [name for name in entries if name not in own and not config._is_default(name)]
    values = {name: _dotted(config, name) for name in sorted(changed)}
    # _is_default is False for a setting that was patched and came back, and for one that a variable
    # sets; the variables are a part of the environment by themselves.
    return {name: value for name, value in values.items() if value != _initial(entries[name])}


def _initial(entry: Any) -> Any:
    """Return the value that a setting has in a new process with these variables."""
    unset = object()
    for field in ("env_value_force", "env_value_default", "default"):
        value = getattr(entry, field, unset)
        if value is not unset and type(value) is not object:
            return value
    return unset


def _dotted(config: Any, name: str) -> Any:
    value = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


# torch.ops hands these out, but their classes are only in torch._ops.
OpOverload = torch._ops.OpOverload
OpOverloadPacket = torch._ops.OpOverloadPacket


def raw_schema(op: Any) -> Any:
    """Return the torch.FunctionSchema of an overload; the attribute has no public spelling."""
    return op._schema


def has_op(name: str) -> bool:
    """Return whether the dispatcher lists an overload of this qualified name.

    To list all of them takes two milliseconds.
    """
    try:
        return bool(torch._C._dispatch_has_kernel(name))
    except (RuntimeError, ValueError, TypeError):  # It is no name, or cannot be one in C++.
        return False


def is_defined(name: str) -> bool:
    """Return whether the dispatcher has an op of this qualified name, with no overload's name."""
    try:
        torch._C._dispatch_find_schema_or_throw(name, "")
    except RuntimeError:
        return False
    return True


def type_in_schema(argument: Any) -> str:
    """Return the type of a schema's argument as schemas spell it; ``real_type`` has no document."""
    return str(argument.real_type.str())


def dispatch_key_of(device_type: str) -> str:
    """Return the name of the dispatch key of a device type: ``cuda`` -> ``CUDA``."""
    return str(torch._C._dispatch_key_for_device(device_type))


def autograd_keyset() -> Any:
    """Return the keys of a plain CPU tensor's call above the backend; there is no public maker."""
    return torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)


def destroy(library: torch.library.Library) -> None:
    """Take a library's kernels out of the dispatcher now, not when it is garbage."""
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

    Of an op that is made of others, that is one of these; with ``whole``, the op itself.

    Nothing is computed: the call ends there. Only a dispatch mode sees arguments as a kernel would
    (an int in a float slot converted, a list around a single size), and it has no public name.
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
        # An op with a compiled gradient shows a mode what its function consists of; a function that
        # is no op may ask for the gradient mode, and call others.
        is_op = isinstance(function, OpOverload | OpOverloadPacket)
        mode = torch.set_grad_enabled(torch.is_grad_enabled() and not is_op)
        with mode, below_autograd() if whole else contextlib.nullcontext(), Capture():  # type: ignore[no-untyped-call]
            function(*args, **kwargs)
    except Captured as captured:
        func, args, kwargs = captured.args
        return func, args, kwargs
    raise RuntimeError(f"{function} dispatches no op")


# AOTInductor's C interface takes and gives heap-allocated at::Tensor pointers. These two functions
# make them from Python tensors and back, as capsules; there is no public way.
new_tensor_capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors
tensors_stealing_capsules = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs


# All dtypes of this build. Looked for once: torch has more than a thousand names.
DTYPES = frozenset(one for one in vars(torch).values() if one.__class__ is torch.dtype)


# AOTInductor's C interface gives a dtype as the number of a c10::ScalarType, which Python only has
# behind this name. Probing stops at the first number that is no dtype of this build.
def dtypes_by_number() -> dict[int, torch.dtype]:
    """Return the dtype of each ``c10::ScalarType`` number."""
    shim = libtorch_cpu()
    found: dict[int, torch.dtype] = {}
    for dtype in DTYPES:
        number = getattr(shim, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}", None)
        if number is not None:
            found[number()] = dtype
    return found


def device_type_numbers() -> dict[str, int]:
    """Return the ``c10::DeviceType`` number of each device type that AOTInductor's C interface has.

    Like the numbers of dtypes they have no public name in Python.
    """
    shim = libtorch_cpu()
    found = {}
    for name in ("cpu", "cuda", "meta", "xpu", "mps", "mtia"):
        number = getattr(shim, f"aoti_torch_device_type_{name}", None)
        if number is not None:
            found[name] = int(number())
    found[privateuse1_device_type()] = int(shim.aoti_torch_device_type_privateuse1())
    return found


def libtorch_cpu() -> ctypes.CDLL:
    """Return torch's own library, which has the C functions that kernel libraries call.

    It is loaded already, and found by its name; ``ctypes.PyDLL`` would hold the GIL.
    """
    path = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    return ctypes.CDLL(path)


# Which modes of tensors without data a call is under, and what they take, has no public name.
@contextlib.contextmanager
def real_tensors_allowed() -> Iterator[None]:
    """Within a call under a ``FakeTensorMode``, take real tensors as constants, as export does."""
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


# Tensors without data, and what tracing raises where data would be needed, have no public names.
# Imported where they are used: a warm process needs neither.
def fake_mode() -> Any:
    """Return a mode in which new tensors have metadata and no data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def symbolic_functions() -> Any:
    """Return the module of the functions that torch adds to sympy's for sizes."""
    import torch.utils._sympy.functions

    return torch.utils._sympy.functions


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """Return what an op raises in ``fake_mode`` if its result depends on data."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
    )

    return DataDependentOutputException, DynamicOutputShapeException


def custom_op_function(name: str, dispatch_key: str) -> Any:
    """Return the Python function that ``torch.library.custom_op`` runs for an op, or ``None``.

    ``None`` too while the op's kernel for the device is disabled. The public ``CustomOpDef`` keeps
    its functions in private fields, each wrapped in one of torch's own.
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


def has_global_module_hooks() -> bool:
    """Return whether hooks are set that run around every module's forward."""
    module = torch.nn.modules.module
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)


def parse_schema(text: str) -> Any:
    """Return the torch.FunctionSchema that ``text`` spells; there is no public parser."""
    return torch._C.parse_schema(text)


def dispatch_mode(handler: Callable[[Any, Any, Any], Any]) -> Any:
    """Return a mode in which ``handler`` runs each op: it gets the overload and its arguments.

    The class that sees ops has no public name. A method that it has when it is made gets a wrapper
    that imports torch._dynamo, which takes seconds; ours is given to it later.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Handled(TorchDispatchMode):  # type: ignore[no-untyped-call]
        pass

    def run(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return handler(func, args, kwargs or {})

    Handled.__torch_dispatch__ = run  # type: ignore[method-assign]
    return Handled()  # type: ignore[no-untyped-call]
