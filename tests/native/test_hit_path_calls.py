"""The C++ hit path: what it takes over, what it leaves to Python, and what it counts."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.torch_compat.tensors import wrapped_number
from aoti_eager._compile_service import queue
from aoti_eager._dispatch import counters as counters_module
from aoti_eager._dispatch import decision
from aoti_eager._dispatch import table as table_module
from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.key_words import native_key
from aoti_eager._native import library as native_library
from aoti_eager._native import op_kernel
from aoti_eager._native import table as native_table
from aoti_eager._native.passthrough import passthrough
from aoti_eager._registration import registry
from aoti_eager._runner.kernel_runner import LibraryRunner
from aoti_eager.errors import NativePathError, RunnerError

from ..conftest import assert_close
from ..support import runner_libraries
from ..support.failing_library import MESSAGE, make_fail
from ..support.sealed import sealed

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("shared_cache")]

MUL = "aten::mul.Tensor"
SILU = "aten::silu"


def cache_of(op: str) -> KernelCache:
    (cache,) = (cache for cache in registry.caches() if cache.schema.op == op)
    return cache


def served_by_python(op: str) -> int:
    """Return how many hits of ``op`` Python has counted."""
    return cache_of(op).counters.hits._own


def stats(op: str) -> aoti_eager.OpStats:
    """Return what happened since the op was registered; earlier tests registered it, too."""
    return cache_of(op).counters.snapshot()


@pytest.fixture(autouse=True)
def _no_looks(settings: None) -> Iterator[None]:
    """No hit is compared once more: Python does that, and these tests count what Python does."""
    with aoti_eager.config.scope(recheck=False):
        yield


@pytest.fixture
def no_python(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which a call that enters Python is an error."""

    def forbid() -> None:
        def entered(self: object, *args: object, **kwargs: object) -> None:
            raise AssertionError("Python was entered")

        for name in ("bypass", "miss", "native_way"):
            monkeypatch.setattr(KernelCache, name, entered)
        for cache in registry.caches():
            cache.lookup = entered

    return forbid


# --- what never enters Python ---------------------------------------------------------------------

x = torch.linspace(-2, 2, 12).reshape(3, 4)
mask = x > 0

CALLS: dict[str, Callable[[], Any]] = {
    "aten::mul.Tensor": lambda: x * x,
    "aten::add_.Tensor": lambda: x.clone().add_(x, alpha=2),
    "aten::mul.out": lambda: torch.mul(x, x, out=torch.empty(3, 4)),
    "aten::clamp": lambda: torch.clamp(x, min=-1.0),
    "aten::clamp.Tensor": lambda: torch.clamp(x, None, x + 1),
    "aten::sum.dim_IntList": lambda: x.sum([0], dtype=torch.float64),
    "aten::var_mean.correction": lambda: torch.var_mean(x, [1], correction=1),
    "aten::cat": lambda: torch.cat([x, x + 1, x.t().contiguous().t()]),
    "aten::native_layer_norm": lambda: torch.native_layer_norm(x, [4], x[0], None, 1e-5),
    "aten::where.self": lambda: torch.where(mask, x, x * 2),
    "aten::gelu": lambda: torch.nn.functional.gelu(x, approximate="tanh"),
    "aten::_foreach_add.List": lambda: torch._foreach_add([x, x[0]], [x, x[1]], alpha=2),
    "aten::_to_copy": lambda: x.to(torch.float64),
    "aten::full_like": lambda: torch.full_like(x, 2.5, dtype=torch.int64),
    "aten::elu": lambda: torch.nn.functional.elu(x, 1.5),
    "aten::pow.Tensor_Scalar": lambda: x.abs() ** 2.5,
    "aten::leaky_relu_": lambda: torch.nn.functional.leaky_relu_(x.clone(), 0.25),
}


