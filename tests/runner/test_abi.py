"""Opened libraries: what they must export, and their errors as exceptions."""

from __future__ import annotations

import ctypes
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aoti_eager._runner import elf
from aoti_eager._runner.abi import (
    CONTAINER,
    CONTAINER_FUNCTIONS,
    LAST_ERROR,
    MANIFEST,
    MODEL,
    MODEL_FUNCTIONS,
    KernelLibrary,
    number_of,
    text_of,
)
from aoti_eager.errors import LibraryLoadError, LibraryRunError, MissingSymbolError

from ..support import runner_libraries
from ..support.runner_libraries import HERE, Libraries, compile_cpp


@pytest.fixture
def thin(libraries: Libraries) -> KernelLibrary:
    return KernelLibrary(libraries.so("thin"))


@pytest.fixture
def container(libraries: Libraries) -> KernelLibrary:
    return KernelLibrary(libraries.so("dynamic"))


def test_a_library_with_a_container(container: KernelLibrary) -> None:
    assert container.has_container
    assert container.file is not None
    assert set(CONTAINER_FUNCTIONS) <= container.file.exports


def test_a_library_with_a_model_only(thin: KernelLibrary) -> None:
    assert not thin.has_container
    assert thin.manifest.startswith(b"{")
    assert thin.manifest.rstrip().endswith(b"}")


def test_a_file_whose_digest_was_checked_need_not_be_inspected(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elf, "inspect_library_file", None)
    assert KernelLibrary(libraries.so("dynamic"), inspect=False).file is None


