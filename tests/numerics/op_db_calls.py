"""Calls of overloads, taken from the samples of PyTorch's own operator database.

``python -m tests.numerics.op_db_calls FILE DTYPE`` writes them: a process of its own, because the
database changes global flags of torch when it is imported. An overload's calls are those that
samples reach through the dispatcher, forward and backward, and, for overloads that the dispatcher
takes apart before anybody sees them, samples of the entry of the same name.
"""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from aoti_eager._base.op_names import find_overload
from aoti_eager._dispatch.tensor_copies import copy_tensor
from aoti_eager._keys.schema import op_schema, qualified_name

Call = tuple[Sequence[Any], dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
# Samples of an entry, distinct calls of an overload, and elements of the largest tensor of one.
_SAMPLES, _CALLS, _ELEMENTS = 3, 3, 1 << 16
# Memory formats cannot be written with older ones.
_PICKLE = 4
_PLAIN = (
    *(bool, int, float, complex, str),
    *(torch.dtype, torch.layout, torch.device, torch.memory_format),
)
# Prefixes of entries' names that aten spells otherwise.
_PREFIXES = (("nn.functional.", ""), ("linalg.", "linalg_"), ("special.", "special_"))


def load(directory: Path, dtype: str) -> dict[str, list[Call]]:
    """Return calls by qualified overload for a dtype.

    They are recorded for float32 and int64, and written to ``directory`` the first time: minutes.
    Other floating-point and integer dtypes have the same calls with that dtype instead.
    """
    wanted: torch.dtype = getattr(torch, dtype)
    base = torch.float32 if wanted.is_floating_point else torch.int64
    if wanted.is_complex or wanted is torch.bool:
        base = wanted
    found = _recorded(directory, str(base).removeprefix("torch."))
    if base == wanted:
        return found
    return {op: [converted(*one, base, wanted) for one in calls] for op, calls in found.items()}


def _recorded(directory: Path, dtype: str) -> dict[str, list[Call]]:
    file = directory / f"op_db_{dtype}_{torch.__version__}.pt"
    if not file.exists():
        staged = file.with_suffix(f".{os.getpid()}")
        command = [sys.executable, "-W", "ignore", "-m", "tests.numerics.op_db_calls"]
        subprocess.run([*command, str(staged), dtype], cwd=ROOT, check=True)
        staged.replace(file)
    # Ours, from this directory; dtypes and memory formats are no plain tensors.
    found: dict[str, list[Call]] = torch.load(file, weights_only=False)
    return found


def converted(
    args: Sequence[Any], kwargs: dict[str, Any], base: torch.dtype, wanted: torch.dtype
) -> Call:
    """Return a call with ``wanted`` instead of ``base``, in tensors and as an argument."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dtype == base:
            return copy_tensor(leaf).to(wanted)
        return wanted if leaf is base else leaf

    made: Call = pytree.tree_map(convert, (list(args), dict(kwargs)))
    return made


class _Recorder(TorchDispatchMode):
    """Keeps the first calls of every aten overload, each with other metadata."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, dict[str, Call]] = {}

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.keep(op, args, kwargs or {})
        return op(*args, **(kwargs or {}))

    def keep(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if op.namespace != "aten" or any(a.mutated for a in op_schema(op).arguments):
            return
        kept = self.calls.setdefault(qualified_name(op), {})
        if len(kept) < _CALLS and _is_plain((args, kwargs)):
            kept.setdefault(_metadata((args, kwargs)), _copied(args, kwargs))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_plain(tree: Any) -> bool:
    return all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.layout is torch.strided
        and not (t.is_quantized or t.is_nested or t.is_conj() or t.is_neg())
        and t.device.type == "cpu"
        and t.numel() <= _ELEMENTS
        for t in _tensors(tree)
    ) and all(
        leaf is None or isinstance(leaf, (Tensor, *_PLAIN)) for leaf in pytree.tree_leaves(tree)
    )


def _metadata(tree: Any) -> str:
    def shown(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return ("tensor", leaf.dtype, tuple(leaf.shape), leaf.stride())
        return leaf

    return repr(pytree.tree_map(shown, tree))


def _copied(args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
    made: Call = pytree.tree_map_only(Tensor, copy_tensor, (list(args), dict(kwargs)))
    return made


def _sample_calls(entry: Any, dtype: torch.dtype, gradients: bool) -> Iterator[Any]:
    samples = entry.sample_inputs("cpu", dtype, requires_grad=gradients)
    yield from itertools.islice(samples, _SAMPLES)


def record(dtype: torch.dtype) -> dict[str, list[Call]]:
    """Return the calls of all entries of the database that take ``dtype``."""
    from torch.testing._internal.common_methods_invocations import op_db

    recorder = _Recorder()
    for entry in op_db:
        if dtype not in entry.supported_dtypes("cpu"):
            continue
        gradients = dtype in entry.supported_backward_dtypes("cpu") and entry.supports_autograd
        try:
            samples = list(_sample_calls(entry, dtype, gradients))
        except Exception:  # noqa: BLE001 - it needs a package or a library that is not here
            continue
        for sample in samples:
            _record_by_name(recorder, entry, sample)
            _record_sample(recorder, entry, sample, gradients)
    found = {
        name: [call for call in kept.values() if _can_be_written(call)]
        for name, kept in recorder.calls.items()
    }
    return {name: calls for name, calls in found.items() if calls}


def _can_be_written(call: Call) -> bool:
    try:
        torch.save(call, io.BytesIO(), pickle_protocol=_PICKLE)
    except Exception:  # noqa: BLE001 - an argument of some class of the database's own
        return False
    return True


def _record_sample(recorder: _Recorder, entry: Any, sample: Any, gradients: bool) -> None:
    torch.manual_seed(0)
    try:
        with recorder:
            result = entry(sample.input, *sample.args, **sample.kwargs)
            if gradients:
                wanted = [t for t in _tensors(result) if t.requires_grad]
                leaves = [t for t in _tensors((sample.input, sample.args)) if t.requires_grad]
                torch.autograd.grad(
                    wanted, leaves, [torch.ones_like(t) for t in wanted], allow_unused=True
                )
    except Exception:  # noqa: BLE001 - what came before was recorded
        return


def _record_by_name(recorder: _Recorder, entry: Any, sample: Any) -> None:
    name = entry.name
    for prefix, ours in _PREFIXES:
        name = name.replace(prefix, ours)
    packet = getattr(torch.ops.aten, name.replace(".", "_"), None)
    if packet is None:
        return
    args = (sample.input, *sample.args)
    for overload in packet.overloads():
        op = getattr(packet, overload)
        try:
            find_overload(qualified_name(op))
            op_schema(op).bind(args, sample.kwargs)
            if _holds_tensors(op, args):
                with torch.no_grad():
                    op(*args, **sample.kwargs)
                recorder.keep(op, args, sample.kwargs)
        except Exception:  # noqa: BLE001 - the overload takes no such arguments
            continue


def _holds_tensors(op: Any, args: Sequence[Any]) -> bool:
    """Return whether tensors stand where the overload has tensors, and nowhere else."""
    for argument, value in zip(op_schema(op).arguments, args, strict=False):
        if argument.is_tensor and isinstance(value, int | float | bool | complex):
            return False
        if not argument.is_tensor and isinstance(value, Tensor):
            return False
    return True


def main() -> None:
    """Write the calls; ``argv`` is the file and the dtype."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    file, dtype = sys.argv[1:]
    torch.save(record(getattr(torch, dtype)), file, pickle_protocol=_PICKLE)


if __name__ == "__main__":
    main()
