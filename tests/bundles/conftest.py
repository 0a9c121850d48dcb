"""A store with three entries, and a bundle of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aoti_eager import cache
from aoti_eager._store.environment import current_environment
from aoti_eager._store.store import Store, StoredEntry

from ..support.entries import make_entry, make_key, publish

OPS = ("aten::silu", "aten::add.Tensor", "aten::add.Scalar")


def open_store(root: Path) -> Store:
    return Store(root, lock_timeout_s=1.0)


def put(store: Store, op: str = "aten::silu", **fields: Any) -> StoredEntry:
    fields = {"environment": current_environment(), "requires": frozenset(), **fields}
    content = fields.pop("content", op.encode() * 100)
    return publish(
        store, make_entry(key=make_key(op, rows=fields.pop("rows", 8)), **fields), content=content
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store with three entries."""
    root = tmp_path / "made"
    for op in OPS:
        put(open_store(root), op)
    return root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    path = tmp_path / "three.bundle"
    cache.export(path, cache_dir=made, sign=False)
    return path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"
