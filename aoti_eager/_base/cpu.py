"""This machine's CPU features, and the instruction set that code is compiled for."""

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
        march: The value of the compiler's ``-march``: a level, or ``native``.
        vector_bits: Width of the vector code in bits: 512 or 256 for Inductor's vectors; 128 where
            the C++ compiler vectorises scalar code (Inductor has no vectors that narrow on x86-64);
            0 where the worker finds the width out.
        requires: CPU features, as Linux spells them, without which the code must not be loaded.
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
    """Return the x86-64 level that ``target``'s code belongs to; ``None`` for other machines.

    Code for this very CPU (``native``) is vectorised like code of the CPU's highest level.
    """
    for name, level in _X86_LEVELS.items():
        if target.name == level.name or target.vector_bits == level.vector_bits:
            return name
    return None


# The levels that ``auto`` chooses from. A CPU without AVX2 is rare and gets code for itself alone.
_AUTO = ("x86-64-v4", "x86-64-v3")


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the features of this machine's CPU, as the operating system names them.

    On systems other than Linux, the only known feature is ATen's capability (``DEFAULT``,
    ``AVX2``, ...).
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
        setting: ``auto``, ``native`` or the name of a level. On x86-64, ``auto`` is the best level
            of the psABI that the CPU has: an entry then requires a short list of features, which
            other machines are likely to have. On other machines, ``auto`` is this very CPU with
            all of its features. ``native`` is this very CPU.

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
        # Set here, so that the worker probes nothing: ATen's vectors need a little less than the
        # levels do.
        widest = (name for name in _AUTO if _X86_LEVELS[name].requires <= features)
        bits = next((_X86_LEVELS[name].vector_bits for name in widest), 128)
    return Target(f"cpu-{json_digest(sorted(features))[:12]}", "native", bits, features)
