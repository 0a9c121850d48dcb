"""Certificates of the numerics laboratory: an op is served only if it is certified for its dtypes.

``python -m tests.numerics certificates`` writes ``certificates.json``; docs/numerics.md has the
rule by which an op is certified. Users' functions have no certificates: only the trial and the
comparison on the first call judge their kernels.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .._base.cpu import Target, level_of
from .._base.data_class import dataclass
from .._base.digest import Component
from .._keys.functional_overload import functional_overload
from .._keys.kernel_key import KernelKey
from .._keys.schema import Kind, OpSchema
from ..errors import UnknownOpError

_FILE = Path(__file__).with_name("certificates.json")
_NUMBER_KINDS = (Kind.SCALAR, Kind.SCALARS)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the laboratory found about one overload, for one dtype and one instruction set.

    Attributes:
        op: Qualified name of a functional overload, ``aten::mul.Tensor``.
        dtype: Name of the dtype as in keys, ``float32``.
        target: The instruction set, ``x86-64-v4``; where no such level applies, the machine's name.
        is_certified: Whether kernels may serve.
        max_ulp_eager: Largest error of eager's finite results, in units in the last place.
        max_ulp_compiled: Largest error of the compiled code's finite results, in the same units.
        zero_signs: How many results were a zero with a different sign than eager's.
        coverage: Which values were compared.
        reason: What differs, if the op is not certified; otherwise a remark, or empty.
    """

    op: str
    dtype: str
    target: str
    is_certified: bool
    max_ulp_eager: float | None
    max_ulp_compiled: float | None
    zero_signs: int
    coverage: str
    reason: str


class Certificates:
    """The laboratory's findings, by overload, dtype and instruction set."""

    def __init__(self, certificates: Iterable[Certificate]) -> None:
        self._found = {(one.op, one.dtype, one.target): one for one in certificates}

    def __len__(self) -> int:
        return len(self._found)

    def find(self, op: str, dtype: str, target: str) -> Certificate | None:
        """Return what was found about an overload.

        In-place, ``out=`` and ``_foreach_`` overloads have no certificates.
        """
        return self._found.get((op, dtype, target))

    def refusal(
        self, schema: OpSchema, key: KernelKey, target: Target, *, required: bool
    ) -> str | None:
        """Return why no kernel may serve ``key``, or ``None``; see the function ``refusal``."""
        op = _functional(key.op)
        level = instruction_set(target)
        for dtype in deciding_dtypes(schema, key):
            found = self.find(op, dtype, level)
            where = f"{key.op}: {dtype} code for {level}"
            if found is None:
                if required:
                    return f"{where} was not looked at"
            elif not found.is_certified:
                return f"{where}: {found.reason}"
        return None


def refusal(schema: OpSchema, key: KernelKey, target: Target, *, required: bool) -> str | None:
    """Return why the package's certificates let no kernel serve ``key``, or ``None``.

    Args:
        schema: The schema of the key's overload.
        key: The call.
        target: The instruction set that its kernel is, or would be, compiled for.
        required: Whether an op without a certificate is refused, too: the setting ``certified``. An
            op that the laboratory found wrong is always refused.
    """
    if not needs_certificate(key):
        return None
    return shipped(_functional(key.op)).refusal(schema, key, target, required=required)


def needs_certificate(key: KernelKey) -> bool:
    """Return whether ``key`` is of one of torch's own ops, compiled for the CPU by Inductor."""
    context = dict(key.context)
    return (
        key.op.startswith("aten::")
        and key.dispatch_key == "CPU"
        and "function" not in context
        and "backend" not in context
    )


def deciding_dtypes(schema: OpSchema, key: KernelKey) -> list[str]:
    """Return the dtypes for which an op must be certified to serve ``key``, sorted.

    These are the floating-point and complex dtypes of tensors and of dtype arguments; if there are
    none, all their dtypes. A number that turns integers into floats counts as the default dtype.
    """
    found: set[str] = set()
    has_float_number = False
    for argument, (_, component) in zip(schema.arguments, key.arguments, strict=True):
        for one in _listed(component):
            if argument.kind is Kind.DTYPE:
                found.add(str(one))
            elif isinstance(one, Mapping):
                if "dtype" in one:
                    found.add(str(one["dtype"]))
                elif argument.is_tensor:
                    has_float_number |= one.get("number") in ("float", "complex")
                elif argument.kind in _NUMBER_KINDS:
                    has_float_number |= "float" in one or "complex" in one
    inexact = sorted(dtype for dtype in found if _is_inexact(dtype))
    if inexact:
        return inexact
    if has_float_number or not found:
        return [str(dict(key.context)["default_dtype"])]
    return sorted(found)


def instruction_set(target: Target) -> str:
    """Return the name under which ``target`` has certificates: a level of x86-64, or a machine."""
    return level_of(target) or platform.machine().lower()


def _functional(op: str) -> str:
    """Return the overload whose certificates hold for ``op``."""
    try:
        return functional_overload(op)
    except UnknownOpError:
        return op


def _listed(component: Component) -> Sequence[Component]:
    if component is None:
        return ()
    return component if isinstance(component, list) else (component,)


def _is_inexact(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "complex"))


@functools.cache
def shipped(op: str | None = None) -> Certificates:
    """Return the certificates of the package's own file: those of one overload, or all."""
    return read_certificates(_text(), op)


@functools.cache
def _text() -> str:
    """Return the text of the package's own file; read once, at the first miss."""
    return _FILE.read_text(encoding="utf-8")


def read_certificates(text: str, op: str | None = None) -> Certificates:
    """Return the certificates of a document.

    Args:
        text: The document.
        op: Qualified name of the overload whose certificates are wanted; ``None`` for all.

    Raises:
        ValueError: ``text`` is no document of certificates.
    """
    document = json.loads(text if op is None else _part(text, op))
    if document["format"] != 1:
        raise ValueError(f"certificates of format {document['format']!r}; 1 is known")
    return Certificates(_certificate(row) for row in document["rows"])


def _part(text: str, op: str) -> str:
    """Return a document with the rows of one overload only: a miss does not wait for all rows.

    The package's own file has a line for each row.
    """
    head, rows, lines = text.partition('"rows": [\n')
    start = f"[{json.dumps(op)}, "
    found = [line.removesuffix(",") for line in lines.splitlines() if line.startswith(start)]
    return f"{head}{rows}{','.join(found)}]}}" if rows else text


def _certificate(row: Sequence[Component]) -> Certificate:
    op, dtype, target, status, eager, compiled, zero_signs, coverage, reason = row
    return Certificate(
        op=op,
        dtype=dtype,
        target=target,
        is_certified=status == "certified",
        max_ulp_eager=eager,
        max_ulp_compiled=compiled,
        zero_signs=zero_signs,
        coverage=coverage,
        reason=reason,
    )
