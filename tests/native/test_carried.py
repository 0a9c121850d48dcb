"""A wheel that carries the C++ path ready-made: built, installed, and taken only where it fits.

The compiler is a script that gives the library of this run; all else is what users do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from aoti_eager._base.cpp_compiler import compiler_on_path
from aoti_eager._native import build as native_build

pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[2]

SCRIPT = """
import logging
logging.basicConfig(level=logging.INFO)
import torch
import aoti_eager
from aoti_eager._native import library as native_library
from aoti_eager._compile_service import native_path
# As a ``register`` does where the store has a kernel or there is a compiler; the second is silent.
native_path.prepare(), native_path.prepare()
print(native_library.is_loaded(), native_path.wait(0.0), aoti_eager.__file__)
"""

# As on a machine with another torch.
SETUP = """
import sys, torch
if sys.argv[1]:
    torch.__version__ = sys.argv[1]
from aoti_eager.cli import main
sys.exit(main(["setup", "--into", sys.argv[2]]))
"""


@pytest.fixture(scope="module")
def compiler(
    tmp_path_factory: pytest.TempPathFactory, shared_cache_dir: Path, native_library: None
) -> Path:
    """A compiler that builds nothing but what was built already."""
    built = native_build.find(shared_cache_dir / "toolchain", compiler_on_path())
    assert built is not None
    path = tmp_path_factory.mktemp("bin") / "g++"
    path.write_text(
        f'#!/bin/sh\nwhile [ "$1" != "-o" ]; do shift; done\n/bin/cp "{built.path}" "$2"\n'
    )
    path.chmod(0o755)
    return path


def wheel_of(directory: Path, compiler: Path, torch_version: str = "") -> Path:
    """Return a wheel that carries what ``setup`` builds for a version of torch."""
    carried = directory / "carried"
    variables = {**os.environ, "PATH": f"{compiler.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", SETUP, torch_version, str(carried)],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    said, ready = done.stdout.splitlines()
    assert said.startswith("the C++ path of calls: built in ")
    assert ready == f"ready: AOTI_EAGER_CARRY={carried} pip wheel --no-deps ."
    return build_wheel(directory, carried)


def build_wheel(directory: Path, carried: Path | None) -> Path:
    variables = {**os.environ, "AOTI_EAGER_CARRY": str(carried or "")}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        check=True,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, compiler: Path) -> Path:
    """A new environment's Python; it has the wheel, and torch from this run's environment."""
    directory = tmp_path_factory.mktemp("carried")
    wheel = wheel_of(directory, compiler)
    assert wheel.name.startswith("aoti_eager-")
    assert "-py3-none-" in wheel.name
    assert "any" not in wheel.name
    venv = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install", "-q"),
            *("--no-deps", "--no-index", "--no-compile", str(wheel)),
        ],
        check=True,
    )
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "torch_of_this_run.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(
    python: Path, directory: Path, path: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script with the settings as they ship, and ``path`` for programs."""
    shipped = {k: v for k, v in os.environ.items() if not k.startswith(("AOTI_EAGER", "CXX"))}
    shipped |= {"AOTI_EAGER_CACHE_DIR": str(directory / "new cache"), "PATH": str(path)}
    return subprocess.run(
        [python, "-c", SCRIPT],
        env={**shipped, **variables},
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )


def unpacked(installed: Path, directory: Path) -> Path:
    """Return a copy of the installed package that a test may change, and its import path."""
    (package,) = installed.parents[1].glob("lib/python*/site-packages/aoti_eager")
    shutil.copytree(package, directory / "site" / "aoti_eager")
    return directory / "site"


def test_a_script_without_a_compiler_has_the_path_that_its_wheel_carries(
    installed: Path, tmp_path: Path
) -> None:
    done = run(installed, tmp_path, tmp_path)
    loaded, _, file = done.stdout.split()
    assert str(installed.parents[1]) in file
    assert loaded == "True"
    assert "C++ path" not in done.stderr
    assert not list(tmp_path.rglob("native.so"))


DAMAGE = ["truncated", "garbled", "no record", "writable"]


@pytest.mark.full
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_not_loaded(damage: str, installed: Path, tmp_path: Path) -> None:
    site = unpacked(installed, tmp_path)
    (library,) = site.rglob("native.so")
    content = library.read_bytes()
    if damage == "truncated":
        library.write_bytes(content[:-1])
    elif damage == "garbled":
        library.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no record":
        library.with_name("native.json").unlink()
    else:
        library.chmod(0o666)
    done = run(installed, tmp_path, tmp_path, PYTHONPATH=str(site))
    loaded, _, file = done.stdout.split()
    assert file.startswith(str(site))
    assert loaded == "False"
    assert done.stderr.count("that came with the package") == (damage != "no record")


def test_what_is_carried_for_another_torch_is_left_and_the_path_built(
    installed: Path, compiler: Path, tmp_path: Path
) -> None:
    wheel = wheel_of(tmp_path, compiler, "2.13.9")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    done = run(installed, tmp_path, compiler.parent, PYTHONPATH=str(site))
    assert done.stdout.split()[0] == "True"  # built, by the compiler that is there
    (line,) = [one for one in done.stderr.splitlines() if "that came with the package" in one]
    assert "is for torch 2.13.9" in line
    assert list((tmp_path / "new cache").rglob("native.so"))


def test_setup_has_nothing_to_build_where_the_path_was_carried(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = unpacked(installed, tmp_path)
    monkeypatch.setattr(native_build, "CARRIED", site / "aoti_eager" / "_carried")
    assert native_build.find_carried() is not None
    assert native_build.carried_for() == [str(torch.__version__)]


def test_a_wheel_carries_nothing_unless_it_is_asked_to(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, None)
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "aoti_eager/_native/csrc/native.cpp" in names
    assert not [name for name in names if "_carried" in name]


def test_an_empty_directory_is_an_error_that_says_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        build_wheel(tmp_path, tmp_path)
    assert b"setup --into" in error.value.stderr
