"""Toolchains to damage: copies of the run's own, and what a test does to a file of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from aoti_eager._base.recorded_files import write_record
from aoti_eager._base.trusted_files import open_directory


def copy_toolchain(shared_cache_dir: Path, path: Path) -> Path:
    """Return a new store at ``path`` with a toolchain of its own: headers, stub and records.

    What has its record: other tests of the run may be making more in the shared one.
    """
    path.mkdir(mode=0o700)
    source = shared_cache_dir / "toolchain" / "headers"
    target = path / "toolchain" / "headers"
    for directory in (path / "toolchain", target, target / "stub"):
        directory.mkdir(mode=0o700)
    for record in (*source.glob("*.json"), *source.glob("stub/*.json")):
        names = {record.name, *json.loads(record.read_text())["files"]}
        if record.name.endswith(".h.gch.json"):  # Inductor's, whose header is beside it.
            names.add(record.name.removesuffix(".gch.json"))
        # With a lock file, the next build is waited for.
        names |= {lock.name for lock in source.glob(f"{record.stem}.lock")}
        for name in names:
            copy = target / record.parent.relative_to(source) / name
            shutil.copy(record.with_name(name), copy)
            copy.chmod(0o600)
    return path


def share_native(store: Path, shared_cache_dir: Path) -> None:
    """Put the run's C++ path into a store, which would take half a minute to build it."""
    source = shared_cache_dir / "toolchain" / "native"
    shutil.copytree(source, store / "toolchain" / "native")


def cut(path: Path) -> None:
    """Leave the first half of it."""
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    """Change bytes all over it but at its beginning, and leave it as long as it was.

    A precompiled header that begins as none is silently passed over by the compiler.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in range(min(4096, size // 2), size, max(1, size // 1000)):
            file.seek(at)
            file.write(b"\xa5")


def let_others_write(path: Path) -> None:
    """Set the mode that a compiler's output has under umask 002."""
    path.chmod(0o664)


def replace_by_a_pipe(path: Path) -> None:
    """Put a FIFO in its place: to open it is to wait."""
    path.unlink()
    os.mkfifo(path)


def replace_by_a_link(path: Path) -> None:
    """Move it elsewhere, and put a link to it in its place."""
    kept = path.parents[1] / f"kept-{path.name}"
    path.rename(kept)
    path.symlink_to(kept)


def delete(path: Path) -> None:
    """Remove it."""
    path.unlink()


Damage = Callable[[Path], None]
DAMAGES: tuple[Damage, ...] = (
    cut,
    garble,
    let_others_write,
    replace_by_a_pipe,
    replace_by_a_link,
    delete,
)


def record_as_it_is(record: Path) -> None:
    """Write a record anew of the files as they are now, so that they match it."""
    names = json.loads(record.read_text())["files"]
    with open_directory(record.parent) as directory:
        write_record(directory, record.name, names)
