"""Random changes of a valid cache directory, for ``test_mutations.py``.

Each change is one that a broken disk, a careless hand or a hostile user of the same directory may
make: bits, lengths, files that change places, records that are edited and given a right digest,
other kinds of files, other names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aoti_eager._base.digest import json_digest

Change = Callable[[random.Random, Path], str | None]
_GIANT = 3 << 30


def change(drawn: random.Random, root: Path) -> tuple[str, set[Path]]:
    """Change something below ``root``; return what was done, and the entries that it touched."""
    while True:
        act = drawn.choice(CHANGES)
        before = _places(root)
        try:
            said = act(drawn, root)
        except IndexError:  # An earlier change has left nothing to choose from.
            continue
        if said is not None:
            touched = {path for path in before if _state(path) != before[path]}
            return f"{act.__name__}: {said}", touched


def _places(root: Path) -> dict[Path, Any]:
    return {path.parent: _state(path.parent) for path in root.glob("v1/*/*/*/*/*/entry.json")}


def _state(entry: Path) -> Any:
    found = []
    for name in ("entry.json", "library.so"):
        try:
            status = os.lstat(entry / name)
            is_read = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 24
            content = (entry / name).read_bytes() if is_read else b""
            found.append((status.st_ino, status.st_mode, status.st_size, content))
        except OSError as error:
            found.append(error.errno)
    return (entry.is_symlink(), found)


def _file(drawn: random.Random, root: Path) -> Path | None:
    files = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24
    )
    return drawn.choice(files) if files else None


def _entry(drawn: random.Random, root: Path) -> Path:
    """Return the directory of an entry whose record is a file of ordinary size."""
    records = [path / "entry.json" for path in _places(root)]
    ordinary = [one for one in records if one.is_file() and one.stat().st_size < 1 << 24]
    return drawn.choice(sorted(ordinary)).parent


def flip_bits(drawn: random.Random, root: Path) -> str | None:
    path = _file(drawn, root)
    if path is None or not path.stat().st_size:
        return None
    content = bytearray(path.read_bytes())
    for _ in range(drawn.choice((1, 1, 3, 20))):
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    path.write_bytes(content)
    return str(path)


def cut_off(drawn: random.Random, root: Path) -> str | None:
    path = _file(drawn, root)
    if path is None:
        return None
    os.truncate(path, drawn.randrange(path.stat().st_size + 1))
    return str(path)


def append(drawn: random.Random, root: Path) -> str | None:
    path = _file(drawn, root)
    if path is None:
        return None
    with open(path, "ab") as file:
        file.write(drawn.randbytes(drawn.choice((1, 100))))
    return str(path)


def swap_files(drawn: random.Random, root: Path) -> str | None:
    name = drawn.choice(("entry.json", "library.so"))
    files = sorted(root.glob(f"v1/*/*/*/*/*/{name}"))
    if len(files) < 2:
        return None
    one, other = drawn.sample(files, 2)
    aside = one.with_name("aside")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)
    return f"{one} and {other}"


def edit_record(drawn: random.Random, root: Path) -> str | None:
    """Change a field and make the record's digest anew, as somebody would who knows the format."""
    path = _entry(drawn, root) / "entry.json"
    try:
        document = json.loads(path.read_bytes())
        payload = document["payload"]
        name = drawn.choice(sorted(payload))
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return None
    payload[name] = drawn.choice(
        (None, -1, 1e308, "", "../../x", [], {}, [[[]]], {"a": 1}, True, "ready", 2**70)
    )
    document["sha256"] = json_digest(payload)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return f"{path} {name} = {payload[name]!r}"


def edit_library_fields(drawn: random.Random, root: Path) -> str | None:
    path = _entry(drawn, root) / "entry.json"
    try:
        document = json.loads(path.read_bytes())
        library = document["payload"]["library"]
        library[drawn.choice(("size_bytes", "sha256"))] = drawn.choice(
            (0, -1, 2**63, "0" * 64, None, [], True)
        )
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return None
    document["sha256"] = json_digest(document["payload"])
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return str(path)


def no_json(drawn: random.Random, root: Path) -> str | None:
    path = _entry(drawn, root) / "entry.json"
    path.write_bytes(
        drawn.choice((b"", b"[" * 100_000, b"null", b"\xff\xfe", b'{"format": 1}', b"NaN"))
    )
    return str(path)


def rename_directory(drawn: random.Random, root: Path) -> str | None:
    path = drawn.choice(sorted(one for one in root.glob("v1/**/*") if one.is_dir()))
    name = drawn.choice(("0" * 64, "x", "..x", "static", "f" * 16, "aten.mul", "a b\n"))
    try:
        os.rename(path, path.with_name(name))
    except OSError:
        return None
    return f"{path} to {name!r}"


def swap_directories(drawn: random.Random, root: Path) -> str | None:
    places = sorted(_places(root))
    if len(places) < 2:
        return None
    one, other = drawn.sample(places, 2)
    aside = root / "aside"
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)
    return f"{one} and {other}"


def link(drawn: random.Random, root: Path) -> str | None:
    path = drawn.choice(sorted(root.glob("v1/**/*")))
    aside = root.parent / f"aside-{drawn.randrange(1 << 30)}"
    os.rename(path, aside)
    path.symlink_to(aside)
    return str(path)


def remove(drawn: random.Random, root: Path) -> str | None:
    path = drawn.choice(sorted(root.glob("v1/**/*")))
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return str(path)


def other_kind(drawn: random.Random, root: Path) -> str | None:
    path = _file(drawn, root)
    if path is None:
        return None
    path.unlink()
    if drawn.random() < 0.5:
        os.mkfifo(path)
    else:
        path.mkdir()
    return str(path)


def giant(drawn: random.Random, root: Path) -> str | None:
    path = _file(drawn, root)
    if path is None:
        return None
    os.truncate(path, _GIANT)  # A file with a hole: it takes no room.
    return str(path)


def open_to_others(drawn: random.Random, root: Path) -> str | None:
    path = drawn.choice(sorted(root.glob("v1/**/*")))
    path.chmod(0o777)
    return str(path)


def put_beside(drawn: random.Random, root: Path) -> str | None:
    path = drawn.choice(sorted(one for one in root.glob("v1/**/*") if one.is_dir()))
    name = drawn.choice(("x", ".hidden", "library.so", "0" * 64, "é\n"))
    if (path / name).exists():
        return None
    (path / name).write_bytes(b"\x7fELF" + drawn.randbytes(20))
    return str(path / name)


CHANGES: tuple[Change, ...] = (
    *(flip_bits, flip_bits, cut_off, append, swap_files, edit_record, edit_record),
    *(edit_library_fields, no_json, rename_directory, swap_directories, link, remove),
    *(other_kind, giant, open_to_others, put_beside),
)
