"""Looks at generated C++ before it is compiled: what it calls, and whether it may be used."""

from __future__ import annotations

import re

from ..errors import CompileError
from .index_checks import has_unchecked_calls, with_caught_checks, with_checked_calls


class GeneratedCode:
    """Properties of the generated C++; raises where the code must not be used at all.

    Args:
        kind: What the code is of: ``"op"``, ``"function"`` or ``"tape"``.
        is_thin: Whether the code goes into a thin library.
        checks_indices: Whether a check of an index may fail in a run: the original then runs.
    """

    def __init__(self, kind: str, *, is_thin: bool, checks_indices: bool) -> None:
        self._kind = kind
        self._checks_indices = checks_indices
        self._is_thin = is_thin
        self.calls_aten = False
        self.parallel = False

    def inspect(self, wrapper: str, kernels: str, proxy_executor: bool) -> tuple[str, str]:
        """Return the two sources as they are to be compiled.

        Raises:
            CompileError: No library may be made of the sources.
        """
        body = _run_body(wrapper)
        if proxy_executor or "aoti_torch_call_dispatcher" in body:
            raise CompileError(
                "needs_proxy_executor",
                "a part of the graph has no C shim to be called through",
                remember=True,
            )
        calls = re.findall(r"aoti_torch_(?:cpu|cuda|xpu|item)_\w+\(", body)
        # Two ops of a region in one library save a dispatch, even without a kernel.
        enough = self._kind == "tape" and len(calls) > 1
        if not enough and not re.search(r'extern "C"\s+void\s+\w+\s*\(', kernels):
            raise CompileError("no_kernel_of_its_own", "no C++ kernel came out", remember=True)
        if re.search(r"\b(floor_divide|remainder)_integral\(", kernels):
            raise CompileError(
                "error_depends_on_data",
                "the generated code divides integers, and notes a zero divisor where another "
                "thread's kernel does, too",
                remember=True,
            )
        self.calls_aten = bool(calls)
        self.parallel = "#pragma omp parallel" in kernels
        return self._checked(wrapper, kernels)

    def _checked(self, wrapper: str, kernels: str) -> tuple[str, str]:
        """Return the sources with checks of indices that fail in order."""
        unchecked = self._checks_indices and has_unchecked_calls(wrapper)
        if "TORCH_CHECK(" not in kernels and not unchecked:
            return wrapper, kernels
        is_known = re.search(r"(?<!AOTI_)TORCH_CHECK\(", kernels) is None
        if self._checks_indices and self._is_thin and is_known:
            caught = with_caught_checks(kernels)
            if caught is not None:
                return with_checked_calls(wrapper), caught
        raise CompileError(
            "error_depends_on_data",
            "the generated code checks data, and a failed check would end the process",
            remember=True,
        )


def _run_body(wrapper: str) -> str:
    """Return the wrapper's part that runs in a call; all other code is equal in each library."""
    start = max(wrapper.rfind("::run_impl("), wrapper.rfind("void run_graph("))
    return wrapper[start:] if start >= 0 else wrapper
