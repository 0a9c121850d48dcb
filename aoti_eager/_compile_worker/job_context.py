"""What surrounds a job: the entry that may be there already, the settings, the directories."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._base.cpu import cpu_features
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._store.environment import Environment
from .._store.store import Store, StoredEntry
from .._store.stored_failures import standing
from ..errors import (
    EntryDamagedError,
)


def stored_entry(store: Store, key: KernelKey, environment: Environment) -> StoredEntry | None:
    """Return the entry that another process has published meanwhile, if there is one.

    A damaged entry or a failure that has lapsed counts as absent: it is made anew.
    """
    for candidate in (key.with_threads(ANY_THREADS), key):
        try:
            found = standing(store, store.find(candidate, environment, cpu_features()))
        except EntryDamagedError as error:
            path = getattr(error, "path", None)
            if path is not None:
                store.discard(path)
            continue
        if found is not None:
            return found
    return None


def use_context(context: Mapping[str, Any]) -> None:
    import torch

    torch.set_default_dtype(getattr(torch, context["default_dtype"]))
    torch.use_deterministic_algorithms(context["deterministic"], warn_only=True)
    torch.set_float32_matmul_precision(context["float32_matmul_precision"])


def use_directories(work: Path, headers: Path) -> None:
    """Keep everything that Inductor and the C++ compiler write inside the store."""
    from . import inductor_compat

    tempfile.tempdir = str(work)
    os.environ["TMPDIR"] = str(work)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
    inductor_compat.use_headers(headers)
    inductor_compat.remember_probes(headers.with_name("probes"))


@contextlib.contextmanager
def standard_error_in(log: Path) -> Iterator[None]:
    saved = os.dup(2)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
