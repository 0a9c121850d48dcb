"""ModelContainerRunner: what it loads, runs and refuses, and its end."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aoti_eager._runner.library_container import LibraryContainer
from aoti_eager._runner.model_container import ModelContainer
from aoti_eager._runner.proxy_container import ProxyContainer
from aoti_eager._runner.runner import ModelContainerRunner
from aoti_eager.errors import (
    ConstantError,
    InputError,
    InputTypeError,
    LibraryLoadError,
    LibraryRunError,
    MissingSymbolError,
    RunnerError,
)

from ..support import forked_python, runner_libraries
from ..support.runner_libraries import (
    HERE,
    HOOKED_WEIGHT,
    NAN,
    SERVED_OUTPUTS,
    TIMEOUT_S,
    Libraries,
    Load,
    X,
    compile_cpp,
    constants_of,
    equal,
    eventually,
    loaded_thin,
    running,
    thin_constants,
    thin_failing_inputs,
    thin_inputs,
    thin_number,
    waiting,
    want,
    watched_tensor,
)

pytestmark = pytest.mark.both_paths

# -- loading --


@pytest.mark.parametrize("name", ["folded", "blob", "proxy", "dynamic"])
def test_a_package_loads_and_runs(libraries: Libraries, name: str) -> None:
    runner_libraries.define_hooked_op()
    with ModelContainerRunner(libraries.package(name), 2) as runner:
        got = runner.run([X])
    if name == "proxy":
        assert equal(got, (X * HOOKED_WEIGHT, X + HOOKED_WEIGHT))
    elif name == "dynamic":
        assert equal(got, (X * 2, torch.histc(X, bins=4)))
    else:
        assert equal(got, want())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("folded", LibraryContainer),
        ("dynamic", LibraryContainer),
        ("proxy", ProxyContainer),
        ("thin", ModelContainer),
    ],
)
def test_each_kind_of_shared_object_loads_and_runs(
    load: Load, name: str, kind: type[object]
) -> None:
    runner = load(name, 3)
    assert type(runner._container) is kind
    if name == "thin":
        runner.update_constant_buffer(thin_constants(2))
    outputs = runner.run(thin_inputs() if name == "thin" else [X])
    assert len(outputs) == runner.num_outputs


def test_a_runner_says_what_it_takes_and_gives(load: Load) -> None:
    runner = load("thin", 2)
    assert runner.input_names == ("x", "milliseconds", "gate")
    assert runner.output_names == ("scaled", "shifted", "span")
    assert (runner.num_inputs, runner.num_outputs) == (3, 3)
    assert runner.get_call_spec() == ["in", "out"]
    assert (runner.device, runner.num_models) == (torch.device("cpu"), 2)


def test_the_call_spec_of_a_program_is_its_pytrees(load: Load) -> None:
    runner = load("folded")
    first, second = (json.loads(spec)[1] for spec in runner.get_call_spec())
    assert [child["type"] for child in first["children_spec"]] == [
        "builtins.tuple",
        "builtins.dict",
    ]
    assert len(second["children_spec"]) == SERVED_OUTPUTS == runner.num_outputs


def test_the_repr_says_file_device_and_state(load: Load) -> None:
    runner = load("thin", 2)
    assert repr(runner) == "<ModelContainerRunner thin.so on cpu, num_models=2>"
    runner.close()
    assert repr(runner) == "<ModelContainerRunner thin.so on cpu, closed>"


def test_the_path_may_be_relative_or_text(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(libraries.directory)
    for path in ("dynamic.pt2", Path("dynamic.pt2"), "thin.so"):
        ModelContainerRunner(path).close()


@pytest.mark.parametrize("num_models", [0, -1, True, "2", 1.0, None])
def test_num_models_must_be_a_number_from_one_on(libraries: Libraries, num_models: Any) -> None:
    with pytest.raises(ValueError, match="an int of at least 1 is wanted"):
        ModelContainerRunner(libraries.so("thin"), num_models)


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("nonsense", "device is 'nonsense'; 'cpu', 'cuda:0' or 'xpu' are wanted"),
        (None, "device is None"),
        ("meta", "ModelContainerRunner runs on cpu, cuda, xpu, other devices' libraries are"),
    ],
)
def test_what_is_no_device_for_it_is_refused(
    libraries: Libraries, device: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        ModelContainerRunner(libraries.so("thin"), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_is_refused(libraries: Libraries) -> None:
    with pytest.raises(ValueError, match="device is 'cuda'; no cuda device is available here"):
        ModelContainerRunner(libraries.so("thin"), device="cuda")


def test_a_library_for_another_device_is_refused(tmp_path: Path) -> None:
    path = compile_cpp(HERE / "thin_library.cpp", tmp_path / "x.so", "-DIMPORTS_CUDA")
    with pytest.raises(LibraryLoadError, match=f"^{path}: is a library for cuda, and device is"):
        ModelContainerRunner(path)


def repacked(libraries: Libraries, path: Path, **metadata: str) -> Path:
    """Write a copy of the package ``dynamic`` with other metadata."""
    with (
        zipfile.ZipFile(libraries.package("dynamic")) as before,
        zipfile.ZipFile(path, "w") as after,
    ):
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("wrapper_metadata.json"):
                content = json.dumps({**json.loads(content), **metadata}).encode()
            after.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("AOTI_DEVICE_KEY", "cuda", "was compiled for cuda, and device is 'cpu'"),
        ("AOTI_PLATFORM", "darwin", "was compiled for darwin, and this is"),
        ("AOTI_MACHINE", "sparc", "was compiled for sparc, and this machine is"),
    ],
)
def test_a_package_for_another_machine_is_refused(
    libraries: Libraries, tmp_path: Path, name: str, value: str, problem: str
) -> None:
    path = repacked(libraries, tmp_path / "x.pt2", **{name: value})
    with pytest.raises(LibraryLoadError, match=f"^{path}: {problem}"):
        ModelContainerRunner(path)


def test_a_package_for_instructions_this_cpu_lacks_is_refused(
    libraries: Libraries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repacked(libraries, tmp_path / "x.pt2", AOTI_CPU_ISA="AVX512")
    monkeypatch.setattr(
        "aoti_eager._runner.package.cpu_features", lambda: frozenset({"sse2", "avx2"})
    )
    with pytest.raises(LibraryLoadError, match="compiled for AVX512, and this CPU lacks avx512f"):
        ModelContainerRunner(path)


def test_a_package_has_no_model_of_another_name(libraries: Libraries) -> None:
    with pytest.raises(LibraryLoadError, match="has no AOTInductor model 'x'; it has 'model'"):
        ModelContainerRunner(libraries.package("dynamic"), model_name="x")


# One child for all: whichever of them ended the process would be seen.
LOAD_BAD_FILES = """
import json, os, subprocess, sys
from pathlib import Path
from aoti_eager._runner.runner import ModelContainerRunner

