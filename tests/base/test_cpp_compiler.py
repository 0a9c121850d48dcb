"""What tells one C++ compiler from another, without starting it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from aoti_eager._base import cpp_compiler
from aoti_eager._base.cpp_compiler import compiler_identity


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of a compiler; nothing may start it."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    path = tmp_path / "g++"
    write(path, b"one")
    monkeypatch.setenv("CXX", str(path))
    return path


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


def identity_of(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()}"


def test_it_is_the_name_and_the_program_and_not_the_place(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiler_identity() == identity_of("g++", b"one")
    (tmp_path / "elsewhere").mkdir()
    moved = compiler.rename(tmp_path / "elsewhere" / "g++")
    monkeypatch.setenv("CXX", str(moved))
    assert compiler_identity() == identity_of("g++", b"one")


def test_a_link_is_what_it_leads_to(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "c++"
    link.symlink_to(compiler)
    monkeypatch.setenv("CXX", str(link))
    assert compiler_identity() == identity_of("c++", b"one")


def test_another_program_under_the_name_is_another_compiler(compiler: Path) -> None:
    assert compiler_identity() == identity_of("g++", b"one")
    write(compiler, b"another")
    assert compiler_identity() == identity_of("g++", b"another")


def test_the_program_is_read_once(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler_identity()
    monkeypatch.setattr(cpp_compiler, "_sha256", lambda file: "read again")
    assert compiler_identity() == first


def test_without_a_compiler_or_one_that_cannot_be_read_it_is_not_known(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(cpp_compiler, "_sha256", refuse)
        write(compiler, b"a third")
        assert compiler_identity() is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert compiler_identity() is None
