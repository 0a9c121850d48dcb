"""A recording among others: threads, profilers, forks, exceptions, bounds, and what it costs."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from aoti_eager._native import library as native_library
from aoti_eager._native import recorder
from aoti_eager._native.recorder import Recording, record
from aoti_eager.errors import NativePathError

from ..support.seen_calls import ops

pytestmark = pytest.mark.native

x = torch.linspace(-2, 2, 12).reshape(3, 4)


@pytest.fixture(autouse=True)
def _nothing_left(settings: None) -> Iterator[None]:
    """No recording outlives a test."""
    yield
    assert recorder.alive() == 0
    assert not recorder.is_recording()


# --- threads and forks ----------------------------------------------------------------------------


def test_each_thread_records_its_own_calls() -> None:
    names = ["exp", "sin", "cos", "tanh"]
    all_record = threading.Barrier(len(names))

    def calls(name: str) -> Recording:
        with record() as recording:
            all_record.wait(60)
            for _ in range(200):
                getattr(torch, name)(x)
            all_record.wait(60)
        return recording

    with ThreadPoolExecutor(len(names)) as threads:
        for name, recording in zip(names, threads.map(calls, names), strict=True):
            assert ops(recording) == [f"aten::{name}"] * 200
            assert recording.tensors[0].impl == x._cdata


def test_what_other_threads_call_for_a_call_is_not_recorded() -> None:
    """Neither a thread of the script's, nor those that share an op's work."""
    wide = torch.ones(1 << 18)
    with record() as recording:
        thread = threading.Thread(target=lambda: x * 2)
        thread.start()
        thread.join()
        wide.exp()
    assert ops(recording) == ["aten::exp"]


def test_a_block_that_ends_in_another_thread_is_an_error_and_leaks_nothing() -> None:
    recording = record()
    has_ended = threading.Event()
    has_begun = threading.Event()
    again: list[Recording] = []

    def begin() -> None:
        with record():
            pass
        recording.__enter__()
        has_begun.set()
        assert has_ended.wait(60)
        with record() as next_one:
            x * 2
        again.append(next_one)

    thread = threading.Thread(target=begin)
    thread.start()
    assert has_begun.wait(60)
    with pytest.raises(NativePathError, match="another thread began"):
        recording.__exit__(None, None, None)
    has_ended.set()
    thread.join()
    assert ops(again[0]) == ["aten::mul.Tensor"]


FORK = """
import os, sys
import torch
from pathlib import Path
from aoti_eager._native import library, recorder

library.load(library.read(Path(sys.argv[1]), sys.argv[2]))
torch.set_num_threads(1)
x = torch.ones(3)
with recorder.record() as recording:
    x * 2
    child = os.fork()
    x * 3
    if child == 0:
        assert not recorder.is_recording()
        with recorder.record() as own:
            x * 4
        assert len(own.calls) == 1, own.stopped
if child == 0:
    assert recording.stopped == "the process was forked", recording.stopped
    assert recording.calls == [] and recorder.alive() == 0
    x * 5
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert len(recording.calls) == 2, recording.stopped
"""


def library_arguments() -> list[str]:
    """Return the path and the digest of the library that this process has loaded."""
    loaded = native_library.loaded()
    assert loaded is not None
    return [str(loaded[0]), loaded[1]]


def run(script: str, *arguments: str) -> str:
    """Return what a script prints in a Python of its own, where only torch has threads."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_child_of_a_fork_does_not_record() -> None:
    run(FORK, *library_arguments())


# --- profilers, exceptions, nesting ---------------------------------------------------------------


def test_a_profiler_and_a_recording_do_not_see_each_other() -> None:
    def profiler() -> Any:
        return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def profiled(profile: Any) -> list[str]:
        return [event.name for event in profile.events() if event.name.startswith("aten::")]

    with profiler() as around:
        x.exp()
        with record() as inside:
            x.sin()
        x.cos()
    assert profiled(around) == ["aten::exp", "aten::sin", "aten::cos"]
    assert ops(inside) == ["aten::sin"]

    with record() as outside:
        x.exp()
        with profiler() as within, torch.profiler.record_function("a range"):
            x.sin()
        x.cos()
    assert profiled(within) == ["aten::sin"]
    assert ops(outside) == ["aten::exp", "aten::sin", "aten::cos"]


def test_a_call_that_raises_has_no_results_and_the_next_is_recorded() -> None:
    with record() as recording:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            torch.nn.functional.linear(x, x.t())
        x.exp()
    assert ops(recording) == ["aten::t", "aten::t", "aten::mm", "aten::exp"]
    assert [call.raised for call in recording.calls] == [False, False, True, False]
    assert recording.calls[2].results == []


def test_an_exception_of_the_block_ends_the_recording() -> None:
    recording = record()

    def block() -> None:
        with recording:
            x.exp()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert ops(recording) == ["aten::exp"]


