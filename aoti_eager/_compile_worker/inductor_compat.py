"""Every private name of Inductor that the compile worker uses, each with the reason.

Only the worker imports this module: importing Inductor costs two seconds, and its settings and
patches are process-wide. Nothing here runs in a user's process. Longer than 350 lines, because an
upgrade of torch is checked against one file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._inductor.codecache as codecache
import torch._inductor.codegen.common as common
import torch._inductor.compile_fx as compile_fx
import torch._inductor.config as inductor_config
import torch._inductor.cpp_builder as cpp_builder
import torch._inductor.cpu_vec_isa as cpu_vec_isa
import torch._inductor.decomposition as decomposition
import torch._inductor.fx_passes.joint_graph as joint_graph
import torch._inductor.graph as graph_module
import torch._inductor.inductor_prims as inductor_prims
import torch._inductor.ir as ir
from torch._inductor.codegen.common import KernelArgs, device_codegens
from torch._inductor.codegen.cpp import (
    CppOverrides,
    CppScheduling,
    CppVecKernel,
    CppVecOverrides,
)
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.wrapper import FreeIfNotReusedLine, NullLine, PythonWrapperCodegen
from torch._inductor.codegen.wrapper_fxir import WrapperFxCodegen
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import CppCompileError
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

from .._base.cpu import cpu_features
from .._base.digest import Component
from .._store.probes import Probes
from .decompositions import kernel_formulas, our_decompositions
from .eager_layouts import Layouts
from .exact_sums import adds_neighbours, with_plain_sums
from .float_flags import float_flags
from .inductor_headers import own_headers
from .result_layout import elementwise, laid_out_elsewhere
from .vector_math import scalar_functions, vector_functions, widened

__all__ = [
    "CppCompileError",
    "CppWrapperCpu",
    "V",
    "aot_compile",
    "compiler_description",
    "inspect_generated_code",
    "may_have_traced_pattern",
    "prepare_worker",
    "remember_probes",
    "settings",
    "use_headers",
]


# Whether Inductor's writer of C++ has a method for each part that thin libraries leave out. Torch
# 2.12 writes these parts in one method, and all of its libraries are full ones.
WRITES_THIN = hasattr(CppWrapperCpu, "_write_aoti_interface_header")


class _PinnedAVX512(cpu_vec_isa.VecAVX512):
    # Inductor's own check would compile a probe for bfloat16 instructions in each process, and if
    # it succeeds, Inductor would use these instructions in code for CPUs that may lack them.
    # Inductor's setting answers yes for all instructions but these.
    def __bool__(self) -> bool:  # type: ignore[override]
        return True


class _PinnedAVX2(cpu_vec_isa.VecAVX2):
    def __bool__(self) -> bool:
        return True


def prepare_worker(vector_bits: int) -> None:
    """Set this process up to compile: which vector code is emitted, with which flags.

    Args:
        vector_bits: 512, 256 or 128 (scalar code) on x86-64, so that the CPU features of an entry
            are known and the instruction set is not probed (seconds in each process); 0 leaves the
            choice to Inductor.
    """
    if vector_bits:
        pinned = {512: [_PinnedAVX512()], 256: [_PinnedAVX2()], 128: []}[vector_bits]
        cpu_vec_isa.valid_vec_isa_list = lambda: pinned  # type: ignore[assignment]
    # Inductor has no setting for most of these flags.
    cpp_builder._get_ffast_math_flags = lambda: float_flags(
        inductor_config.cpp.enable_floating_point_contract_flag
    )
    _march_flag()
    _numbers_in_double()
    _use_vector_functions(vector_bits)
    _use_wider_vectors()
    _use_decompositions()
    _leave_out_other_devices()
    _find_patterns_when_needed()
    # This pass replaces a product with an integer zero by zero: a NaN would be lost.
    inductor_config.joint_graph_constant_folding = False
    if shutil.which("openssl") is None:
        # Inductor hashes preprocessed headers with the openssl program and fails without it.
        inductor_config.aot_inductor.precompile_headers = False


def _leave_out_other_devices() -> None:
    """Have a torch without GPUs register Inductor's code generation for the CPU alone.

    Inductor imports the code generation of all devices for its registration: longer than the
    lowering of a small kernel takes.
    """
    if torch.version.cuda or torch.version.hip or torch.version.xpu:
        return

    def register() -> None:
        if common.get_scheduling_for_device("cpu") is None:
            classes = (CppScheduling, PythonWrapperCodegen, CppWrapperCpu, WrapperFxCodegen)
            common.register_backend_for_device("cpu", *classes)

    for module in (common, graph_module, compile_fx, codecache):
        setattr(module, "init_backend_registration", register)  # noqa: B010 - of each module


# Each pattern that Inductor finds by tracing examples contains one of these ops. The list has more,
# in case that a later torch spells a pattern in another way.
_PATTERN_WORDS = ("mm", "matmul", "linear", "dot", "mv", "einsum", "attention", "convol", "rand")


def _find_patterns_when_needed() -> None:
    """Have Inductor trace examples of its patterns for graphs that may have such a pattern.

    The patterns are products of matrices to pad, attention, and rows drawn by chance. Tracing the
    examples takes longer than the lowering of a small kernel.
    """
    find, passes = joint_graph.lazy_init, joint_graph.joint_graph_passes

    def passes_with_patterns(graph: Any, input_device: Any = None) -> Any:
        if may_have_traced_pattern(graph):
            find(input_device)
        return passes(graph, input_device)

    joint_graph.lazy_init = lambda input_device=None: None
    compile_fx.joint_graph_passes = passes_with_patterns  # type: ignore[attr-defined]


def may_have_traced_pattern(graph: Any) -> bool:
    """Return whether a graph calls an op that one of Inductor's traced patterns contains.

    An op that is neither torch's own nor Python's counts as such an op.
    """
    for node in graph.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__module__", "") != "_operator":
            name = str(node.target)
            if not name.startswith(("aten.", "prims.")):
                return True
            if any(word in name for word in _PATTERN_WORDS):
                return True
    return False


def _use_vector_functions(vector_bits: int) -> None:
    """Have code call eager's vector functions: Inductor chooses by op, and has no setting."""

    def count(x: Any) -> int:
        return int(V.kernel._get_num_vectors(x.dtype))

    for name, function in vector_functions(vector_bits, count).items():
        original = getattr(CppVecOverrides, name)
        chosen = function if name != "remainder" else _floats_only(function, original)
        setattr(CppVecOverrides, name, staticmethod(_named(chosen, name)))
    for name, function in scalar_functions().items():
        setattr(CppOverrides, name, staticmethod(function))


