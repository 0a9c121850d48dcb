"""Compiling a workload ahead of time: afterwards its calls are hits, whoever compiled them."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._base.cpp_compiler import compiler_on_path
from aoti_eager._base.cpu import Target
from aoti_eager._base.output_file import OutputFile
from aoti_eager._commands import warm as warm_verb
from aoti_eager._compile_service import cache_context
from aoti_eager._compile_service.requests import LibraryRequest
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._keys.guards import Guards
from aoti_eager._store.entry import Status, decode, encode
from aoti_eager._store.store import Store
from aoti_eager._store.verdict import (
    PathTime,
    Verdict,
    encode_verdict,
    processor,
)
from aoti_eager._workloads import compile_task as compile_task_module
from aoti_eager._workloads import workload as workload_module
from aoti_eager._workloads.compile_task import compile_call
from aoti_eager._workloads.report import WarmFailure, WarmReport
from aoti_eager.errors import (
    CompileError,
    ConfigError,
    LockTimeoutError,
    StoreError,
    WorkloadError,
)

from ..conftest import assert_close
from ..support import forked_python, processes
from ..support.function_ops import call, op_of, scale
from ..support.kept_builds import make_cache_dir

X = torch.linspace(-2, 2, 64).reshape(8, 8)
OPS = ["aten::silu.default", "aten::tanh.default"]
# What processes.WORK says of its nine calls: the first of each key compares with the original.
SERVED = {"wrong": 0, "compiles": 0, "hits": 6, "declined": {}, "inductor": []}


def make_calls(*, silu: Any = X, tanh: Any = X) -> None:
    """Make two calls, of two ops."""
    torch.nn.functional.silu(silu)
    torch.tanh(tanh)


def recorded(run: Callable[[], object], ops: list[str]) -> list[workload_module.Call]:
    """Return the calls of ``ops`` that ``run`` makes; nothing is compiled."""
    recorder = workload_module.start_recording()
    try:
        with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register(ops):
            run()
    finally:
        workload_module.stop_recording()
    return list(recorder.calls())


@pytest.fixture
def calls() -> list[workload_module.Call]:
    """The workload of ``make_calls``."""
    return recorded(make_calls, OPS)


def write(path: Path, calls: list[workload_module.Call]) -> Path:
    """Write ``calls`` to ``path`` and return it."""
    workload_module.write_workload(OutputFile(path), calls)
    return path


def assert_hits(run: Callable[[], object] = make_calls, ops: list[str] = OPS) -> None:
    """Make the calls again: each is served by a kernel of the store."""
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register(ops):
        before = dict(aoti_eager.stats())
        for _ in range(20):
            # The first call compares with the original; a later one, where it took long by chance.
            run()
            aoti_eager.wait()
            if all(after.hits > before[op].hits for op, after in aoti_eager.stats().items()):
                break
        compared = dict(aoti_eager.stats())
        run()
        for op, after in aoti_eager.stats().items():
            assert after.hits == compared[op].hits + 1
            assert after.declines == before[op].declines
            assert after.compiles == 0


def outcome(report: WarmReport) -> tuple[int, int, dict[str, int], int, int]:
    """Return what became of the calls, as numbers."""
    return (
        report.compiled,
        report.present,
        dict(report.declined),
        len(report.failed),
        report.remaining,
    )


# --- in this process -----------------------------------------------------------------------------


@pytest.mark.full
def test_calls_are_hits_after_a_warm_up_and_another_has_nothing_to_do(
    calls: list[workload_module.Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "workload", calls)
    told: list[tuple[int, int]] = []
    report = cache.warm(path, jobs=2, progress=lambda done, total: told.append((done, total)))
    assert outcome(report) == (2, 0, {}, 0, 0)
    assert (report.calls, report.jobs) == (2, 2)
    assert [told[0], told[-1]] == [(0, 2), (2, 2)]
    assert told == sorted(told)
    assert [(e.op, e.status) for e in cache.list()] == [
        ("aten::silu", "ready"),
        ("aten::tanh", "ready"),
    ]
    # No live arguments were there to compare on.
    assert not any(d.entry.checked for e in cache.list() for d in cache.inspect(e.digest))

    def compile_(*args: object, **kwargs: object) -> None:
        raise AssertionError("the compiler was asked")

    monkeypatch.setattr(CompileService, "compile", compile_)
    assert outcome(cache.warm(cache.read_workload(path))) == (0, 2, {}, 0, 0)
    assert_hits()


@pytest.mark.full
def test_a_damaged_entry_is_made_anew(calls: list[workload_module.Call]) -> None:
    cache.warm(calls[:1])
    (entry,) = cache.list()
    (entry.path / "library.so").write_bytes(b"\x7fELF")
    assert outcome(cache.warm(calls[:1])) == (1, 0, {}, 0, 0)
    assert [e.status for e in cache.list()] == ["ready"]
    assert cache.verify().damaged == ()


@pytest.mark.full
def test_another_directory_is_warmed_where_it_is_asked_for(
    calls: list[workload_module.Call], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert cache.warm(calls[:1], cache_dir=other).compiled == 1
    assert (len(cache.list()), len(cache.list(cache_dir=other))) == (0, 1)


@pytest.mark.full
def test_what_has_no_kernel_is_remembered_with_its_reason() -> None:
    mm = recorded(lambda: torch.mm(X, X), ["aten::mm"])
    report = cache.warm(mm)
    assert outcome(report) == (0, 0, {"no_kernel_of_its_own": 1}, 0, 0)
    assert outcome(cache.warm(mm)) == (0, 1, {}, 0, 0)


def test_a_call_for_another_devices_compiler_is_left_to_the_script() -> None:
    (tanh,) = recorded(lambda: torch.tanh(X), ["aten::tanh.default"])
    context = (("backend", "mine 1"), *tanh.key.context)
    key = type(tanh.key)(tanh.key.op, "PrivateUse1", tanh.key.arguments, context)
    report = cache.warm([workload_module.Call(key, None, tanh.schema)])
    assert outcome(report) == (0, 0, {"unsupported_device": 1}, 0, 0)
    assert cache.list() == []


@pytest.mark.full
def test_a_failure_that_another_process_may_not_have_is_tried_again(
    calls: list[workload_module.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ = CompileService.compile

    def fail(self: CompileService, request: LibraryRequest) -> Any:
        if request.what == "aten::tanh":
            raise CompileError("compile_timeout", "aten::tanh: no library", remember=False)
        return compile_(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(CompileService, "compile", fail)
        report = cache.warm(calls)
    assert outcome(report) == (1, 0, {}, 1, 0)
    digest = calls[1].key.digest
    assert report.failed == (
        WarmFailure("aten::tanh", digest, "compile_timeout", "aten::tanh: no library"),
    )
    assert outcome(cache.warm(calls)) == (1, 1, {}, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs is 0; wanted a positive number"),
        ({"jobs": True}, "jobs is True; wanted a positive number"),
        ({"jobs": 2, "executor": Executor()}, "jobs is 2, but an executor is given"),
    ],
)
def test_a_wrong_number_of_jobs_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cache.warm([], **options)


def test_a_store_that_cannot_be_written_is_found_before_the_first_compile(
    calls: list[workload_module.Call], tmp_path: Path, no_compiles: None
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is no directory"):
        cache.warm(calls, cache_dir=tmp_path / "file")


def test_a_store_that_fills_up_ends_the_warm_up(
    calls: list[workload_module.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise StoreError(28, "cannot be written: No space left on device")

    monkeypatch.setattr("aoti_eager._store.store.Store.publish", full)
    with pytest.raises(StoreError, match="No space left"):
        cache.warm(calls)


@pytest.mark.parametrize("method", ["find", "publish"])
@pytest.mark.parametrize(
    "error",
    [
        StoreError(errno.ENAMETOOLONG, "v1/aten.silu: cannot be read: File name too long"),
        LockTimeoutError("aten::silu: another process has been compiling this key"),
        StoreError("v1/aten.silu: other processes keep writing it"),
        UnicodeEncodeError("ascii", "\xe4", 0, 1, "ordinal not in range"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_call_that_the_store_cannot_hold_is_a_failure_of_that_call(
    calls: list[workload_module.Call],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: Exception,
) -> None:
    original = getattr(Store, method)

    def fail(self: Store, what: Any, *args: Any) -> Any:
        if getattr(what, "key", what).op == "aten::silu":
            raise error
        return original(self, what, *args)

    monkeypatch.setattr(Store, method, fail)
    report = cache.warm(calls)
    assert outcome(report) == (1, 0, {}, 1, 0)
    (failure,) = report.failed
    assert (failure.op, failure.reason) == ("aten::silu", "unstorable")
    assert failure.message.startswith("aten::silu: the store cannot hold it: ")
    assert str(error) in failure.message


@pytest.mark.parametrize("method", ["find", "publish"])
def test_a_store_that_became_another_users_ends_the_warm_up(
    calls: list[workload_module.Call], cache_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*args: object) -> None:
        cache_dir.chmod(0o777)
        Store(cache_dir, lock_timeout_s=1.0).create()

    monkeypatch.setattr(Store, method, fail)
    with pytest.raises(StoreError, match="others can write to it"):
        cache.warm(calls)


# A line that is cut, one of another kind of file, and an op whose name makes no directory.
DAMAGED = ("{", "\x1b[2Jexit", json.dumps({"key": {"op": "n" * 300}, "function": None}))


def test_a_damaged_line_is_a_failure_and_the_rest_is_compiled(
    calls: list[workload_module.Call], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "workload", calls)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, DAMAGED[0], lines[0], *DAMAGED[1:], lines[1]]))
    report = cache.warm(path)
    assert outcome(report) == (2, 0, {}, 3, 0)
    assert report.calls == 5
    assert {(f.op, f.digest, f.reason) for f in report.failed} == {("?", "", "damaged_line")}
    places = [f"{path}, line {number}: " for number in (2, 4, 5)]
    assert [f.message[: len(places[0])] for f in report.failed] == places
    assert caplog.messages == [], "the report tells"
    assert outcome(cache.warm(path)) == (0, 2, {}, 3, 0)


@pytest.mark.full
def test_a_function_is_warmed_from_its_source() -> None:
    x = torch.linspace(-3, 3, 128).reshape(2, 64)
    with op_of(scale) as name:
        workload = recorded(lambda: call(name)(x), [name])
        assert outcome(cache.warm(workload)) == (1, 0, {}, 0, 0)
        assert_hits(lambda: assert_close(call(name)(x), scale(x)), [name])


# --- executors -----------------------------------------------------------------------------------


class Immediate(Executor):
    """Runs a task when it is given, and may lose it or give something else back."""

    def __init__(self, run: Callable[[Callable[[str], Any], str], Any]) -> None:
        self._run = run

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(self._run(fn, *args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as executors do
            future.set_exception(error)
        return future


def test_a_lost_worker_costs_the_calls_that_it_had(calls: list[workload_module.Call]) -> None:
    def lose(compile_: Callable[[str], Any], task: str) -> Any:
        if "aten::silu" in task:
            raise ConnectionError("worker 7 is gone")
        return compile_(task)

    report = cache.warm(calls, Immediate(lose))
    assert outcome(report) == (1, 0, {}, 1, 0)
    (failure,) = report.failed
    assert (failure.op, failure.reason) == ("aten::silu", "executor")
    assert failure.message == "aten::silu: the executor: ConnectionError: worker 7 is gone"
    assert report.jobs is None


def test_an_executor_that_takes_nothing_more_is_said(calls: list[workload_module.Call]) -> None:
    pool = ProcessPoolExecutor(1)
    pool.shutdown()
    report = cache.warm(calls, pool)
    assert [f.reason for f in report.failed] == ["executor", "executor"]
    assert "cannot schedule new futures after shutdown" in report.failed[0].message


@pytest.mark.full
def test_ctrl_c_cancels_what_an_executor_has_not_begun(calls: list[workload_module.Call]) -> None:
    class Slow(Immediate):
        waiting: list[Future[Any]]

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if "aten::silu" in args[0]:
                return super().submit(fn, *args, **kwargs)
            self.waiting = [Future()]
            return self.waiting[0]

    def progress(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    slow = Slow(lambda compile_, task: compile_(task))
    with pytest.raises(KeyboardInterrupt):
        cache.warm(calls, slow, progress=progress)
    assert [f.cancelled() for f in slow.waiting] == [True]
    assert [e.op for e in cache.list()] == ["aten::silu"]
    assert outcome(cache.warm(calls)) == (1, 1, {}, 0, 0)


def answer_of_another(calls: list[workload_module.Call]) -> Callable[..., Any]:
    silu = compile_task_module.compile_task(
        calls[0], cache_context.current().environment, cache_context.current().target
    )
    return lambda compile_, task: compile_(silu)


def changed_answer(**fields: Any) -> Callable[..., Any]:
    return lambda compile_, task: {**compile_(task), **fields}


def changed_entry(**fields: Any) -> Callable[..., Any]:
    def change(compile_: Callable[[str], Any], task: str) -> Any:
        answer = compile_(task)
        return {**answer, "entry": encode(dataclasses.replace(decode(answer["entry"]), **fields))}

    return change


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (answer_of_another, "is an entry of another call"),
        (changed_answer(library=b"\x7fELF"), "has a library with another digest"),
        (changed_answer(library=None), "has a library and should not, or the other way round"),
        (changed_answer(entry=b"{}"), "has no format number"),
        (changed_entry(target="cpu-other"), "is for cpu-other, not cpu-"),
        (changed_entry(environment=cache_context.Environment(())), "of another environment"),
        (lambda compile_, task: {"entry": b"{}", "log": ""}, "has no format number"),
        (changed_entry(status=Status.QUARANTINED), "is quarantined"),
        (changed_entry(guards=Guards({})), "is a kernel for several sizes"),
        (changed_answer(entry=b"[" * 100_000), "what came back"),
        (changed_answer(entry=bytes((4 << 20) + 1)), "4194305 bytes as its entry; up to 4194304"),
        (changed_answer(entry="{}"), "has a str as its entry, not bytes"),
        (changed_answer(library=bytes((64 << 20) + 1)), "67108865 bytes as its library; up to 671"),
        (changed_answer(library="\x7fELF"), "has a str as its library, not bytes"),
        (changed_answer(log=None), "has a NoneType as its log, not words"),
        (lambda compile_, task: None, "is a NoneType, not a dict"),
        (lambda compile_, task: {}, "has neither an entry nor a reason and a message in words"),
        (lambda compile_, task: {"reason": "x" * 101, "message": ""}, "has neither an entry nor"),
        (lambda compile_, task: {"reason": "x", "message": 7}, "has neither an entry nor"),
    ],
)
def test_what_was_not_asked_for_is_not_published(
    calls: list[workload_module.Call], run: Any, message: str
) -> None:
    run = run(calls) if run is answer_of_another else run
    report = cache.warm(calls[1:], Immediate(run))
    (failure,) = report.failed
    assert failure.reason == "wrong_answer"
    assert message in failure.message
    assert cache.list() == []


def test_what_an_executor_says_of_results_and_times_is_not_believed(
    calls: list[workload_module.Call],
) -> None:
    """A verdict of an executor's machine counted once, where the processor was the same model."""

    def lie(compile_: Callable[[str], Any], task: str) -> Any:
        answer = changed_entry(checked=True)(compile_, task)
        times = {"native/2": PathTime(1.0, 9.0, 9.0, 0.0, True)}
        sha256 = decode(answer["entry"]).library
        assert sha256 is not None
        verdict = Verdict(sha256.sha256, checked=True, compared=True, times=times)
        return {**answer, "verdict": encode_verdict(verdict), "processor": processor()}

    with aoti_eager.config.scope(gate=True):
        report = cache.warm(calls, Immediate(lie))
    assert outcome(report) == (2, 0, {}, 0, 0)
    for one in cache.list():
        (details,) = cache.inspect(one.digest)
        assert (details.entry.checked, details.verdict) == (False, None)