def test_a_thread_that_records_cannot_record_once_more() -> None:
    with record() as outer:
        x.exp()
        with pytest.raises(NativePathError, match="this thread is recording already"):
            record().__enter__()
        assert recorder.is_recording()
        x.sin()
    assert ops(outer) == ["aten::exp", "aten::sin"]


def test_a_kernel_that_records_is_recorded_by_nobody_else() -> None:
    """A recording that ends inside of a call says so, and the call goes on."""
    inner: list[Recording] = []

    def kernel(y: torch.Tensor) -> torch.Tensor:
        with record() as recording:
            result = y.sin()
        inner.append(recording)
        return result

    torch.library.custom_op("aoti_eager_recording::records", mutates_args=())(kernel)
    torch.ops.aoti_eager_recording.records(x)
    assert ops(inner[0]) == ["aten::sin"]

    recording = record()

    def ends(y: torch.Tensor) -> torch.Tensor:
        recording.__exit__(None, None, None)
        return y.sin()

    torch.library.custom_op("aoti_eager_recording::ends", mutates_args=())(ends)
    recording.__enter__()
    torch.ops.aoti_eager_recording.ends(x)
    assert recording.stopped == "it ended inside of a call"
    assert recording.calls == []


# --- bounds ---------------------------------------------------------------------------------------


def test_a_recording_with_too_many_calls_is_given_up() -> None:
    with record(max_calls=3) as recording:
        results = [x + i for i in range(5)]
    assert recording.stopped == "too many calls: more than 3"
    assert recording.calls == []
    assert recording.tensors == []
    assert torch.equal(results[4], x + 4)
    with record(max_calls=3) as recording:
        results = [x + i for i in range(3)]
    assert len(recording.calls) == 3


def test_a_recording_that_holds_too_much_is_given_up() -> None:
    with record(max_size_bytes=1 << 14) as recording:
        for _ in range(200):
            x.exp()
    assert recording.stopped == "too much memory: more than 16384 bytes"
    assert recording.calls == []


def test_a_recording_keeps_addresses_and_no_data() -> None:
    size_bytes, count = 32 << 20, 40
    big = torch.ones(size_bytes // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with record() as recording:
        for _ in range(count):
            big + 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < count * size_bytes / 4
    results = [call.results[0] for call in recording.calls]
    assert len({one.impl for one in results}) == len({one.storage for one in results}) == count
    assert all(one.version_after is None for one in results)


def test_disabled_record_functions_are_a_reason_to_stop() -> None:
    enable = torch._C._autograd._enable_record_function
    enable(False)
    try:
        with record() as recording:
            x.exp()
    finally:
        enable(True)
    assert recording.stopped is not None
    assert "disabled" in recording.stopped


def test_nothing_is_recorded_before_the_hit_path_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(native_library, "_library", None)
        with pytest.raises(NativePathError, match="is not loaded"):
            record().__enter__()
        assert not recorder.is_recording()


def test_tensors_of_a_recording_are_freed_with_the_script() -> None:
    freed = []

    class Watched(torch.Tensor):
        def __del__(self) -> None:
            freed.append(True)

    y = x.clone().as_subclass(Watched)
    with record() as recording:
        y.exp()
        del y
        gc.collect()
        assert freed
    assert "aten::exp" in ops(recording)


# --- costs ----------------------------------------------------------------------------------------

IMPORTS = """
import sys, torch
before = set(sys.modules)  # torch itself imports a part of torch.export
from pathlib import Path
from aoti_eager._native import library, recorder

library.load(library.read(Path(sys.argv[1]), sys.argv[2]))
with recorder.record() as recording:
    torch.nn.functional.layer_norm(torch.ones(2, 3) @ torch.ones(3, 3), (3,))
assert len(recording.calls) == 4, recording.calls
named = ("torch._dynamo", "torch._inductor", "torch.export")
print(*[one for one in set(sys.modules) - before if one.startswith(named)])
"""


def test_a_recording_imports_nothing_of_torchs_compilers() -> None:
    assert run(IMPORTS, *library_arguments()).strip() == ""


INSTRUCTIONS = """
import json, sys, torch
from pathlib import Path
from aoti_eager._native import library, recorder
from tests.benchmarks import instructions

library.load(library.read(Path(sys.argv[1]), sys.argv[2]))
torch.set_num_threads(1)
count = instructions.counter(instructions.build(Path(sys.argv[3])))
x = torch.ones(3)

def call():
    return x * x

def least():
    for _ in range(50):
        call()
    return min(count(call) for _ in range(4))

found = {"before": least()}
with recorder.record():
    found["recording"] = least()
found["after"] = least()
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="steps are counted by a flag of x86-64")
def test_a_call_takes_no_instruction_more_when_nothing_records(tmp_path: Path) -> None:
    found = json.loads(run(INSTRUCTIONS, *library_arguments(), str(tmp_path)))
    assert found["before"] < found["recording"]
    # To a few.
    assert found["after"] - found["before"] <= found["before"] / 50, found
