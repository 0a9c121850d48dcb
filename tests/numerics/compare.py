"""Eager's results, compiled results and exact values -> what differs and by how much.

``compare.cpp`` does the work, one chunk a call; this module builds it, calls it, and says in JSON
values what came out.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aoti_eager._base.cpp_compiler import compiler_on_path

# A result may be this far from the exact value, in units of the last place, whatever eager's is.
FLOOR_ULP = 2.0

_SOURCE = Path(__file__).with_suffix(".cpp")
_INPUTS, _EXAMPLES, _REGIONS = 3, 3, 4096

_EXAMPLE = np.dtype(
    [
        ("inputs", np.uint64, _INPUTS),
        ("eager", np.float64),
        ("compiled", np.float64),
        ("exact", np.float64),
        ("ulp_eager", np.float64),
        ("ulp_compiled", np.float64),
    ]
)
_REGION = np.dtype(
    [
        ("ulp_eager", np.float64),
        ("ulp_compiled", np.float64),
        ("over", np.int64),
        ("worst", _EXAMPLE),
    ]
)
_COUNTS = (
    "values",
    "differing",
    "nan_mismatches",
    "inf_mismatches",
    "nearer",
    "zero_signs",
    "unreferenced",
    "exact_differing",
)
_KINDS_OF_EXAMPLES = ("nan", "inf", "nearer", "zero", "exact")
_SUMMARY = np.dtype(
    [(name, np.int64) for name in _COUNTS]
    + [(f"{name}_examples", _EXAMPLE, _EXAMPLES) for name in _KINDS_OF_EXAMPLES]
)
_BYTES = 5
_KINDS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_LONG_DOUBLE = 4


class _Inputs(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p * _INPUTS), ("sizes", ctypes.c_int32 * _INPUTS))


@functools.cache
def library(directory: Path) -> ctypes.CDLL:
    """Return the comparison's library, built in ``directory`` unless it is there."""
    source = _SOURCE.read_bytes()
    path = directory / f"compare-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not path.exists():
        compiler = compiler_on_path()
        assert compiler is not None, "the laboratory needs a C++ compiler"
        staged = path.with_name(f"{path.name}.{os.getpid()}")
        flags = ["-std=gnu++17", "-O3", "-march=native", "-fno-math-errno", "-ffp-contract=off"]
        subprocess.run(
            [compiler, *flags, "-shared", "-fPIC", str(_SOURCE), "-o", str(staged)], check=True
        )
        staged.rename(path)
    loaded = ctypes.CDLL(str(path))
    loaded.numerics_sizes.restype = ctypes.c_int64
    sizes = [loaded.numerics_sizes(i) for i in range(3)]
    assert sizes == [_REGION.itemsize, _SUMMARY.itemsize, _REGIONS], sizes
    return loaded


