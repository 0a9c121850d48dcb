"""The copies of modules that ``torch.nn.DataParallel`` makes, one for each device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_looks: list[Callable[[torch.nn.Module], None]] = []


# A replica has the attributes of its module, and no public way to have one left out.
def on_replica(look: Callable[[torch.nn.Module], None]) -> None:
    """Have ``look`` called with each replica before the replica is used."""
    if not _looks:
        replicate = torch.nn.Module._replicate_for_data_parallel

        @functools.wraps(replicate)
        def replicate_and_look(self: torch.nn.Module) -> Any:
            replica = replicate(self)  # type: ignore[no-untyped-call]
            for one in _looks:
                one(replica)
            return replica

        torch.nn.Module._replicate_for_data_parallel = replicate_and_look  # type: ignore[method-assign]
    if look not in _looks:
        _looks.append(look)
