"""Dynamic kernels under valgrind: ``python -m tests.memcheck_dynamic`` (it must be installed).

Compiles dynamic kernels of seven ops in one process, for a target that valgrind can run; another
one under valgrind is served by them at the edges of vectors and tiles, in buffers that end with
their data. Exits with status 1 if memory was read or written to that is nobody's, by anything but
the dynamic linker (glibc reads words of strings there).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import aoti_eager

aten = torch.ops.aten
OPS = [f"aten::{name}" for name in ("silu", "add.Tensor", "sum.dim_IntList", "_softmax")]
OPS += [f"aten::{name}" for name in ("native_layer_norm", "cat", "mul_.Tensor")]
SIZES = [(1, 1), (2, 3), (3, 15), (5, 16), (7, 17), (31, 33), (16, 64), (63, 65)]


def calls(rows: int, columns: int) -> None:
    """Call each op once, or in several layouts."""
    x, y, row = torch.randn(rows, columns), torch.randn(rows, columns), torch.randn(columns)
    for one in (x, x.t(), torch.randn(rows, columns + 3)[:, :columns]):
        aten.silu(one)
    for other in (y, row):
        aten.add.Tensor(x, other)
    aten.sum.dim_IntList(x, [1])
    aten._softmax(x, 1, False)
    aten.native_layer_norm(x, [columns], row, row, 1e-5)
    aten.cat([x, y], 0)
    x.mul_(y)


def serve(mode: str) -> None:
    """Call all ops at all sizes; print how many calls dynamic kernels served."""
    torch.set_num_threads(1)
    with (
        aoti_eager.config.scope(
            mode=mode, gate=False, dynamic=True, native="0", cpu_target="x86-64-v3"
        ),
        aoti_eager.register(OPS),
    ):
        for _ in range(3 if mode == "sync" else 1):  # Compiled, compared, served.
            for sizes in SIZES:
                calls(*sizes)
        print(sum(one.hits for one in aoti_eager.stats().values()))


def main() -> None:
    """Compile, run under valgrind, and report."""
    if sys.argv[1:]:
        serve(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        environment = {**os.environ, "AOTI_EAGER_CACHE_DIR": str(Path(name) / "cache")}
        command = [sys.executable, "-m", "tests.memcheck_dynamic"]
        subprocess.run([*command, "sync"], env=environment, check=True)
        valgrind = ["valgrind", "--leak-check=no", "--error-limit=no", f"--log-file={log}"]
        environment["PYTHONMALLOC"] = "malloc"
        subprocess.run([*valgrind, *command, "cache_only"], env=environment, check=True)
        text = log.read_text(errors="replace")
    reports = re.split(r"==\d+== \n", text)
    wrong = [one for one in reports if re.search(r"Invalid (read|write)", one)]
    others = [one for one in wrong if not re.search(r"\(dl-\w+\.c:", one)]
    print(f"invalid reads and writes: {len(others)}; in the dynamic linker: {len(wrong)}")
    if others:
        sys.exit("\n".join(others))


if __name__ == "__main__":
    main()
