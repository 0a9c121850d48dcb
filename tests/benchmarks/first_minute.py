"""What a new user's first minutes are like: ``python -m tests.benchmarks.first_minute``.

A loop over ``mul``, ``layer_norm``, ``silu`` and ``tanh`` with the settings as they ship, from the
first call of an empty cache. Plain and served loops run in processes of their own, one after the
other. The figures are calls a second in each window of 3 s over the plain loop's median window, the
longest call beyond the plain loop's longest, and when the keys were decided on.

- ``busy``: calls on (4..64, 256) and one on (512, 512), with two threads on both cores.
- ``idle``: calls on (4..64, 256), with one thread: a core is free.
- ``long``: calls of a millisecond and more, with two threads.

What is built once a machine is built before (``python -m aoti_eager setup``), unless
``--no-setup``.

    python -m tests.benchmarks.first_minute [--form FORM ...] [--seconds S] [--tries N]
        [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPS = ("aten::mul.Tensor", "aten::native_layer_norm", "aten::silu", "aten::tanh")
ROWS = {"busy": (4, 16, 64), "idle": (4, 16, 64), "long": (1000, 2000)}
WIDTH = {"busy": 256, "idle": 256, "long": 1024}
THREADS = {"busy": 2, "idle": 1, "long": 2}
WINDOW_S, SECONDS = 3.0, 120.0
AT_LEAST = 0.9

Call = Callable[[], Any]


def calls(form: str) -> list[Call]:
    """Return the calls of one turn of the loop."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(THREADS[form])
    generator = torch.Generator().manual_seed(0)
    made: list[Call] = []
    for rows in ROWS[form]:
        x = torch.randn(rows, WIDTH[form], generator=generator)
        weight = torch.randn(WIDTH[form], generator=generator)
        made += [
            lambda x=x: torch.mul(x, x),
            lambda x=x, w=weight: functional.layer_norm(x, x.shape[1:], w, w),
            lambda x=x: functional.silu(x),
            lambda x=x: torch.tanh(x),
        ]
    if form == "busy":
        # Its threads wait for each other, as those of any script with larger tensors.
        large = torch.randn(512, 512, generator=generator)
        made.append(lambda: torch.exp(large))
    return made


def one_loop(form: str, seconds: float, served: bool) -> dict[str, Any]:
    """Return the windows of one loop, in this process."""
    loop = calls(form)
    undecided: Callable[[], int] = lambda: 0  # noqa: E731
    begin = time.perf_counter()
    if served:
        import aoti_eager
        from aoti_eager._dispatch.key_state import COMPILING, RARE
        from aoti_eager._registration import registry

        aoti_eager.register(OPS)

        def undecided() -> int:
            declines = [d for c in registry.caches() for d in list(c.table.declines.values())]
            return sum(one.reason in (COMPILING, RARE) for one in declines)

    registered = time.perf_counter() - begin
    clock = time.perf_counter
    windows: list[float] = []
    decided, longest, is_first = None, 0.0, True
    start = clock()
    while (now := clock()) - start < seconds:
        made, opened = 0, now
        while now - opened < WINDOW_S:
            for call in loop:
                call()
                after = clock()
                if after - now > longest and not is_first:
                    longest = after - now
                now = after
            is_first = False  # What torch does once is done by both.
            made += len(loop)
        windows.append(made / (now - opened))
        if decided is None and not undecided():
            decided = now - start
    found = {"windows": windows, "longest_ms": longest * 1e3, "register_s": registered}
    if served:
        stats = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
        found |= {
            "decided_s": decided,
            "kernels": sum(len(cache.table.kernels) for cache in registry.caches()),
            "compiles": stats.compiles,
            "hits": stats.hits,
            "declined": dict(stats.declined),
        }
    return found


