"""Real kernels, with the sources and commands that they were compiled from.

The package compiles calls as a script makes them; its worker's processes are told to leave beside
each library what it came from, and what they would have asked the trial.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import aoti_eager
from aoti_eager._compile_service.cache_context import close_workers

from ..support.child_patches import patch_children
from .calls import Case

# What is captured lies where this variable says.
_VARIABLE = "AOTI_EAGER_TESTS_CAPTURED"

_PATCHES = {
    "aoti_eager._compile_worker.thin_codegen": """
import json as _json
_link_ = _link

def _link(source, command, work, parts, stub):
    library = _link_(source, command, work, parts, stub)
    # The source as it is without precompiled parts: it needs nothing but the package.
    (work / "captured.cpp").write_text(f'{source}\\n#include "{INTERFACE}"')
    (work / "captured.json").write_text(_json.dumps(command))
    return library
""",
    "aoti_eager._compile_worker.library_runs": f"""
import hashlib as _hashlib
import json as _json
import shutil as _shutil
from pathlib import Path

class ForkServer(ForkServer):
    def run(self, request):
        if self._module != "trial":
            return super().run(request)
        library = Path(request["library"])
        command = library.with_name("captured.json")
        if command.exists():
            text = _json.dumps([request["key"], request["sha256"]]).encode()
            place = Path(os.environ[{_VARIABLE!r}]) / _hashlib.sha256(text).hexdigest()[:16]
            place.mkdir(exist_ok=True)
            for one in (library, library.with_name("captured.cpp"), command):
                _shutil.copy(one, place)
            (place / "request.json").write_text(_json.dumps(request))
        return {{"compared": 1}}
""",
}


@dataclass(frozen=True, slots=True)
class Captured:
    """One kernel.

    Attributes:
        name: The case, and the op.
        place: Its directory.
        source: The C++ that it was compiled from.
        command: The compiler and its flags, without files.
        request: What the trial is asked; its ``library`` is the kernel.
    """

    name: str
    place: Path
    source: str
    command: list[str]
    request: dict[str, Any]


def capture(cases: Sequence[Case], directory: Path) -> None:
    """Compile ``cases``, each once, and leave their kernels in ``directory``."""
    wanted = [case for case in cases if not (directory / case.place / "done").exists()]
    if not wanted:
        return
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / "new"
    with pytest.MonkeyPatch.context() as patch:
        patches = directory / "patches"
        for one in (new, patches):
            one.mkdir(exist_ok=True)
        patch_children(patch, patches, _PATCHES)
        patch.setenv(_VARIABLE, str(new))
        cache = directory / "cache"
        cache.mkdir(mode=0o700, exist_ok=True)
        close_workers()
        with aoti_eager.config.scope(
            cache_dir=cache, mode="sync", gate=False, dynamic=False, native="0"
        ):
            for case in wanted:
                case.run()
                place = directory / case.place
                place.mkdir(exist_ok=True)
                for one in new.iterdir():
                    one.rename(place / one.name)
                (place / "done").touch()
        close_workers()


def captured(case: Case, directory: Path) -> list[Captured]:
    """Return the kernels of a case that was captured."""
    found = []
    for place in sorted(one for one in (directory / case.place).iterdir() if one.is_dir()):
        request = json.loads((place / "request.json").read_text())
        request["library"] = str(place / "library.so")
        found.append(
            Captured(
                name=f"{case.name}: {request['key']['op']}",
                place=place,
                source=(place / "captured.cpp").read_text(),
                command=json.loads((place / "captured.json").read_text()),
                request=request,
            )
        )
    return found


def directory() -> Path:
    """Return where captured kernels and what became of their mutants are kept."""
    return Path(os.environ.get("AOTI_EAGER_TESTS_MUTANTS", "/tmp/aoti_eager-mutants"))
