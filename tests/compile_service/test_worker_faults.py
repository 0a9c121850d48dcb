"""Compile workers that die, hang, fill the disk, answer garbage, or run code that corrupts memory.

Real workers in mode ``background``; what they are doing is seen from outside (``workers.py``).
"""

from __future__ import annotations

import json
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._compile_service import cache_context, worker_process
from aoti_eager._compile_service.replies import Busy, PartsMade, Published
from aoti_eager.errors import AotiEagerWarning

from ..conftest import assert_close
from ..support import processes
from ..support.workers import (
    Marked,
    Process,
    until,
    work,
)

pytestmark = pytest.mark.compiles

aten = torch.ops.aten
x = torch.arange(64.0).reshape(8, 8) / 64


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch, precompiled_header: None) -> Iterator[Marked]:
    """What the test has started; it must be gone at the end, and no thread may have raised."""
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    cache_context.close_workers()
    found = Marked()
    for name, value in found.variables.items():
        monkeypatch.setenv(name, value)
    # What is tested here begins when a kernel is asked for; ``test_rare`` has when that is.
    with aoti_eager.config.scope(mode="background", compile_after=1):
        yield found
        assert aoti_eager.wait(300)
    cache_context.close_workers()
    until(lambda: not found.processes(), "the workers are gone", 20)
    assert raised == []


def silu(rows: int) -> None:
    """Call the op, and compare."""
    assert_close(aten.silu(x[:rows]), x[:rows] * torch.sigmoid(x[:rows]))


def settle(rows: int, seconds: float = 60) -> None:
    """Call the op, let the background be done with it, and call it for a check and for a hit."""
    silu(rows)
    assert aoti_eager.wait(seconds), stacks()
    silu(rows)
    silu(rows)


def stacks() -> str:
    """Return what all threads are doing."""
    frames = sys._current_frames()
    return "\n".join(
        "".join([f"{one.name}\n", *traceback.format_stack(frames[one.ident])])
        for one in threading.enumerate()
        if one.ident in frames
    )


def counts() -> aoti_eager.OpStats:
    return aoti_eager.stats()["aten::silu"]


def kill(process: Process) -> None:
    """End it as the system does that has no memory left: it, and not its children."""
    process.send(signal.SIGKILL)
    until(lambda: not process.runs(), "it is dead")


# -- killed --


def imports(marked: Marked, cache_dir: Path) -> None:
    pass


def traces(marked: Marked, cache_dir: Path) -> None:
    until(lambda: work(cache_dir, "compile.log"), "it has begun")


def compiles(marked: Marked, cache_dir: Path) -> None:
    until(marked.compiles, "a compiler")


@pytest.mark.full
@pytest.mark.share(of=3)
@pytest.mark.parametrize("stage", [imports, traces, compiles])
def test_a_worker_killed_once_is_replaced_and_leaves_nothing(
    stage: Callable[[Marked, Path], None], marked: Marked, cache_dir: Path
) -> None:
    with aoti_eager.register("aten::silu"):
        silu(1)
        until(marked.worker, "a worker")
        stage(marked, cache_dir)
        kill(until(marked.worker, "a worker"))
        settle(1)
        assert_one_library(cache_dir)
        assert counts().hits == 1


@pytest.mark.full
@pytest.mark.share(of=2)
@pytest.mark.parametrize("module", ["trial", "measure"])
def test_a_worker_killed_while_it_waits_for_its_server_is_replaced(
    module: str, marked: Marked, cache_dir: Path
) -> None:
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        silu(1)
        server = until(lambda: marked.server(module), module)
        server.send(signal.SIGSTOP)  # The stage lasts until we have seen it.
        until(lambda: work(cache_dir, "library.so"), "a library")
        until(lambda: not marked.compiles(), "it is complete")
        kill(until(marked.worker, "a worker that waits"))
        until(lambda: not server.runs(), "the stopped server is gone, too")
        assert aoti_eager.wait(300)
        silu(1)
        assert_one_library(cache_dir)
        assert set(counts().declined) <= {"slower", "unmeasured"}


