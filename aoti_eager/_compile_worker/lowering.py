"""One call template -> one kernel library, through torch.export and AOTInductor.

Runs in the compile worker only, where no op is registered: the compiler's own calls reach the
original kernels.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .._base.determinism import error_chain, is_compilers_own, is_deterministic
from .._base.sealed_library import LIBRARY_LIMIT
from .._base.torch_compat.tracing import fake_mode
from .._compile_service.steps import COMPILING, GENERATING, TRACING
from .._functions.rebuilt import RebuiltTape
from .._functions.tracing import (
    call_module,
    does_not_trace,
    error_text,
    fake_inputs,
    trace_outputs,
)
from .._keys.call_template import CallTemplate, slot_dtype
from .._keys.guards import Guards
from .._keys.index_ops import reads_by_index
from .._keys.kernel_key import KernelKey
from ..errors import CompileError
from . import inductor_compat as inductor
from .eager_layouts import eager_layouts
from .float_division import step_rounding
from .float_flags import contraction
from .generated_code import GeneratedCode
from .graph_checks import check_graph
from .job_steps import steps
from .row_sums import in_blocks
from .symbolic import compiled_pattern, symbolic_program
from .thin_codegen import NotThinError, ThinWrapper, compiler_into
from .traced_tape import traced_op, traced_tape


@dataclass(frozen=True, slots=True)
class Lowered:
    """A compiled library and what the caller must know to run it.

    Attributes:
        library: The shared object's file.
        sha256: The digest of its bytes: no other bytes may be tried, measured or kept.
        outputs: Where each result of the op comes from; see ``Entry.outputs``.
        calls_aten: Whether the library calls ATen for a part of its work.
        parallel: Whether its code has parallel regions, so that it depends on the thread count.
        compiler: The C++ compiler's name and version.
        pattern: The calls that a dynamic specialisation serves; ``None`` for a static one.
        guards: The conditions on the pattern's symbols.
    """

    library: Path
    sha256: str
    outputs: list[dict[str, Any]]
    calls_aten: bool
    parallel: bool
    compiler: str
    pattern: KernelKey | None = None
    guards: Guards | None = None


def lower(
    op: Any,
    template: CallTemplate,
    work: Path,
    headers: Path,
    options: dict[str, Any],
    dims: Sequence[tuple[int, int]] | None = None,
) -> Lowered:
    """Compile the call of ``template`` and return its library, inside ``work``.

    Args:
        op: The overload, or a function or tape that was rebuilt from its document.
        template: The call; its tensors are faked, no data exists.
        work: An empty directory for everything that is generated.
        headers: The directory of precompiled headers.
        options: Inductor settings by dotted name.
        dims: For a dynamic specialisation: slot and dimension of each size that is to be a symbol.

    Raises:
        CompileError: No usable library, with the decline reason.
    """
    steps.begin(TRACING)
    with fake_mode(), torch.no_grad():
        outputs = trace_outputs(op, template, fake_inputs(template))
    is_function = any(name == "function" for name, _ in template.key.context)
    options = {
        **contraction(is_function),
        **step_rounding(template.schema.op, [slot_dtype(slot) for slot in template.slots]),
        **options,
        "aot_inductor.output_path": str(work),
    }
    is_tape = isinstance(op, RebuiltTape)
    layouts = eager_layouts(op, template) if is_tape and dims is None else None
    try:
        with inductor.results_laid_out(layouts):
            library, traced, facts = _compile(op, template, outputs, work, headers, options, dims)
        pattern, guards = compiled_pattern(template, traced) if dims is not None else (None, None)
    except CompileError:
        raise
    except Exception as error:
        raise _compile_error(error) from error
    file, sha256 = _without_holes(Path(str(library)))
    return Lowered(
        library=file,
        sha256=sha256,
        outputs=outputs,
        calls_aten=facts.calls_aten,
        parallel=facts.parallel,
        compiler=inductor.compiler_description(),
        pattern=pattern,
        guards=guards,
    )


def _compile(
    op: Any,
    template: CallTemplate,
    outputs: list[dict[str, Any]],
    work: Path,
    headers: Path,
    options: dict[str, Any],
    dims: Sequence[tuple[int, int]] | None,
) -> tuple[Any, list[Any], GeneratedCode]:
    """Return a thin library, or a full one where no thin one is possible, and its facts."""
    is_tape = isinstance(op, RebuiltTape)
    formula = traced_tape(op) if is_tape else inductor.kernel_formula(traced_op(op))
    kind = _kind(template, op)
    mutates = bool(template.schema.mutated)
    checks_indices = kind != "op" or reads_by_index(template.key.op, mutates=mutates)
    facts = GeneratedCode(kind, is_thin=True, checks_indices=checks_indices)
    try:
        thin, traced = _compile_thin(
            formula, template, outputs, work, headers, options, facts, dims
        )
        return thin, traced, facts
    except Exception as error:
        if not any(isinstance(one, NotThinError) for one in error_chain(error)):
            raise
        if dims is not None:
            raise CompileError(
                "not_dynamic", f"no thin library: {error}", remember=is_deterministic(error)
            ) from error
        facts = GeneratedCode(kind, is_thin=False, checks_indices=checks_indices)
        return _compile_full(formula, template, outputs, options, facts), [], facts


def _kind(template: CallTemplate, op: Any) -> str:
    """Return what is compiled: ``"op"``, ``"function"`` or ``"tape"``."""
    if isinstance(op, RebuiltTape):
        return "tape"
    return "function" if any(name == "function" for name, _ in template.key.context) else "op"


def _without_holes(library: Path) -> tuple[Path, str]:
    """Return a copy of the library without holes, and the copy's digest.

    A linker may leave holes in the file. On a full file system in memory, reading a hole through
    the mapped library ends the process.
    """
    content = library.read_bytes()
    if len(content) > LIBRARY_LIMIT:
        raise CompileError(
            "compile_failed",
            f"the library has {len(content)} bytes; at most {LIBRARY_LIMIT} are loaded",
        )
    library.unlink()
    try:
        library.write_bytes(content)
    except OSError as error:
        raise CompileError("store_unwritable", f"{library}: {error.strerror}") from error
    return library, hashlib.sha256(content).hexdigest()


def _compile_thin(
    op: Any,
    template: CallTemplate,
    outputs: list[dict[str, Any]],
    work: Path,
    headers: Path,
    options: dict[str, Any],
    facts: GeneratedCode,
    dims: Sequence[tuple[int, int]] | None,
) -> tuple[Any, list[Any]]:
    if not inductor.WRITES_THIN:
        raise NotThinError("this torch's Inductor writes full libraries only")
    steps.begin(TRACING)
    traced: list[Any] = []
    if dims is not None:
        program, inputs, traced = symbolic_program(op, template, outputs, dims)
    else:
        program, inputs = _program(op, template, outputs)
    steps.begin(GENERATING)
    compile_ = compiler_into(work, headers, _seen_by(facts))
    with inductor.cpu_wrapper_class(ThinWrapper), inductor.aot_code_compiler(compile_):
        return inductor.aot_compile(program, inputs, options=options), traced


def _compile_full(
    op: Any,
    template: CallTemplate,
    outputs: list[dict[str, Any]],
    options: dict[str, Any],
    facts: GeneratedCode,
) -> Any:
    def attempt(options: dict[str, Any]) -> Any:
        steps.begin(TRACING)
        program, inputs = _program(op, template, outputs)
        steps.begin(GENERATING)
        restore = inductor.inspect_generated_code(_seen_by(facts))
        try:
            return inductor.aot_compile(program, inputs, options=options)
        finally:
            restore()

    try:
        return attempt(options)
    except Exception as error:
        used = inductor.precompiles_headers()
        if not used or not any(_may_be_a_header(one) for one in error_chain(error)):
            raise
    library = attempt({**options, "aot_inductor.precompile_headers": False})
    # The headers were at fault, not the code. The next process makes them anew.
    inductor.forget_headers()
    return library


def _seen_by(facts: GeneratedCode) -> Callable[[str, str, bool], tuple[str, str]]:
    """Return what sees the generated code, after which only the C++ compiler is left."""

    def inspect(wrapper: str, kernels: str, proxy_executor: bool) -> tuple[str, str]:
        sources = facts.inspect(wrapper, kernels, proxy_executor)
        steps.begin(COMPILING)
        return sources

    return inspect


def _may_be_a_header(error: BaseException) -> bool:
    """Return whether the precompiled headers may have made a compile fail."""
    return isinstance(error, inductor.CppCompileError) and not inductor.was_ended(error)


def _program(
    op: Any, template: CallTemplate, outputs: list[dict[str, Any]]
) -> tuple[Any, tuple[Tensor, ...]]:
    """Return the call as an exported program and its fake inputs."""
    with fake_mode(), torch.no_grad():
        inputs = tuple(fake_inputs(template))
        try:
            module = call_module(op, template, outputs)
            if getattr(op, "differentiates", False):
                # torch.export does not trace autograd calls inside of a function.
                module = in_blocks(make_fx(module, inductor.decompositions())(*inputs))
            exported = torch.export.export(module, inputs, strict=False)
            check_graph(exported, template)
            return exported.module(check_guards=False), inputs
        except CompileError:
            raise
        except Exception as error:
            raise does_not_trace(error) from error


def _compile_error(error: Exception) -> CompileError:
    chain = list(error_chain(error))
    for one in chain:
        if isinstance(one, CompileError):
            return one
    text = error_text(error)
    names = {type(one).__name__ for one in chain}
    if "InvalidCxxCompiler" in names:
        return CompileError("no_compiler", text)
    if "No space left on device" in text or any(
        isinstance(one, OSError) and one.errno == errno.ENOSPC for one in chain
    ):
        return CompileError("store_unwritable", text)
    if "CppCompileError" in names:
        # Not remembered: a failing compiler may be repaired, and is not part of the environment.
        first = re.search(r"^.*\berror\b.*$", text, re.MULTILINE)
        said = first.group().strip() if first else text[:500]
        return CompileError("compile_failed", f"the C++ compiler failed: {said}", log=text)
    return CompileError("compile_failed", text, log=text, remember=is_compilers_own(error))
