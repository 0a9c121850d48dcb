"""PyTorch's own checks as a witness: the same outcomes with all ops enabled as without.

    python -m tests.enable.witness [--entries N] [--seed N] [--json FILE]

For seeded entries of op_db (``torch.testing._internal``), in float64, two processes run checks that
torch itself is tested with: one plain, one with ``enable("all")`` and the gate off, so that every
kernel that is right serves. Each check gives ``ok``, or the type and the first line of what it
raised. A check that ends its process is an outcome, too. Prints what differs; exit status 1 if
anything does.

| check | of |
|---|---|
| ``samples`` | each sample runs, and gives what the sample with other strides gives |
| ``gradcheck``, ``gradgradcheck``, ``forward_ad`` | derivatives, where op_db has them |
| ``schema`` | ``SchemaCheckMode``: what is written and what shares memory is what the schema says |
| ``fake`` | ``CrossRefFakeMode``: sizes, strides and dtypes are those of fake tensors |
| ``opcheck`` | ``torch.library.opcheck`` of each overload that the sample reaches |
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import aoti_eager

# So many samples of an entry are checked, each of at most so many elements: gradcheck runs an op
# twice for each of them.
SAMPLES, MOST_ELEMENTS = 2, 64
SIDES = ("plain", "served")


def entries() -> dict[str, Any]:
    """Return op_db's entries that have float64 samples, by their full names."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {one.full_name: one for one in op_db if torch.float64 in one.supported_dtypes("cpu")}


def chosen(number: int, seed: int) -> list[str]:
    """Return seeded entries."""
    names = sorted(entries())
    return sorted(random.Random(seed).sample(names, min(number, len(names))))


# -- checks --


def is_small(sample: Any) -> bool:
    """Return whether a sample is small enough for numerical gradients."""
    leaves = torch.utils._pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return sum(one.numel() for one in leaves if isinstance(one, Tensor)) <= MOST_ELEMENTS


def samples_of(entry: Any, *, requires_grad: bool) -> list[Any]:
    """Return some samples of an entry, the same in each process."""
    torch.manual_seed(0)
    found = entry.sample_inputs("cpu", torch.float64, requires_grad=requires_grad)
    return [one for one in found if is_small(one)][:SAMPLES]


def check_samples(entry: Any) -> None:
    """Run each sample, and the same with other strides."""
    for sample in samples_of(entry, requires_grad=False):
        torch.manual_seed(0)
        want = entry(sample.input, *sample.args, **sample.kwargs)
        other = sample.noncontiguous()
        torch.manual_seed(0)
        got = entry(other.input, *other.args, **other.kwargs)
        torch.testing.assert_close(got, want, equal_nan=True)


def gradients(check: Callable[..., Any], wants: str, **options: Any) -> Callable[[Any], None]:
    """Return a check of gradients, for entries that say they pass ``wants``."""

    def run(entry: Any) -> None:
        if not getattr(entry, wants):
            return
        for sample in samples_of(entry, requires_grad=True):
            function, inputs = differentiable(entry, sample)
            if inputs:
                check(
                    function,
                    inputs,
                    check_batched_grad=False,
                    check_grad_dtypes=True,
                    nondet_tol=entry.gradcheck_nondet_tol,
                    **options,
                )

    return run


def differentiable(entry: Any, sample: Any) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Return a sample as a function of its tensors that want gradients."""
    leaves, spec = torch.utils._pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [
        place for place, one in enumerate(leaves) if isinstance(one, Tensor) and one.requires_grad
    ]

    def function(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        first, args, kwargs = torch.utils._pytree.tree_unflatten(filled, spec)
        torch.manual_seed(0)
        result = entry(first, *args, **kwargs)
        if sample.output_process_fn_grad is not None:
            result = sample.output_process_fn_grad(result)
        found = torch.utils._pytree.tree_leaves(result)
        return tuple(one for one in found if isinstance(one, Tensor) and one.is_floating_point())

    return function, tuple(leaves[place] for place in places)


def check_schema(entry: Any) -> None:
    """Run each sample under a mode that compares what is written with the schemas."""
    from torch._subclasses.schema_check_mode import SchemaCheckMode

    for sample in samples_of(entry, requires_grad=False):
        with SchemaCheckMode():
            entry(sample.input, *sample.args, **sample.kwargs)


def check_fake(entry: Any) -> None:
    """Run each sample beside fake tensors."""
    from torch._subclasses import CrossRefFakeMode

    for sample in samples_of(entry, requires_grad=False):
        with CrossRefFakeMode():
            entry(sample.input, *sample.args, **sample.kwargs)


class Reached(TorchDispatchMode):
    """Keeps the calls that reach the dispatcher below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def check_opcheck(entry: Any) -> None:
    """Run torch's checks of custom ops on the overloads that the first sample reaches."""
    for sample in samples_of(entry, requires_grad=False)[:1]:
        reached = Reached()
        with reached:
            entry(sample.input, *sample.args, **sample.kwargs)
        for op, args, kwargs in reached.calls:
            if not op._schema.is_mutable:
                checks = ("test_schema", "test_faketensor")
                torch.library.opcheck(op, args, kwargs, test_utils=checks)


