"""Packages: what is unpacked, once; and what is wrong with one."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from aoti_eager._runner import package as package_module
from aoti_eager._runner.package import (
    Package,
    check_metadata,
    is_package,
    unpack,
)
from aoti_eager.errors import LibraryLoadError

from ..support import forked_python
from ..support.runner_libraries import Libraries

CPU = torch.device("cpu")
MODEL = "model/data/aotinductor/model"


def make_package(path: Path, members: dict[str, str | bytes]) -> Path:
    """Write an archive of the members, as torch does: stored, not compressed."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of a library that is none: unpacking does not look into it."""
    members: dict[str, str | bytes] = {
        f"{MODEL}/abc.wrapper.so": b"\x7fELF" * 1000,
        f"{MODEL}/abc.wrapper_metadata.json": '{"AOTI_DEVICE_KEY": "cpu", "N": 1}',
        f"{MODEL}/kernel.cubin": b"kernel",
        "model/data/weights/weight_0": b"somewhere else",
        "model/archive_format": "pt2",
    }
    return make_package(tmp_path / "model.pt2", members)


def refused(path: Path, model_name: str = "model") -> str:
    """Return why unpacking is refused."""
    with pytest.raises(LibraryLoadError) as caught:
        unpack(path, model_name)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), "the message says where"
    return message.removeprefix(f"{path}: ")


def test_a_package_is_told_by_its_content(libraries: Libraries, tmp_path: Path) -> None:
    assert is_package(libraries.package("dynamic"))
    assert not is_package(libraries.so("thin"))
    assert not is_package(tmp_path)
    assert not is_package(tmp_path / "missing.pt2")
    renamed = tmp_path / "model.so"
    shutil.copy(libraries.package("dynamic"), renamed)
    assert is_package(renamed)


def test_a_model_is_unpacked_with_the_files_beside_its_library(package: Path) -> None:
    found = unpack(package, "model")
    assert found.library.name == "abc.wrapper.so"
    assert found.library.read_bytes() == b"\x7fELF" * 1000
    assert sorted(path.name for path in found.directory.iterdir()) == [
        "abc.wrapper.so",
        "abc.wrapper_metadata.json",
        "kernel.cubin",
    ]
    assert found.weights is None
    assert found.metadata == {"AOTI_DEVICE_KEY": "cpu", "N": "1"}


def test_a_package_of_aotinductors(libraries: Libraries) -> None:
    found = unpack(libraries.package("blob"), "model")
    assert found.metadata["AOTI_DEVICE_KEY"] == "cpu"
    assert found.weights is not None
    assert found.weights.read_bytes() == libraries.weights().read_bytes()
    check_metadata(libraries.package("blob"), found, CPU)


def test_a_package_is_unpacked_once(package: Path) -> None:
    assert unpack(package, "model") is unpack(package, "model")


def test_threads_unpack_a_package_once(package: Path, threads: ThreadPoolExecutor) -> None:
    futures = [threads.submit(unpack, package, "model") for _ in range(8)]
    assert len({future.result(60).directory for future in futures}) == 1


def test_a_package_that_was_replaced_is_another_one(package: Path) -> None:
    before = unpack(package, "model")
    package.unlink()
    make_package(package, {f"{MODEL}/new.so": b"\x7fELF"})
    assert unpack(package, "model").library.name == "new.so"
    assert before.library.exists()


def test_a_package_whose_files_were_removed_is_unpacked_again(package: Path) -> None:
    shutil.rmtree(unpack(package, "model").directory)
    assert unpack(package, "model").library.exists()