def test_an_executor_does_not_measure_what_nobody_believes(
    calls: list[workload_module.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[bool] = []
    compile_ = CompileService.compile

    def tell(self: CompileService, request: LibraryRequest) -> Any:
        measured.append(request.code.gate)
        code = dataclasses.replace(request.code, gate=False)
        ungated = dataclasses.replace(request, code=code)
        return compile_(self, ungated)

    monkeypatch.setattr(CompileService, "compile", tell)
    with aoti_eager.config.scope(gate=True):
        cache.warm(calls[:1], Immediate(lambda compile_, task: compile_(task)))
        cache.clear()
        cache.warm(calls[:1], jobs=1)
    assert measured == [False, True]


def test_of_a_long_log_the_beginning_is_kept(calls: list[workload_module.Call]) -> None:
    log = "first\ud800" + "ä" * (1 << 20)
    report = cache.warm(calls[:1], Immediate(changed_answer(log=log)))
    assert outcome(report) == (1, 0, {}, 0, 0)
    (entry,) = cache.list()
    (details,) = cache.inspect(entry.digest)
    assert details.log.startswith("first?ä")
    assert (1 << 20) - 2 <= len(details.log.encode()) <= 1 << 20


def test_a_long_message_of_an_executor_is_cut(calls: list[workload_module.Call]) -> None:
    answer = {"reason": "other_cpu", "message": "m" * 20_000}
    (failure,) = cache.warm(calls[:1], Immediate(lambda *_: answer)).failed
    assert (failure.reason, len(failure.message)) == ("other_cpu", 10_000)


def test_a_machine_set_up_otherwise_says_in_what_it_differs(
    calls: list[workload_module.Call], monkeypatch: pytest.MonkeyPatch, no_compiles: None
) -> None:
    def elsewhere(compile_: Callable[[str], Any], task: str) -> Any:
        with monkeypatch.context() as patch:
            patch.setenv("TORCHINDUCTOR_FREEZING", "1")
            return compile_(task)

    report = cache.warm(calls[:1], Immediate(elsewhere))
    (failure,) = report.failed
    assert failure.reason == "other_environment"
    assert failure.message.startswith("aten::silu: ")
    assert "variables is {" in failure.message
    assert "'TORCHINDUCTOR_FREEZING': '1'" in failure.message


@pytest.mark.parametrize(
    ("features", "march", "message"),
    [
        (frozenset(), "x86-64-v3", "lacks avx2, fma"),
        (frozenset({"avx2", "fma", "more"}), "native", "is another model"),
    ],
)
def test_a_machine_with_another_cpu_compiles_nothing(
    calls: list[workload_module.Call],
    monkeypatch: pytest.MonkeyPatch,
    no_compiles: None,
    features: frozenset[str],
    march: str,
    message: str,
) -> None:
    target = Target("cpu-wanted", march, 256, frozenset({"avx2", "fma"}))
    task = compile_task_module.compile_task(calls[0], cache_context.current().environment, target)
    monkeypatch.setattr(compile_task_module, "cpu_features", lambda: features)
    answer = compile_call(task)
    assert answer["reason"] == "other_cpu"
    assert message in answer["message"]
    assert "kernels for cpu-wanted cannot be tried there" in answer["message"]


@pytest.fixture
def elsewhere(
    tmp_path: Path, shared_cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The cache directory of processes that are started from now on; not the test's own."""
    path = make_cache_dir(tmp_path / "elsewhere", shared_cache_dir)
    monkeypatch.setenv("AOTI_EAGER_CACHE_DIR", str(path))
    yield path
    assert cache.list(cache_dir=path) == []
    assert list((path / "tmp").iterdir()) == []


@pytest.mark.full
@pytest.mark.compiles
def test_processes_that_share_no_store_compile_for_this_one(
    calls: list[workload_module.Call], elsewhere: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        report = cache.warm(calls, pool)
    assert outcome(report) == (2, 0, {}, 0, 0)
    assert_hits()


@pytest.mark.full
@pytest.mark.compiles
def test_a_dask_cluster_compiles_for_this_process(
    calls: list[workload_module.Call], elsewhere: Path, cache_dir: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",  # Any port: another test run may have the usual one.
            host="127.0.0.1",
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        report = cache.warm(calls, executor)
        assert outcome(report) == (2, 0, {}, 0, 0), report.failed
    assert_hits()


# --- the verb ------------------------------------------------------------------------------------


@pytest.fixture
def workload(tmp_path: Path, cache_dir: Path) -> Path:
    """Record what ``processes.WORK`` calls, in a process of its own: three keys of two ops."""
    (tmp_path / "script.py").write_text(
        "import torch\n"
        "x = torch.arange(64.0).reshape(8, 8) / 64\n"
        "torch.ops.aten.silu(x), torch.ops.aten.silu(x[:4]), torch.var_mean(x, 1)\n"
    )
    path = tmp_path / "calls.jsonl"
    ops = "aten::silu,aten::var_mean.correction"
    options = ("--ops", ops, "--mode", "cache_only", "--record", str(path))
    got = verb("run", *options, str(tmp_path / "script.py"))
    assert got.returncode == 0, got.stderr
    return path


def verb(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aoti_eager", *arguments]
    return forked_python.run(command, capture_output=True, text=True)


def processes_with(cache_dir: Path) -> list[int]:
    """Return the processes that were started with this cache directory in their environment."""
    wanted = f"AOTI_EAGER_CACHE_DIR={cache_dir}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # Another user's, or it has just ended.
        if wanted in variables and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def interrupting_compiler(tmp_path: Path, cache_dir: Path) -> dict[str, str]:
    """Return variables under which the compiler, once an entry is stored, sends Ctrl-C and hangs.

    So the signal always comes in the middle of the second compile.
    """
    real = compiler_on_path()
    assert real is not None
    wrapper = tmp_path / "bin" / Path(real).name
    wrapper.parent.mkdir()
    wrapper.write_text(
        "#!/bin/sh\n"
        f"if ls {cache_dir}/v1/*/*/*/*/*/entry.json >/dev/null 2>&1; then\n"
        f"  kill -INT $(cat {tmp_path}/pid); sleep 600\n"
        "fi\n"
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    variables = {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    return {**variables, "CXX": str(wrapper)} if "CXX" in os.environ else variables


@pytest.mark.full
@pytest.mark.compiles
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds left processes in /proc")
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    workload: Path, cache_dir: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "aoti_eager", "warm", str(workload), "--jobs", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **interrupting_compiler(tmp_path, cache_dir)},
    )
    (tmp_path / "pid").write_text(str(process.pid))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    done, left = len(cache.list()), 2
    assert done + left == processes.KEYS
    assert err == (
        f"aoti-eager: interrupted; {left} of 3 calls remain, and the same command goes on with "
        "them\n"
    )
    assert f"remaining      {left}" in out
    assert processes_with(cache_dir) == []
    assert list((cache_dir / "tmp").iterdir()) == []

    summary = tmp_path / "summary.json"
    got = verb("warm", str(workload), "--json", str(summary))
    assert (got.returncode, got.stderr) == (0, "")
    report = json.loads(summary.read_text())
    assert (report["present"], report["compiled"], report["failed"]) == (done, left, [])
    lines = got.stdout.splitlines()
    assert lines[:2] == [f"compiled       {left}", f"already there  {done}"]
    assert lines[-1].endswith(f"at a time, in {cache_dir}")

    served = processes.run(cache_dir, AOTI_EAGER_MODE="cache_only")
    assert {name: served[name] for name in SERVED} == SERVED
    assert served["children"] == 0, "no compile worker"


@pytest.mark.full
def test_a_wrong_use_exits_with_2(tmp_path: Path) -> None:
    nothing = write(tmp_path / "nothing", [])
    for arguments, message in (
        (["no-such-file"], "no-such-file: the workload cannot be read: No such file"),
        ([str(nothing), "--jobs", "0"], "jobs is 0; wanted a positive number"),
        ([str(nothing), "--jobs", "many"], "invalid int value: 'many'"),
        ([str(nothing), "--json", "no/summary"], "no/summary: cannot be written: No such file"),
    ):
        got = verb("warm", *arguments)
        assert (got.returncode, got.stdout) == (2, "")
        assert message in got.stderr
        assert "Traceback" not in got.stderr


def options(workload: Path, **fields: Any) -> Any:
    parser = argparse.ArgumentParser()
    warm_verb.add_arguments(parser)
    namespace = parser.parse_args([str(workload)])
    vars(namespace).update(fields)
    return namespace


def test_a_failure_is_the_exit_status_and_is_named(
    calls: list[workload_module.Call],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: CompileService, request: LibraryRequest) -> Any:
        raise CompileError("no_compiler", f"{request.what}: no C++ compiler", remember=False)

    monkeypatch.setattr(CompileService, "compile", fail)
    path = write(tmp_path / "workload", calls)
    assert warm_verb.main(options(path)) == 1
    out, err = capsys.readouterr()
    assert err == "", "no bar where nobody looks"
    assert "failed         2  no_compiler x2" in out
    assert f"failed: {calls[0].key.digest[:12]} no_compiler: aten::silu: no C++ compiler" in out


def test_a_damaged_line_is_in_the_summary_and_in_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "workload", [])
    path.write_text(path.read_text() + "\n".join(DAMAGED))
    assert warm_verb.main(options(path)) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "failed         3  damaged_line x3\n" in out
    assert "calls          3\n" in out
    assert f"\nfailed: damaged_line: {path}, line 3: is \\x1b[2Jexit; wanted one JSON" in out


def test_escape_sequences_of_an_executor_are_not_printed_raw() -> None:
    failed = (WarmFailure("aten::a", "0" * 64, "x\x1b[2J", "one\x1b[2J\ntwo"),)
    lines = warm_verb.format_report(WarmReport(1, 0, 0, {"y\x9b": 1}, failed, 0, 1.0, 1))
    assert all(c.isprintable() or c == "\n" for c in lines)
    assert "one\\x1b[2J\ntwo" in lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_an_estimate(
    calls: list[workload_module.Call],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    path = write(tmp_path / "workload", calls)
    assert warm_verb.main(options(path, jobs=1)) == 0
    bar = terminal.getvalue()
    assert "compiling" in bar
    assert "1/2 [" in bar
    assert "<" in bar.split("1/2 [")[1].split("]")[0], "elapsed<remaining"
    assert "compiled       2" in capsys.readouterr().out


def test_the_summary_is_a_table() -> None:
    failed = tuple(WarmFailure("aten::a", f"{n:064}", "crashed", "why") for n in range(12))
    report = WarmReport(20, 3, 2, {"mismatch": 1, "tracing": 2}, failed, 0, 65.25, 4)
    lines = warm_verb.format_report(report).splitlines()
    assert lines[:7] == [
        "compiled        3",
        "already there   2",
        "declined        3  tracing x2, mismatch x1",
        "failed         12  crashed x12",
        "-" * 42,
        "calls          20",
        f"65.2 s with 4 at a time, in {aoti_eager.config.cache_dir}",
    ]
    assert lines[7] == "failed: 000000000000 crashed: why"
    assert lines[-1] == "and 2 more; --json has all of them"


def test_a_file_that_is_no_workload_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path / "no", str(tmp_path / "file")):
        with pytest.raises(WorkloadError, match=str(path)):
            cache.warm(path)
