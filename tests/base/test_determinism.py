"""Which errors say something about what was compiled, and which only about that moment."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from torch._inductor.exc import (
    CppCompileError,
    InductorError,
    LoweringException,
    MissingOperatorWithoutDecomp,
)

import aoti_eager
from aoti_eager._base.determinism import (
    error_chain,
    is_compilers_own,
    is_deterministic,
    is_passing_text,
)
from aoti_eager._keys.declines import REASONS, REMEMBERED
from aoti_eager.errors import CompileError

ERRNOS = """
    EAGAIN EMFILE ENFILE ENOMEM ENOSPC EDQUOT EFBIG EIO EROFS ESTALE ENOENT EACCES EPERM ENOLCK
    ENOSYS EINTR EBUSY EINVAL ERANGE
""".split()  # noqa: SIM905 - a list of names to read, not to parse


def raised(raises: Callable[[], object]) -> BaseException:
    """Return what ``raises`` raises, with those that led to it."""
    try:
        raises()
    except BaseException as error:  # noqa: BLE001 - it is what is looked at
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("name", ERRNOS)
def test_no_error_of_the_operating_system_is_deterministic(name: str) -> None:
    """It says something about the moment, not about the code."""
    number = getattr(errno, name)
    assert not is_deterministic(OSError(number, os.strerror(number)))
    assert not is_deterministic(OSError(number, ""))


@pytest.mark.parametrize("name", [n for n in ERRNOS if n not in ("EINVAL", "ERANGE")])
def test_its_words_within_another_error_tell_it(name: str) -> None:
    text = f"AOTI: {os.strerror(getattr(errno, name))} [while it ran]"
    assert is_passing_text(text)
    assert not is_deterministic(RuntimeError(text))
    assert not is_deterministic(RuntimeError(f"[Errno {getattr(errno, name)}] in words of another"))


@pytest.mark.parametrize(
    "text",
    [
        "can't start new thread",
        "std::bad_alloc",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: Error code 12 (Cannot allocate memory).",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes.",
        "CUDA out of memory. Tried to allocate 2 GiB",
        "libgomp: Thread creation failed: Resource temporarily unavailable",
        "OMP: Error #34: System unable to allocate necessary resources for OMP thread:",
        "library.so: failed to map segment from shared object",
        "libm.so.6: cannot open shared object file: Too many open files",
        "g++: fatal error: Killed signal terminated program cc1plus",
        "g++: internal compiler error: Terminated (program cc1plus)",
        "virtual memory exhausted",
        "cc1plus: out of memory allocating 65536 bytes",
        "FileSystem does not appear to support flock; use SoftFileLock instead",
        "InductorError: MemoryError: ",
        "OSError: something",
        "subprocess.CalledProcessError: Command 'as' died with <Signals.SIGKILL: 9>.",
    ],
)
def test_a_text_that_tells_of_too_little_of_something_is_passing(text: str) -> None:
    assert is_passing_text(text)
    assert not is_deterministic(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "expected scalar type Float but found Double",
        "LoweringException: AssertionError: \n  target: aten.foo.default",
        "free(): invalid pointer",
        "malloc(): corrupted top size",
        "munmap_chunk(): invalid pointer",
        "double free or corruption (out)",
        "Invalid argument",
        "kernel.cpp:1:1: error: expected ';' before 'for'",
        "the index is out of bounds for a dimension with size 0",
    ],
)
def test_a_text_about_the_code_is_not(text: str) -> None:
    assert not is_passing_text(text)
    assert is_deterministic(RuntimeError(text))


def test_what_led_to_an_error_counts() -> None:
    def from_() -> None:
        try:
            Path("/nowhere/at/all").read_bytes()
        except OSError as error:
            raise RuntimeError("it failed") from error

    def during() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("it failed") from None

    def both() -> None:
        try:
            during()
        except ValueError as error:
            raise KeyError("it failed") from error

    for raises in (from_, during, both):
        assert not is_deterministic(raised(raises)), raises
    assert len(list(error_chain(raised(both)))) == 3


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("_regex.so: failed to map segment from shared object"),
        subprocess.CalledProcessError(1, "g++"),
        subprocess.TimeoutExpired("g++", 1.0),
        KeyboardInterrupt(),
        SystemExit(1),
        EOFError(),
    ],
)
def test_what_ended_a_process_or_an_import_is_not_deterministic(error: BaseException) -> None:
    assert not is_deterministic(error)


def wrapped(error: Exception) -> InductorError:
    """Return ``error`` as Inductor raises it."""
    return InductorError(error, None)


@pytest.mark.parametrize(
    ("error", "is_own"),
    [
        (MissingOperatorWithoutDecomp("aten.foo", [], {}), True),
        (LoweringException(AssertionError("no"), "aten.foo", [], {}), True),
        (NotImplementedError("View"), True),
        (AttributeError("'NoneType' object has no attribute 'layout'"), True),
        (RuntimeError("can't start new thread"), False),
        (NotImplementedError("FileSystem does not appear to support flock"), False),
        (LoweringException(OSError(24, "Too many open files"), "aten.foo", [], {}), False),
        (CppCompileError(["g++"], "error: expected ';'"), False),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), False),
        (MemoryError(), False),
        (subprocess.CalledProcessError(1, "as"), False),
        (type("SomethingElse", (Exception,), {})("unheard of"), False),
    ],
)
def test_inductor_s_own_errors_are_told_from_what_happened_to_it(
    error: Exception, is_own: bool
) -> None:
    assert is_compilers_own(error) is is_own
    assert is_compilers_own(wrapped(error)) is is_own


# --- which reasons there are ---


def test_what_is_remembered_has_a_reason_that_users_are_told_of() -> None:
    assert set(REASONS) > REMEMBERED
    never = {"library_unloadable", "compile_timeout", "worker_died", "no_compiler"}
    assert not REMEMBERED & (never | {"store_unwritable", "unmeasured", "op_not_in_worker"})


def test_a_compile_error_is_not_remembered_unless_it_says_so() -> None:
    assert not CompileError("compile_failed", "it failed").remember
    assert CompileError("does_not_trace", "it failed", remember=True).remember


def test_nothing_but_the_reasons_on_the_list_is_raised_as_remembered() -> None:
    found = set()
    for path in Path(aoti_eager.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            says = {word.arg: ast.unparse(word.value) for word in node.keywords}
            is_remembered = says.get("remember", "False") != "False"
            if node.func.id == "_refusal" or (node.func.id == "CompileError" and is_remembered):
                # A name: the reason of another process's answer, which is judged once more.
                found |= {one.value for one in node.args[:1] if isinstance(one, ast.Constant)}
    assert found <= REMEMBERED
    assert "no_kernel_of_its_own" in found


def test_the_reasons_that_docs_call_remembered_are_those_that_are() -> None:
    root = Path(aoti_eager.__file__).parents[1]
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", (root / "docs/declines.md").read_text(), flags=re.M)
    told = {reason for reason, rest in rows if re.search(r"\bRemembered\b", rest)}
    assert told - {"slower"} == REMEMBERED  # What is measured is no failure, and not an entry.