def _use_wider_vectors() -> None:
    """Have vectors of float32 widened one by one: ATen widens several in a slow loop."""
    original = CppVecKernel.get_to_dtype_expr

    def get_to_dtype_expr(
        self: Any, src: Any, dtype: Any, src_dtype: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if (src_dtype, dtype) == (torch.float32, torch.float64) and src.is_vec:
            count = self._get_num_vectors(src_dtype)
            if count > 1 and self._get_num_vectors(dtype) == 2 * count:
                return widened(src, count)
        return original(self, src, dtype, src_dtype, *args, **kwargs)  # type: ignore[no-untyped-call]

    CppVecKernel.get_to_dtype_expr = get_to_dtype_expr  # type: ignore[method-assign]


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function of this name: by it, Inductor finds the scalar code where no vector is."""

    def chosen(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    chosen.__name__ = name
    return chosen


def _floats_only(function: Callable[..., str], original: Callable[..., Any]) -> Callable[..., Any]:
    def chosen(a: Any, b: Any) -> Any:
        return function(a, b) if a.dtype.is_floating_point else original(a, b)

    return chosen


def _use_decompositions() -> None:
    """Put our decompositions into Inductor's table, which Inductor copies at its first compile."""
    for op, function in our_decompositions(inductor_prims.fma).items():
        before = decomposition.decompositions.get(op)
        decomposition.decompositions[op] = _with_fallback(function, before)
    table, aten = decomposition.decompositions, torch.ops.aten
    for op in (aten._softmax.default, aten._log_softmax.default):
        table[op] = with_plain_sums(table[op], adds_neighbours)
    for op in laid_out_elsewhere():
        table[op] = elementwise(table[op])


def kernel_formula(op: Any) -> Any:
    """Return what the CPU kernel of ``op`` computes, as a function, or ``op`` itself."""
    formula = kernel_formulas(inductor_prims.fma).get(op)
    return op if formula is None else _with_fallback(formula, op)


def _with_fallback(
    function: Callable[..., Any], before: Callable[..., Any] | None
) -> Callable[..., Any]:
    @functools.wraps(function)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return before(*args, **kwargs) if result is NotImplemented and before else result

    return chosen


def _numbers_in_double() -> None:
    """Have kernels take numbers as double: Inductor passes them as float, to float64 code too.

    Code for other dtypes converts the numbers itself.
    """
    original = KernelArgs.cpp_argdefs

    @functools.wraps(original)
    def cpp_argdefs(self: KernelArgs, *args: Any, **kwargs: Any) -> Any:
        definitions, call, types = original(self, *args, **kwargs)
        definitions = [re.sub(r"^const float (?=\w)", "const double ", one) for one in definitions]
        types = ["const double" if one == "const float" else one for one in types]
        return definitions, call, types

    KernelArgs.cpp_argdefs = cpp_argdefs  # type: ignore[method-assign]


def remember_probes(directory: Path) -> None:
    """Remember in ``directory``, from now on, which instruction sets work on this machine.

    Inductor does not remember: its cache keeps the compiled probe, and loads the probe in a new
    process of Python each time. Where the instruction set is pinned, nothing is probed.
    """
    probes: list[Probes] = []  # Made at the first probe: it asks the compiler for its version.

    def check_build(self: cpu_vec_isa.VecISA, code: str) -> bool:
        if not probes:
            machine = [
                *(str(torch.__version__), torch.version.git_version, platform.machine()),
                *(compiler_description(), sorted(cpu_features())),
            ]
            probes.append(Probes(directory, machine))
        question: list[Component] = [code, self.build_arch_flags(), self.build_macro()]
        if probes[0].has(question):
            return True
        succeeded = bool(_check_build(self, code))
        if succeeded:
            probes[0].add(question)
        return succeeded

    cpu_vec_isa.VecISA.check_build = check_build  # type: ignore[method-assign]


_check_build = cpu_vec_isa.VecISA.check_build


def use_headers(headers: Path) -> None:
    """Keep precompiled headers in ``headers`` from now on, each with a record.

    Inductor's own directory has a predictable name below the system's temporary directory, and no
    setting changes it. Inductor uses any file there, also half a file of a killed compiler.
    """
    codecache._HEADER_DIR = str(headers)
    codecache._HEADER_LOCK_DIR = str(headers / "locks")
    codecache._precompile_header = precompile_header  # type: ignore[assignment]


def precompile_header(header: str, hashable_cmd_line: str, **compile_command: Any) -> str:
    """Return Inductor's precompiled form of a header, made unless it is there and whole.

    Raises:
        CppCompileError: The header cannot be made, or cannot be trusted.
    """
    try:
        with own_headers(Path(codecache._HEADER_DIR)) as own:
            # Inductor remembers which headers it has made, though their files may be gone.
            if own.remove_damaged():
                _precompile_header.cache_clear()
            path = _precompile_header(header, hashable_cmd_line, **compile_command)
            if not own.has(path):
                _precompile_header.cache_clear()
                path = _precompile_header(header, hashable_cmd_line, **compile_command)
            own.keep(path)
    except OSError as error:
        raise CppCompileError(["precompile", header], str(error)) from error
    return path


_precompile_header = codecache._precompile_header


def precompiles_headers() -> bool:
    """Return whether libraries that are not thin are compiled with precompiled headers."""
    return bool(inductor_config.aot_inductor.precompile_headers)


def forget_headers() -> None:
    """Remove Inductor's precompiled headers, and compile without them in this process."""
    _precompile_header.cache_clear()
    with contextlib.suppress(OSError), own_headers(Path(codecache._HEADER_DIR)) as own:
        own.remove_all()
    inductor_config.aot_inductor.precompile_headers = False


def inspect_generated_code(inspect: Callable[[str, str, bool], object]) -> Callable[[], None]:
    """Have ``inspect`` see the generated C++ before it is compiled, until the result is called.

    ``inspect`` gets the wrapper's source, the kernels' source, and whether the proxy executor is
    needed; an error that it raises ends the compile. Inductor has no public hook between code
    generation and the C++ compiler, which takes nine tenths of the time.
    """
    compile_ = codecache.AotCodeCompiler.compile

    def inspected(
        graph: Any, wrapper_code: str, kernel_code: str, nodes: str | None, **rest: Any
    ) -> Any:
        inspect(wrapper_code, kernel_code, bool(nodes))
        return compile_(graph, wrapper_code, kernel_code, nodes, **rest)

    codecache.AotCodeCompiler.compile = inspected  # type: ignore[method-assign, assignment]

    def restore() -> None:
        codecache.AotCodeCompiler.compile = compile_  # type: ignore[method-assign]

    return restore


@contextlib.contextmanager
def cpu_wrapper_class(wrapper: type[CppWrapperCpu]) -> Iterator[None]:
    """Have ``wrapper`` write the C++ of CPU graphs in the block, by Inductor's table of writers."""
    common.init_backend_registration()
    codegen = device_codegens["cpu"]
    before = codegen.cpp_wrapper_codegen
    codegen.cpp_wrapper_codegen = wrapper
    try:
        yield
    finally:
        codegen.cpp_wrapper_codegen = before


def is_within_another(buffer: Any) -> bool:
    """Return whether a buffer of the graph is a part of a larger one, as parts of a ``cat`` are."""
    return isinstance(getattr(buffer, "layout", None), ir.NonOwningLayout)


class PlainFreeLine(FreeIfNotReusedLine):
    """The line that drops a buffer of the graph, whose memory no other buffer gets."""

    def plan(self, state: Any) -> Any:
        """Return the line that is written."""
        return NullLine(self.wrapper) if self.node.get_name() in V.graph.removed_buffers else self


@contextlib.contextmanager
def results_laid_out(layouts: Layouts | None) -> Iterator[None]:
    """Have graphs in the block return buffers of their own, with these strides and offsets.

    By itself, Inductor returns parts of one buffer where it has removed copies, and the strides
    that its decompositions led to. What is in order already stays as it is.
    """
    if layouts is None:
        yield
        return
    before = GraphLowering.output

    def output(self: GraphLowering, target: Any, args: Any, kwargs: Any) -> None:
        fits = type(self) is GraphLowering and len(args[0]) == len(layouts)
        if fits:
            args = (_of_their_own(self, args[0], layouts), *args[1:])
        before(self, target, args, kwargs)
        if fits:
            # Inductor has put back the trace's strides of dimensions of size one.
            pairs = zip(self.graph_outputs, layouts, strict=True)
            self.graph_outputs = [
                ir.try_match_insignificant_strides(one, strides) for one, (strides, _) in pairs
            ]

    GraphLowering.output = output  # type: ignore[method-assign]
    try:
        yield
    finally:
        GraphLowering.output = before  # type: ignore[method-assign]


def _of_their_own(graph: GraphLowering, results: Sequence[Any], layouts: Layouts) -> list[Any]:
    taken = set(graph.graph_inputs)
    found = []
    for result, (strides, offset) in zip(results, layouts, strict=True):
        one = ir.ExternKernel.realize_input(result)
        layout = one.get_layout()
        shares = one.get_name() in taken or isinstance(layout, ir.NonOwningLayout)
        if shares or (layout.offset != 0 and offset == 0):
            one = ir.ExternKernel.copy_input(one)
        one = ir.ExternKernel.require_exact_strides(one, strides)
        taken.add(one.get_name())
        found.append(one if isinstance(one, ir.TensorBox) else ir.TensorBox(one))
    return found


@contextlib.contextmanager
def aot_code_compiler(compile_: Callable[..., Any]) -> Iterator[None]:
    """Have ``compile_`` make the library of a graph in the block.

    ``compile_`` gets the graph's lowering, the two sources and whether the proxy executor is
    needed, and returns the library's path.
    """
    before = codecache.AotCodeCompiler.compile

    def compile_sources(
        graph: Any, wrapper_code: str, kernel_code: str, nodes: str | None, **rest: Any
    ) -> Any:
        return compile_(graph, wrapper_code, kernel_code, bool(nodes))

    codecache.AotCodeCompiler.compile = compile_sources  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        codecache.AotCodeCompiler.compile = before  # type: ignore[method-assign]


def settings(options: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which Inductor's settings are ``options``, by dotted name."""
    return inductor_config.patch(_known(options))  # type: ignore[no-any-return]


def aot_compile(program: Any, inputs: Any, *, options: dict[str, Any]) -> Any:
    """Return what AOTInductor makes of a program; arguments as for its function of this name."""
    return torch._inductor.aot_compile(program, inputs, options=_known(options))


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that this torch's Inductor has; the others have other ways, or no need.

    Line tables that cannot be switched off are not made, and the instruction set becomes a flag
    (``_march_flag``).
    """
    global _march
    known = _settings_there()
    _march = "" if _MARCH in known else str(options.get(_MARCH, ""))
    return {name: value for name, value in options.items() if name in known}


def _settings_there() -> Any:
    """Return Inductor's settings by dotted name; no public function lists them."""
    config: Any = inductor_config
    return config._config


_MARCH = "cpp.march"
# The instruction set for which code is compiled, where Inductor has no setting; empty: this CPU's.
_march = ""


def _march_flag() -> None:
    """Have code compiled for the wanted instruction set where Inductor always takes this CPU's."""
    if _MARCH in _settings_there():
        return
    original = cpp_builder._get_optimization_cflags

    def flags(*args: Any, **kwargs: Any) -> Any:
        compiler, linker = original(*args, **kwargs)
        wanted = f"march={_march}" if _march else "march=native"
        return [wanted if one == "march=native" else one for one in compiler], linker

    cpp_builder._get_optimization_cflags = flags


def compile_flags(source: Path) -> list[str]:
    """Return the command with which Inductor would compile kernels, without files.

    The compiler comes first, then flags and include directories, under the current settings.
    """
    options = cpp_builder.CppTorchDeviceOptions(
        vec_isa=cpu_vec_isa.pick_vec_isa(), device_type="cpu", aot_mode=True, compile_only=True
    )
    builder = cpp_builder.CppBuilder(
        name="kernel", sources=str(source), output_dir=str(source.parent), BuildOption=options
    )
    command = shlex.split(builder.get_command_line())
    output = command.index("-o")
    del command[output : output + 2]
    return [part for part in command if part not in ("-c", str(source))]


def decompositions() -> dict[Any, Any]:
    """Return a copy of Inductor's decompositions, by overload."""
    return dict(select_decomp_table())


@functools.cache
def compiler_description() -> str:
    """Return the C++ compiler's name and version, for an entry's provenance."""
    compiler = cpp_builder.get_cpp_compiler()
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() or os.path.basename(compiler)


def was_ended(error: CppCompileError) -> bool:
    """Return whether somebody, or a system without memory, has ended the compiler.

    That says nothing about the code. A damaged file makes the compiler crash by other signals.
    """
    if -getattr(error.__cause__, "returncode", 0) in _ENDING_SIGNALS:
        return True
    words = "|".join(re.escape(signal.strsignal(one) or "") for one in _ENDING_SIGNALS)
    return re.search(rf"\b({words}) signal\b", error.output) is not None


_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)
