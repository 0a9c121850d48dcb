"""Scripts that end before their kernels are made: the next one goes on, and the last has them all.

Nothing waits for a time: each script ends after its calls, or when the file of what is wanted, or
the store, says that there is something to be seen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats, cache
from aoti_eager._base import warn_once
from aoti_eager._base.store_format import WANTED_FILE
from aoti_eager._compile_service import cache_context, queue
from aoti_eager._compile_service.replies import Measured
from aoti_eager._compile_service.requests import EntryRequest, TimesRequest
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._dispatch import resumed
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._registration import registry
from aoti_eager._store import kept_queue, wanted_calls
from aoti_eager._store.kept_queue import (
    read_wanted,
    record_of,
    update_wanted,
)
from aoti_eager._store.verdict import PathTime
from aoti_eager._store.wanted_calls import (
    MOST_TRIES,
    WantedCall,
)
from aoti_eager.errors import CompileError

from ..support import forked_python, processes
from ..support.child_patches import patch_children
from ..support.workers import until

aten = torch.ops.aten
SILU = torch.arange(64.0).reshape(8, 8) / 64


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has wanted nothing yet, in the mode in which things are wanted."""
    monkeypatch.setattr(kept_queue, "_records", {})
    monkeypatch.setattr(resumed, "_resumption", resumed.Resumption())
    # A key is asked for at its first call, here and in all processes that a test starts: what is
    # tested is what happens to it then. ``test_rare`` has when it is asked for by default.
    monkeypatch.setenv("AOTI_EAGER_COMPILE_AFTER", "1")
    with aoti_eager.config.scope(mode="background"):
        yield
    assert queue.background.wait(120.0)


def stats(op: str) -> OpStats:
    return aoti_eager.stats().get(op, OpStats())


def leave(cache_dir: Path, call: WantedCall, calls: int = 1, tries: int = 0) -> str:
    """Leave a key in the kept queue, as an earlier process has, and return its digest."""
    one = wanted_calls.wanted(call, calls, tries, int(time.time()))
    cache_context.current().store.create()
    update_wanted(cache_dir, lambda kept: {**kept, one.digest: one})
    return one.digest


def call_of(x: torch.Tensor, op: str = "aten::silu") -> WantedCall:
    """Return a call of an op of one tensor, as a process describes it that has missed it."""
    overload = getattr(aten, op.partition("::")[2]).default
    explained = aoti_eager.explain(overload, x)
    assert explained.key is not None
    return WantedCall(explained.key, str(overload._schema))


# -- a process that comes upon what was left --


@pytest.mark.both_paths(costly=True)
def test_what_was_left_is_made_and_the_first_call_finds_it(cache_dir: Path) -> None:
    digests = [leave(cache_dir, call_of(SILU[:rows])) for rows in (4, 3)]
    with aoti_eager.register("aten::silu"):
        aten.silu(SILU)
        assert aoti_eager.wait(120.0)
        assert stats("aten::silu").compiles == 3
        assert len(cache.list()) == 3
        for rows in (4, 3):
            before = stats("aten::silu")
            aten.silu(SILU[:rows]), aten.silu(SILU[:rows])
            assert stats("aten::silu").hits == before.hits + 1  # The first is compared.
    kept_queue._keep_all()
    assert set(digests) & set(read_wanted(cache_dir)) == set()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[KernelKey]:
    """The keys that a worker was asked for, one after another; none of them is made."""
    keys: list[KernelKey] = []

    def publish(service: Any, request: EntryRequest) -> Any:
        keys.append(request.code.call.key)
        raise CompileError("compile_timeout", "not in this test", remember=False)

    monkeypatch.setattr(CompileService, "publish", publish)
    return keys


def sizes(keys: list[KernelKey]) -> list[int]:
    return [key.arguments[0][1]["sizes"][0] for key in keys]


def call_all(*tensors: torch.Tensor) -> None:
    """Call the op, while one worker is busy with the first; nothing is decided on meanwhile."""
    with aoti_eager.register("aten::silu"), pytest.warns(aoti_eager.errors.AotiEagerWarning):
        for x in tensors:
            aten.silu(x)
        assert queue.background.wait(60.0)


