"""What is said of a file before it is opened: opening a damaged one can end the process."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from aoti_eager._runner.elf import _dynamic_symbols, inspect_library_file
from aoti_eager.errors import LibraryLoadError

from ..support.runner_libraries import Libraries, compile_cpp

# Offsets in the header of every 64-bit ELF file.
E_TYPE, E_MACHINE = 16, 18
MACHINES = {"aarch64": 183, "i386": 3, "riscv": 243}


@pytest.fixture(scope="session")
def thin(libraries: Libraries) -> bytes:
    return libraries.so("thin").read_bytes()


@pytest.fixture(scope="session")
def calls_cuda(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A shared object that calls ``cudaMalloc``, which no library here has."""
    directory = tmp_path_factory.mktemp("cuda")
    source = directory / "calls.cpp"
    # Exported, as a library without exports has no table of symbols to read.
    source.write_text(
        'extern "C" int cudaMalloc();\n'
        '__attribute__((visibility("default"))) int call() { return cudaMalloc(); }\n'
    )
    return compile_cpp(source, directory / "calls.so").read_bytes()


def problem(path: Path) -> str:
    """Return why the file at ``path`` is refused."""
    with pytest.raises(LibraryLoadError) as caught:
        inspect_library_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), "the message says where"
    assert caught.value.path == str(path)
    return message.removeprefix(f"{path}: ")


def patched(content: bytes, offset: int, value: int) -> bytes:
    return content[:offset] + value.to_bytes(2, sys.byteorder) + content[offset + 2 :]


def test_a_thin_library_is_for_the_cpu_and_needs_no_proxy_executor(libraries: Libraries) -> None:
    file = inspect_library_file(libraries.so("thin"))
    assert file.device_type == "cpu"
    assert not file.needs_proxy_executor
    assert {"AOTInductorModelRun", "aoti_eager_manifest"} <= file.exports
    assert "aoti_torch_empty_strided" not in file.exports  # It takes that one.


def test_aotinductors_libraries_for_the_cpu_are_known_as_such(libraries: Libraries) -> None:
    for name in ("folded", "bare", "blob", "dynamic"):
        file = inspect_library_file(libraries.so(name))
        assert (file.device_type, file.needs_proxy_executor) == ("cpu", False), name
        assert "AOTInductorModelContainerRun" in file.exports


def test_a_library_that_calls_an_op_by_name_needs_the_proxy_executor(libraries: Libraries) -> None:
    assert inspect_library_file(libraries.so("proxy")).needs_proxy_executor


@pytest.mark.parametrize(
    ("symbol", "device_type"),
    [
        ("cudaMalloc", "cuda"),
        ("cuLaunchKn", "cuda"),
        ("hipMallocX", "cuda"),
        ("zeModuleAB", "xpu"),
        ("_ZN4sycl3X", "xpu"),
        ("cudnnSomeX", "cpu"),
        ("custom_fnX", "cpu"),
    ],
)
def test_the_device_is_told_by_what_a_library_calls(
    calls_cuda: bytes, tmp_path: Path, symbol: str, device_type: str
) -> None:
    path = tmp_path / "x.so"
    assert calls_cuda.count(b"cudaMalloc") > 0
    path.write_bytes(calls_cuda.replace(b"cudaMalloc", symbol.encode()))
    assert inspect_library_file(path).device_type == device_type


def test_a_missing_file(tmp_path: Path) -> None:
    assert problem(tmp_path / "x.so") == "cannot be read: No such file or directory"


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in problem(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.touch()
    assert "is empty" in problem(path)


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.write_text("not a library\n" * 100)
    assert "is no shared object" in problem(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    os.mkfifo(path)
    assert problem(path) == "is no regular file"


def test_a_package_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    assert "truncated .pt2 package" in problem(path)


@pytest.mark.parametrize("machine", sorted(MACHINES.keys() - {platform.machine()}))
def test_a_library_of_another_architecture(thin: bytes, tmp_path: Path, machine: str) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(patched(thin, E_MACHINE, MACHINES[machine]))
    assert f"was built for {machine}, and this machine is " in problem(path)


def test_a_library_of_an_architecture_without_a_name(thin: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(patched(thin, E_MACHINE, 9999))
    assert "was built for 9999" in problem(path)


@pytest.mark.parametrize(("number", "name"), [(1, "ET_REL"), (2, "ET_EXEC"), (4, "ET_CORE")])
def test_an_elf_file_that_is_no_shared_object(
    thin: bytes, tmp_path: Path, number: int, name: str
) -> None:
    path = tmp_path / "x.o"
    path.write_bytes(patched(thin, E_TYPE, number))
    assert problem(path) == f"is an ELF file but no shared object ({name})"


def test_a_library_of_32_bits(thin: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(thin[:4] + b"\1" + thin[5:])
    assert problem(path) == "is an ELF file of 32 bits; 64 are supported"


def test_symbols_are_those_that_elftools_finds(libraries: Libraries) -> None:
    with libraries.so("thin").open("rb") as file:
        (segment,) = ELFFile(file).iter_segments("PT_DYNAMIC")
        symbols = list(segment.iter_symbols())
    imports = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"}
    exports = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}
    with libraries.so("thin").open("rb") as file:
        assert _dynamic_symbols(ELFFile(file)) == (imports, exports)
    assert "aoti_torch_empty_strided" in imports


def test_a_truncated_library_at_any_length(thin: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    lengths = {4, 5, 15, 16, 40, 63, 64, 65, 200, 1000, 4096, len(thin) // 2, len(thin) - 1}
    for length in sorted(lengths | set(range(64, len(thin), 997))):
        path.write_bytes(thin[:length])
        assert "truncated" in problem(path), length


def test_a_truncated_library_of_aotinductors(libraries: Libraries, tmp_path: Path) -> None:
    content = libraries.so("dynamic").read_bytes()
    path = tmp_path / "x.so"
    for length in (len(content) // 3, len(content) * 2 // 3, len(content) - 1):
        path.write_bytes(content[:length])
        assert "truncated" in problem(path), length


def test_garbled_headers_are_an_error_or_no_difference(thin: bytes, tmp_path: Path) -> None:
    """Whatever the parser meets: it is never opened here."""
    generator = random.Random(1)
    path = tmp_path / "x.so"
    errors = 0
    for _ in range(100):
        content = bytearray(thin)
        for _ in range(generator.randrange(1, 4)):
            content[generator.randrange(0, 900)] = generator.randrange(256)
        path.write_bytes(content)
        try:
            inspect_library_file(path)
        except LibraryLoadError:
            errors += 1
    assert errors > 30


def test_a_library_without_sections_is_still_read(libraries: Libraries, tmp_path: Path) -> None:
    """Stripped of all that dlopen does not need."""
    path = tmp_path / "x.so"
    path.write_bytes(libraries.so("thin").read_bytes())
    subprocess.run(["strip", str(path)], check=True)
    assert "AOTInductorModelRun" in inspect_library_file(path).exports
