"""The three kinds of containers by themselves, as the runner uses them from one thread."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._runner import container as container_module
from aoti_eager._runner import tensor_handles
from aoti_eager._runner.abi import KernelLibrary
from aoti_eager._runner.constants import Constant, ConstantKind
from aoti_eager._runner.container import Container
from aoti_eager._runner.library_container import LibraryContainer
from aoti_eager._runner.model_container import ModelContainer
from aoti_eager._runner.proxy_container import ProxyContainer
from aoti_eager.errors import LibraryLoadError, LibraryRunError, RunnerError

from ..support import runner_libraries
from ..support.runner_libraries import (
    HOOKED_WEIGHT,
    TIMEOUT_S,
    Gate,
    Libraries,
    X,
    equal,
    original_constants,
    served,
    thin_failing_inputs,
    thin_inputs,
    thin_number,
    watched_tensor,
)

CPU = torch.device("cpu")


def by_name(container: Container) -> dict[str, Constant]:
    return {constant.fqn: constant for constant in container.constants}


@pytest.fixture
def own(libraries: Libraries, tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies a library for this test alone.

    A library's first run decides whether it checks its inputs, for as long as it is mapped; here it
    does not, and in tests of the runner it must.
    """

    def copy(name: str) -> Path:
        directory = tmp_path / name
        if not directory.exists():
            shutil.copytree(libraries.so(name).parent, directory)
        return directory / libraries.so(name).name

    return copy


@pytest.fixture
def closing() -> Iterator[list[Container]]:
    """Containers to close after the test."""
    containers: list[Container] = []
    yield containers
    for container in containers:
        container.close()


# -- AOTInductor's own --


Make = Callable[[str], LibraryContainer]


@pytest.fixture
def library_container(own: Callable[[str], Path], closing: list[Container]) -> Make:
    """A function that makes the container of a package's library."""

    def make(name: str) -> LibraryContainer:
        container = LibraryContainer(KernelLibrary(own(name)), 2, CPU, None)
        closing.append(container)
        return container

    return make


def test_a_librarys_container_tells_its_constants(library_container: Make) -> None:
    constants = by_name(library_container("folded"))
    given = {name: c for name, c in constants.items() if not c.folded}
    assert set(given) == set(original_constants())
    for name, tensor in original_constants().items():
        assert given[name].dtype == tensor.dtype
        assert given[name].sizes == tuple(tensor.shape)
        assert given[name].strides == tensor.stride()
        assert given[name].device == CPU
        size_bytes = tensor.numel() * tensor.itemsize
        assert size_bytes <= given[name].size_bytes < size_bytes + 64
    assert given["weight"].kind is ConstantKind.PARAMETER
    assert given["counts"].kind is ConstantKind.BUFFER
    assert given["_tensor_constant0"].kind is ConstantKind.TENSOR_CONSTANT
    folded = [c for c in constants.values() if c.folded]
    assert folded
    assert all(c.kind is ConstantKind.FOLDED for c in folded)


def test_names_that_clash_in_the_library_stay_apart(library_container: Make) -> None:
    constants = by_name(library_container("folded"))
    assert constants["block_gain"].name != constants["block.gain"].name


def test_a_librarys_container_tells_names_and_call_spec(library_container: Make) -> None:
    container = library_container("dynamic")
    assert len(container.input_names) == 1
    assert container.output_names == ("output0", "output1")
    assert container.constants == ()
    first, second = container.call_spec
    assert json.loads(first)[1]["type"] == "builtins.tuple"
    assert len(json.loads(second)[1]["children_spec"]) == 2


def test_a_library_with_weights_runs_at_once(library_container: Make) -> None:
    got = library_container("folded").run(0, [X], None, False)
    assert equal(got, served(X, original_constants()))


@pytest.mark.parametrize("name", ["bare", "blob"])
def test_a_library_without_weights_tells_the_layouts_of_its_source(
    library_container: Make, name: str
) -> None:
    container = library_container(name)
    assert container.extract(inactive=False) == {}
    for constant in container.constants:
        if not constant.folded:
            tensor = original_constants()[constant.fqn]
            assert constant.sizes == tuple(tensor.shape)
            assert constant.strides == tensor.stride(), constant.fqn