def gradgrad(entry: Any) -> None:
    """Check gradients of gradients; ``gradgradcheck`` takes fewer options."""
    if not entry.supports_gradgrad:
        return
    for sample in samples_of(entry, requires_grad=True)[:1]:
        function, inputs = differentiable(entry, sample)
        if inputs:
            torch.autograd.gradgradcheck(
                function, inputs, check_batched_grad=False, nondet_tol=entry.gradcheck_nondet_tol
            )


def forward_ad(entry: Any) -> None:
    """Check derivatives in forward mode."""
    if entry.supports_forward_ad:
        gradients(
            torch.autograd.gradcheck,
            "supports_forward_ad",
            check_forward_ad=True,
            check_backward_ad=False,
            check_undefined_grad=False,
        )(entry)


CHECKS: dict[str, Callable[[Any], None]] = {
    "samples": check_samples,
    "gradcheck": gradients(torch.autograd.gradcheck, "supports_autograd"),
    "gradgradcheck": gradgrad,
    "forward_ad": forward_ad,
    "schema": check_schema,
    "fake": check_fake,
    "opcheck": check_opcheck,
}


def outcome(check: Callable[[Any], None], entry: Any) -> str:
    """Return what a check comes to."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(entry)
    except Exception as error:  # noqa: BLE001 - that is the outcome
        line = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {line[:160]}"
    return "ok"


# -- processes --


def child(side: str, names: Sequence[str], cache_dir: str) -> None:
    """Print an outcome a line, and each check before it begins."""
    known = entries()
    if side == "served":
        aoti_eager.config.mode, aoti_eager.config.gate = "sync", False
        aoti_eager.config.cache_dir = cache_dir
        aoti_eager.enable("all")
    for name in names:
        for check, run in CHECKS.items():
            print(json.dumps({"begins": [name, check]}), flush=True)
            found = outcome(run, known[name])
            print(json.dumps({"done": [name, check, found]}), flush=True)
    if side == "served":
        stats = aoti_eager.stats().values()
        counts = {
            one: sum(getattr(of, one) for of in stats)
            for one in ("hits", "misses", "declines", "compiles", "failures")
        }
        print(json.dumps({"counts": counts}), flush=True)


def run(side: str, names: Sequence[str], cache_dir: Path) -> tuple[dict[str, str], Counter[str]]:
    """Return the outcomes of one side by entry and check, and what was counted."""
    outcomes: dict[str, str] = {}
    counts: Counter[str] = Counter()
    left = list(names)
    while left:
        command = [sys.executable, "-m", __spec__.name, "--side", side, "--names", *left]
        command += ["--cache-dir", str(cache_dir)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        begun: list[str] | None = None
        for document in _documents(process.stdout):
            begun = document.get("begins", begun)
            if "done" in document:
                name, check, found = document["done"]
                outcomes[f"{name} {check}"] = found
                begun = None
            counts.update(document.get("counts", {}))
        status = process.wait()
        if begun is None:
            assert status == 0, f"{side}: exit status {status}"
            return outcomes, counts
        outcomes[f"{begun[0]} {begun[1]}"] = f"died with {status}"
        left = left[left.index(begun[0]) + 1 :]
    return outcomes, counts


def _documents(lines: Iterator[str] | Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("{"):
            yield json.loads(line)


def compare(names: Sequence[str], cache_dir: Path) -> dict[str, Any]:
    """Return both sides' outcomes, what differs, and what was counted."""
    plain, _ = run("plain", names, cache_dir)
    served, counts = run("served", names, cache_dir)
    differing = {
        one: [plain.get(one), served.get(one)]
        for one in sorted(plain.keys() | served.keys())
        if plain.get(one) != served.get(one)
    }
    return {
        "entries": list(names),
        "checks": len(plain),
        "ok": sum(found == "ok" for found in plain.values()),
        "differing": differing,
        "counts": dict(counts),
    }


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--names", nargs="+", help="these entries, by their full names")
    parser.add_argument("--cache-dir", default=None, help="keeps kernels for another run")
    options = parser.parse_args()
    if options.side is not None:
        child(options.side, options.names, options.cache_dir)
        return 0
    names = options.names or chosen(options.entries, options.seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as empty:
        found = compare(names, Path(options.cache_dir or empty))
    for one, (plain, served) in found["differing"].items():
        print(f"{one}\n  plain:  {plain}\n  served: {served}")
    print(f"{len(names)} entries, {found['checks']} checks, {found['ok']} ok without us; ", end="")
    print(f"{len(found['differing'])} differ with all ops enabled")
    print(f"served: {json.dumps(found['counts'])}; {time.monotonic() - start:.0f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    return int(bool(found["differing"]))


if __name__ == "__main__":
    sys.exit(main())
