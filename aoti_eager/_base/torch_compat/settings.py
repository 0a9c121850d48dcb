"""Settings of torch and of Inductor that affect the generated code."""

from __future__ import annotations

import sys
from typing import Any

import torch


def set_deterministic_algorithms(wanted: bool) -> None:
    """Switch deterministic algorithms on or off, with warnings only.

    The public twin imports Inductor, which takes longer than compiling a kernel.
    """
    torch._C._set_deterministic_algorithms(wanted, warn_only=True)


# Whether a profiler records this thread; torch.profiler has no such function.
is_profiling = torch._C._autograd._profiler_enabled


# The public twins are Python functions around these. The hit path calls each, so the detour counts.
deterministic_algorithms = torch._C._get_deterministic_algorithms
float32_matmul_precision = torch._C._get_float32_matmul_precision


# The module in which a script sets Inductor's settings, and by which messages name them.
INDUCTOR_CONFIG = "torch._inductor.config"


# Settings that torch writes itself and that do not affect a kernel's code: what AOTInductor puts
# into a package and needs while it compiles one; how many processes compile; how
# DistributedDataParallel joins its messages; where a compiler for other devices was found.
_WRITTEN_BY_TORCH = frozenset(
    {
        "aot_inductor.metadata",
        "aot_inductor.output_path",
        "aot_inductor.package",
        "aot_inductor.serialized_in_spec",
        "aot_inductor.serialized_out_spec",
        "_fuse_ddp_bucket_size",
        "_fuse_ddp_communication",
        "compile_threads",
        "rocm.ck_dir",
    }
)


def inductor_settings() -> dict[str, Any]:
    """Return Inductor's settings that differ from their defaults, by dotted name.

    Settings that torch writes itself are left out, because they are not the user's.

    The result is empty while ``torch._inductor.config`` is not imported: every setting then has the
    default that the environment variables give it. Importing the module would cost two seconds.
    """
    config = sys.modules.get(INDUCTOR_CONFIG)
    if config is None:
        return {}
    entries: Any = config._config
    own = set(_WRITTEN_BY_TORCH)
    if config.deterministic == deterministic_algorithms():
        # use_deterministic_algorithms sets both, and a key contains the mode.
        own.add("deterministic")
    changed = [name for name in entries if name not in own and not config._is_default(name)]
    values = {name: _dotted(config, name) for name in sorted(changed)}
    # _is_default is False for a setting that was patched and restored, and for a setting from an
    # environment variable. Both are left out here: the variables are a part of the environment (of
    # the key) by themselves.
    return {name: value for name, value in values.items() if value != _initial(entries[name])}


def _initial(entry: Any) -> Any:
    """Return the value that a setting has in a new process with these variables."""
    unset = object()
    for field in ("env_value_force", "env_value_default", "default"):
        value = getattr(entry, field, unset)
        if value is not unset and type(value) is not object:
            return value
    return unset


def _dotted(config: Any, name: str) -> Any:
    value = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
