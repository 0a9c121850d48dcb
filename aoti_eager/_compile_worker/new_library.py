"""Makes the library of a call: lowered, tried, timed; for one thread where that is faster."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base import gc_pause
from .._base.cpp_compiler import compiler_identity
from .._base.determinism import is_compilers_own
from .._compile_service.replies import Compiled
from .._compile_service.requested import BuiltLibrary, RequestedCall, RequestedCode
from .._compile_service.steps import (
    COMPILING,
    GENERATING,
    IMPORTING,
    MEASURING,
    TRACING,
    TRYING,
)
from .._keys.kernel_key import KernelKey
from .._keys.pattern_instances import instances
from .._store.verdict import PathTime
from ..errors import AotiEagerError, CompileError
from .job_context import standard_error_in, use_context, use_directories
from .job_steps import steps
from .library_runs import LibraryRuns, Times, Tried
from .plain_path import plain_path
from .relaxed_guards import relaxed_guards, values_of_symbols

if TYPE_CHECKING:
    from .._keys.schema import OpSchema
    from .lowering import Lowered

# Above this time, entering and leaving a parallel region costs next to nothing, and code for one
# thread cannot win.
_SERIAL_BELOW_US = 300.0

# A dynamic specialisation is tried with further calls of at most so many elements.
_MOST_ELEMENTS = 1 << 20

_OF_A_LIBRARY = (TRACING, GENERATING, COMPILING, TRYING)


class LibraryMaker:
    """Makes libraries in directories of the store.

    Args:
        runs: Tries and times the libraries.
        vector_bits: See ``inductor_compat.prepare_worker``.
    """

    def __init__(self, runs: LibraryRuns, vector_bits: int) -> None:
        self._runs = runs
        self._vector_bits = vector_bits
        self._is_prepared = False

    def prepare(self) -> None:
        """Import Inductor and set it up, at the first call."""
        if self._is_prepared:
            return
        steps.begin(IMPORTING)
        warnings.simplefilter("ignore")
        self._runs.start_trials()
        with gc_pause.paused():
            from . import inductor_compat, lowering  # noqa: F401 - all of Inductor that is needed

        inductor_compat.prepare_worker(self._vector_bits)
        self._runs.start_measuring()
        self._is_prepared = True

    def made(self, code: RequestedCode, work: Path) -> Compiled:
        """Return a library in ``work`` that has passed its trial, with its times.

        Raises:
            CompileError: No library can be made; the error has the reason.
        """
        log = work / "compile.log"
        try:
            with standard_error_in(log):
                return self._best(code, work)
        except CompileError as error:
            error.log = error.log or _text(log)
            raise
        except OSError as error:
            raise CompileError("store_unwritable", str(error), remember=False) from error
        except AotiEagerError as error:
            raise CompileError(
                "compile_failed", str(error), log=_text(log), remember=False
            ) from error
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            text = _text(log) + traceback.format_exc()
            raise CompileError(
                "compile_failed", message, log=text, remember=is_compilers_own(error)
            ) from error

    def _best(self, code: RequestedCode, work: Path) -> Compiled:
        measuring = (MEASURING,) if code.gate else ()
        steps.plan(IMPORTING, *_OF_A_LIBRARY, *measuring)
        lowered, tried = self._tried(code, work, code.options)
        made = [(lowered, tried)]
        times: list[Times] = [{}]
        unmeasured = ""
        if code.gate:
            times, unmeasured = self._measured(code, [lowered])
            if lowered.parallel and _may_lose_to_one_thread(times[0]):
                # Entering and leaving a parallel region costs a microsecond or two: too much for a
                # small kernel.
                serial = work / "serial"
                serial.mkdir()
                options = {**code.options, "cpp.threads": 1}
                steps.plan(*_OF_A_LIBRARY, MEASURING)
                with contextlib.suppress(CompileError):  # Then the parallel library remains.
                    made.append(self._tried(code, serial, options))
                    times, unmeasured = self._measured(code, [one for one, _ in made])
        best = min(range(len(made)), key=lambda i: _share(times[i]))
        lowered, tried = made[best]
        return Compiled(
            library=lowered.library,
            sha256=lowered.sha256,
            outputs=tuple(lowered.outputs),
            calls_aten=lowered.calls_aten,
            # A serial library that won against parallel code is kept for this thread count only.
            parallel=made[0][0].parallel,
            compiler=lowered.compiler,
            identity=compiler_identity(),
            compared=tried.compared,
            lost_signs=tried.lost_signs,
            times=times[best],
            unmeasured=unmeasured,
            pattern=lowered.pattern,
            guards=lowered.guards,
        )

    def _measured(self, code: RequestedCode, made: list[Lowered]) -> tuple[list[Times], str]:
        steps.begin(MEASURING)
        return self._runs.measured(code.call, [_built(one) for one in made], code.numbers)

    def _tried(
        self, code: RequestedCode, work: Path, options: dict[str, Any]
    ) -> tuple[Lowered, Tried]:
        """Return a library that has passed its trial, and the trial's findings."""
        self.prepare()
        from .._functions.call_target import call_target
        from .._keys.call_template import call_template
        from .lowering import lower

        call, key = code.call, code.call.key
        op, schema = call_target(key.op, call.function, call.schema)
        plain = plain_path(call.root)
        headers = plain / "toolchain" / "headers"
        written = plain / work.relative_to(call.root)
        use_directories(written, headers)
        use_context(dict(key.context))
        dims = None if code.plan is None else code.plan.dims
        template = call_template(schema, key, code.numbers)
        lowered = lower(op, template, written, headers, options, dims)
        # From here on by its own name: the other name is valid in this process alone.
        library = work / lowered.library.relative_to(written)
        lowered = replace(lowered, library=library)
        steps.begin(TRYING)
        tried = self._runs.tried(call, _built(lowered), code.numbers)
        if lowered.pattern is not None and lowered.guards is not None:
            lowered = self._tried_dynamic(code, schema, lowered)
        return lowered, tried

    def _tried_dynamic(self, code: RequestedCode, schema: OpSchema, lowered: Lowered) -> Lowered:
        """Return a dynamic library, tried on more calls, with the guards that it may have."""
        pattern, guards = lowered.pattern, lowered.guards
        assert pattern is not None
        assert guards is not None
        library = _built(lowered)

        def tried(call: RequestedCall) -> Tried:
            return self._runs.tried(call, library, code.numbers)

        def was_compared(other: KernelKey) -> bool:
            return tried(replace(code.call, key=other, check=True)).compared

        values = values_of_symbols(schema, code.call.key, pattern, guards)
        for other in instances(pattern, guards, values, most_elements=_MOST_ELEMENTS):
            tried(replace(code.call, key=other))
        return replace(lowered, guards=relaxed_guards(pattern, guards, values, was_compared))


def _built(lowered: Lowered) -> BuiltLibrary:
    return BuiltLibrary(lowered.library, lowered.sha256, tuple(lowered.outputs), lowered.calls_aten)


def _share(times: Mapping[str, PathTime]) -> float:
    """Return the kernel's time as a share of the original's; 1 where the times are not known."""
    best = times.get("native") or times.get("python")
    return best.kernel_us / best.original_us if best else 1.0


def _may_lose_to_one_thread(times: Mapping[str, PathTime]) -> bool:
    best = times.get("native") or times.get("python")
    return best is None or _share(times) > 0.9 or best.kernel_us < _SERIAL_BELOW_US


def _text(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
