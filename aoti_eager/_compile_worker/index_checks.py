"""Makes checks of indices in generated code fail in order: the run fails, the process goes on.

Inductor writes a check in front of each load by an index from a tensor. A check that fails throws,
and an exception that leaves a parallel region ends the process. So the bodies of such a region's
loops are rewritten to catch: the kernel keeps the first exception (``CaughtCheck`` in
``csrc/thin_library.h``) and throws it again after the region. What was not checked is never read.

ATen's own functions check their indices, too. Inductor writes some calls of them without a look at
the error that they return.
"""

from __future__ import annotations

import re

CHECK = "AOTI_TORCH_CHECK("

# A statement that drops the error of a function of torch's C interface.
_UNCHECKED = re.compile(
    r"^(\s*)(aoti_torch_(?:cpu_\w+|scatter_out|scatter_reduce_out|index_put_out)\(.*\));$",
    re.MULTILINE,
)
_KERNEL = re.compile(r'^extern "C"', re.MULTILINE)
_PRAGMA = re.compile(r"\s*#pragma omp (\w+)(.*)")
_COLLAPSE = re.compile(r"collapse\((\d+)\)")


def has_unchecked_calls(wrapper: str) -> bool:
    """Return whether the wrapper's source drops errors of ATen's functions."""
    return _UNCHECKED.search(wrapper) is not None


def with_checked_calls(wrapper: str) -> str:
    """Return the wrapper's source with a look at each error of ATen's functions."""
    return _UNCHECKED.sub(r"\1AOTI_TORCH_ERROR_CODE_CHECK(\2);", wrapper)


def with_caught_checks(kernels: str) -> str | None:
    """Return the kernels' source with checks that may fail; ``None`` if that cannot be shown.

    Args:
        kernels: The generated C++ of all kernels of a graph.
    """
    starts = [match.start() for match in _KERNEL.finditer(kernels)]
    if not starts:
        return None if CHECK in kernels else kernels
    parts = [kernels[: starts[0]]]
    if CHECK in parts[0]:
        return None
    for start, end in zip(starts, [*starts[1:], len(kernels)], strict=True):
        part = kernels[start:end]
        if CHECK in part:
            caught = _caught(part.split("\n"))
            if caught is None:
                return None
            part = "\n".join(caught)
        parts.append(part)
    return "".join(parts)


def _caught(lines: list[str]) -> list[str] | None:
    """Return the lines of one kernel, from its signature on; ``None`` if they are of another form.

    Every check must be outside of parallel regions or in a body that catches.
    """
    # A simd loop is left by no exception at all. The pragma is advice.
    lines = [line for line in lines if not _is_pragma(line, "simd")]
    opening = next((n for n, line in enumerate(lines) if line == "{"), None)
    if opening is None:
        return None
    closing = _closing(lines, opening)
    if closing is None or any(CHECK in line for line in lines[closing:]):
        return None
    parallel: list[tuple[int, int]] = []
    bodies: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        pragma = _PRAGMA.match(line)
        if pragma is None:
            if "#pragma omp" in line:
                return None
            continue
        kind, rest = pragma.groups()
        if kind == "parallel" and re.fullmatch(r"( num_threads\(\d+\))?\s*", rest):
            block = _block(lines, number + 1)
        elif kind == "for":
            block = _loop_body(lines, number + 1, rest)
        elif kind == "single" and not rest.strip():
            block = _block(lines, number + 1)
        else:
            return None
        if block is None:
            return None
        (parallel if kind == "parallel" else bodies).append(block)
    for number, line in enumerate(lines):
        if CHECK in line and _within(number, parallel) and not _within(number, bodies):
            return None
    return _with_catches(lines, opening, closing, bodies)


def _with_catches(
    lines: list[str], opening: int, closing: int, bodies: list[tuple[int, int]]
) -> list[str]:
    after = {opening: ["aoti_eager::CaughtCheck aoti_eager_caught;"]}
    before = {closing: ["aoti_eager_caught.rethrow();"]}
    for start, end in bodies:
        if any(CHECK in line for line in lines[start:end]):
            after.setdefault(start, []).append("try {")
            before.setdefault(end, []).append("} catch (...) { aoti_eager_caught.keep(); }")
    found = []
    for number, line in enumerate(lines):
        found += [*before.get(number, []), line, *after.get(number, [])]
    return found


def _is_pragma(line: str, kind: str) -> bool:
    pragma = _PRAGMA.match(line)
    return pragma is not None and pragma[1] == kind


def _within(number: int, blocks: list[tuple[int, int]]) -> bool:
    return any(start < number < end for start, end in blocks)


def _block(lines: list[str], number: int) -> tuple[int, int] | None:
    """Return the lines of the braces of a block that opens in line ``number``, alone there."""
    if number >= len(lines) or lines[number].strip() != "{":
        return None
    closing = _closing(lines, number)
    return None if closing is None else (number, closing)


def _loop_body(lines: list[str], number: int, clauses: str) -> tuple[int, int] | None:
    """Return the braces of the body of the loop, or of the innermost of collapsed loops."""
    collapsed = _COLLAPSE.search(clauses)
    if re.fullmatch(r"( collapse\(\d+\))?\s*", clauses) is None:
        return None
    for _ in range(int(collapsed[1]) if collapsed else 1):
        while number < len(lines) and lines[number].strip().startswith("#pragma GCC"):
            number += 1
        if number + 1 >= len(lines) or not lines[number].strip().startswith("for("):
            return None
        block = _block(lines, number + 1)
        if block is None:
            return None
        number = block[0] + 1
    return block


def _closing(lines: list[str], opening: int) -> int | None:
    """Return the line of the brace that closes the one in line ``opening``, alone in its line."""
    depth = 0
    for number in range(opening, len(lines)):
        code = re.sub(r'"(\\.|[^"\\])*"|//.*', "", lines[number])
        for character in code:
            depth += (character == "{") - (character == "}")
            if depth == 0 and character == "}":
                return number if lines[number].strip() == "}" else None
    return None
