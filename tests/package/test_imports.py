"""The package's shape: imports go down the rooms, private names of torch live in one of them."""

from __future__ import annotations

import ast
import functools
import graphlib
import io
import itertools
import json
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aoti_eager

PACKAGE = Path(aoti_eager.__file__).parent
# A demo's script that a wheel has beside the modules is no module of the package.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "_examples")

# Room -> the rooms that its modules import from, each below it. docs/architecture.md says what each
# room is for. A room that is named here and does not need it any more is taken out.
BELOW = {
    "errors": "",
    "_base": "errors",
    "config": "_base errors",
    "_native": "_base errors",
    "_keys": "_base errors",
    "_functions": "_keys _base errors",
    "_runner": "_native _base errors",
    "_store": "_keys _native config _base errors",
    "_bundles": "_store config _base errors",
    "_remote": "_bundles _store _keys config _base errors",
    "_compile_service": "_remote _store _runner _functions _keys _native config _base errors",
    "_dispatch": "_compile_service _remote _store _runner _functions _keys _native config _base"
    " errors",
    "_autograd": "_dispatch _functions _keys _native config _base errors",
    "_workloads": "_dispatch _compile_service _store _functions _keys config _base errors",
    "_registration": "_autograd _dispatch _compile_service _runner _functions _keys _native config"
    " _base errors",
    "_regions": "_registration _dispatch _compile_service _functions _keys _native config _base"
    " errors",
    "_enable": "_regions _registration _workloads _dispatch _compile_service _store _keys config"
    " _base errors",
    "startup": "_enable _base",
    "cache": "_workloads _compile_service _remote _bundles _store _keys _base errors",
    # The worker's program. It is started, never imported.
    "_compile_worker": "_registration _autograd _dispatch _compile_service _store _runner"
    " _functions _keys _native config _base errors",
    "_commands": "cache _enable _regions _registration _workloads _autograd _dispatch"
    " _compile_service _remote _bundles _store _functions _keys _native config _base errors",
    "cli": "_commands cache _store _keys config _base errors",
    "__main__": "cli _base",
    # What runs where this torch lacks a private name.
    "_originals": "_base errors",
    # The public face: what it shows, wherever that lives.
    "__init__": "_originals _commands cache _enable _regions _registration _dispatch"
    " _compile_service _runner config _base errors",
}
ROOMS = list(BELOW)

# The files that may spell private names of torch: one room, and what needs Inductor.
PRIVATE_NAMES = "_base/torch_compat/"
INDUCTOR_NAMES = "_compile_worker/inductor_compat.py"


def module_name(path: Path) -> str:
    """Return a module's name within the package: ``_store.store``, ``_base.file_lock``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(name: str) -> str:
    return name.partition(".")[0]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def imported_modules(path: Path) -> Iterator[str]:
    """Give the package's own modules that the file at ``path`` imports, anywhere in it."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = node.level - 1
            assert above <= len(folder), "imports of a package above"
            base = [*folder[: len(folder) - above], *(node.module or "").split(".")]
            base = [part for part in base if part]
            if PACKAGE.joinpath(*base).is_dir():
                yield from (_module([*base, alias.name]) for alias in node.names)
            else:
                yield ".".join(base)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "aoti_eager", "spell it relatively"
        elif isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
            assert "aoti_eager" not in names, "spell it relatively"


def _module(parts: list[str]) -> str:
    # `from . import config` gives the module; `from . import register` what __init__ re-exports.
    is_module = PACKAGE.joinpath(*parts).with_suffix(".py").exists()
    return ".".join(parts if is_module else [*parts[:-1], "__init__"])


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """Return what each module imports; not when the file is collected, which each process does."""
    return {module_name(path): set(imported_modules(path)) for path in FILES}


def test_every_file_of_the_package_is_looked_at() -> None:
    listed = {path.relative_to(PACKAGE.parent).as_posix() for path in FILES}
    root = PACKAGE.parent
    done = subprocess.run(
        ["git", "ls-files", "aoti_eager/*.py"], cwd=root, capture_output=True, text=True
    )
    assert listed >= {name for name in done.stdout.split() if (root / name).exists()}
    assert len(listed) > 180


