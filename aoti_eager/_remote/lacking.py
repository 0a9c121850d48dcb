"""What a call leaves for the courier."""

from __future__ import annotations

from collections.abc import Callable

from .._base.data_class import dataclass
from .._keys.kernel_key import KernelKey
from .._store.environment import Environment
from .._store.store import StoredEntry


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a call lacks.

    Attributes:
        keys: The keys under which its kernel may lie, the best first.
        environment: The environment of the call.
        features: The features of this CPU.
        is_dynamic: Whether a dynamic specialisation may serve the call.
        arrived: Called on the courier's thread with what has been put into the cache directory.
    """

    keys: tuple[KernelKey, ...]
    environment: Environment
    features: frozenset[str]
    is_dynamic: bool
    arrived: Callable[[StoredEntry], None]