def assert_one_library(cache_dir: Path) -> None:
    assert work(cache_dir) == []
    assert cache.verify().damaged == ()
    assert len(cache.list()) == 1
    assert counts().compiles == 1
    assert counts().failures == 0


@pytest.mark.full
def test_a_worker_that_dies_each_time_costs_its_key_and_no_other(
    marked: Marked, cache_dir: Path
) -> None:
    with aoti_eager.register("aten::silu"), pytest.warns(AotiEagerWarning) as given:
        silu(8)
        first = until(marked.worker, "a worker")
        kill(first)
        kill(until(lambda: other_than(first, marked.worker()), "the second"))
        settle(8)
        assert set(counts().declined) == {"worker_died"}
        assert aoti_eager.explain("aten::silu", x).reason == "worker_died"
        settle(7)
        assert counts().hits == 1
    assert work(cache_dir) == []
    assert len(given) == 1
    assert "died twice" in str(given[0].message)


def other_than(first: Process, process: Process | None) -> Process | None:
    return process if process is not None and process.pid != first.pid else None


@pytest.mark.full
def test_idle_workers_that_died_meanwhile_do_not_cost_the_next_key_a_try(
    marked: Marked, cache_dir: Path
) -> None:
    with aoti_eager.register("aten::silu"):
        settle(8)
        kill(until(marked.worker, "the idle worker"))
        silu(7)
        kill(until(marked.worker, "its successor"))
        settle(7)
        assert counts().compiles == 2
        assert counts().declines == 0
    assert work(cache_dir) == []


# -- hung --


@pytest.mark.full
def test_a_hung_worker_is_killed_in_time_and_leaves_nothing(
    marked: Marked, cache_dir: Path
) -> None:
    with aoti_eager.register("aten::silu"), pytest.warns(AotiEagerWarning) as given:
        settle(8)
        with aoti_eager.config.scope(compile_timeout_s=2.0):
            silu(7)
            until(lambda: work(cache_dir, "compile.log"), "it has begun")
            hung = until(marked.worker, "the worker")
            hung.send(signal.SIGSTOP)
            settle(7, 20)
        assert not hung.runs()
        assert marked.processes() == []
        assert work(cache_dir) == []
        assert counts().declined == {"compile_timeout": 2}
        settle(6)
        assert counts().hits == 2
    assert len(given) == 1
    assert "no library after 2 s" in str(given[0].message)


# -- disk full --


@pytest.mark.full
@pytest.mark.share(of=4)
@pytest.mark.parametrize("size", ["16k", "48k", "64k", "96k"])
def test_a_full_disk_is_one_warning_and_nothing_is_remembered(
    size: str, mount: object, shared_cache_dir: Path, marked: Marked
) -> None:
    """Wherever it comes to its end: the script's text, the compiler's, the library."""
    path = mount("full", f"size={size}")  # type: ignore[operator]
    (path / "toolchain").symlink_to(shared_cache_dir / "toolchain")
    with (
        aoti_eager.config.scope(cache_dir=path),
        aoti_eager.register("aten::silu"),
        warnings.catch_warnings(record=True) as given,
    ):
        warnings.simplefilter("always")
        settle(8)
        settle(7)
        silu(6)
        assert aoti_eager.wait(300)
        stats = counts()
        assert len(cache.list()) == stats.compiles
        assert cache.verify().damaged == ()
        assert work(path) == []
    assert stats.compiles < 2
    assert set(stats.declined) == {"store_unwritable"}
    assert len(given) == 1
    assert "originals run instead" in str(given[0].message)


# -- garbage --