good, work = Path(sys.argv[1]), Path(sys.argv[2])
libraries = {path.name: path.read_bytes() for path in good.glob("*.so")}
libraries |= {f"{path.name}.so": next(path.glob("*.so")).read_bytes()
              for path in good.iterdir() if path.is_dir() and list(path.glob("*.so"))}
files = {"empty": b"", "text": b"hello " * 999, "zeros": bytes(9999), "elf": b"\\x7fELF"}
for name, content in libraries.items():
    for part in (1, 3, 5, 7, 9):
        files[f"{name} {part}/10"] = content[: len(content) * part // 10]
    files[f"{name} but its last byte"] = content[:-1]
    files[f"{name} for i386"] = content[:18] + (3).to_bytes(2, sys.byteorder) + content[20:]
    files[f"{name} object"] = content[:16] + (1).to_bytes(2, sys.byteorder) + content[18:]
package = (good / "dynamic.pt2").read_bytes()
for part in (1, 5, 9):
    files[f"package {part}/10"] = package[: len(package) * part // 10]
files["package but its last byte"] = package[:-1]
result = {}
for name, content in files.items():
    path = work / "file"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        ModelContainerRunner(path)
    except Exception as error:
        result[name] = [type(error).__name__, str(error)]
    else:
        result[name] = ["", "it was loaded"]
for path in (work, sys.executable, "/dev/null", "/dev/zero", work / "missing", work / "file" / "x"):
    try:
        ModelContainerRunner(path)
    except Exception as error:
        result[str(path)] = [type(error).__name__, str(error)]
print(json.dumps(result))
"""


def test_bad_files_are_load_errors_and_the_process_lives(
    libraries: Libraries, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = forked_python.run(
        [sys.executable, "-c", LOAD_BAD_FILES, libraries.directory, work],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result) > 50
    # Most are linked as shared objects are.
    assert result.pop(sys.executable)[0] in ("MissingSymbolError", "LibraryLoadError")
    assert {kind for kind, _ in result.values()} == {"LibraryLoadError"}, result
    for name, (_, message) in result.items():
        path = name if name.startswith("/") else f"{work}/file"
        assert message.startswith(f"{path}: "), name
        if "/10" in name or "last byte" in name:
            assert any(word in message for word in ("truncated", "cannot be loaded")), message


def test_a_shared_object_that_is_no_kernel_library_names_what_it_lacks(tmp_path: Path) -> None:
    source = tmp_path / "one.cpp"
    source.write_text('__attribute__((visibility("default"))) int one() { return 1; }')
    path = compile_cpp(source, tmp_path / "one.so")
    with pytest.raises(MissingSymbolError, match="no kernel library") as caught:
        ModelContainerRunner(path)
    assert "AOTInductorModelRun" in caught.value.symbols


def test_a_library_that_cannot_make_its_models_is_a_load_error(libraries: Libraries) -> None:
    path = libraries.so("thin")
    models = thin_number(path, "thin_live_models")
    before = models.value
    thin_number(path, "thin_fail_create").value = 2
    with pytest.raises(LibraryLoadError, match="cannot be loaded: .*no more models") as caught:
        ModelContainerRunner(path, 3)
    assert isinstance(caught.value.__cause__, LibraryRunError)
    assert models.value == before


# -- running --


def test_a_run_returns_the_outputs_and_leaves_the_inputs(thin: ModelContainerRunner) -> None:
    inputs = thin_inputs()
    scaled, shifted, span = thin.run(inputs)
    assert len(inputs) == 3
    assert torch.equal(scaled, X * 2)
    assert torch.equal(shifted, X + 2)
    assert span.dtype == torch.int64


def test_inputs_may_be_any_sequence(load: Load) -> None:
    runner = load("dynamic")
    for inputs in ((X,), [X]):
        assert torch.equal(runner.run(inputs)[0], X * 2)


def test_outputs_of_a_run_outlive_the_runner(libraries: Libraries) -> None:
    with ModelContainerRunner(libraries.package("folded")) as runner:
        got = runner.run([X])
    del runner
    gc.collect()
    assert equal(got, want())


@pytest.mark.parametrize("name", ["thin", "dynamic", "proxy"])
def test_a_boxed_run_empties_the_list_and_frees_the_inputs(load: Load, name: str) -> None:
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    x, is_held = watched_tensor(X)
    inputs = thin_inputs(x) if name == "thin" else [x]
    del x
    outputs = runner.boxed_run(inputs)
    assert inputs == []
    assert not is_held()
    assert outputs[0].shape == X.shape


def test_a_boxed_run_leaves_inputs_that_others_hold(load: Load) -> None:
    x, is_held = watched_tensor(X)
    load("dynamic").boxed_run([x])
    assert is_held()
    assert torch.equal(x, X)


def test_a_boxed_run_that_fails_has_taken_its_inputs(load: Load) -> None:
    runner = load("dynamic")
    x, is_held = watched_tensor(NAN)
    inputs = [x]
    del x
    with pytest.raises(LibraryRunError):
        runner.boxed_run(inputs)
    assert inputs == []
    assert not is_held()


@pytest.mark.parametrize(
    "inputs",
    [[], [X, X], [None], [X.double()], [X.to("meta")], [X[:, :8].contiguous()]],
    ids=["none", "two", "None", "dtype", "device", "sizes"],
)
def test_a_boxed_run_that_is_refused_leaves_the_list(load: Load, inputs: list[Any]) -> None:
    runner = load("dynamic")
    before = list(inputs)
    with pytest.raises(InputError):
        runner.boxed_run(inputs)
    assert len(inputs) == len(before)
    for left, given in zip(inputs, before, strict=True):
        assert left is given or torch.equal(left, given)


def test_a_boxed_run_takes_a_list(load: Load) -> None:
    inputs: Any = (X,)
    with pytest.raises(InputTypeError, match="boxed_run takes a list, which it empties; got tuple"):
        load("dynamic").boxed_run(inputs)


def test_a_wrong_number_of_inputs_is_refused_with_their_names(load: Load) -> None:
    runner = load("thin")
    with pytest.raises(InputError, match=r"got 1 inputs; 3 are wanted: x, milliseconds, gate"):
        runner.run([X])
    with pytest.raises(InputError, match="got 0 inputs"):
        runner.run([])


@pytest.mark.parametrize("value", [None, 1.0, [1.0], X.numpy()])
def test_an_input_that_is_no_tensor_is_refused(load: Load, value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(InputTypeError, match=f"input 0 .* is {kind}; a tensor is wanted"):
        load("dynamic").run([value])
    inputs: list[Any] = [*thin_inputs()[:2], value]
    with pytest.raises(InputTypeError, match=rf"input 2 \(gate\) is {kind}; a tensor is wanted"):
        load("thin").run(inputs)


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (X.to("meta"), "is on meta; the runner is on cpu"),
        (X.to_sparse(), "is no plain strided tensor"),
        (X.to(torch.complex64).conj(), "is no plain strided tensor"),
        (torch._neg_view(X), "is no plain strided tensor"),
        (X.to_mkldnn(), "is no plain strided tensor"),
        (torch._efficientzerotensor((8, 16)), "has no data of its own"),
        (FakeTensorMode().from_tensor(X), r"has no data of its own \(FakeTensor\)"),
    ],
    ids=["meta", "sparse", "conj", "neg", "mkldnn", "zero tensor", "fake"],
)
@pytest.mark.parametrize("name", ["dynamic", "thin"])
def test_an_input_that_a_library_cannot_read_is_refused(
    load: Load, name: str, x: Tensor, problem: str
) -> None:
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    with pytest.raises(InputError, match=f"input 0 .* {problem}"):
        runner.run(thin_inputs(x) if name == "thin" else [x])
    runner.run(thin_inputs() if name == "thin" else [X])


def test_an_input_whose_storage_was_freed_is_refused(load: Load) -> None:
    x = X.clone()
    x.untyped_storage().resize_(0)
    with pytest.raises(InputError, match="has no data of its own"):
        load("dynamic").run([x])


WRONG_INPUTS = [
    (X.double(), "has dtype torch.float64; torch.float32 is wanted"),
    (X.to(torch.complex64), "has dtype torch.complex64; torch.float32 is wanted"),
    (X[:, :8].contiguous(), "8"),
    (X.t().contiguous().t(), "stride"),
    (torch.zeros(1, 16).expand(8, 16), "stride"),
    (X.reshape(8, 16, 1), "expected ndim 2 but got 3|sizes"),
    (X.reshape(-1), "16|128"),
    (torch.tensor(1.0), "0|1"),
]


@pytest.mark.parametrize("name", ["dynamic", "folded", "proxy", "thin"])
def test_wrong_dtypes_sizes_and_strides_are_refused(load: Load, name: str) -> None:
    """By AOTInductor's own checks, off by default; an unchecked one is read past its end."""
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    for x, problem in WRONG_INPUTS:
        with pytest.raises(InputError, match=f"input.*({problem})"):
            runner.run(thin_inputs(x) if name == "thin" else [x])
    runner.run(thin_inputs() if name == "thin" else [X])


def test_a_size_below_a_dynamic_dimensions_range_is_refused_with_the_reason(load: Load) -> None:
    with pytest.raises(InputError, match="the library was compiled for a range that begins there"):
        load("dynamic").run([X[:1]])


def test_inputs_are_still_checked_when_a_library_is_loaded_again(libraries: Libraries) -> None:
    for _ in range(3):
        with ModelContainerRunner(libraries.so("bare")) as runner:
            runner.update_constant_buffer(constants_of("bare"))
            with pytest.raises(InputError, match="has dtype torch.float64"):
                runner.run([X.double()])
        del runner
        gc.collect()


def test_a_first_run_that_never_came_to_the_library_leaves_its_checks_on(
    libraries: Libraries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.so"
    shutil.copy(libraries.so("dynamic"), path)
    with ModelContainerRunner(path) as runner:
        with monkeypatch.context() as patches:
            patches.setattr("aoti_eager._runner.container.new_handles", None)
            with pytest.raises(TypeError):
                runner.run([X])
        with pytest.raises(InputError, match="has dtype torch.float64"):
            runner.run([X.double()])


def test_the_variable_that_switches_checks_on_is_off_again_after_a_run(load: Load) -> None:
    load("dynamic").run([X])
    assert os.environ.get("AOTI_RUNTIME_CHECK_INPUTS", "0") == "0"


def test_there_are_no_streams_on_the_cpu(load: Load) -> None:
    with pytest.raises(RunnerError, match="a run on cpu has no stream; got 0"):
        load("dynamic").run([X], stream=0)


@pytest.mark.parametrize("name", ["dynamic", "thin"])
def test_a_failed_run_raises_the_librarys_message_and_the_next_one_works(
    load: Load, name: str
) -> None:
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    failing = thin_failing_inputs() if name == "thin" else [NAN]
    message = "x begins with NaN" if name == "thin" else "torch.histc: range of"
    for _ in range(3):
        with pytest.raises(LibraryRunError, match=message) as caught:
            runner.run(failing)
        assert message in caught.value.library_message
    runner.run(thin_inputs() if name == "thin" else [X])


def test_errors_call_a_package_by_its_own_name(libraries: Libraries) -> None:
    with ModelContainerRunner(libraries.package("dynamic")) as runner:
        with pytest.raises(LibraryRunError, match="^dynamic.pt2: a run failed: "):
            runner.run([NAN])
        with pytest.raises(InputError, match="^dynamic.pt2: input 0 "):
            runner.run([X.double()])


@pytest.mark.parametrize("name", ["dynamic", "thin", "proxy"])
def test_grad_is_off_inside_of_a_run_and_as_before_after_it(load: Load, name: str) -> None:
    runner = loaded_thin(load, 1) if name == "thin" else load(name)

    def inputs(x: Tensor) -> list[Tensor]:
        return thin_inputs(x) if name == "thin" else [x]

    seen: list[bool] = []
    runner_libraries.hooks.append(lambda x: seen.append(torch.is_grad_enabled()))
    x = X.clone().requires_grad_()
    assert not any(output.requires_grad for output in runner.run(inputs(x)))
    assert torch.is_grad_enabled()
    if name != "proxy":
        with pytest.raises(LibraryRunError):
            runner.run(inputs(NAN.clone().requires_grad_()))
        assert torch.is_grad_enabled()
    with torch.no_grad():
        runner.run(inputs(x))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        runner.run(inputs(X.clone()))
        assert torch.is_inference_mode_enabled()
    assert not any(seen)


# -- the end --


USES: list[Callable[[ModelContainerRunner], object]] = [
    lambda runner: runner.run(thin_inputs()),
    lambda runner: runner.boxed_run(thin_inputs()),
    lambda runner: runner.constants,
    lambda runner: runner.constant_names_to_original_fqns(),
    lambda runner: runner.constant_names_to_dtypes(),
    lambda runner: runner.extract_constants_map(),
    lambda runner: runner.update_constant_buffer(thin_constants(1)),
    lambda runner: runner.update_inactive_constant_buffer(thin_constants(1)),
    lambda runner: runner.update_constant_buffer_from_blob("x"),
    lambda runner: runner.run_const_fold(),
    lambda runner: runner.run_const_fold(use_inactive=True),
    lambda runner: runner.swap_constant_buffer(),
    lambda runner: runner.free_inactive_constant_buffer(),
    lambda runner: runner.get_call_spec(),
    lambda runner: runner.input_names,
    lambda runner: runner.output_names,
    lambda runner: runner.num_inputs,
    lambda runner: runner.num_outputs,
]


def test_a_closed_runner_refuses_every_use_also_of_other_threads(
    thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    thin.close()
    for use in USES:
        with pytest.raises(RunnerError, match="thin.so: the runner is closed"):
            threads.submit(use, thin).result(TIMEOUT_S)


def test_closing_twice_does_nothing(thin: ModelContainerRunner) -> None:
    thin.close()
    thin.close()


def test_closing_waits_for_running_calls_and_refuses_those_that_wait(
    thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    gate, run = running(threads, thin)
    closing = threads.submit(thin.close)
    eventually(lambda: waiting(thin) == 1)
    later = threads.submit(thin.run, thin_inputs())
    change = threads.submit(thin.update_constant_buffer, thin_constants(3))
    eventually(lambda: waiting(thin) == 2)
    assert not closing.done()
    gate.open()
    closing.result(TIMEOUT_S)
    assert torch.equal(run.result(TIMEOUT_S)[0], X * 2)
    for future in (later, change):
        with pytest.raises(RunnerError, match="the runner is closed"):
            future.result(TIMEOUT_S)


def test_leaving_the_with_block_closes(libraries: Libraries) -> None:
    models = thin_number(libraries.so("thin"), "thin_live_models")
    before = models.value
    with ModelContainerRunner(libraries.so("thin"), 3) as runner:
        assert models.value == before + 3
    assert models.value == before
    with pytest.raises(RunnerError, match="the runner is closed"):
        runner.run(thin_inputs())


def test_a_runner_that_nobody_holds_is_deleted(libraries: Libraries) -> None:
    models = thin_number(libraries.so("thin"), "thin_live_models")
    constants = thin_number(libraries.so("thin"), "thin_live_constants")
    before = models.value, constants.value
    runner = ModelContainerRunner(libraries.so("thin"), 3)
    runner.update_constant_buffer(thin_constants(2))
    runner.run(thin_inputs())
    assert (models.value, constants.value) != before
    del runner
    gc.collect()
    assert (models.value, constants.value) == before


def test_a_runner_that_failed_to_load_its_constants_is_deleted(
    libraries: Libraries, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(libraries.package("blob")) as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, content[:-64] if name.endswith(".blob") else content)
    with pytest.raises(ConstantError, match="x.pt2: .*_weights.blob has"):
        ModelContainerRunner(path)