def test_the_most_wanted_comes_first_and_of_equal_ones_that_of_this_process(
    cache_dir: Path, asked: list[KernelKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows, calls in ((1, 2), (2, 3), (3, 1), (4, 2)):
        leave(cache_dir, call_of(SILU[:rows]), calls)
    held = queue.Background()
    monkeypatch.setattr(queue, "background", held)
    serve, held._serve = held._serve, lambda: None  # type: ignore[method-assign]
    with aoti_eager.register("aten::silu"), pytest.warns(aoti_eager.errors.AotiEagerWarning):
        aten.silu(SILU[:5])
        for _ in range(3):
            aten.silu(SILU[:6])
        aten.silu(SILU[:4])  # Of an earlier process, too: twice there, and now.
        held._serve = serve  # type: ignore[method-assign]
        held._threads.clear()
        assert held.submit(_Nothing())
        assert held.wait(60.0)
    held.end(lambda: None)
    assert sizes(asked) == [6, 4, 2, 1, 5, 3]


class _Nothing:
    """A job that does nothing, and comes first."""

    rank = (9,)

    def run(self) -> None:
        return


def test_what_is_unregistered_meanwhile_is_not_asked_for_again(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompileService, "publish", lambda *_, **__: None)
    digest = leave(cache_dir, call_of(SILU[:1]))
    with aoti_eager.register("aten::silu"):
        cache_ = registry.find_cache(aten.silu.default, "CPU")
        assert cache_ is not None
        backend = cache_context.current()
        one = resumed.Resumed(read_wanted(cache_dir)[digest], cache_, cache_.table, backend)
        assert one.run() is not None  # Another process is at it.
    assert one.run() is None
    assert one.outcome is not None
    assert (one.outcome.kind, one.outcome.reason) == ("passed over", "closed")


def test_what_a_full_queue_had_no_room_for_is_gone_on_with_once_it_has(
    cache_dir: Path, asked: list[KernelKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(cache_dir, call_of(SILU[:1]))
    monkeypatch.setattr(queue, "QUEUE_LIMIT", 1)
    begun, go_on = threading.Event(), threading.Event()
    with aoti_eager.register("aten::silu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", aoti_eager.errors.AotiEagerWarning)
        assert queue.background.submit(_Held(begun, go_on))
        assert begun.wait(60.0)
        assert queue.background.submit(_Nothing())
        aten.silu(SILU)  # The queue is full: neither this key nor the one that was left.
        assert aoti_eager.stats()["aten::silu"].unfinished == {"queued": 1}
        go_on.set()
        assert queue.background.wait(60.0)
    assert sizes(asked) == [1]


class _Held:
    """A job that goes on when it is told to."""

    rank = (9,)

    def __init__(self, begun: threading.Event, go_on: threading.Event) -> None:
        self._begun, self._go_on = begun, go_on

    def run(self) -> None:
        self._begun.set()
        assert self._go_on.wait(60.0)


def test_a_key_that_was_begun_in_vain_too_often_waits_until_it_is_called(
    cache_dir: Path, asked: list[KernelKey]
) -> None:
    digest = leave(cache_dir, call_of(SILU[:1]), 50, tries=MOST_TRIES)
    leave(cache_dir, call_of(SILU[:2]), 40, tries=MOST_TRIES - 1)
    call_all(SILU)
    assert sorted(sizes(asked)) == [2, 8]
    kept_queue._keep_all()
    kept = read_wanted(cache_dir)
    assert {one.tries for one in kept.values()} == {1, MOST_TRIES}
    kept_queue._records.clear()
    asked.clear()
    warn_once.forget_warnings()
    call_all(SILU[:1])
    assert 1 in sizes(asked)
    kept_queue._keep_all()
    assert read_wanted(cache_dir)[digest].calls == 50 + 1


def test_what_is_not_for_this_process_is_left_where_it_is(
    cache_dir: Path, asked: list[KernelKey]
) -> None:
    ours = call_of(SILU[:1])
    context = dict(ours.key.context)

    def with_context(**changed: Any) -> WantedCall:
        key = KernelKey(
            ours.key.op, "CPU", ours.key.arguments, tuple(sorted((context | changed).items()))
        )
        return WantedCall(key, ours.schema)

    others = [
        with_context(threads=context["threads"] + 1),
        with_context(original="override"),
        with_context(function="0" * 64, constants=[]),
        with_context(backend="another's"),
        WantedCall(ours.key, ours.schema.replace("Tensor self", "Tensor self, int more=0")),
        call_of(SILU[:1], "aten::tanh"),
    ]
    digests = {leave(cache_dir, one, 5) for one in others}
    call_all(SILU)
    assert sizes(asked) == [8]
    kept_queue._keep_all()
    assert digests <= set(read_wanted(cache_dir))


def test_a_key_that_is_none_is_dropped_and_does_no_harm(
    cache_dir: Path, asked: list[KernelKey]
) -> None:
    good = call_of(SILU[:1])
    tensor = good.key.arguments[0][1]
    documents = {
        "sizes that are none": (("self", {**tensor, "sizes": "no"}),),
        "no tensor": (("self", {"int": 7}),),
        "another argument": (("other", tensor),),
        "a dtype that is none": (("self", {**tensor, "dtype": "float99"}),),
    }
    for arguments in documents.values():
        key = KernelKey(good.key.op, "CPU", arguments, good.key.context)
        leave(cache_dir, WantedCall(key, good.schema), 9)
    path = cache_dir / WANTED_FILE
    lines = path.read_bytes().splitlines()
    lines.append(lines[1].replace(b'"key"', b'"kee"').replace(lines[1][:64], b"a" * 64))
    path.write_bytes(b"\n".join([*lines, b""]))
    call_all(SILU)
    assert aoti_eager.stats()["aten::silu"].unfinished == {}
    kept_queue._keep_all()
    # What a worker was asked for has failed for good, or was begun in vain; no other is left.
    left = {digest for digest, one in read_wanted(cache_dir).items() if not one.tries}
    assert left == set()


def test_what_an_earlier_process_has_left_counts_as_queued(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(cache_dir, call_of(SILU[:1]))
    held = queue.Background()
    held._serve = lambda: None  # type: ignore[method-assign]
    with monkeypatch.context() as patched:
        patched.setattr(queue, "background", held)
        with aoti_eager.register("aten::silu"):
            aten.silu(SILU)
            assert stats("aten::silu").unfinished == {"queued": 2}
            aten.silu(SILU[:1])  # One and the same key.
            assert stats("aten::silu").unfinished == {"queued": 2}
    held.end(lambda: None)


@pytest.mark.parametrize("mode", ["sync", "cache_only", "off"])
def test_in_other_modes_nothing_is_gone_on_with(
    mode: str, cache_dir: Path, asked: list[KernelKey]
) -> None:
    leave(cache_dir, call_of(SILU[:1]))
    with aoti_eager.config.scope(mode=mode), aoti_eager.register("aten::silu"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # In mode ``sync``: no kernel for the call's own key.
            aten.silu(SILU)
        assert queue.background.wait(60.0)
    assert sizes(asked) == ([8] if mode == "sync" else [])


def test_a_stored_kernel_without_a_measurement_is_measured(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = leave(cache_dir, call_of(SILU[:1]))
    with aoti_eager.config.scope(mode="sync"), aoti_eager.register("aten::silu"):
        aten.silu(SILU[:1]), aten.silu(SILU)
    measured: list[KernelKey] = []

    def measure(service: Any, request: TimesRequest) -> Measured:
        measured.append(request.call.key)
        time = PathTime(1.0, 2.0, 2.2, 0.0, True)
        return Measured({"python": time, "native": time}, compared=True)

    monkeypatch.setattr(CompileService, "measure", measure)
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        aten.silu(SILU)
        assert queue.background.wait(60.0)
    assert sorted(sizes(measured)) == [1, 8]
    kept_queue._keep_all()
    assert digest not in read_wanted(cache_dir)


def tripled() -> Any:
    """Return a function of the same name as another, which does something else."""

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    return doubled


def test_a_function_of_the_scripts_is_gone_on_with_where_it_is_the_same(
    cache_dir: Path, asked: list[KernelKey], make_op: Any
) -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    op = make_op(doubled)
    cache_context.current().store.create()  # As a worker would do, which is not asked here.
    with pytest.warns(aoti_eager.errors.AotiEagerWarning):
        op(SILU[:1])
        assert queue.background.wait(60.0)
    op.unregister()
    kept_queue._keep_all()
    (one,) = read_wanted(cache_dir).values()
    assert b"x * 2" not in one.document  # No code is in the file.
    for factor, gone_on in ((2, [1, 8]), (3, [8])):
        kept_queue._records.clear()
        asked.clear()
        warn_once.forget_warnings()
        again = make_op(doubled if factor == 2 else tripled())
        with pytest.warns(aoti_eager.errors.AotiEagerWarning):
            again(SILU)
            assert queue.background.wait(60.0)
        again.unregister()
        assert sorted(sizes(asked)) == gone_on


# -- real processes --

# The calls of a script that is over before its kernels are; it says what it has got.
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch, aoti_eager

x = torch.arange(64.0).reshape(8, 8) / 64
aoti_eager.register(["aten::silu", "aten::tanh"])
for _ in range(3):
    for rows in (8, 7, 6):
        torch.ops.aten.silu(x[:rows]), torch.ops.aten.tanh(x[:rows])
entries = Path(os.environ["AOTI_EAGER_CACHE_DIR"]) / "v1"
if len(sys.argv) > 1:  # Ends when the store has so many entries.
    import time
    while len(list(entries.glob("*/*/*/*/*/entry.json"))) < int(sys.argv[1]):
        time.sleep(0.05)
stats = aoti_eager.stats().values()
print(json.dumps({
    "misses": sum(s.misses for s in stats),
    "hits": sum(s.hits for s in stats),
    "unfinished": sum(n for s in stats for n in s.unfinished.values()),
}))
"""


@pytest.fixture
def share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let workers have as much of the cores as other tests, which else would keep them all."""
    patches = {"aoti_eager._base.scheduling": "has_groups = lambda: False"}
    patch_children(monkeypatch, tmp_path, patches)


def run(cache_dir: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    settings = {"AOTI_EAGER_MODE": "background", **variables}
    script = f"import sys; sys.argv[1:] = {list(arguments)!r}\n{SCRIPT}"
    return processes.run(cache_dir, script, **settings)


@pytest.mark.full
@pytest.mark.compiles
@pytest.mark.usefixtures("share_of_the_cores")
def test_three_short_scripts_have_all_kernels_between_them(cache_dir: Path) -> None:
    first = run(cache_dir, "2")
    assert first["unfinished"] >= 3
    kept = read_wanted(cache_dir)
    assert len(cache.list()) >= 2
    assert len(kept) + len(cache.list()) >= 6
    assert all(one.calls >= 1 for one in kept.values())
    second = run(cache_dir, "5")
    assert second["hits"] + second["misses"] == 18
    third = run(cache_dir, "6")
    assert third["stderr"] == ""
    assert len(cache.list()) == 6
    # The last kernel may have come when the script had its end in view.
    assert len(read_wanted(cache_dir)) <= 1
    fourth = run(cache_dir)
    # A key's first call is compared, where none was before.
    assert fourth["misses"] <= 6
    assert fourth["hits"] == 18 - fourth["misses"]
    assert not (cache_dir / WANTED_FILE).exists()


def command(cache_dir: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    settings = {"AOTI_EAGER_MODE": "background", **variables}
    return forked_python.run(
        [sys.executable, "-m", "aoti_eager", *arguments],
        capture_output=True,
        text=True,
        cwd=cache_dir.parent,
        env={**os.environ, "AOTI_EAGER_CACHE_DIR": str(cache_dir), **settings},
        check=False,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script of three keys, that ends at once."""
    path = tmp_path / "short.py"
    path.write_text(
        "import torch\n"
        "x = torch.arange(64.0).reshape(8, 8) / 64\n"
        "for rows in (8, 7, 6):\n"
        "    torch.nn.functional.silu(x[:rows])\n"
    )
    return path


@pytest.mark.full
@pytest.mark.compiles
@pytest.mark.usefixtures("share_of_the_cores")
def test_run_says_what_is_unfinished_and_the_command_finishes_it(
    cache_dir: Path, script: Path, tmp_path: Path
) -> None:
    counts = tmp_path / "counts.json"
    ran = command(
        cache_dir, "run", "--ops", "aten::silu.default", "--json", str(counts), str(script)
    )
    assert ran.returncode == 0
    assert "3 kernels unfinished; they go on in the next run, or now: aoti-eager warm --kept" in (
        ran.stderr
    )
    assert "0.0 % of all calls were hits" in ran.stderr
    assert sum(json.loads(counts.read_text())["aten::silu"]["unfinished"].values()) == 3
    kept = read_wanted(cache_dir).values()
    assert len(kept) == 3
    assert sum(one.tries for one in kept) <= 1  # Of one worker: the others were not begun.
    summary = tmp_path / "summary.json"
    warmed = command(cache_dir, "warm", "--kept", "--json", str(summary))
    assert warmed.returncode == 0, warmed.stderr
    report = json.loads(summary.read_text())
    assert (report["compiled"], report["calls"], report["remaining"]) == (3, 3, 0)
    assert not (cache_dir / WANTED_FILE).exists()
    assert len(cache.list()) == 3
    again = command(cache_dir, "run", "--ops", "aten::silu.default", str(script))
    assert "unfinished;" not in again.stderr
    nothing = command(cache_dir, "warm", "--kept")
    assert nothing.returncode == 0


@pytest.mark.compiles
@pytest.mark.usefixtures("share_of_the_cores")
def test_run_with_wait_finishes_before_it_returns(cache_dir: Path, script: Path) -> None:
    ran = command(cache_dir, "run", "--wait", "--ops", "aten::silu.default", str(script))
    assert ran.returncode == 0
    assert "aoti_eager: finishing 3 kernels" in ran.stderr
    assert "3 comparing" in ran.stderr
    assert "unfinished;" not in ran.stderr
    assert len(cache.list()) == 3
    assert not (cache_dir / WANTED_FILE).exists()


@pytest.mark.compiles
def test_an_interrupt_while_it_waits_ends_it_and_keeps_the_rest(
    cache_dir: Path, script: Path
) -> None:
    running = forked_python.popen(
        [sys.executable, "-m", "aoti_eager", "run", "--wait", "--ops", "aten::silu", str(script)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "AOTI_EAGER_MODE": "background"},
    )
    assert running.stderr is not None
    said = ""
    while "finishing" not in said:
        said = running.stderr.readline()
        assert said, "it has ended"
    running.send_signal(signal.SIGINT)
    _, rest = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "aoti_eager: interrupted" in rest
    assert "unfinished; they go on in the next run" in rest
    assert "Traceback" not in rest
    # A key is kept, or its kernel came before the interrupt.
    kept, there = len(read_wanted(cache_dir)), len(aoti_eager.cache.list())
    assert kept >= 1
    assert kept + there >= 3


def test_warm_wants_a_workload_or_what_is_kept(cache_dir: Path) -> None:
    for arguments in ((), ("--kept", "file")):
        got = command(cache_dir, "warm", *arguments)
        assert got.returncode == 2
        assert "choose a workload, or --kept" in got.stderr


def test_ops_that_only_their_script_has_are_named(cache_dir: Path) -> None:
    key = call_of(SILU).key
    key = KernelKey("mine::op", "CPU", key.arguments, key.context)
    leave(cache_dir, WantedCall(key, "mine::op(Tensor x) -> Tensor"))
    got = command(cache_dir, "warm", "--kept")
    assert got.returncode == 1
    assert "op_not_here x1" in got.stdout
    assert "run --wait SCRIPT" in got.stdout
    assert len(read_wanted(cache_dir)) == 1


@pytest.mark.full
def test_the_cost_of_a_later_miss_is_a_look_at_a_flag(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read once, and looked through once for each op."""
    leave(cache_dir, call_of(SILU[:1], "aten::tanh"))
    read = []
    real = kept_queue.read_wanted
    monkeypatch.setattr(kept_queue, "read_wanted", lambda root: read.append(root) or real(root))
    with aoti_eager.config.scope(mode="background"), aoti_eager.register("aten::silu"):
        for rows in range(1, 5):
            aten.silu(SILU[:rows])
        assert until(lambda: queue.background.wait(120.0), "all is done")
    assert len(read) == 1
    assert record_of(cache_dir).kept != {}