@pytest.mark.share(of=2)
@pytest.mark.parametrize("op", CALLS)
def test_a_hit_never_enters_python(op: str, no_python: Callable[[], None]) -> None:
    call = CALLS[op]
    expected = call()
    with aoti_eager.register(op):
        call(), call()
        assert stats(op).declined == {}
        assert cache_of(op).native is not None
        before = stats(op).hits
        no_python()
        results = [call() for _ in range(3)]
        assert stats(op).hits == before + 3
        assert served_by_python(op) <= 1
    for result in results:
        assert_close(result, expected)


def test_an_in_place_result_is_the_callers_own_tensor() -> None:
    with aoti_eager.register("aten::add_.Tensor"):
        for _ in range(3):
            y = torch.ones(3, 4)
            assert y.add_(y.clone()) is y
            assert y._version == 1
    with aoti_eager.register("aten::mul.out"):
        for _ in range(3):
            out = torch.empty(3, 4)
            assert torch.mul(x, x, out=out) is out


def test_a_declined_call_never_enters_python(no_python: Callable[[], None], tmp_path: Path) -> None:
    with (
        aoti_eager.config.scope(mode="cache_only", cache_dir=tmp_path / "empty"),
        aoti_eager.register(["aten::mul.Tensor", "aten::multinomial"]),
    ):
        x * x
        weights, generator = torch.ones(4), torch.Generator()
        no_python()
        for _ in range(5):
            assert_close(x * x, torch.square(x))
            torch.multinomial(weights, 2, generator=generator)
        assert stats(MUL).declined == {"not_in_cache": 6}
        assert stats("aten::multinomial").declined == {"random": 5}


