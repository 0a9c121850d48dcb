"""Containers of tensors: lists, dicts and classes that libraries have registered with pytree.

``torch.utils._pytree`` has no public name for these functions: ``torch.utils.pytree`` of newer
versions imports other modules first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def flatten(value: Any) -> tuple[list[Any], Any]:
    """Return the leaves of a value within containers, and how the containers are put together."""
    return torch.utils._pytree.tree_flatten(value)


def unflatten(leaves: Sequence[Any], spec: Any) -> Any:
    """Return the value that ``flatten`` has taken apart, with other leaves."""
    return torch.utils._pytree.tree_unflatten(leaves, spec)
