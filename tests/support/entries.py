"""Entries and keys for the tests of the store and its format: made by hand, no op is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._store.entry import Entry, Status
from aoti_eager._store.environment import Environment
from aoti_eager._store.store import Store, StoredEntry

ENVIRONMENT = Environment((("code", 1), ("torch", "2.13.0"), ("variables", {"A": "1"})))
OTHER_ENVIRONMENT = Environment((("code", 1), ("torch", "2.12.0"), ("variables", {"A": "1"})))
FEATURES = frozenset({"avx2", "avx512f", "fma"})


def make_key(op: str = "aten::silu", *, rows: int = 8, threads: int | str = 2) -> KernelKey:
    """Return the key of a call of ``op`` on one float32 tensor of ``rows`` rows."""
    tensor = {
        "dtype": "float32",
        "device": "cpu",
        "layout": "strided",
        "sizes": [rows, 8],
        "strides": [8, 1],
        "conj": False,
        "neg": False,
    }
    context = (("default_dtype", "float32"), ("threads", threads))
    return KernelKey(op, "CPU", (("self", tensor), ("scale", {"float": "0x1.0p+1"})), context)


def make_entry(**fields: Any) -> Entry:
    """Return a good entry, with ``fields`` changed."""
    entry = Entry(
        status=Status.READY,
        key=make_key(),
        environment=ENVIRONMENT,
        target="cpu-x86-64-v3",
        requires=frozenset({"avx2", "fma"}),
        outputs=({"output": 0}, {"argument": "self"}, {"outputs": [1, 2]}, {"none": True}),
        calls_aten=True,
        checked=True,
        provenance=(("compiler", "g++ 12.2.0"), ("made", "für Tests")),
    )
    return replace(entry, **fields)


def publish(
    store: Store, entry: Entry | None = None, *, content: bytes | None = b"\x7fELF", log: str = ""
) -> StoredEntry:
    """Publish ``entry`` with a library of any bytes, or with none."""
    with store.workspace() as work:
        library = None
        if content is not None:
            library = work / "built.so"
            library.write_bytes(content)
        return store.publish(entry or make_entry(), work, library, log)


def files_below(root: Path) -> list[str]:
    """Return the relative paths of all files below ``root``, sorted."""
    found = (path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
    return sorted(map(str, found))