def test_one_of_several_models_is_chosen_by_its_name(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {
        f"p/data/aotinductor/{name}/{name}.so": name for name in ("encoder", "decoder")
    }
    path = make_package(tmp_path / "two.pt2", members)
    assert unpack(path, "decoder").library.read_bytes() == b"decoder"
    assert refused(path) == "has no AOTInductor model 'model'; it has 'decoder', 'encoder'"


def test_names_do_not_lead_out_of_the_directory(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {
        f"{MODEL}/x.so": b"",
        f"{MODEL}/../../../../../../evil": b"evil",
        f"{MODEL}//etc/other": b"evil",
    }
    found = unpack(make_package(tmp_path / "evil.pt2", members), "model")
    assert {path.name for path in found.directory.iterdir()} == {"x.so", "evil", "other"}


@pytest.mark.parametrize("name", ["x.so", "weights.blob"])
def test_two_files_that_would_overwrite_each_other_are_refused(tmp_path: Path, name: str) -> None:
    members: dict[str, str | bytes] = {
        f"{MODEL}/x.so": b"",
        f"{MODEL}/a/{name}": b"one",
        f"{MODEL}/b/{name}": b"two",
    }
    path = make_package(tmp_path / "twice.pt2", members)
    assert refused(path).startswith(f"its model has two files called {name!r}, ")


def test_a_name_that_is_no_name_is_refused(tmp_path: Path) -> None:
    for number, name in enumerate((f"{MODEL}/..", f"{MODEL}", f"{MODEL}/x/..")):
        path = make_package(tmp_path / f"{number}.pt2", {name: b"", f"{MODEL}/x.so": b""})
        assert "cannot be unpacked" in refused(path)


def test_a_package_without_models(tmp_path: Path) -> None:
    path = make_package(tmp_path / "x.pt2", {"x/archive_format": "pt2"})
    assert refused(path) == "has no AOTInductor model 'model'; it has none"


def test_an_archive_of_nothing(tmp_path: Path) -> None:
    path = make_package(tmp_path / "x.pt2", {})
    assert "has no AOTInductor model" in refused(path)


@pytest.mark.parametrize("count", [0, 2])
def test_a_model_must_have_one_library(tmp_path: Path, count: int) -> None:
    members: dict[str, str | bytes] = {f"{MODEL}/source.cpp": "int x;"}
    members |= {f"{MODEL}/{number}.so": b"" for number in range(count)}
    path = make_package(tmp_path / "x.pt2", members)
    assert refused(path).startswith(f"model 'model' has {count} libraries, one is wanted")


def test_a_flipped_byte_is_found(package: Path) -> None:
    content = bytearray(package.read_bytes())
    content[content.index(b"\x7fELF") + 1000] ^= 1
    package.write_bytes(content)
    assert "is a damaged package: Bad CRC-32" in refused(package)


def test_a_compressed_package_with_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{MODEL}/x.so", bytes(range(256)) * 100)
    content = bytearray(path.read_bytes())
    content[60:70] = bytes(10)
    path.write_bytes(content)
    assert "is a damaged package" in refused(path)


def test_an_encrypted_package_is_refused(package: Path) -> None:
    content = bytearray(package.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    content[6] |= 1
    package.write_bytes(content)
    assert "encrypted" in refused(package)


def test_a_truncated_package_is_no_package_any_more(libraries: Libraries, tmp_path: Path) -> None:
    """What is left is refused as a library, which says so: see test_elf.py."""
    content = libraries.package("dynamic").read_bytes()
    path = tmp_path / "x.pt2"
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_package(path)


def test_a_package_with_garbled_tables_is_an_error_or_no_difference(package: Path) -> None:
    content = package.read_bytes()
    tables = content.index(b"PK\x01\x02")
    errors = 0
    for offset in range(tables, len(content), 3):
        garbled = bytearray(content)
        garbled[offset] ^= 0xFF
        package.write_bytes(garbled)
        try:
            if is_package(package):
                unpack(package, "model")
        except LibraryLoadError:
            errors += 1
    assert errors > 10


def test_damaged_metadata_is_refused(tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[1]", '"x"', "\xff")):
        members: dict[str, str | bytes] = {
            f"{MODEL}/x.so": b"",
            f"{MODEL}/x_metadata.json": text.encode("latin-1"),
        }
        path = make_package(tmp_path / f"{number}.pt2", members)
        assert refused(path).startswith("its x_metadata.json is damaged")


def test_a_full_disk_is_an_error_of_the_package(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    why = refused(package)
    assert why.startswith("cannot be unpacked into ")
    assert not Path(why.split()[4].rstrip(":")).exists(), "what was unpacked stays behind"
    monkeypatch.undo()
    assert unpack(package, "model").library.exists()


# -- bombs --


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packages are unpacked: an empty directory."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write an archive with compression."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def declare(path: Path, size_bytes: int, member: int = 0) -> Path:
    """Change what the archive's table of contents says of one member's size."""
    content = bytearray(path.read_bytes())
    at = -1
    for _ in range(member + 1):
        at = content.index(b"PK\x01\x02", at + 1)
    content[at + 24 : at + 28] = size_bytes.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def test_a_package_that_would_become_huge_is_refused_before_anything_is_written(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "bomb.pt2", {f"{MODEL}/x.so": bytes(65 << 20)})
    monkeypatch.setattr(shutil, "copyfileobj", lambda *_: pytest.fail("it was unpacked"))
    why = refused(path)
    assert why.startswith("would become 65.0 MiB from 0.1 MiB; 64.0 MiB are allowed, which is 50 ")
    assert "pack it again without compression (zip -0)" in why
    assert list(temporary.iterdir()) == []


def test_a_sum_over_many_files_counts(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "_SMALL_BYTES", 1 << 20)
    members = {f"{MODEL}/{n}.bin": bytes(100_000) for n in range(20)}
    path = packed(tmp_path / "bomb.pt2", {f"{MODEL}/x.so": b"", **members})
    assert refused(path).startswith("would become 1.9 MiB from 0.0 MiB; 1.0 MiB are allowed")
    assert list(temporary.iterdir()) == []


def test_stored_weights_of_any_size_and_a_small_package_of_zeros_are_unpacked(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = packed(tmp_path / "small.pt2", {f"{MODEL}/x.so": bytes(10 << 20)})
    assert unpack(small, "model").library.stat().st_size == 10 << 20
    monkeypatch.setattr(package_module, "_SMALL_BYTES", 1000)
    stored = make_package(tmp_path / "large.pt2", {f"{MODEL}/x.so": bytes(10 << 20)})
    assert unpack(stored, "model").library.stat().st_size == 10 << 20


def test_what_has_no_room_is_refused_before_anything_is_written(
    package: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(temporary)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3000))
    monkeypatch.setattr(shutil, "copyfileobj", lambda *_: pytest.fail("it was unpacked"))
    why = refused(package)
    assert why.startswith(f"would become 0.0 MiB, and {temporary} has 0.0 MiB free; make room")
    assert "set TMPDIR" in why
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("declared", [0, 10, 9_999_999])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_table_of_contents_that_lies_is_found_and_nothing_stays(
    tmp_path: Path, temporary: Path, declared: int, method: int
) -> None:
    path = packed(tmp_path / "x.pt2", {f"{MODEL}/x.so": bytes(range(256)) * 4000}, method)
    assert "is a damaged package" in refused(declare(path, declared))
    assert list(temporary.iterdir()) == []


def test_bytes_are_counted_whatever_the_table_of_contents_says(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zipfile that believes the stream, and not the table."""
    path = packed(tmp_path / "x.pt2", {f"{MODEL}/x.so": bytes(1 << 20)})
    monkeypatch.setattr(package_module, "_check_sizes", lambda *_: 1000)
    assert refused(path) == (
        "is a damaged package: it has more bytes than its table of contents says"
    )
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_torch_does_not_read_is_refused(tmp_path: Path, method: int) -> None:
    """Its blocks have no bound in memory."""
    path = packed(tmp_path / "x.pt2", {f"{MODEL}/x.so": bytes(1 << 20)}, method)
    assert refused(path).startswith(
        f"is compressed by zip's method {method}; stored and deflate are supported"
    )


def test_a_package_of_too_many_files_is_refused(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "_MOST_MEMBERS", 10)
    members: dict[str, str | bytes] = {f"{MODEL}/{n}": b"" for n in range(10)}
    path = make_package(tmp_path / "x.pt2", {f"{MODEL}/x.so": b"", **members})
    assert refused(path) == "its model has 11 files; up to 10 are allowed"
    assert list(temporary.iterdir()) == []


def test_a_table_of_contents_without_end_is_not_read(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "_LONGEST_READ", 300)
    assert "is a damaged package: its table of contents has" in refused(package)


def test_metadata_without_end_is_not_read(tmp_path: Path) -> None:
    for number, text in enumerate((" " * (1 << 20) + "{}", "[" * 100_000)):
        members: dict[str, str | bytes] = {f"{MODEL}/x.so": b"", f"{MODEL}/x_metadata.json": text}
        path = make_package(tmp_path / f"{number}.pt2", members)
        assert refused(path).startswith("its x_metadata.json is damaged")


# -- metadata --


def checked(tmp_path: Path, **metadata: str) -> None:
    package = Package(tmp_path / "x.so", tmp_path, None, metadata)
    check_metadata(tmp_path / "x.pt2", package, CPU)


def test_metadata_of_this_machine_passes(tmp_path: Path) -> None:
    checked(tmp_path)
    checked(
        tmp_path,
        AOTI_DEVICE_KEY="cpu",
        AOTI_PLATFORM=sys.platform,
        AOTI_MACHINE=platform.machine(),
        AOTI_CPU_ISA="",
    )


def test_an_instruction_set_of_a_later_torch_passes(tmp_path: Path) -> None:
    checked(tmp_path, AOTI_CPU_ISA="VEC_OF_THE_FUTURE")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("AOTI_DEVICE_KEY", "cuda", "was compiled for cuda, and device is 'cpu'"),
        ("AOTI_PLATFORM", "win32", f"was compiled for win32, and this is {sys.platform}"),
        ("AOTI_MACHINE", "sparc", "was compiled for sparc, and this machine is"),
    ],
)
def test_metadata_of_another_machine_is_refused(
    tmp_path: Path, name: str, value: str, problem: str
) -> None:
    with pytest.raises(LibraryLoadError, match=problem):
        checked(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("isa", "lacks"),
    [("AVX2", "fma"), ("AVX512", "avx512vl"), ("AVX512 AMX", "amx_tile")],
)
def test_an_instruction_set_that_this_cpu_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str, lacks: str
) -> None:
    every = {name for names in package_module._CPU_FEATURES.values() for name in names} | {"sse2"}
    monkeypatch.setattr(package_module, "cpu_features", lambda: frozenset(every))
    checked(tmp_path, AOTI_CPU_ISA=isa)
    monkeypatch.setattr(package_module, "cpu_features", lambda: frozenset(every - {lacks}))
    with pytest.raises(LibraryLoadError, match=f"compiled for {isa}, and this CPU lacks {lacks}"):
        checked(tmp_path, AOTI_CPU_ISA=isa)


# -- what stays --


def test_unpacked_packages_are_removed_at_the_end_of_the_process(package: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from aoti_eager._runner.package import unpack
directory = unpack(Path({str(package)!r}), "model").directory
if os.fork() == 0:
    sys.exit()  # a forked child's end is not that of the process that unpacked it
os.wait()
print([directory.exists(), str(directory)])
"""
    done = forked_python.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    existed, directory = json.loads(done.stdout.replace("'", '"').replace("True", "true"))
    assert existed
    assert not Path(directory).exists()