PUBLISHED = Published(Path("/nowhere"), compiled=True).to_json()
# What a shell says in place of a worker, after it has read the request.
GARBAGE = {
    "exits at once": None,
    "nothing": "",
    "words": "echo Segmentation fault",
    "bytes": r"printf '\377\376\000\n'",
    "half a line": """printf '{"entry": "/'""",
    "a line too many": "\n".join(2 * [f"echo '{json.dumps(Busy().to_json())}'"]),
    "a line without end": "cat /dev/zero",
    "a deep one": "head -c 200000 /dev/zero | tr '\\0' '['; echo",
    "a number": "echo 7",
    "a list": "echo '[]'",
    "null": "echo null",
    "nothing in it": "echo '{}'",
    "another type": f"echo '{json.dumps({**PUBLISHED, 'entry': 7})}'",
    "another version": f"echo '{json.dumps({**PUBLISHED, 'version': '0'})}'",
    "another reply": f"echo '{json.dumps(PartsMade(True).to_json())}'",
    "a failure without a reason": """echo '{"reason": null}'""",
    "a failure without words": """echo '{"reason": "raised"}'""",
    "no entry": f"echo '{json.dumps(PUBLISHED)}'",
}


@pytest.mark.full
def test_garbage_from_a_worker_is_a_decline_with_a_reason(
    marked: Marked, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ""

    def command(module: str, function: str) -> list[str]:
        return ["/bin/sh", "-c", f"read a; {said}" if said is not None else "exit 1"]

    monkeypatch.setattr(worker_process, "child_command", command)
    reasons = {}
    with (
        aoti_eager.config.scope(compile_timeout_s=600.0),
        warnings.catch_warnings(record=True) as given,
    ):
        warnings.simplefilter("always")
        for name, said in GARBAGE.items():  # noqa: B007 - command says it
            with aoti_eager.register("aten::silu"):
                settle(8, 120)
                reasons[name] = aoti_eager.explain("aten::silu", x).reason
                assert counts().hits == 0
            cache_context.close_workers()
    assert reasons == {**dict.fromkeys(GARBAGE, "worker_died"), "no entry": "store_unwritable"}
    assert len(given) == 2
    assert work(cache_dir) == []


def test_a_worker_that_says_half_a_line_and_no_more_is_given_up_in_time(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = """read a; printf '{"entry"'; sleep 1000"""
    monkeypatch.setattr(worker_process, "child_command", lambda *_: ["/bin/sh", "-c", said])
    with (
        aoti_eager.config.scope(compile_timeout_s=0.3),
        aoti_eager.register("aten::silu"),
        pytest.warns(AotiEagerWarning, match="no library after"),
    ):
        settle(8, 20)
        assert set(counts().declined) == {"compile_timeout"}


# -- wrong code --

CORRUPTS = textwrap.dedent("""
    import json, torch, aoti_eager
    t = torch.tensor([True, False] * 8)
    with aoti_eager.register("aten::add.Tensor"):
        torch.add(t, t, alpha=3)
        aoti_eager.wait()
        ok = torch.equal(torch.add(t, t, alpha=3), t)
        stats = aoti_eager.stats()["aten::add.Tensor"]
    print(json.dumps({"ok": ok, "compiles": stats.compiles, "declined": stats.declined}))
    """)


@pytest.mark.full
@pytest.mark.share(of=2)
@pytest.mark.parametrize("mode", ["background", "sync"])
def test_code_that_corrupts_memory_ends_its_trial_and_not_the_script(
    mode: str, cache_dir: Path, precompiled_header: None
) -> None:
    first = processes.run(cache_dir, CORRUPTS, AOTI_EAGER_MODE=mode)
    assert first["ok"]
    # What it writes over decides whether it is found by the allocator or by its results.
    (reason,) = first["declined"]
    assert reason in ("crashed", "mismatch")
    second = processes.run(cache_dir, CORRUPTS, AOTI_EAGER_MODE=mode)
    assert second == {"ok": True, "compiles": 0, "declined": {reason: 2}, "stderr": ""}
    assert work(cache_dir) == []