def in_process(form: str, seconds: float, served: bool, cache: Path) -> dict[str, Any]:
    """Return the windows of one loop in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AOTI_EAGER_")}
    environment["AOTI_EAGER_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "tests.benchmarks.first_minute", "--one", form]
    command += ["--seconds", str(seconds), *(["--served"] if served else [])]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_try(form: str, seconds: float, setup: bool) -> dict[str, Any]:
    """Return a plain loop's figures, a served one's with an empty cache, and how they compare."""
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "cache"
        plain = in_process(form, min(seconds, 12.0), False, cache)
        if setup:
            environment = {**os.environ, "AOTI_EAGER_CACHE_DIR": str(cache)}
            command = [sys.executable, "-m", "aoti_eager", "setup"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        served = in_process(form, seconds, True, cache)
    usual = statistics.median(plain["windows"])
    shares = [window / usual for window in served["windows"]]
    return {
        "form": form,
        "plain": plain,
        "served": served,
        "shares": shares,
        "lowest": min(shares),
        "beyond_ms": served["longest_ms"] - plain["longest_ms"],
    }


def row(one: dict[str, Any]) -> str:
    """Return a try in one line."""
    served, decided = one["served"], one["served"]["decided_s"]
    usual = statistics.median(one["plain"]["windows"])
    return (
        f"{one['form']:<6}{usual:>10.0f}{one['lowest']:>8.2f}"
        f"{statistics.median(one['shares']):>8.2f}{one['shares'][-1]:>8.2f}"
        f"{one['plain']['longest_ms']:>10.1f}{served['longest_ms']:>10.1f}"
        f"{'never' if decided is None else round(decided)!s:>10}"
        f"{served['kernels']:>8}{served['compiles']:>9}"
    )


def plot(done: list[dict[str, Any]], path: Path) -> None:
    """Draw each try's windows, as an SVG of lines from 0 to 1.5 of plain."""
    colours = {"busy": "crimson", "idle": "seagreen", "long": "royalblue"}
    lines = []
    for one in done:
        shares = one["shares"]
        points = " ".join(
            f"{40 + 700 * i / max(1, len(shares) - 1):.1f},{320 - 200 * min(share, 1.5):.1f}"
            for i, share in enumerate(shares)
        )
        colour = colours[one["form"]]
        lines.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>')
    for i, (form, colour) in enumerate(colours.items()):
        lines.append(f'<text x="{60 + 90 * i}" y="345" fill="{colour}">{form}</text>')
    for share in (0.0, 0.5, 0.9, 1.0, 1.5):
        y = 320 - 200 * share
        lines.append(f'<line x1="40" x2="740" y1="{y}" y2="{y}" stroke="#ccc"/>')
        lines.append(f'<text x="5" y="{y + 4}">{share:g}</text>')
    body = "\n".join(lines)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 360">\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    """Print the table, and write it as JSON and as a plot where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--form", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a served loop runs")
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--no-setup", action="store_true", help="nothing is built beforehand")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the windows into this file (SVG)")
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--served", action="store_true", help=argparse.SUPPRESS)
    namespace = parser.parse_args()
    if namespace.one:
        print(json.dumps(one_loop(namespace.one, namespace.seconds, namespace.served)))
        return
    print(
        f"{'form':<6}{'plain/s':>10}{'lowest':>8}{'median':>8}{'last':>8}{'plain ms':>10}"
        f"{'served ms':>10}{'decided s':>10}{'in use':>8}{'compiles':>9}"
    )
    done = []
    for form in namespace.form:
        for _ in range(namespace.tries):
            done.append(one_try(form, namespace.seconds, not namespace.no_setup))
            print(row(done[-1]), flush=True)
    lowest = min(one["lowest"] for one in done)
    print(f"\nlowest window of {WINDOW_S:g} s over plain: {lowest:.2f}, at least {AT_LEAST:g}")
    if namespace.json:
        namespace.json.write_text(json.dumps(done, indent=1))
    if namespace.plot:
        plot(done, namespace.plot)


if __name__ == "__main__":
    main()