@pytest.mark.parametrize("has_room", [True, False])
def test_a_call_that_waits_never_enters_python(
    has_room: bool,
    no_python: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For its kernel, or for room in the queue."""
    monkeypatch.setattr(queue.Background, "has_room", has_room)
    monkeypatch.setattr(queue.Background, "submit", lambda self, job: has_room)
    with (
        # A key waits from its first call on: by default Python times the second, too, and a key
        # that finds no room is counted on and asks again.
        aoti_eager.config.scope(mode="background", compile_after=1, cache_dir=tmp_path / "empty"),
        aoti_eager.register(MUL),
    ):
        x * x
        no_python()
        for _ in range(5):
            assert_close(x * x, torch.square(x))
        if has_room:
            assert (stats(MUL).misses, stats(MUL).declined) == (6, {})
        else:
            assert stats(MUL).declined == {"queue_full": 6}


@pytest.mark.parametrize("way", ["disabled", "off", "passthrough"])
def test_what_is_passed_through_never_enters_python(
    way: str, no_python: Callable[[], None]
) -> None:
    with aoti_eager.register(MUL) as registration:
        x * x, x * x
        before = stats(MUL)
        if way == "disabled":
            registration.disable()
            no_python()
            x * x
            after = stats(MUL)
        elif way == "off":
            with aoti_eager.config.scope(mode="off"):
                no_python()
                x * x
                after = stats(MUL)
        else:
            no_python()
            with passthrough():
                x * x
                with passthrough():
                    x * x
                x * x
            after = stats(MUL)
        assert after == before


def test_a_passthrough_ends_with_its_block_and_is_of_its_thread() -> None:
    with aoti_eager.register(MUL):
        x * x, x * x
        before = stats(MUL).hits
        with pytest.raises(KeyError), passthrough():
            raise KeyError
        x * x
        assert stats(MUL).hits == before + 1
        with passthrough():
            thread = threading.Thread(target=lambda: x * x)
            thread.start()
            thread.join()
        assert stats(MUL).hits == before + 2


def test_two_registrations_of_one_op_are_counted_on() -> None:
    before = op_kernel.alive()  # Kernels of ops that test_native_key has recorded, say.
    with aoti_eager.register(MUL) as first:
        x * x, x * x
        with aoti_eager.register(MUL) as second:
            hits = stats(MUL).hits
            first.disable()
            x * x
            assert stats(MUL).hits == hits + 1
            second.disable()
            x * x
            assert stats(MUL).hits == hits + 1
        first.enable()
        x * x
        assert stats(MUL).hits == hits + 2
    total = aoti_eager.stats()[MUL]
    assert total.hits == hits + 2, "the counts are kept after unregister"
    x * x
    assert aoti_eager.stats()[MUL] == total
    assert op_kernel.alive() == before


# --- tables ---------------------------------------------------------------------------------------


def test_a_scope_with_another_directory_has_a_table_of_its_own(tmp_path: Path) -> None:
    with aoti_eager.register(MUL):
        x * x, x * x
        cache = cache_of(MUL)
        assert len(cache.table.attach()) == 1
        with aoti_eager.config.scope(cache_dir=tmp_path / "other", mode="cache_only"):
            assert len(cache.table.attach()) == 0
            x * x
            assert stats(MUL).declined == {"not_in_cache": 1}
        hits = stats(MUL).hits
        x * x
        assert stats(MUL).hits == hits + 1
        gc.collect()
        assert op_kernel.alive()["tables"] == 1


def test_what_was_not_in_the_cache_is_asked_for_again_when_it_may_be_compiled(
    cache_dir: Path,
) -> None:
    op = "aten::sub.Tensor"
    y = torch.ones(5, 3)
    with aoti_eager.config.scope(cache_dir=cache_dir), aoti_eager.register(op):
        with aoti_eager.config.scope(mode="cache_only"):
            y - y, y - y
            assert stats(op).declined == {"not_in_cache": 2}
        y - y, y - y
        assert (stats(op).misses, stats(op).hits) == (1, 1)


def test_at_the_limit_declines_are_forgotten_and_kernels_stay(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "DECLINES_LIMIT", 3)
    with aoti_eager.register(MUL):
        x * x, x * x
        cache = cache_of(MUL)
        with aoti_eager.config.scope(mode="cache_only"):
            for rows in range(71, 76):
                torch.ones(rows, 3) * torch.ones(rows, 3)
        hits = stats(MUL).hits
        x * x
        assert stats(MUL).hits == hits + 1
        assert len(cache.table.attach()) == 1 + len(cache.table.declines)
        assert served_by_python(MUL) <= 1


def test_an_op_that_was_registered_before_the_hit_path_switches_at_the_next_register(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(native_library, "is_loaded", lambda: False)
        registration = aoti_eager.register(MUL)
        x * x, x * x
        assert cache_of(MUL).native is None
        assert op_kernel.alive()["kernels"] == 0
    with registration:
        hits = stats(MUL).hits
        with aoti_eager.register("aten::sub.Tensor"):
            assert cache_of(MUL).native is not None
            x * x
            assert stats(MUL).hits == hits + 1, "its kernels came along"
            assert served_by_python(MUL) <= hits
    assert_close(x * x, torch.square(x))


def test_wait_switches_too() -> None:
    with aoti_eager.config.scope(native="0"):
        registration = aoti_eager.register(MUL)
    with registration:
        assert aoti_eager.wait()
        assert cache_of(MUL).native is not None


def test_an_op_that_somebody_overrode_since_does_not_switch() -> None:
    with aoti_eager.config.scope(native="0"):
        registration = aoti_eager.register("aten::mul.Tensor")
    library = torch.library.Library("aten", "IMPL")
    with registration:
        library.impl("mul.Tensor", lambda a, b: torch.full_like(a, 7.0), "CPU", allow_override=True)
        try:
            aoti_eager.wait()
            assert cache_of(MUL).native is None
            assert (x * x)[0, 0] == 7.0, "theirs was registered last, and stays on top"
        finally:
            library._destroy()


@pytest.fixture
def overridden(cache_dir: Path) -> Iterator[torch.library.Library]:
    """A library in which silu gives sevens; its mismatch is in no shared store."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("silu", lambda a: torch.full_like(a, 7.0), "CPU", allow_override=True)
    with aoti_eager.config.scope(cache_dir=cache_dir):
        yield library
    library._destroy()


@pytest.mark.usefixtures("overridden")
def test_an_override_from_before_is_the_original() -> None:
    with aoti_eager.register(SILU):
        for _ in range(3):
            assert torch.nn.functional.silu(x)[0, 0] == 7.0
        assert stats(SILU).declined == {"mismatch": 3}


def test_a_second_kernel_of_ours_falls_back_to_the_original_of_the_first() -> None:
    library = torch.library.Library("aten", "IMPL")
    with aoti_eager.register(MUL) as registration:
        aoti_eager.impl(library, "mul.Tensor", "CPU")
        x * x
        registration.unregister()
        assert_close(x * x, torch.square(x))
        assert_close(x * x, torch.square(x))
    library._destroy()
    assert_close(x * x, torch.square(x))


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::aoti_eager.errors.AotiEagerWarning")
@pytest.mark.parametrize("op", ["aten::mul.Tensor", "aten::mul_.Tensor"])
def test_a_run_that_fails_is_the_originals_where_nothing_was_mutated(
    op: str, tmp_path: Path
) -> None:
    expected = x * x

    def call() -> torch.Tensor:
        y = x.clone()
        return torch.mul(y, x) if op == MUL else y.mul_(x)

    with aoti_eager.register(op):
        call(), call()
        cache = cache_of(op)
        (key,) = cache.table.kernels
        make_fail(cache, tmp_path)
        if op == MUL:
            assert_close(call(), expected)
        else:
            with pytest.raises(RunnerError, match=MESSAGE):
                call()
        assert stats(op).failures == 1
        assert stats(op).declined == {"run_failed": 1}
        assert cache.table.declines[key].message == MESSAGE
        assert_close(call(), expected)
        assert stats(op).declined["run_failed"] == 2


# --- AOTInductor's own libraries ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::aoti_eager.errors.AotiEagerWarning")
@pytest.mark.parametrize("name", ["folded", "dynamic"])
def test_a_library_with_a_container_runs_past_its_locks(
    name: str, libraries: runner_libraries.Libraries, threads: ThreadPoolExecutor
) -> None:
    """It stands in for silu's kernel here; what it computes is another thing."""
    served, raising = runner_libraries.X, runner_libraries.NAN
    runner = LibraryRunner(sealed(libraries.so(name)), calls_aten=True, native=True)
    assert runner.native() is None, "a first run folds the constants"
    expected = runner.run([served.clone()])[0]
    native = runner.native()
    assert native is not None
    assert native.container_run != 0
    with aoti_eager.register(SILU):
        cache = cache_of(SILU)
        words = native_key(cache.schema, kernel_key(cache.schema, "CPU", (served,)))
        assert words is not None
        cache.table.attach().put(words, native, [(native_table.OUTPUT, 0, 1)])
        del native, runner
        gc.collect()

        def call(_: int) -> bool:
            got = torch.ops.aten.silu(served)
            return bool(got.shape == expected.shape and got.tolist() == expected.tolist())

        assert all(threads.map(call, range(2000)))
        assert stats(SILU).hits == 2000
        if name == "dynamic":
            # Its words are those of the other tensor, and it raises: the original runs, in Python.
            got = torch.ops.aten.silu(raising)
            assert got.isnan().all()
            assert stats(SILU).hits == 2000


# --- originals ------------------------------------------------------------------------------------


def test_an_original_whose_library_is_gone_says_what_to_do(
    overridden: torch.library.Library,
) -> None:
    with aoti_eager.register(SILU):
        assert torch.nn.functional.silu(x)[0, 0] == 7.0
        overridden._destroy()
        with pytest.raises(aoti_eager.errors.OriginalKernelError, match="unregister"):
            torch.nn.functional.silu(x)


def test_an_exception_of_the_original_is_its_own() -> None:
    y = torch.ones(5)
    with pytest.raises(RuntimeError) as plain:
        x * y
    with aoti_eager.register(MUL):
        for _ in range(3):
            with pytest.raises(RuntimeError) as ours:
                x * y
            assert str(ours.value) == str(plain.value)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 2.5, True, -0.0, float("nan"), 1 + 2j, 2**40])