def test_every_module_lives_in_a_room() -> None:
    assert {room_of(name) for name in all_imports()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_below_it_that_it_names(room: str) -> None:
    named = set(BELOW[room].split())
    assert named <= set(ROOMS[: ROOMS.index(room)]), "a room above, or none"
    imports = {
        name: {room_of(other) for other in others} - {room}
        for name, others in all_imports().items()
        if room_of(name) == room
    }
    assert {name: rooms - named for name, rooms in imports.items() if rooms - named} == {}
    assert named - set().union(*imports.values()) == set(), "named, and not imported from"


def test_the_page_of_the_rooms_has_each_module() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set()
    for part in page.split("\n### `")[1:]:
        room, _, rest = part.partition("/`\n")
        rows = itertools.takewhile(lambda line: not line.startswith("#"), rest.splitlines())
        cells = (row.split("`")[1] for row in rows if row.startswith("| `"))
        listed |= {f"{room}.{cell}" for cell in cells}
    there = {".".join(name.split(".")[:2]) for name in all_imports() if "." in name}
    assert listed == {name for name in there if not name.endswith(".__init__")}


NAMED = re.compile(r"\baoti_eager\.(_[a-z][a-z_]*)(?:\.([a-z_]+))?")


def test_the_modules_that_tests_name_are_there() -> None:
    """In strings, too: a program's text, or what a patch is for."""
    tests = Path(__file__).parents[1]
    missing = set()
    for path in tests.rglob("*.py"):
        for room, module in NAMED.findall(path.read_text(encoding="utf-8")):
            place = PACKAGE / room / module
            if not (place.is_dir() or place.with_suffix(".py").is_file()):
                missing.add(f"{path.relative_to(tests)}: aoti_eager.{room}.{module}")
    assert missing == set()


def test_nobody_imports_the_compile_worker() -> None:
    assert "_compile_worker" not in " ".join(BELOW.values())


@pytest.mark.parametrize("room", ROOMS)
def test_the_modules_of_a_room_import_each_other_in_one_direction(room: str) -> None:
    within: dict[str, set[str]] = defaultdict(set)
    for name, others in all_imports().items():
        if room_of(name) == room:
            within[name] = {other for other in others if room_of(other) == room}
    assert len(list(graphlib.TopologicalSorter(within).static_order())) == len(within)


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir()])
def test_a_room_says_what_it_is_for_and_where_to_begin(room: str) -> None:
    found = parsed(PACKAGE / room / "__init__.py")
    says = ast.get_docstring(found) or ""
    assert len(found.body) == 1, "a room has no code of its own"
    assert "Begin with" in says
    words = says.partition("Begin with")[2].split("``")[1::2]
    assert words
    for word in words:
        places = (PACKAGE / room / word, PACKAGE / room / f"{word}.py")
        assert any(place.exists() for place in places), word


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_code_is_that_of_the_oldest_python_supported(path: Path) -> None:
    assert parsed(path).body or path.name == "__init__.py"


def private_torch_names(path: Path) -> list[str]:
    """Return each private name of torch that the file spells in code, or as a module in a string.

    Comments, docstrings and messages may speak of them.
    """
    text = path.read_text(encoding="utf-8")
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL)
    ]
    found = [
        f"{path.name}:{first.start[0]}: torch.{third.string}"
        for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if (first.string, second.string) == ("torch", ".") and is_private(third.string)
    ]
    for node in ast.walk(ast.parse(text)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name.startswith("torch.") and is_private(name.split(".")[-1]) and name.count(".") > 1:
            found.append(f"{path.name}:{node.lineno}: {name}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if parts[0] == "torch" and all(map(str.isidentifier, parts)) and len(parts) > 1:
                found += [f"{path.name}:{node.lineno}: {node.value}"] * is_private(parts[1])
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"{path.name}:{node.lineno}" for a in node.names if is_private(a.name)]
    return found


def is_private(name: str) -> bool:
    return name[:1] == "_" and name[1:2].isalpha()


def test_private_names_of_torch_are_spelled_in_one_room_and_one_file() -> None:
    def may(path: Path) -> bool:
        place = path.relative_to(PACKAGE).as_posix()
        return place.startswith(PRIVATE_NAMES) or place == INDUCTOR_NAMES

    others = [path for path in FILES if not may(path)]
    assert list(itertools.chain.from_iterable(map(private_torch_names, others))) == []
    for path in (PACKAGE / PRIVATE_NAMES).glob("[!_]*.py"):
        assert private_torch_names(path), f"{path.name} has no private name"


# --- importing -----------------------------------------------------------------------------------

IMPORT = """
import json, sys
import torch
torchs = set(sys.modules)
started = []
EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system")
sys.addaudithook(lambda event, args: started.append(event) if event in EVENTS else None)
import threading
threads = threading.active_count()
import aoti_eager
print(json.dumps({
    "private": sorted(
        name for name in set(sys.modules) - torchs
        if name.startswith(("torch._inductor", "torch._dynamo", "torch._functorch", "torch.export"))
    ),
    "torch": sorted(name for name in set(sys.modules) - torchs if name.startswith("torch.")),
    "started": started,
    "threads": threading.active_count() - threads,
    "all": aoti_eager.__all__,
    "pickle": "pickle" in vars(aoti_eager),
}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """What importing the package does in a new process, beyond what importing torch does."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.stderr == ""
    return answer


def test_importing_the_package_imports_no_compiler(imported: dict[str, Any]) -> None:
    """Importing a compiler would make every warm start slow."""
    assert imported["private"] == []


def test_importing_the_package_starts_no_process_and_no_thread(imported: dict[str, Any]) -> None:
    """A script whose calls all hit needs no compiler and no child process."""
    assert imported["started"] == []
    assert imported["threads"] == 0


# --- the public names ----------------------------------------------------------------------------


def test_public_names_are_sorted_and_there(imported: dict[str, Any]) -> None:
    assert aoti_eager.__all__ == sorted(set(aoti_eager.__all__))
    assert imported["all"] == aoti_eager.__all__
    for name in aoti_eager.__all__:
        assert getattr(aoti_eager, name) is not None


def test_nothing_is_ever_unpickled() -> None:
    """Unpickling a file of a cache that somebody else can write runs their code."""
    forbidden = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            else:
                continue
            assert not names & forbidden, path.name
