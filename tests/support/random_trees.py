"""Random trees of files around a store, and what every verb may remove of them.

    python -m tests.support.random_trees --count 20000

builds trees of links, pipes, hard links, mounts, odd names and files of others in and around a
store, runs the verbs that remove something, and compares: what is gone must be of the format, and
must lie in real directories of a marked store, on its file system.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from aoti_eager import cache
from aoti_eager._base.store_marker import MARKER
from aoti_eager._store.entry import Status
from aoti_eager._store.store import Store
from aoti_eager._store.verdict import Verdicts, processor
from aoti_eager.errors import AotiEagerError

from .entries import (
    OTHER_ENVIRONMENT,
    make_entry,
    make_key,
    publish,
)

# Spelled anew here, not taken from the code that is tested: what may be removed of a store.
_ENTRY = r"v1/[0-9a-f]{16}(/\w[\w.]*(-[0-9a-f]{16})?(/(static|dynamic)(/[0-9a-f]{64}(/\w[\w.+-]*"
_ENTRY += r"(/(entry\.json|library\.so|log))?)?)?)?)?"
REMOVABLE = re.compile(
    rf"{_ENTRY}"
    r"|tmp/[^/]+-[0-9]{1,10}-[0-9a-f]{12}(/.*)?"
    r"|verdicts/[\w-]+/([0-9a-f]{64}\.json|\.[^/]{1,16}\.[0-9a-f]{8})"
    r"|verdicts(/[\w-]+)?"
    r"|usage"
    r"|toolchain/headers/\.build-[0-9a-f]{24}-\w+(/.*)?"
    r"|toolchain/headers/(thin-[0-9a-f]{24}\.(h|o|h\.gch|json|[0-9]+\.tmp))"
    r"|toolchain/headers/[a-z0-9]{20,80}\.h(\.gch(\.json)?)?"
    r"|toolchain/headers/\.[^/]{1,16}\.[0-9a-f]{8}"
    r"|toolchain/headers/stub/(libtorch_cpu(\.so|\.json|\.[0-9]+\.tmp)|\.[^/]{1,16}\.[0-9a-f]{8})"
    r"|toolchain/native/[0-9a-f]{24}/([0-9a-f]{16}(/native\.(so|json))?|\.build-[0-9a-f]{16}-\w+(/.*)?)"
    r"|toolchain/probes/([0-9a-f]{24}\.(json|[0-9]+\.tmp)|\.[^/]{1,16}\.[0-9a-f]{8})"
    r"|\.[^/]{1,16}\.[0-9a-f]{8}",
    re.DOTALL,
)

# What an eviction makes, and spelled anew, too.
EVICTIONS = ("evict", "trim")
MADE = re.compile(r"usage|tmp|locks(/(usage|evict))?")

_HEX = "0123456789abcdef"


@dataclasses.dataclass
class Tree:
    """A world with a store in it, and what was built."""

    world: Path
    store: Path
    marked: bool
    mounts: list[Path]


def build(world: Path, chance: random.Random, *, mounts: bool) -> Tree:
    """Build one random world below ``world``, which is empty."""
    outside = world / "outside"
    outside.mkdir()
    for name in ("home", "project"):
        _fill(outside / name, chance, outside, depth=2)
    store = world / "store"
    kind = chance.random()
    if kind < 0.75:
        with contextlib.suppress(AotiEagerError):
            _publish_some(Store(store, lock_timeout_s=0.1), chance)
    elif kind < 0.9:
        store.mkdir(mode=0o700)
    else:
        (outside / "real").mkdir(mode=0o700)
        store.symlink_to(outside / "real")
    real = store.resolve()
    real.mkdir(mode=0o700, exist_ok=True)
    _scatter(real, chance, outside)
    tag = real / "CACHEDIR.TAG"
    marker = chance.random()
    with contextlib.suppress(OSError):
        if marker < 0.15:
            tag.unlink(missing_ok=True)
        elif marker < 0.25:
            tag.unlink(missing_ok=True)
            tag.write_bytes(MARKER.splitlines(keepends=True)[0] + b"# by another program\n")
        elif marker < 0.3:
            tag.unlink(missing_ok=True)
            (outside / "TAG").write_bytes(MARKER)
            tag.symlink_to(outside / "TAG")
        else:
            tag.write_bytes(MARKER)
            tag.chmod(0o600)
    is_marked = tag.is_file() and not tag.is_symlink() and tag.read_bytes() == MARKER
    mounted = []
    if mounts:
        places = [p for p in real.rglob("*") if p.is_dir() and not p.is_symlink()]
        place = chance.choice(places) if places else real / "mounted"
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "--bind", str(outside / "home"), str(place)], capture_output=True
        )
        if done.returncode == 0:
            mounted.append(place)
    return Tree(world, store, is_marked, mounted)


def _publish_some(store: Store, chance: random.Random) -> None:
    for rows in range(1, 2 + chance.randrange(3)):
        entry = make_entry(key=make_key(rows=rows))
        if chance.random() < 0.3:
            entry = dataclasses.replace(entry, environment=OTHER_ENVIRONMENT)
        if chance.random() < 0.3:
            entry = dataclasses.replace(entry, status=Status.DECLINED, reason="mismatch")
        publish(store, entry, log="text" if chance.random() < 0.5 else "")


def _name(chance: random.Random) -> str:
    """Return a name, of the format or nearly, or an odd one."""
    digits = lambda count: "".join(chance.choice(_HEX) for _ in range(count))  # noqa: E731
    host = socket.gethostname()
    return chance.choice(
        [
            *("v1", "tmp", "locks", "toolchain", "verdicts", "headers", "native", "probes"),
            *("usage", "evict"),
            *("entry.json", "library.so", "log", "totals.json", "static", "dynamic", "stub"),
            *("aten.silu", "cpu-x86-64-v3", "model.py", "notes.txt", ".git", ".DS_Store"),
            *(digits(16), digits(64), digits(2), digits(24), f"{digits(64)}.json"),
            *(f"{host}-4194304-{digits(12)}", f"{host}-{os.getpid()}-{digits(12)}"),
            *(f"elsewhere-7-{digits(12)}", f"{host}-1-{digits(11)}", f"x-{digits(12)}"),
            *(f"thin-{digits(24)}.h", f"thin-{digits(24)}.1.tmp", f".build-{digits(16)}-ab"),
            *(f".{digits(8)}.{digits(8)}", processor(), "native.so", "native.json"),
            *("a b", "line\nbreak", "-rf", "~", "*", "ü", "x" * 200, "..data", "$HOME"),
        ]
    )


def _scatter(root: Path, chance: random.Random, outside: Path) -> None:
    """Put things into every directory of a store, at depths where the format has names, too."""
    for _ in range(chance.randrange(12)):
        places = [p for p in root.rglob("*") if p.is_dir() and not p.is_symlink()] or [root]
        place = chance.choice([root, *places])
        _make(place / _name(chance), chance, outside, depth=2)
    if chance.random() < 0.5:  # Of a process that is dead.
        with contextlib.suppress(OSError):
            name = f"{socket.gethostname()}-4194304-{'0' * 12}"
            (root / "tmp").mkdir(mode=0o700, exist_ok=True)
            _fill(root / "tmp" / name, chance, outside, depth=2)
    # Names where the format wants them, of another kind than it says.
    for parts in (("v1",), ("tmp",), ("verdicts", processor()), ("toolchain", "headers")):
        if chance.random() < 0.5:
            with contextlib.suppress(OSError):
                place = root.joinpath(*parts)
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
                for _ in range(chance.randrange(3)):
                    _make(place / _name(chance), chance, outside, depth=3)
    for top in ("v1", "tmp", "verdicts", "toolchain"):
        if chance.random() < 0.08:
            with contextlib.suppress(OSError):
                if (root / top).is_dir() and not (root / top).is_symlink():
                    shutil.rmtree(root / top)
                else:
                    (root / top).unlink(missing_ok=True)
                (root / top).symlink_to(chance.choice([outside / "home", outside / "project"]))


def _fill(directory: Path, chance: random.Random, outside: Path, depth: int) -> None:
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700)
        for _ in range(chance.randrange(4)):
            _make(directory / _name(chance), chance, outside, depth)


def _make(path: Path, chance: random.Random, outside: Path, depth: int) -> None:
    kind = chance.random()
    if os.path.lexists(path):  # To write to a pipe is to wait for its other end.
        return
    with contextlib.suppress(OSError):
        if kind < 0.35 and depth:
            _fill(path, chance, outside, depth - 1)
        elif kind < 0.6:
            path.write_bytes(chance.randbytes(chance.randrange(40)))
        elif kind < 0.85:
            targets = [outside, *outside.iterdir(), path.parent, Path("nowhere"), Path("..")]
            path.symlink_to(chance.choice(targets))
        elif kind < 0.9:
            os.mkfifo(path)
        else:
            files = [p for p in outside.rglob("*") if p.is_file() and not p.is_symlink()]
            if files:
                os.link(chance.choice(files), path)
        if chance.random() < 0.5:
            old = time.time() - chance.choice([10, 2 * 3600, 30 * 3600])
            os.utime(path, (old, old), follow_symlinks=False)
        if chance.random() < 0.1 and not path.is_symlink():
            path.chmod(chance.choice([0o777, 0o700, 0o000, 0o664]))


# --- what is there -------------------------------------------------------------------------------


def snapshot(world: Path) -> dict[str, tuple[object, ...]]:
    """Return everything below ``world``, by relative path; nothing is followed."""
    found: dict[str, tuple[object, ...]] = {}

    def look(directory: str) -> None:
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                content: object = None
                if stat.S_ISLNK(status.st_mode):
                    content = os.readlink(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    with open(entry.path, "rb") as file:
                        content = hashlib.sha256(file.read()).hexdigest()
                found[os.path.relpath(entry.path, world)] = (
                    *(stat.S_IFMT(status.st_mode), status.st_mode, status.st_ino),
                    content,
                )
                if stat.S_ISDIR(status.st_mode):
                    look(entry.path)

    look(str(world))
    return found


def problems(
    tree: Tree, before: dict[str, tuple[object, ...]], *, evicted: bool = False
) -> list[str]:
    """Return what has changed that may not; an eviction may make its locks and its account."""
    after = snapshot(tree.world)
    real = os.path.relpath(tree.store.resolve(), tree.world.resolve())
    mounts = [os.path.relpath(m, tree.world) for m in tree.mounts]
    wrong = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) == after.get(path):
            continue
        inside = os.path.relpath(path, real)
        is_gone = path not in after
        if not is_gone:
            if evicted and tree.marked and MADE.fullmatch(inside):
                continue
            wrong.append(f"changed or made: {path}")
        elif inside.startswith("..") or not tree.marked:
            wrong.append(f"gone: {path}")
        elif any(path == m or path.startswith(f"{m}/") for m in mounts):
            wrong.append(f"gone behind a mount: {path}")
        elif not REMOVABLE.fullmatch(inside):
            wrong.append(f"gone, and no name of the format: {path}")
        elif any(
            before[parent][0] == stat.S_IFLNK for parent in _parents(path) if parent in before
        ):
            wrong.append(f"gone behind a link: {path}")
    return wrong


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


# --- the verbs -----------------------------------------------------------------------------------


def verbs(tree: Tree, chance: random.Random) -> dict[str, Callable[[], object]]:
    """Return what removes something of a store, by name."""
    root = tree.store
    store = Store(root, lock_timeout_s=0.1)

    def discard() -> None:
        # What no entry lies at is a mistake of the caller's: it raises, and removes nothing.
        everything = sorted(root.resolve().rglob("*"))
        if everything:
            path = root / chance.choice(everything).relative_to(root.resolve())
            if tree.marked:  # Else it would mark a cache of an older version first.
                store.discard(path)

    def forget_verdicts() -> None:
        verdicts = Verdicts(root)
        if tree.marked:
            for digest in verdicts.digests():
                verdicts.remove(digest)

    return {
        "verify": lambda: cache.verify(cache_dir=root),
        "verify, dry run": lambda: cache.verify(repair=False, cache_dir=root),
        "prune declined": lambda: cache.prune(declined=True, cache_dir=root),
        "prune stale": lambda: cache.prune(stale=True, cache_dir=root),
        "clear": lambda: cache.clear(cache_dir=root),
        EVICTIONS[0]: lambda: cache.evict(op="*", cache_dir=root),
        EVICTIONS[1]: lambda: cache.trim(max_entries=1, cache_dir=root),
        "evict, dry run": lambda: cache.evict(op="*", dry_run=True, cache_dir=root),
        "sweep": store.remove_stale_work,
        "sweep a pid": lambda: store.remove_work_of(4194304),
        "discard": discard,
        "forget verdicts": forget_verdicts,
    }


def check_one(directory: Path, seed: int, *, mounts: bool) -> tuple[list[str], bool]:
    """Build the tree of ``seed``, run verbs over it; return what is wrong, and if anything went."""
    chance = random.Random(seed)
    world = Path(tempfile.mkdtemp(dir=directory))
    tree = build(world, chance, mounts=mounts)
    try:
        before = snapshot(world)
        done = chance.sample(sorted(verbs(tree, chance)), k=chance.choice([1, 2, 3, 4]))
        for name in done:
            with contextlib.suppress(AotiEagerError, OSError):
                verbs(tree, chance)[name]()
            if name.endswith("dry run") and len(done) == 1 and snapshot(world) != before:
                return [f"seed {seed}: a dry run has changed something"], True
        found = problems(tree, before, evicted=bool(set(done) & set(EVICTIONS)))
        wrong = [f"seed {seed}, {', '.join(done)}: {one}" for one in found]
        return wrong, snapshot(world) != before
    finally:
        for place in tree.mounts:
            subprocess.run(["umount", "-l", str(place)], check=True)
        subprocess.run(["chmod", "-R", "u+rwX", str(world)], check=False, capture_output=True)
        shutil.rmtree(world)


def check(count: int, first_seed: int, directory: Path) -> tuple[list[str], int, int]:
    """Check ``count`` trees.

    Returns what is wrong, of how many trees something was removed, and how many had a mount.
    """
    can_mount = os.geteuid() == 0 and sys.platform == "linux" and shutil.which("mount") is not None
    wrong: list[str] = []
    removed = mounted = 0
    for seed in range(first_seed, first_seed + count):
        mounts = can_mount and seed % 10 == 0
        mounted += mounts
        found, has_removed = check_one(directory, seed, mounts=mounts)
        wrong += found
        removed += has_removed
    return wrong, removed, mounted


def main() -> None:
    """Check as many trees as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        start = time.monotonic()
        wrong, removed, mounted = check(options.count, options.seed, Path(directory))
    for one in wrong[:20]:
        print(one)
    print(
        f"{options.count} trees, {mounted} with a mount, of {removed} something was removed, "
        f"{len(wrong)} things touched that are not of the format, {time.monotonic() - start:.0f} s"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
