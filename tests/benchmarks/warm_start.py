"""A training step in a new process with a warm cache: ``python -m tests.benchmarks.warm_start``.

From ``import aoti_eager`` (torch is imported already) to the gradients of the first step of an RMS
norm that a kernel serves, and the same with ``torch.compile``, whose caches on disk are warm, too.
Processes alternate. Prints medians in milliseconds and JSON.

Before that, what a script of three ops waits for, over ``import torch``: the import alone, and
import, ``register`` and the first result of each from a warm cache, by the clock and in CPU time of
the thread. Modules are compiled to bytecode, as an installer leaves them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FUNCTION = """
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
"""
STEP = """
x, weight = torch.randn(64, 256, requires_grad=True), torch.randn(256, requires_grad=True)
def step():
    torch.autograd.grad(op(x, weight).sum(), (x, weight))
"""
OURS = f"""
import json, sys, time
import torch
from torch import Tensor
{FUNCTION}
start = time.perf_counter()
import aoti_eager
imported = time.perf_counter() - start
op = aoti_eager.custom_op("bench::rms_norm", rms_norm)
{STEP}
step()
first = time.perf_counter() - start
while not any(one in op(x, weight).grad_fn.name() for one in ("rms_norm", "GradientNode")):
    if time.perf_counter() - start > 60:
        sys.exit("no kernel serves")
    step()
    if not sys.argv[1:]:
        aoti_eager.wait()
step()
served = time.perf_counter() - start
found = {{"imported_ms": imported, "first_ms": first, "served_ms": served}}
print(json.dumps({{name: 1e3 * seconds for name, seconds in found.items()}}))
"""
OPS = """
import json, os, sys, time
import torch
os.environ["AOTI_EAGER_GATE"] = "0"  # A kernel that does not pay would be no hit.
x = torch.ones(16, 256)
def now():
    return time.perf_counter(), time.thread_time()
start = now()
import aoti_eager
imported = now()
for name in ("aten::mul.Tensor", "aten::silu", "aten::tanh"):
    aoti_eager.register(name)
x * x, torch.nn.functional.silu(x), torch.tanh(x)
done = now()
if not sys.argv[1:]:
    aoti_eager.wait()
hits = sum(counts.hits for counts in aoti_eager.stats().values())
if sys.argv[1:] and hits < 3:
    sys.exit("a kernel was not found")
names = ("wall", "cpu")
found = {f"three ops, import alone, {n}": imported[i] - start[i] for i, n in enumerate(names)}
found |= {f"three ops, first results, {n}": done[i] - start[i] for i, n in enumerate(names)}
print(json.dumps({name: 1e3 * seconds for name, seconds in found.items()}))
"""
COMPILE = f"""
import json, time
import torch
from torch import Tensor
{FUNCTION}
start = time.perf_counter()
op = torch.compile(rms_norm, dynamic=False)
{STEP}
step()
print(json.dumps({{"served_ms": (time.perf_counter() - start) * 1e3}}))
"""


def run(script: Path, directory: Path, *arguments: str) -> dict[str, float]:
    """Return what a new process prints, the last line as JSON."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment = {
        **inherited,
        "AOTI_EAGER_CACHE_DIR": str(directory / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "AOTI_EAGER_MODE": "sync",
    }
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        scripts = {"ours": OURS, "torch.compile": COMPILE}
        for way, text in scripts.items():
            script = directory / f"{way.replace('.', '_')}_step.py"
            script.write_text(text)
            run(script, directory)  # Fills the cache, and builds the C++ hit path.
            run(script, directory)
        ops = directory / "three_ops.py"
        ops.write_text(OPS)
        run(ops, directory)
        run(ops, directory)
        ways = ("ours", "ours, first result", "ours, import alone", "torch.compile")
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.processes):
            one = run(directory / "ours_step.py", directory, "warm")
            found["ours"].append(one["served_ms"])
            found["ours, first result"].append(one["first_ms"])
            found["ours, import alone"].append(one["imported_ms"])
            for way, milliseconds in run(ops, directory, "warm").items():
                found.setdefault(way, []).append(milliseconds)
            other = run(directory / "torch_compile_step.py", directory)
            found["torch.compile"].append(other["served_ms"])
    medians = {way: round(statistics.median(times), 1) for way, times in found.items()}
    for way, median in medians.items():
        print(f"{way:36}{median:10.1f} ms")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