def test_a_library_without_weights_and_source_tells_sizes_only(
    libraries: Libraries, closing: list[Container], tmp_path: Path
) -> None:
    path = tmp_path / "x.so"
    shutil.copy(libraries.so("bare"), path)
    container = LibraryContainer(KernelLibrary(path), 1, CPU, None)
    closing.append(container)
    constant = by_name(container)["columns"]
    assert (constant.sizes, constant.strides, constant.device) == ((16, 8), None, None)


def test_what_was_asked_of_a_library_without_weights_stays_in_no_buffer(
    library_container: Make,
) -> None:
    container = library_container("bare")
    assert container.extract(inactive=False) == {}


def test_extracted_constants_share_the_buffers_memory(library_container: Make) -> None:
    container = library_container("bare")
    tensors = {c.name: original_constants()[c.fqn] for c in container.constants}
    container.update(tensors, inactive=False, user_managed=False)
    name = by_name(container)["counts"].name
    got = container.extract(inactive=False)[name]
    assert got.data_ptr() != tensors[name].data_ptr()
    got += 1
    assert torch.equal(container.extract(inactive=False)[name], tensors[name] + 1)


def test_a_librarys_error_is_raised_and_its_inputs_are_freed(library_container: Make) -> None:
    container = library_container("dynamic")
    tensor, is_held = watched_tensor(torch.full((8, 16), torch.nan))
    inputs = [tensor]
    del tensor
    with pytest.raises(LibraryRunError, match="dynamic|wrapper.so: a run failed") as caught:
        container.run(0, inputs, None, True)
    assert "torch.histc: range of" in caught.value.library_message
    assert inputs == []
    assert not is_held()
    container.run(0, [X], None, False)


