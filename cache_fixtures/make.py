"""Make the small stores that tests read: ``python cache_fixtures/make.py [DIRECTORY]``.

The bytes depend on nothing but this file and the format: no op is called, no machine asked. When
the format is raised, the stores of format 1 stay as they are (users have such entries), and those
of the new format get directories of their own.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from aoti_eager._base.store_format import MARKER_FILE, USAGE_FILE
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._store.entry import FORMAT_VERSION, Entry, Status
from aoti_eager._store.environment import Environment
from aoti_eager._store.store import ENTRY_FILE, Store, StoredEntry

ENVIRONMENT = Environment(
    (
        ("code", 1),
        ("format", 1),
        ("inductor", {}),
        ("system", "x86_64-linux"),
        ("torch", "2.13.0"),
        ("torch_git", "0" * 40),
        ("variables", {}),
    )
)
FOREIGN_ENVIRONMENT = Environment(
    tuple((name, "2.12.0" if name == "torch" else part) for name, part in ENVIRONMENT.components)
)
FEATURES = frozenset({"avx2", "fma"})

# A fake, and binary for git: the zero byte keeps every tool from changing its line ends.
LIBRARY = b"\x7fELF: no machine code, a stand-in for a kernel library\0"


def key_of(op: str) -> KernelKey:
    """Return the key of a call of the unary ``op`` on a float32 tensor (8, 8), contiguous."""
    tensor = {
        "dtype": "float32",
        "device": "cpu",
        "layout": "strided",
        "sizes": [8, 8],
        "strides": [8, 1],
        "conj": False,
        "neg": False,
    }
    context = (
        ("default_dtype", "float32"),
        ("deterministic", False),
        ("float32_matmul_precision", "highest"),
        ("threads", "any"),
    )
    return KernelKey(op, "CPU", (("self", tensor),), context)


def entry_of(op: str) -> Entry:
    """Return a good entry of ``op``."""
    return Entry(
        status=Status.READY,
        key=key_of(op),
        environment=ENVIRONMENT,
        target="cpu-x86-64-v3",
        requires=FEATURES,
        outputs=({"output": 0},),
        checked=True,
        provenance=(("compiler", "g++ 12.2.0"),),
    )


def publish(store: Store, entry: Entry, library: bytes | None = LIBRARY, log: str = "") -> Path:
    """Publish ``entry`` in ``store`` and return its directory."""
    with store.workspace() as work:
        built = None
        if library is not None:
            built = work / "built.so"
            built.write_bytes(library)
        stored: StoredEntry = store.publish(entry, work, built, log)
    return stored.path


def make_good(store: Store) -> None:
    """Fill a store with one entry of each status: silu is ready."""
    publish(store, entry_of("aten::silu"))
    declined = replace(
        entry_of("aten::special_i1"),
        status=Status.DECLINED,
        outputs=(),
        checked=False,
        reason="compile_failed",
        message="aten::special_i1: the C++ compiler failed",
    )
    publish(store, declined, None, "kernel.cpp:1:1: error: a made-up one\n")
    quarantined = replace(
        entry_of("aten::erfinv"),
        status=Status.QUARANTINED,
        reason="mismatch",
        message="output 0: 3 of 64 values differ",
    )
    publish(store, quarantined)


def make_damaged(store: Store) -> None:
    """Fill a store with one entry of each damage, and with silu, which is good."""
    publish(store, entry_of("aten::silu"))
    record = publish(store, entry_of("aten::tanh")) / ENTRY_FILE
    record.write_bytes(record.read_bytes().replace(b'"checked": true', b'"checked": trve'))
    altered = publish(store, entry_of("aten::sinh")) / ENTRY_FILE
    altered.write_bytes(altered.read_bytes().replace(b'"sizes"', b'"sides"'))
    (publish(store, entry_of("aten::cosh")) / ENTRY_FILE).unlink()
    library = publish(store, entry_of("aten::sin")) / "library.so"
    library.write_bytes(LIBRARY[:20])
    (publish(store, entry_of("aten::cos")) / "library.so").unlink()


def make_foreign(store: Store) -> None:
    """Fill a store with an entry of another torch version."""
    publish(store, replace(entry_of("aten::silu"), environment=FOREIGN_ENVIRONMENT))


def make_future(store: Store) -> None:
    """Fill a store with an entry whose format nobody knows yet, and with silu, which is good."""
    publish(store, entry_of("aten::silu"))
    path = publish(store, entry_of("aten::tanh"))
    document = {"format": 99, "payload": ["arranged", "in another way"], "signature": "none"}
    (path / ENTRY_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


STORES = {
    "good": make_good,
    "damaged": make_damaged,
    "foreign": make_foreign,
    "future": make_future,
}


def main(directory: Path) -> None:
    """Make every store anew below ``directory``."""
    if FORMAT_VERSION != 1:
        sys.exit("these are the stores of format 1: keep them, and make new ones beside them")
    for name, fill in STORES.items():
        root = directory / name
        shutil.rmtree(root, ignore_errors=True)
        fill(Store(root, lock_timeout_s=1.0))
        (root / "tmp").rmdir()
        # Caches without a marker and an account: as versions that knew of none have left them.
        (root / MARKER_FILE).unlink()
        (root / USAGE_FILE).unlink()
        shutil.rmtree(root / "locks")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
