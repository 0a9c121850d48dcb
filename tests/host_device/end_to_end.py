"""An op on a device that PyTorch does not know: miss, compile, store, hit. Prints a JSON line.

The device's compiler is AOTInductor for CPU, which is what a device whose memory is host memory
can run; to aoti_eager it is somebody's compiler for somebody's device.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import aoti_eager

from . import load

compiled: list[str] = []
loaded: list[str] = []


def compile_for_host_memory(request: aoti_eager.CompileRequest) -> str:
    """Compile a call for the CPU: the same graph on CPU tensors of the same metadata."""
    compiled.append(request.op)
    with request.fake_mode:
        inputs = tuple(
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in request.inputs
        )
        program = torch.export.export(request.module, inputs, strict=False)
    library = torch._inductor.aot_compile(
        program.module(),
        inputs,
        options={"aot_inductor.output_path": str(request.directory / "kernel.so")},
    )
    return str(library)


def main() -> None:
    """Run the script in the mode of the first argument: ``both``, or ``runner`` (no load_fn)."""
    device_module = load()

    class HostRunner:
        """Runs a CPU library on the memory of device tensors."""

        def __init__(
            self, library: Path, num_models: int, device: torch.device, cubin_dir: Path | None
        ) -> None:
            loaded.append(str(device))
            self._device = device
            self._runner = aoti_eager.ModelContainerRunner(library, num_models)

        def run(self, inputs: list[Tensor], stream: Any = None) -> list[Tensor]:
            """Return the outputs of a run, on the device of the inputs."""
            on_cpu = [t if t.device.type == "cpu" else device_module.as_cpu(t) for t in inputs]
            outputs = self._runner.run(on_cpu)
            return [device_module.from_cpu(t, self._device.index) for t in outputs]

    def load_kernel(library: Path, device: torch.device) -> Any:
        return HostRunner(library, 1, device, None).run

    by_factory = sys.argv[1] == "runner"
    if by_factory:
        aoti_eager.register_runner("hostaccel", HostRunner)
    backend = aoti_eager.register_compile_backend(
        "hostaccel", compile_for_host_memory, None if by_factory else load_kernel, version="1"
    )
    problems: list[str] = []

    def expect(what: str, got: Any, want: Any) -> None:
        if not (torch.equal(got, want) if isinstance(want, Tensor) else got == want):
            problems.append(f"{what}: {got!r} instead of {want!r}")

    x = torch.arange(24.0).reshape(4, 6) - 7
    before = Counter(device_module.kernel_calls())
    ops = ["aten::mul.Tensor", "aten::silu", "aten::mul_.Tensor"]
    registration = aoti_eager.register(ops, dispatch_key="PrivateUse1")
    a, b = x.to("hostaccel:0"), (x + 1).to("hostaccel:0")
    c, d = x.to("hostaccel:1"), (x + 1).to("hostaccel:1")
    silu = torch.nn.functional.silu(x)
    for _ in range(3):
        expect("mul on device 0", torch.mul(a, b).cpu(), x * (x + 1))
        got = torch.mul(c, d)
        expect("mul on device 1", got.cpu(), x * (x + 1))
        expect("device of mul", str(got.device), "hostaccel:1")
        mutated = a.clone()
        expect("mul_ returns its own", mutated.mul_(b) is mutated, True)
        expect("mul_", mutated.cpu(), x * (x + 1))
        expect("silu", torch.allclose(torch.ops.aten.silu(c).cpu(), silu, atol=1e-6), True)
    stats = aoti_eager.stats()
    originals = Counter(device_module.kernel_calls()) - before
    try:
        torch.mul(x.to("hostaccel:0"), x.to("hostaccel:1"))
        problems.append("two devices were multiplied")
    except RuntimeError:
        pass
    backend.unregister()
    expect("after the backend is gone", torch.mul(a, b).cpu(), x * (x + 1))
    registration.unregister()
    print(
        json.dumps(
            {
                "problems": problems,
                "compiled": len(compiled),
                "loaded": sorted(set(loaded)),
                "hits": {op: s.hits for op, s in stats.items()},
                "misses": {op: s.misses for op, s in stats.items()},
                "declined": {op: s.declined for op, s in stats.items() if s.declined},
                "originals": dict(originals),
                "inductor": "torch._inductor" in sys.modules,
            }
        )
    )


if __name__ == "__main__":
    main()
