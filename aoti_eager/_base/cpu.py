"""What this machine's CPU has, and the instruction set that code is compiled for."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from .data_class import dataclass
from .digest import json_digest


@dataclass(frozen=True, slots=True)
class Target:
    """The instruction set that machine code is compiled for.

    Attributes:
        name: Part of an entry's path, ``cpu-x86-64-v4``.
        march: What the compiler is told, or ``native``.
        vector_bits: Width of the vector code: 512, 256, 128 for what the C++ compiler makes of
            scalar code (Inductor has no narrower vectors on x86-64), 0 for what the worker finds.
        requires: CPU features, in the kernel's spelling, without which the code must not be loaded.
    """

    name: str
    march: str
    vector_bits: int
    requires: frozenset[str]


# The x86-64 psABI's levels, by the names that /proc/cpuinfo uses (lzcnt is abm, sse3 is pni).
_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})


_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}


_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


_X86_LEVELS = {
    "x86-64-v4": Target("cpu-x86-64-v4", "x86-64-v4", 512, _V4),
    "x86-64-v3": Target("cpu-x86-64-v3", "x86-64-v3", 256, _V3),
    "x86-64-v2": Target("cpu-x86-64-v2", "x86-64-v2", 128, _V2),
}


def level_of(target: Target) -> str | None:
    """Return the level of x86-64 whose code ``target`` is made of, ``None`` for other machines.

    Code for this very CPU (``native``) is vectorised like that of the highest level that it has.
    """
    for name, level in _X86_LEVELS.items():
        if target.name == level.name or target.vector_bits == level.vector_bits:
            return name
    return None


# What ``auto`` chooses from. A CPU without AVX2 is rare: its code is made for itself.
_AUTO = ("x86-64-v4", "x86-64-v3")


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the features of this machine's CPU, as the operating system names them.

    Elsewhere than on Linux the only one known is ATen's capability (``DEFAULT``, ``AVX2``, ...).
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset({f"aten:{torch.backends.cpu.get_cpu_capability()}"})
    for line in text.splitlines():
        label, _, value = line.partition(":")
        if label.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset({f"aten:{torch.backends.cpu.get_cpu_capability()}"})


def cpu_target(features: frozenset[str], setting: str = "auto") -> Target:
    """Return the target for a CPU with ``features`` under the setting ``cpu_target``.

    Args:
        features: What the CPU has.
        setting: ``auto`` is the best level of the x86-64 psABI, so that what an entry needs is a
            short list that other machines are likely to have, and elsewhere this very CPU with
            all of its features; ``native`` is this very CPU; or a level by its name.

    Raises:
        ValueError: The CPU cannot run the level.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if setting in _X86_LEVELS:
        target = _X86_LEVELS[setting]
        if not is_x86:
            raise ValueError(f"this CPU is {platform.machine()}; set auto or native")
        lacking = sorted(target.requires - features)
        if lacking:
            raise ValueError(
                f"this CPU lacks {', '.join(lacking)}; set auto, native or a lower level"
            )
        return target
    if is_x86 and setting == "auto":
        for name in _AUTO:
            if _X86_LEVELS[name].requires <= features:
                return _X86_LEVELS[name]
    bits = 0
    if is_x86:
        # Known, so that nothing is probed: ATen's vectors need a little less than the levels do.
        widest = (name for name in _AUTO if _X86_LEVELS[name].requires <= features)
        bits = next((_X86_LEVELS[name].vector_bits for name in widest), 128)
    return Target(f"cpu-{json_digest(sorted(features))[:12]}", "native", bits, features)