def test_an_interrupt_after_a_run_frees_its_outputs(
    library_container: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during a run is raised once the library is back."""
    container = library_container("dynamic")
    made: list[Any] = []

    class Interrupted(BaseException):
        pass

    run = container._run

    def interrupted(handle: Any, inputs: Any, n: int, outputs: Any, *rest: Any) -> int:
        run(handle, inputs, n, outputs, *rest)
        made.append(outputs)
        raise Interrupted

    deleted: list[int] = []

    def watched_delete(handles: Any) -> None:
        deleted.extend(handles)
        tensor_handles.delete_handles(handles)

    monkeypatch.setattr(container_module, "delete_handles", watched_delete)
    monkeypatch.setattr(container, "_run", interrupted)
    with pytest.raises(Interrupted):
        container.run(0, [X], None, False)
    assert deleted == list(made[0])
    assert all(deleted)


# -- ours --


@pytest.fixture
def thin(libraries: Libraries) -> KernelLibrary:
    return KernelLibrary(libraries.so("thin"))


@pytest.fixture
def model_container(thin: KernelLibrary) -> Iterator[ModelContainer]:
    container = ModelContainer(thin, 3)
    yield container
    container.close()


def thin_tensors(value: float) -> dict[str, Tensor]:
    return {name: torch.full((16,), float(value)) for name in ("layer_scale", "layer_shift")}


def test_our_container_reads_the_manifest(model_container: ModelContainer) -> None:
    assert model_container.input_names == ("x", "milliseconds", "gate")
    assert model_container.output_names == ("scaled", "shifted", "span")
    assert model_container.call_spec == ("in", "out")
    scale, shift = model_container.constants
    assert (scale.name, scale.fqn) == ("layer_scale", "layer.scale")
    assert (scale.dtype, scale.sizes, scale.strides) == (torch.float32, (16,), (1,))
    assert (scale.size_bytes, scale.folded, scale.device) == (64, False, CPU)
    assert (scale.kind, shift.kind) == (ConstantKind.PARAMETER, ConstantKind.BUFFER)


def test_every_model_gets_the_constants(model_container: ModelContainer) -> None:
    model_container.update(thin_tensors(3), inactive=False, user_managed=False)
    for instance in range(3):
        scaled, shifted, _ = model_container.run(instance, thin_inputs(), None, False)
        assert torch.equal(scaled, X * 3)
        assert torch.equal(shifted, X + 3)


def test_constants_are_copied_once_for_all_models(
    model_container: ModelContainer, thin: KernelLibrary
) -> None:
    tensor, is_held = watched_tensor(torch.full((16,), 2.0))
    model_container.update(
        {"layer_scale": tensor, "layer_shift": tensor}, inactive=False, user_managed=False
    )
    del tensor
    assert not is_held()
    assert len({t.data_ptr() for t in model_container.extract(False).values()}) == 2


def test_models_are_deleted_with_what_they_hold(libraries: Libraries, thin: KernelLibrary) -> None:
    models = thin_number(libraries.so("thin"), "thin_live_models")
    constants = thin_number(libraries.so("thin"), "thin_live_constants")
    before = models.value, constants.value
    container = ModelContainer(thin, 3)
    for value in range(5):
        container.update(thin_tensors(value), inactive=False, user_managed=value % 2 == 0)
    assert (models.value, constants.value) == (before[0] + 3, before[1] + 6)
    container.close()
    container.close()
    assert (models.value, constants.value) == before


def test_if_one_model_cannot_be_made_the_others_are_deleted(
    libraries: Libraries, thin: KernelLibrary
) -> None:
    models = thin_number(libraries.so("thin"), "thin_live_models")
    before = models.value
    thin_number(libraries.so("thin"), "thin_fail_create").value = 3
    with pytest.raises(LibraryRunError, match="creating a model failed: no more models today"):
        ModelContainer(thin, 3)
    assert models.value == before


def scales(container: ModelContainer) -> set[float]:
    """Return what the models multiply by."""
    runs = [container.run(instance, thin_inputs(), None, False) for instance in range(3)]
    return {float(scaled[0, 1] / X[0, 1]) for scaled, _, _ in runs}


def test_an_update_that_fails_halfway_is_undone_before_the_next_run(
    libraries: Libraries, model_container: ModelContainer
) -> None:
    """The runner folds before a run; two of three models have other constants until then."""
    model_container.update(thin_tensors(1), inactive=False, user_managed=False)
    thin_number(libraries.so("thin"), "thin_fail_update").value = 3
    with pytest.raises(LibraryRunError, match="no more constants today"):
        model_container.update(thin_tensors(2), inactive=False, user_managed=False)
    model_container.fold(False, None)
    assert scales(model_container) == {1}
    assert float(model_container.extract(False)["layer_scale"][0]) == 1


def test_a_swap_that_fails_halfway_is_undone_before_the_next_run(
    libraries: Libraries, model_container: ModelContainer
) -> None:
    model_container.update(thin_tensors(1), inactive=False, user_managed=False)
    model_container.update(thin_tensors(2), inactive=True, user_managed=False)
    thin_number(libraries.so("thin"), "thin_fail_update").value = 2
    with pytest.raises(LibraryRunError, match="no more constants today"):
        model_container.swap()
    model_container.fold(False, None)
    assert scales(model_container) == {1}
    model_container.swap()
    assert scales(model_container) == {2}


def test_folding_in_our_container_touches_no_model(
    libraries: Libraries, model_container: ModelContainer
) -> None:
    model_container.update(thin_tensors(1), inactive=False, user_managed=False)
    failure = thin_number(libraries.so("thin"), "thin_fail_update")
    failure.value = 1
    try:
        model_container.fold(False, None)
        model_container.fold(True, None)
    finally:
        failure.value = 0


def test_a_model_that_fails_frees_its_inputs(model_container: ModelContainer) -> None:
    model_container.update(thin_tensors(1), inactive=False, user_managed=False)
    x, is_held = watched_tensor(torch.full((8, 16), torch.nan))
    inputs = thin_inputs(x)
    del x
    with pytest.raises(LibraryRunError, match="thin.so: a run failed: x begins with NaN"):
        model_container.run(0, inputs, None, True)
    assert inputs == []
    assert not is_held()
    with pytest.raises(LibraryRunError, match="x begins with NaN"):
        model_container.run(0, thin_failing_inputs(), None, False)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([X.double()], "has dtype torch.float64; torch.float32 is wanted"),
        ([X[:, :8].contiguous()], r"has sizes \(8, 8\); \(any, 16\) is wanted"),
        ([X[0]], r"has sizes \(16,\); \(any, 16\) is wanted"),
        ([X.reshape(8, 16, 1)], r"has sizes \(8, 16, 1\)"),
        ([X.t().contiguous().t()], r"has strides \(1, 8\); \(16, 1\) is wanted"),
        ([torch.zeros(1, 16).expand(8, 16)], r"has strides \(0, 1\)"),
    ],
    ids=["dtype", "sizes", "fewer dims", "more dims", "strides", "expanded"],
)
def test_wrong_inputs_of_a_thin_library_are_told(
    model_container: ModelContainer, inputs: list[Tensor], problem: str
) -> None:
    found = model_container.input_problem(inputs + thin_inputs()[1:])
    assert found is not None
    assert found.startswith("input 0 (x): ")
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(found)


@pytest.mark.parametrize(
    "x",
    [X, X[:1], X[:1].as_strided((1, 16), (99, 1)), X[:0], torch.empty(0, 16).t().t()],
    ids=["plain", "one row", "one row, any stride", "no rows", "no rows, any stride"],
)
def test_right_inputs_of_a_thin_library_pass(model_container: ModelContainer, x: Tensor) -> None:
    assert model_container.input_problem(thin_inputs(x)) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"inputs": [', b'"inputs": 7'),
        (b'"outputs": [', b'"outprts": ['),
        (b'"dtype": "float64"', b'"dtype": "flout64"'),
        (b'"dtype": "float64"', b'"dtype": "device" '),
        (b'"kind": "buffer"', b'"kind": "bufvar"'),
        (b'"sizes": [2], "strides"', b'"sizes": [ ], "strides"'),
        (b'{\n  "inputs"', b'[\n  "inputs"'),
    ],
    ids=["no list", "no outputs", "dtype", "no dtype", "kind", "ranks", "no object"],
)
def test_a_wrong_manifest_is_an_error_of_the_file(
    libraries: Libraries, tmp_path: Path, old: bytes, new: bytes
) -> None:
    content = libraries.so("thin").read_bytes()
    assert content.count(old) == 1
    path = tmp_path / "x.so"
    path.write_bytes(content.replace(old, new.ljust(len(old))))
    library = KernelLibrary(path)
    with pytest.raises(LibraryLoadError, match=f"^{path}: its aoti_eager_manifest is wrong"):
        ModelContainer(library, 1)
    library.close()


# -- torch's --


@pytest.fixture
def proxy(own: Callable[[str], Path]) -> Iterator[Callable[[int], ProxyContainer]]:
    """A function that makes a container of so many models; hooks end with the test."""
    runner_libraries.define_hooked_op()
    containers: list[ProxyContainer] = []

    def make(num_models: int) -> ProxyContainer:
        library = KernelLibrary(own("proxy"), name="proxy.pt2")
        containers.append(ProxyContainer(library, num_models, CPU, None))
        return containers[-1]

    yield make
    runner_libraries.hooks.clear()
    for container in containers:
        container.close()


MakeProxy = Callable[[int], ProxyContainer]


def test_a_library_that_calls_ops_by_name_runs_in_torchs_runner(proxy: MakeProxy) -> None:
    container = proxy(1)
    assert equal(container.run(0, [X], None, False), (X * HOOKED_WEIGHT, X + HOOKED_WEIGHT))
    assert by_name(container)["weight"].sizes == (16,)


def test_torchs_runner_takes_the_inputs_of_a_boxed_run(proxy: MakeProxy) -> None:
    x, is_held = watched_tensor(X)
    inputs = [x]
    del x
    proxy(1).run(0, inputs, None, True)
    assert inputs == []
    assert not is_held()


def test_without_the_file_of_its_ops_such_a_library_is_refused(
    libraries: Libraries, tmp_path: Path
) -> None:
    path = tmp_path / "x.so"
    shutil.copy(libraries.so("proxy"), path)
    with pytest.raises(LibraryLoadError, match=r"calls ops by name, .* x.json, is not beside it"):
        ProxyContainer(KernelLibrary(path), 1, CPU, None)


def test_such_a_library_is_for_the_cpu(libraries: Libraries) -> None:
    with pytest.raises(LibraryLoadError, match="supported on cpu, not on cuda"):
        ProxyContainer(KernelLibrary(libraries.so("proxy")), 1, torch.device("cuda:0"), None)


def test_an_op_that_raises_is_a_failed_run(proxy: MakeProxy) -> None:
    container = proxy(1)
    container.run(0, [X], None, False)

    def fail(x: Tensor) -> None:
        raise KeyError("in the op")

    runner_libraries.hooks.append(fail)
    for _ in range(3):
        with pytest.raises(LibraryRunError, match="proxy.pt2: a run failed: KeyError: 'in the op'"):
            container.run(0, [X], None, False)
    runner_libraries.hooks.clear()
    container.run(0, [X], None, False)


def test_a_folding_that_raises_in_torchs_runner_can_be_tried_again(proxy: MakeProxy) -> None:
    """torch's container loses the instance that folded, and the next run would wait for it."""
    container = proxy(1)

    def fail(x: Tensor) -> None:
        raise KeyError("in the op")

    runner_libraries.hooks.append(fail)
    for _ in range(2):
        with pytest.raises(LibraryRunError, match="in the op"):
            container.run(0, [X], None, False)
    runner_libraries.hooks.clear()
    assert equal(container.run(0, [X], None, False), (X * HOOKED_WEIGHT, X + HOOKED_WEIGHT))


def test_a_folding_of_new_constants_that_raises_in_torchs_runner_is_its_end(
    proxy: MakeProxy,
) -> None:
    container = proxy(1)
    container.run(0, [X], None, False)
    container.update({"weight": torch.zeros(16)}, inactive=False, user_managed=False)

    def fail(x: Tensor) -> None:
        raise KeyError("in the op")

    runner_libraries.hooks.append(fail)
    with pytest.raises(LibraryRunError, match="in the op"):
        container.run(0, [X], None, False)
    runner_libraries.hooks.clear()
    for use in (
        lambda: container.run(0, [X], None, False),
        lambda: container.extract(False),
        lambda: container.swap(),
    ):
        with pytest.raises(RunnerError, match=r"cannot be used after that: load it again"):
            use()


def test_two_first_runs_fold_one_after_the_other(
    proxy: MakeProxy, threads: ThreadPoolExecutor
) -> None:
    """The second would wait for a lock of the library's with the GIL, which the first needs."""
    container = proxy(2)
    folding, may_end = threading.Event(), threading.Event()

    def hook(x: Tensor) -> None:
        if x.dim() == 1 and not folding.is_set():
            folding.set()
            assert may_end.wait(TIMEOUT_S)

    runner_libraries.hooks.append(hook)
    first = threads.submit(container.run, 0, [X], None, False)
    assert folding.wait(TIMEOUT_S)
    second = threads.submit(container.run, 1, [X], None, False)
    assert not second.done()
    may_end.set()
    for future in (first, second):
        assert equal(future.result(TIMEOUT_S), (X * HOOKED_WEIGHT, X + HOOKED_WEIGHT))


def test_a_run_inside_of_the_run_that_folds_is_refused(proxy: MakeProxy) -> None:
    container = proxy(2)
    runner_libraries.hooks.append(lambda x: container.run(1, [X], None, False))
    with pytest.raises(LibraryRunError, match="a run inside of the run that folds its constants"):
        container.run(0, [X], None, False)


def test_constants_in_torchs_runner_are_updated_swapped_and_extracted(proxy: MakeProxy) -> None:
    container = proxy(1)
    for value, user_managed in ((2.0, False), (3.0, True)):
        weight = torch.full((16,), value)
        container.update({"weight": weight}, inactive=True, user_managed=user_managed)
        assert torch.equal(container.extract(True)["weight"], weight)
        container.swap()
        assert torch.equal(container.extract(False)["weight"], weight)
        assert equal(container.run(0, [X], None, False), (X * weight, X + weight))
    container.free_inactive()


# -- for all --


def test_gates_of_the_thin_library_work(
    model_container: ModelContainer, threads: ThreadPoolExecutor
) -> None:
    """What tests of the runner stand on."""
    model_container.update(thin_tensors(1), inactive=False, user_managed=False)
    gate = Gate()
    run = threads.submit(model_container.run, 0, thin_inputs(gate=gate), None, False)
    runner_libraries.eventually(lambda: gate.reached)
    assert not run.done()
    gate.open()
    _, _, (begin, end) = run.result(TIMEOUT_S)
    assert end > begin
