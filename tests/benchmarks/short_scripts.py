"""What a script of a few seconds gets, run after run: ``python -m tests.benchmarks.short_scripts``.

A loop over ``layer_norm``, ``silu`` and ``tanh`` on three sizes, 9 keys, that takes 8 s plain. It
is run plain, then again and again with the settings as they ship on a cache that is empty at first,
the next run as soon as the one before has ended. The figures of each run: CPU time of the script's
own process over that of the plain run for the same calls, how many keys were without a decision at
its end, what it has left in the kept queue, the share of hits, and how long its end took.

What is built once a machine is built before (``python -m aoti_eager setup``), unless
``--no-setup``. It does not see what workers take from other processes of the machine.

    python -m tests.benchmarks.short_scripts [--runs N] [--seconds S] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, WIDTH, SECONDS, RUNS = (64, 128, 256), 256, 8.0, 3
OPS = ("aten::native_layer_norm", "aten::silu", "aten::tanh")
KEYS = len(ROWS) * len(OPS)
AT_MOST = 1.1


def one_script(threads: int, turns: int, seconds: float, served: bool) -> dict[str, Any]:
    """Return the figures of one script, in this process.

    Args:
        threads: Of the calls.
        turns: How often the loop is gone through; 0 for as often as ``seconds`` allow.
        seconds: See ``turns``.
        served: Whether the ops are registered.
    """
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(rows, WIDTH, generator=generator) for rows in ROWS]
    start, start_cpu = time.perf_counter(), time.process_time()
    if served:
        import aoti_eager

        aoti_eager.register(OPS)
    done = 0
    while done < turns if turns else time.perf_counter() - start < seconds:
        for x in tensors:
            functional.layer_norm(x, (WIDTH,))
            functional.silu(x)
            torch.tanh(x)
        done += 1
    found: dict[str, Any] = {
        "turns": done,
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - start_cpu,
    }
    if served:
        stats = aoti_eager.stats().values()
        total = sum(stats, aoti_eager.OpStats())
        found |= {
            "unfinished": dict(total.unfinished),
            "hits": total.hits / total.calls,
            "declined": dict(total.declined),
            "compiles": total.compiles,
        }
    return found | {"ended": time.time()}


def in_process(
    cache: Path, *, threads: int, turns: int = 0, seconds: float = SECONDS, served: bool
) -> dict[str, Any]:
    """Return the figures of one script in a process of its own, with how long its end took."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AOTI_EAGER_")}
    environment["AOTI_EAGER_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "tests.benchmarks.short_scripts", "--one"]
    command += ["--threads", str(threads), "--turns", str(turns), "--seconds", str(seconds)]
    command += ["--served"] if served else []
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["end_s"] = time.time() - found.pop("ended")
    return found


def undecided(run: dict[str, Any]) -> int:
    """Return how many keys were without a decision; one to be compared has its kernel."""
    return sum(n for state, n in run["unfinished"].items() if state != "comparing")


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="that the plain script takes"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-setup", action="store_true", help="nothing is built beforehand")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--served", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, default=0, help=argparse.SUPPRESS)
    namespace = parser.parse_args()
    threads = namespace.threads
    if namespace.one:
        found = one_script(threads, namespace.turns, namespace.seconds, namespace.served)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "cache"
        if not namespace.no_setup:
            environment = {**os.environ, "AOTI_EAGER_CACHE_DIR": str(cache)}
            command = [sys.executable, "-m", "aoti_eager", "setup"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        plain = in_process(cache, threads=threads, seconds=namespace.seconds, served=False)
        print(
            f"plain: {plain['turns']} turns, {plain['wall_s']:.1f} s, CPU {plain['cpu_s']:.1f} s, "
            f"end {plain['end_s']:.2f} s\n"
        )
        print(
            f"{'run':<5}{'wall s':>8}{'CPU':>7}{'undecided':>11}{'kept':>6}{'kernels':>9}"
            f"{'hits':>7}{'end s':>7}  states"
        )
        runs = []
        for number in range(1, namespace.runs + 1):
            run = in_process(cache, threads=threads, turns=plain["turns"], served=True)
            kept = cache / "wanted"
            run["cpu"] = run["cpu_s"] / plain["cpu_s"]
            run["kept"] = kept.read_bytes().count(b"\n") - 1 if kept.exists() else 0
            run["kernels"] = len(list(cache.glob("v1/*/*/*/*/*/library.so")))
            runs.append(run)
            states = ", ".join(f"{n} {state}" for state, n in run["unfinished"].items())
            print(
                f"{number:<5}{run['wall_s']:>8.1f}{run['cpu']:>7.2f}{undecided(run):>11}"
                f"{run['kept']:>6}{run['kernels']:>9}{run['hits']:>7.2f}{run['end_s']:>7.2f}  "
                f"{states}",
                flush=True,
            )
    most, left = max(run["cpu"] for run in runs), undecided(runs[-1])
    print(
        f"\nwithout a decision at the end of run {len(runs)}: {left} of {KEYS} keys, at most 0; "
        f"CPU over plain: {most:.2f}, at most {AT_MOST:g}"
    )
    if namespace.json:
        namespace.json.write_text(json.dumps({"plain": plain, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