def test_numbers_in_tensor_slots_are_inputs(number: complex) -> None:
    expected = x * number
    with aoti_eager.register(MUL):
        x * number, x * number
        got = x * number
        assert served_by_python(MUL) <= 1
    assert_close(got, expected, equal_nan=True)


def test_a_number_from_cpp_is_the_same_input() -> None:
    """Gradient formulas multiply by wrapped numbers that no Python call passes."""
    with aoti_eager.register(MUL):
        y = x.clone().requires_grad_()
        for exponent in (2.0, 3.0, 3.0):
            (gradient,) = torch.autograd.grad(y.pow(exponent).sum(), y)
            assert_close(gradient, exponent * x.pow(exponent - 1))
        wrapped = wrapped_number(3.0)
        assert_close(torch.mul(x, wrapped), x * 3.0)


# --- profiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", ["0", "1"])
def test_a_profile_shows_the_op_and_the_compiled_kernel_below_it(native: str) -> None:
    with aoti_eager.config.scope(native=native), aoti_eager.register(MUL):
        x * x, x * x
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(3):
                x * x
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mul"] == 3
    assert counts["aoti_eager::aten::mul.Tensor"] == 3


# --- what a reviewer broke ------------------------------------------------------------------------


def failing_add(directory: Path, seconds: float = 0.0) -> native_table.NativeRun:
    """Return a library whose run writes 999 to its first input and fails, after ``seconds``."""
    source = directory / "late.cpp"
    source.write_text(
        "#include <unistd.h>\n"
        'extern "C" int aoti_torch_get_data_ptr(void*, void**);\n'
        'extern "C" int run(void* const* inputs, void** outputs) {\n'
        "  float* data; aoti_torch_get_data_ptr(inputs[0], (void**)&data);\n"
        f"  data[0] = 999; usleep({int(seconds * 1e6)}); return 1; }}\n"
        'extern "C" int last_error(const char** text) { *text = "half way"; return 0; }\n'
    )
    path = directory / "late.so"
    torchs = Path(torch.__file__).parent / "lib"
    command = ["g++", "-shared", "-fPIC", "-o", path, source, f"-L{torchs}", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    run, last_error = (
        ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        for name in ("run", "last_error")
    )
    return native_table.NativeRun(run, 0, last_error, 0, 1, False, library)


@pytest.mark.filterwarnings("ignore::aoti_eager.errors.AotiEagerWarning")
@pytest.mark.parametrize("meanwhile", ["disable", "off", "clear"])
def test_a_run_that_fails_while_the_op_is_switched_off_still_says_what_it_did(
    meanwhile: str, tmp_path: Path
) -> None:
    op = "aten::add_.Tensor"
    ones = torch.ones(3)
    with aoti_eager.register(op) as registration, ExitStack() as stack:
        ones.clone().add_(ones), ones.clone().add_(ones)
        cache = cache_of(op)
        (kernel,) = cache.table.kernels.values()
        assert kernel.words is not None
        cache.table.attach().put(kernel.words, failing_add(tmp_path, 0.5), [(1, 0, 0)])

        def switch() -> None:
            time.sleep(0.2)
            if meanwhile == "disable":
                registration.disable()
            elif meanwhile == "off":
                stack.enter_context(aoti_eager.config.scope(mode="off"))
            else:
                cache.table.clear()

        thread = threading.Thread(target=switch)
        thread.start()
        with pytest.raises(RunnerError, match="half way"):
            ones.clone().add_(ones)
        thread.join()
        assert native_library.failures == {}
        stack.close()
        registration.enable()
        # What failed is not blamed on the next call of this thread.
        other = torch.ones(5, 5)
        assert_close(other.clone().add_(other), other * 2)
        assert stats(op).declined == {"run_failed": 1}


def test_a_failure_is_taken_by_the_op_that_failed_alone() -> None:
    with aoti_eager.register([MUL, "aten::sub.Tensor"]):
        mul, sub = (cache_of(op).native for op in (MUL, "aten::sub.Tensor"))
        assert mul is not None
        assert sub is not None
        native_library.failures[threading.get_ident()] = (mul._pointer or 0, "of mul")
        assert sub.take_failure() is None
        assert mul.take_failure() is None, "it is not kept for later"


@pytest.mark.filterwarnings("ignore::aoti_eager.errors.AotiEagerWarning")
@pytest.mark.parametrize("native", ["0", "1"])
def test_a_kernel_from_the_store_that_fails_after_it_wrote_is_an_error(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original must not run on an argument that is half written."""
    op = "aten::add_.Tensor"
    ones = torch.ones(3)
    with aoti_eager.config.scope(native=native):
        with aoti_eager.register(op):
            ones.clone().add_(ones)
        load = decision.load

        def load_failing(*arguments: Any) -> Any:
            kernel = load(*arguments)

            def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
                inputs[0].fill_(999)
                raise RuntimeError("half way")

            kernel.run, kernel.words = run, None
            return kernel

        monkeypatch.setattr(decision, "load", load_failing)
        with aoti_eager.register(op):
            with pytest.raises(RunnerError, match="half way"):
                ones.clone().add_(ones)
            assert stats(op).declined == {"run_failed": 1}


def test_settings_may_change_while_an_op_is_unregistered() -> None:
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            with aoti_eager.config.scope(static_cap=7):
                pass

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            aoti_eager.register([MUL, SILU]).unregister()
    finally:
        stop.set()
        thread.join()


def test_ops_that_stay_with_python_pass_through_inside_of_a_library_that_cpp_runs() -> None:
    """``x * 2.5`` reads its number by an op."""
    library = torch.library.Library("aten", "IMPL")
    inner = "aten::_local_scalar_dense"
    try:
        with aoti_eager.register(MUL):
            aoti_eager.impl(library, inner, "CPU")
            for _ in range(4):
                x * 2.5
            assert stats(MUL).hits >= 3
            assert stats(inner) == aoti_eager.OpStats()
    finally:
        library._destroy()
        aoti_eager.registered_ops()


def test_a_setting_that_torch_refuses_to_tell_declines() -> None:
    y = torch.ones(3, 7)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        for native in ("0", "1"):
            with aoti_eager.config.scope(native=native), aoti_eager.register(MUL):
                assert_close(y * y, y)
                assert stats(MUL).declined == {"no_key": 1}
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_a_wrapped_number_in_a_list_is_the_originals() -> None:
    numbers = [wrapped_number(n) for n in (1.0, 2.0, 3.0, 4.0)]
    expected = torch.stack(numbers)
    with aoti_eager.register(["aten::stack", "aten::cat"]):
        for _ in range(3):
            assert_close(torch.stack(numbers), expected)


def test_a_fork_while_another_thread_makes_a_counter_does_not_hang_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    making, forked = threading.Event(), threading.Event()
    make = counters_module.NativeCounter

    class Slow(make):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            making.set()
            forked.wait(20)

    counters = [counters_module.Counter(), counters_module.Counter()]
    monkeypatch.setattr(counters_module, "NativeCounter", Slow)
    thread = threading.Thread(target=lambda: counters[0].native)
    thread.start()
    making.wait()
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(counters_module, "NativeCounter", make)
        signal.alarm(10)
        os._exit(0 if counters[1].native.value == 0 else 1)
    forked.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0
    for counter in counters:
        counter.close()


def test_an_op_stays_served_where_a_switch_to_cpp_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(native_library, "is_loaded", lambda: False)
        registration = aoti_eager.register(MUL)

    def fails(self: object) -> None:
        raise NativePathError("out of luck")

    with registration:
        monkeypatch.setattr(op_kernel.NativeOp, "install", fails)
        with aoti_eager.config.scope(strict=True), pytest.raises(NativePathError):
            aoti_eager.wait()
        x * x, x * x
        assert stats(MUL).hits >= 1
        assert cache_of(MUL).native is None
