"""Another process changes a library's file again and again while this one loads it.

What would be given to ``dlopen`` is read back: it is always the library that the entry names, or
nothing. ``--full`` loads 10,000 times.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aoti_eager._store.store import Store
from aoti_eager.errors import AotiEagerError

from ..support.entries import ENVIRONMENT, FEATURES, make_entry, make_key, publish

GOOD, EVIL = b"\x7fELF" + b"g" * 50_000, b"\x7fELF" + b"e" * 50_000

# Until standard input ends: the good and the evil library at the same path, in four ways.
SWAPPER = textwrap.dedent(
    """
    import os, select, shutil, sys
    path, good, evil = sys.argv[1:]
    contents = [open(name, "rb").read() for name in (good, evil)]
    aside = path + ".aside"
    print("ready", flush=True)
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        content, source = contents[number % 2], (good, evil)[number % 2]
        way = number // 2 % 4
        if way == 0:
            shutil.copyfile(source, aside)
            os.chmod(aside, 0o600)
            os.rename(aside, path)
        elif way == 1:
            with open(path, "r+b") as file:
                file.write(content)
        elif way == 2:
            with open(path, "wb") as file:
                for start in range(0, len(content), 5000):
                    file.write(content[start : start + 5000])
                    file.flush()
        else:
            os.link(source, aside)
            os.rename(aside, path)
            if os.path.exists(aside):
                os.unlink(aside)
            # Later writes in place must not change the sources.
            shutil.copyfile(source, aside)
            os.chmod(aside, 0o600)
            os.rename(aside, path)
    print(number, flush=True)
    """
)


def test_a_library_that_is_swapped_while_it_is_loaded_is_never_another(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    store = Store(tmp_path / "store", lock_timeout_s=1.0)
    key = make_key()
    path = publish(store, make_entry(key=key), content=GOOD).library_path
    for name, content in (("good", GOOD), ("evil", EVIL)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    swapper = subprocess.Popen(
        [sys.executable, "-c", SWAPPER, str(path), str(tmp_path / "good"), str(tmp_path / "evil")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert swapper.stdout is not None
    assert swapper.stdout.readline() == "ready\n"
    loads = refused = 0
    wanted = 10_000 if pytestconfig.getoption("--full") else 500
    while loads + refused < wanted or not (loads and refused):
        try:
            found = store.find(key, ENVIRONMENT, FEATURES)
            assert found is not None
            # What is given to dlopen.
            with store.sealed_library(found) as library, open(library.name, "rb") as file:
                content = file.read()
        except AotiEagerError:
            refused += 1
            continue
        assert content == GOOD
        loads += 1
    swaps, _ = swapper.communicate("end")
    assert swapper.returncode == 0
    print(f"{loads} loads, {refused} refused, {swaps.strip()} swaps")