def test_a_file_is_inspected_once(
    libraries: Libraries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.so"
    shutil.copy(libraries.so("thin"), path)
    first = KernelLibrary(path)
    with monkeypatch.context() as patches:
        patches.setattr(elf, "inspect_library_file", None)
        assert KernelLibrary(path).file is first.file
    path.unlink()  # Never in place: the library is mapped, and every lookup of a symbol reads it.
    path.write_text("another file")
    with pytest.raises(LibraryLoadError, match="is no shared object"):
        KernelLibrary(path)


def without(content: bytes, *names: str) -> bytes:
    """Return a library's bytes with functions renamed, so that it lacks them."""
    for name in names:
        assert content.count(name.encode() + b"\0")
        content = content.replace(name.encode() + b"\0", name[:-1].encode() + b"_\0")
    return content


@pytest.mark.parametrize("names", [[LAST_ERROR], [f"{MODEL}Run", MANIFEST], [f"{MODEL}CreateV2"]])
def test_missing_functions_are_named(
    libraries: Libraries, tmp_path: Path, names: list[str]
) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(without(libraries.so("thin").read_bytes(), *names))
    with pytest.raises(MissingSymbolError) as caught:
        KernelLibrary(path)
    assert set(caught.value.symbols) == set(names)
    assert str(caught.value).startswith(f"{path}: lacks ")
    assert all(name in str(caught.value) for name in names)


def test_missing_functions_of_a_container_are_named(libraries: Libraries, tmp_path: Path) -> None:
    """As in libraries of an older torch."""
    path = tmp_path / "x.so"
    name = f"{CONTAINER}ExtractConstantsMapEntries"
    path.write_bytes(without(libraries.so("dynamic").read_bytes(), name))
    with pytest.raises(MissingSymbolError, match=f"lacks {name}; compile it again") as caught:
        KernelLibrary(path)
    assert caught.value.symbols == (name,)


@pytest.fixture(scope="session")
def not_a_kernel_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared object whose constructor ends the process."""
    directory = tmp_path_factory.mktemp("other")
    source = directory / "other.cpp"
    source.write_text(
        "#include <cstdlib>\n"
        "__attribute__((constructor)) static void end() { std::abort(); }\n"
        '__attribute__((visibility("default"))) int one() { return 1; }\n'
    )
    return compile_cpp(source, directory / "other.so")


def test_a_shared_object_that_is_no_kernel_library_is_not_opened(
    not_a_kernel_library: Path,
) -> None:
    with pytest.raises(MissingSymbolError, match="is a shared object but no kernel library") as e:
        KernelLibrary(not_a_kernel_library)
    assert set(e.value.symbols) == {*MODEL_FUNCTIONS, MANIFEST, LAST_ERROR}


def test_a_library_for_another_device_is_not_opened(tmp_path: Path) -> None:
    path = compile_cpp(HERE / "thin_library.cpp", tmp_path / "x.so", "-DIMPORTS_CUDA")
    with pytest.raises(LibraryLoadError, match="is a library for cuda, and device is 'cpu'"):
        KernelLibrary(path, device_type="cpu")
    # To open it would have been another error.
    with pytest.raises(LibraryLoadError, match="cannot be opened: .*undefined symbol: cudaMalloc"):
        KernelLibrary(path)


def test_a_file_that_cannot_be_opened_is_an_error_of_its_path(tmp_path: Path) -> None:
    with pytest.raises(LibraryLoadError, match=f"^{tmp_path}/x.so: cannot be read"):
        KernelLibrary(tmp_path / "x.so")
    with pytest.raises(LibraryLoadError, match=f"^{tmp_path}/x.so: cannot be read"):
        KernelLibrary(tmp_path / "x.so", inspect=False)


def test_one_file_is_one_library(libraries: Libraries, tmp_path: Path) -> None:
    link = tmp_path / "link.so"
    link.symlink_to(libraries.so("thin"))
    assert KernelLibrary(link).identity == KernelLibrary(libraries.so("thin")).identity
    assert KernelLibrary(link).identity != KernelLibrary(libraries.so("dynamic")).identity


def test_an_error_carries_the_librarys_message(thin: KernelLibrary) -> None:
    failures = runner_libraries.thin_number(thin.path, "thin_fail_create")
    failures.value = 1
    handle = ctypes.c_void_p()
    with pytest.raises(LibraryRunError, match="thin.so: making one failed: no more models") as e:
        thin.call(f"{MODEL}CreateV2", "making one", ctypes.byref(handle), None, 0)
    assert e.value.library_message == "no more models today"


def test_messages_call_a_library_by_the_name_it_was_given(libraries: Libraries) -> None:
    library = KernelLibrary(libraries.so("thin"), name="model.pt2")
    with pytest.raises(LibraryRunError, match="^model.pt2: making one failed: "):
        library.check(1, "making one")


def test_an_error_that_torch_knows_more_of_says_it(container: KernelLibrary) -> None:
    with pytest.raises(LibraryRunError, match="Invalid device: moon"):
        container.call(
            f"{CONTAINER}CreateWithDevice",
            "creating",
            ctypes.byref(ctypes.c_void_p()),
            1,
            b"moon",
            None,
        )


def test_the_message_is_that_of_the_threads_own_call(
    container: KernelLibrary, threads: ThreadPoolExecutor
) -> None:
    def fail(device: str) -> str:
        with pytest.raises(LibraryRunError) as caught:
            container.call(
                f"{CONTAINER}CreateWithDevice",
                "creating",
                ctypes.byref(ctypes.c_void_p()),
                1,
                device.encode(),
                None,
            )
        return caught.value.library_message

    devices = [f"moon{number}" for number in range(8)] * 20
    got = list(threads.map(fail, devices))
    assert got == [f"Invalid device: {device}" for device in devices]


def test_an_error_without_a_message_says_so(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = KernelLibrary(libraries.so("dynamic"))
    monkeypatch.setattr(library, "last_error", lambda: "the library gave no message")
    with pytest.raises(LibraryRunError, match="a run failed: the library gave no message"):
        library.check(1, "a run")


def test_success_is_no_error(container: KernelLibrary) -> None:
    container.check(0, "a run")


def test_numbers_and_texts_are_read(container: KernelLibrary) -> None:
    handle = ctypes.c_void_p()
    container.call(
        f"{CONTAINER}CreateWithDevice", "creating", ctypes.byref(handle), 1, b"cpu", None
    )
    try:
        address = handle.value
        count = number_of(container, f"{CONTAINER}GetNumOutputs", ctypes.c_size_t, address)
        assert count == 2
        assert text_of(container, f"{CONTAINER}GetOutputName", "reading", address, 0) == "output0"
        with pytest.raises(LibraryRunError, match="reading failed"):
            text_of(container, f"{CONTAINER}GetOutputName", "reading", address, 9)
    finally:
        container.call(f"{CONTAINER}Delete", "deleting", handle)


def test_closing_twice_does_nothing(libraries: Libraries) -> None:
    library = KernelLibrary(libraries.so("thin"))
    library.close()
    library.close()


def test_a_library_without_unique_symbols_is_unmapped_when_closed(
    libraries: Libraries, tmp_path: Path
) -> None:
    path = tmp_path / "x.so"
    shutil.copy(libraries.so("thin"), path)
    library = KernelLibrary(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    library.close()
    assert str(path) not in Path("/proc/self/maps").read_text()