class Comparison:
    """Accumulates chunks of one kernel's results.

    Args:
        directory: Where the C++ part is built.
        floor: See ``FLOOR_ULP``.

    Attributes:
        metadata: How results differ in dtype, sizes or strides, and errors that only eager raises.
        elsewhere: Results that eager gives, too, for the same values at another place of a tensor.
    """

    def __init__(self, directory: Path, floor: float = FLOOR_ULP) -> None:
        self._library = library(directory)
        self._floor = floor
        self._regions = np.zeros(_REGIONS, _REGION)
        self._summary = np.zeros(1, _SUMMARY)
        self._input_dtypes: list[str] = []
        self.metadata: list[str] = []
        self.elsewhere = 0

    def add(
        self,
        eager: Tensor,
        compiled: Tensor,
        exact: Tensor | np.ndarray[Any, Any] | None = None,
        *,
        keys: Tensor | None = None,
        inputs: Sequence[Any] = (),
    ) -> None:
        """Compare one chunk.

        Args:
            eager: Eager's result.
            compiled: The compiled code's.
            exact: The exact values, float64 (``numpy.longdouble`` beside float64 results,
                complex128 beside complex ones); ``None`` where eager's stand for them.
            keys: Float64; an element's region is the binade of its key. ``None``: of its exact
                value.
            inputs: The first three tensors of the call with as many elements as the result, for
                examples; others are left out.
        """
        found = _metadata(eager, compiled)
        if found is not None:
            if len(self.metadata) < _EXAMPLES:
                self.metadata.append(found)
            return
        eager, compiled = eager.contiguous(), compiled.contiguous()
        if eager.is_complex():
            eager, compiled = (torch.view_as_real(one).contiguous() for one in (eager, compiled))
            exact = None if exact is None else torch.view_as_real(torch.as_tensor(exact))
            keys, inputs = None, ()
        kind = _KINDS.get(eager.dtype, _BYTES)
        address: int | None = None
        if isinstance(exact, np.ndarray):
            assert exact.dtype == np.longdouble
            assert kind == _KINDS[torch.float64]
            exact = np.ascontiguousarray(exact)
            assert exact.size == eager.numel()
            kind, address = _LONG_DOUBLE, exact.ctypes.data
        elif exact is not None and kind != _BYTES:
            exact = exact.to(torch.float64).contiguous()
            assert exact.numel() == eager.numel(), (exact.shape, eager.shape)
            address = exact.data_ptr()
        if keys is not None:
            keys = keys.to(torch.float64).contiguous()
            assert keys.numel() == eager.numel()
        places, alive = self._places(inputs, eager.numel())
        status = self._library.numerics_compare(
            ctypes.c_int(kind),
            ctypes.c_void_p(eager.data_ptr()),
            ctypes.c_void_p(compiled.data_ptr()),
            ctypes.c_void_p(address),
            ctypes.c_void_p(None if keys is None else keys.data_ptr()),
            ctypes.byref(places),
            ctypes.c_int64(eager.numel()),
            ctypes.c_int64(eager.element_size()),
            ctypes.c_double(self._floor),
            ctypes.c_void_p(self._regions.ctypes.data),
            ctypes.c_void_p(self._summary.ctypes.data),
        )
        assert status == 0, status
        del alive

    def add_refused(self, error: str) -> None:
        """Count a chunk that eager raises an error for, which compiled code never does."""
        found = f"eager raises for some values: {error}"
        if found not in self.metadata and len(self.metadata) < _EXAMPLES:
            self.metadata.append(found)

    def add_equal(self, count: int) -> None:
        """Count values that were found to be equal bit for bit elsewhere."""
        self._summary["values"] += count

    def _places(self, inputs: Sequence[Any], count: int) -> tuple[_Inputs, list[Tensor]]:
        shown = [
            one.contiguous() for one in inputs if isinstance(one, Tensor) and one.numel() == count
        ][:_INPUTS]
        self._input_dtypes = [str(one.dtype).removeprefix("torch.") for one in shown]
        places = _Inputs()
        for i, one in enumerate(shown):
            places.data[i] = one.data_ptr()
            places.sizes[i] = one.element_size()
        return places, shown

    def is_beyond(self) -> bool:
        """Return whether a region's largest error is beyond the rule."""
        return bool(self._beyond().any())

    def _beyond(self) -> np.ndarray[Any, Any]:
        allowed = np.maximum(self._regions["ulp_eager"], self._floor)
        beyond: np.ndarray[Any, Any] = self._regions["ulp_compiled"] > allowed
        return beyond

    def measures(self) -> dict[str, Any]:
        """Return everything that was found, as JSON values; see ``rule.py`` for what it means."""
        summary = self._summary[0]
        beyond = self._regions[self._beyond()]
        worst = beyond[np.argsort(-beyond["ulp_compiled"])][:_EXAMPLES]
        examples = {
            name: self._examples(summary[f"{name}_examples"], count)
            for name, count in (
                ("nan", summary["nan_mismatches"]),
                ("inf", summary["inf_mismatches"]),
                ("nearer", summary["nearer"]),
                ("zero", summary["zero_signs"]),
                ("exact", summary["exact_differing"]),
            )
        }
        return {
            **{name: int(summary[name]) for name in _COUNTS},
            "max_ulp_eager": _number(self._regions["ulp_eager"].max()),
            "max_ulp_compiled": _number(self._regions["ulp_compiled"].max()),
            "beyond_regions": len(beyond),
            "beyond_values": int(beyond["over"].sum()),
            "beyond": self._examples(worst["worst"], len(worst)),
            "examples": {name: found for name, found in examples.items() if found},
            "metadata": self.metadata,
            "elsewhere": self.elsewhere,
        }

    def _examples(self, records: Any, count: int) -> list[dict[str, Any]]:
        shown = []
        for record in records[: min(int(count), _EXAMPLES)]:
            inputs = [
                _spelled(int(bits), dtype)
                for bits, dtype in zip(record["inputs"], self._input_dtypes, strict=False)
            ]
            named = {name: _number(record[name]) for name in ("eager", "compiled", "exact")}
            ulps = {name: _number(record[name]) for name in ("ulp_eager", "ulp_compiled")}
            shown.append({"inputs": inputs, **named, **ulps})
        return shown


def _metadata(eager: Tensor, compiled: Tensor) -> str | None:
    for name, want, have in (
        ("dtype", eager.dtype, compiled.dtype),
        ("sizes", tuple(eager.shape), tuple(compiled.shape)),
        ("strides", eager.stride(), compiled.stride()),
    ):
        if want != have:
            return f"{name}: {have} instead of {want}"
    return None


def _number(value: float) -> float | str:
    """Return a number as JSON takes it: NaN and infinities by name."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _spelled(bits: int, dtype: str) -> str:
    kind = getattr(torch, dtype)
    size = torch.empty((), dtype=kind).element_size()
    whole = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}.get(size)
    if whole is None:
        return hex(bits)
    return repr(torch.tensor(bits, dtype=whole).view(kind).item())
