"""The environment: everything besides the call that affects the generated code.

Computing the environment neither imports Inductor nor starts a process. The environment has nothing
that belongs to one process: no path, no pid, no id. So two processes that are set up alike have
equal environments.
"""

from __future__ import annotations

import os
import platform
import sys

import torch

from .._base.data_class import dataclass
from .._base.digest import Component, json_digest
from .._base.torch_compat.settings import inductor_settings

# Increase when the meaning of a compile request or of an entry's machine code changes.
CODE_VERSION = 9

# Inductor's variables that affect where or how fast it works, and never the code that it emits.
_NOT_SHAPING = frozenset(
    {
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCHINDUCTOR_COMPILE_THREADS",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES",
        "TORCHINDUCTOR_FX_GRAPH_CACHE",
        "TORCHINDUCTOR_AUTOGRAD_CACHE",
        "TORCHINDUCTOR_WORKER_START",
        "TORCHINDUCTOR_WORKER_LOGPATH",
    }
)


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything besides the call that affects the generated code, by name."""

    components: tuple[tuple[str, Component], ...]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return json_digest([list(pair) for pair in self.components])

    def differing(self, other: Environment) -> dict[str, tuple[Component, Component]]:
        """Return the components in which ``self`` and ``other`` differ, each with both values."""
        mine, theirs = dict(self.components), dict(other.components)
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        }


def current_environment() -> Environment:
    """Return the environment of this process at this moment."""
    variables = {
        name: os.environ.get(name, "")
        for name in os.environ
        if name.startswith(("TORCHINDUCTOR_", "AOT_INDUCTOR_")) and name not in _NOT_SHAPING
    }
    components: dict[str, Component] = {
        "format": 1,
        "code": CODE_VERSION,
        "torch": str(torch.__version__),
        "torch_git": torch.version.git_version,
        "system": f"{platform.machine()}-{sys.platform}",
        "variables": variables,
        # By repr, because settings may hold functions. A repr with an address in it never matches
        # again, which costs a compile and nothing else.
        "inductor": {name: repr(value) for name, value in inductor_settings().items()},
    }
    return Environment(tuple(sorted(components.items())))
