"""What happens to a script whose compile workers die, hang, lie, or outlive it.

Real workers in mode ``background``; what they are doing is seen from outside (``workers.py``).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
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
from aoti_eager.errors import AotiEagerWarning

from ..conftest import assert_close
from ..support import processes
from ..support.child_patches import patch_children
from ..support.workers import (
    Marked,
    Process,
    until,
    work,
)

pytestmark = pytest.mark.compiles

aten = torch.ops.aten
x = torch.arange(64.0).reshape(8, 8) / 64


@pytest.fixture(scope="module")
def header(shared_cache_dir: Path) -> None:
    """The precompiled header: without it a kernel takes as long as some of the tests."""
    if not list(shared_cache_dir.glob("toolchain/headers/*.gch")):
        processes.run(
            shared_cache_dir,
            """
import json, pathlib, time, torch, aoti_eager
aoti_eager.register("aten::silu")
torch.ops.aten.silu(torch.ones(1000))
headers = aoti_eager.config.cache_dir / "toolchain" / "headers"
deadline = time.monotonic() + 100
while not list(headers.glob("*.gch")) and time.monotonic() < deadline:
    time.sleep(0.1)
print("{}")
""",
            AOTI_EAGER_MODE="sync",
            AOTI_EAGER_GATE="0",
            AOTI_EAGER_NATIVE="0",
        )
    assert list(shared_cache_dir.glob("toolchain/headers/*.gch"))


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch, header: None) -> Iterator[Marked]:
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

# What a shell says in place of a worker, after it has read the request.
GARBAGE = {
    "exits at once": None,
    "nothing": "",
    "words": "echo Segmentation fault",
    "bytes": r"printf '\377\376\000\n'",
    "half a line": """printf '{"entry": "/'""",
    "a line too many": """echo '{"busy": true}'; echo '{"busy": true}'""",
    "a line without end": "cat /dev/zero",
    "a deep one": "head -c 200000 /dev/zero | tr '\\0' '['; echo",
    "a number": "echo 7",
    "a list": "echo '[]'",
    "null": "echo null",
    "nothing in it": "echo '{}'",
    "another type": """echo '{"entry": 7, "compiled": true}'""",
    "a failure without a reason": """echo '{"reason": null}'""",
    "a failure without words": """echo '{"reason": "raised"}'""",
    "no entry": """echo '{"entry": "/nowhere", "compiled": true}'""",
}


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


# -- the end of the script --

ENDS = """
import atexit, sys
import torch

def late():  # after all of ours
    assert torch.equal(torch.ops.aten.silu(x), want), "wrong at the end"

atexit.register(late)
import aoti_eager

x = torch.arange(12.0).reshape(3, 4)
want = x * torch.sigmoid(x)
registration = aoti_eager.register("aten::silu")
assert torch.allclose(torch.ops.aten.silu(x), want)
want = torch.ops.aten.silu(x)
print("called", flush=True)
how = sys.stdin.readline().strip()
assert torch.allclose(torch.ops.aten.silu(x), want)
if how == "exit":
    sys.exit(3)
if how == "raise":
    raise ValueError("on purpose")
"""


class Script:
    """A script that has made its first call and waits to be told how to end."""

    def __init__(self, cache_dir: Path, marked: Marked, text: str = ENDS) -> None:
        self.marked = marked
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cache_dir.parent,
            env={
                **os.environ,
                **marked.variables,
                "AOTI_EAGER_CACHE_DIR": str(cache_dir),
                "AOTI_EAGER_MODE": "background",
                "AOTI_EAGER_COMPILE_AFTER": "1",  # It makes one call, and ends during its compile.
            },
        )
        assert self.process.stdout is not None
        self._out = self.process.stdout

    def called(self) -> None:
        """Wait for its first call."""
        line = self._out.readline()
        assert line == "called\n", self.process.communicate()[1]

    def end(self, how: str | int) -> tuple[int, str]:
        """Tell it, or send it a signal, and return its status and what it complained of."""
        if isinstance(how, int):
            self.process.send_signal(how)
        _, errors = self.process.communicate(how if isinstance(how, str) else None, timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def script(cache_dir: Path, header: None) -> Iterator[Script]:
    """The script; nothing that it has started may be left."""
    started = Script(cache_dir, Marked())
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.communicate()
    until(lambda: not started.marked.processes(), "nothing runs any more", 20)
    until(lambda: not work(cache_dir), "nothing is left of a compile", 20)
    report = cache.verify()
    assert (report.damaged, report.intact) == ((), 0)


MOMENTS = {
    "called": lambda script, cache_dir: script.called(),
    "imports": lambda script, cache_dir: until(script.marked.worker, "a worker"),
    "traces": lambda script, cache_dir: until(lambda: work(cache_dir, "compile.log"), "a log"),
    "compiles": lambda script, cache_dir: until(script.marked.compiles, "a compiler"),
}


@pytest.mark.share(of=4)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_script_ends_at_once_in_the_middle_of_a_compile(
    moment: str, script: Script, cache_dir: Path
) -> None:
    MOMENTS[moment](script, cache_dir)
    assert script.end("\n") == (0, "")


@pytest.mark.share(of=5)
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("exit\n", 3),
        ("raise\n", 1),
        (signal.SIGINT, -signal.SIGINT),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_script_may_end_in_any_way(
    how: str | int, status: int, script: Script, cache_dir: Path
) -> None:
    MOMENTS["compiles"](script, cache_dir)
    returned, errors = script.end(how)
    assert returned == status, errors
    assert "aoti_eager" not in errors
    assert errors.count("Traceback") == (how in ("raise\n", signal.SIGINT))


# -- fork --


@pytest.mark.full
def test_a_forked_child_leaves_the_parent_s_workers_alone(cache_dir: Path, header: None) -> None:
    text = """
import json, os, sys, torch, aoti_eager
x = torch.arange(12.0).reshape(3, 4)
def right(rows):
    return torch.allclose(torch.ops.aten.silu(x[:rows]), x[:rows] * torch.sigmoid(x[:rows]))

registration = aoti_eager.register("aten::silu")
ok = right(3)
child = os.fork()
if child == 0:
    ok = all(right(rows) for rows in (3, 2, 3, 2))
    declined = aoti_eager.stats()["aten::silu"].declined
    ok = ok and declined == {"forked": 4} and aoti_eager.wait(5)
    sys.exit(0 if ok else 7)  # through atexit, as any script
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
ok = ok and aoti_eager.wait(300) and right(3) and right(3)
stats = aoti_eager.stats()["aten::silu"]
print(json.dumps({"ok": ok, "child": status, "hits": stats.hits, "compiles": stats.compiles}))
"""
    marked = Marked()
    done = processes.run(cache_dir, text, AOTI_EAGER_MODE="background", **marked.variables)
    assert done == {"ok": True, "child": 0, "hits": 1, "compiles": 1, "stderr": ""}
    until(lambda: not marked.processes(), "nothing runs any more", 20)
    assert work(cache_dir) == []


def test_workers_end_with_their_parent_though_a_child_of_its_lives(
    cache_dir: Path, header: None
) -> None:
    """The child has the ends of their pipes, too."""
    text = (
        ENDS
        + """
import os, time
if how == "fork":
    if os.fork() == 0:
        time.sleep(1000)
    print("forked", flush=True)
    time.sleep(1000)
"""
    )
    marked = Marked()
    script = Script(cache_dir, marked, text)
    script.called()
    script.process.stdin.write("fork\n")  # type: ignore[union-attr]
    script.process.stdin.flush()  # type: ignore[union-attr]
    assert script._out.readline() == "forked\n"
    worker = until(marked.worker, "the worker")
    try:
        script.process.kill()
        until(lambda: not worker.runs(), "the worker ends", 20)
        until(lambda: not work(cache_dir), "nothing is left of a compile", 20)
    finally:
        for process in marked.processes():
            process.send(signal.SIGKILL)
        script.process.communicate()


HANGS = """
import ctypes, os
def hang(*_):
    open(os.environ["AE_TEST_HANGS"], "w").close()
    ctypes.PyDLL(None).sleep(1000)  # It keeps the interpreter's lock.
"""


@pytest.mark.parametrize(
    ("module", "hangs"),
    [
        ("aoti_eager._compile_worker.jobs", "hang()"),
        ("aoti_eager._compile_worker.lowering", "lower = hang"),
    ],
    ids=["imports", "traces"],
)
def test_a_worker_that_does_nothing_else_ends_with_its_script(
    module: str,
    hangs: str,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    header: None,
) -> None:
    """As on a machine that is so busy that it takes minutes to come to look."""
    patch_children(monkeypatch, tmp_path, {module: f"{HANGS}\n{hangs}\n"})
    monkeypatch.setenv("AE_TEST_HANGS", str(tmp_path / "hangs"))
    marked = Marked()
    script = Script(cache_dir, marked, ENDS + "import os\nos._exit(5)\n")
    try:
        script.called()
        until((tmp_path / "hangs").exists, "it hangs", 200)
        assert script.end("\n") == (5, "")
        until(lambda: not marked.processes(), "nothing runs any more")
        assert list((cache_dir / "tmp").iterdir()) == []
    finally:
        for process in marked.processes():
            process.send(signal.SIGKILL)
        script.process.communicate()


POOLS = """
import json, multiprocessing, sys
import torch
import torch.utils.data
import aoti_eager

x = torch.arange(12.0).reshape(3, 4)

def right(rows):
    t = x[:rows]
    return torch.allclose(torch.ops.aten.silu(t), t * torch.sigmoid(t))

def register_and_right(rows):
    with aoti_eager.register("aten::silu"):
        return right(rows) and right(rows)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.ops.aten.silu(x[i % 3])

if __name__ == "__main__":
    with aoti_eager.register("aten::silu"):
        ok = [right(3)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            ok += pool.map(right, [3, 2, 1, 3])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            ok += pool.map(register_and_right, [3, 2])
        loader = torch.utils.data.DataLoader(Data(), batch_size=2, num_workers=2)
        for i, batch in enumerate(loader):
            rows = torch.stack([x[(2 * i + j) % 3] for j in range(2)])
            ok.append(torch.allclose(batch, rows * torch.sigmoid(rows)))
        ok += [aoti_eager.wait(300), right(3), right(3)]
        hits = aoti_eager.stats()["aten::silu"].hits
    print(json.dumps({"ok": all(ok), "hits": hits}))
"""


@pytest.mark.full
def test_pools_of_processes_and_data_loaders_give_right_results(
    cache_dir: Path, tmp_path: Path, header: None
) -> None:
    (tmp_path / "pools.py").write_text(POOLS)
    marked = Marked()
    environment = {
        **os.environ,
        **marked.variables,
        "AOTI_EAGER_CACHE_DIR": str(cache_dir),
        "AOTI_EAGER_MODE": "background",
    }
    done = subprocess.run(
        [sys.executable, "pools.py"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": True, "hits": 1}
    assert done.stderr == ""
    until(lambda: not marked.processes(), "nothing runs any more", 20)
    assert work(cache_dir) == []


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


@pytest.mark.share(of=2)
@pytest.mark.parametrize("mode", ["background", "sync"])
def test_code_that_corrupts_memory_ends_its_trial_and_not_the_script(
    mode: str, cache_dir: Path, header: None
) -> None:
    first = processes.run(cache_dir, CORRUPTS, AOTI_EAGER_MODE=mode)
    assert first["ok"]
    # What it writes over decides whether it is found by the allocator or by its results.
    (reason,) = first["declined"]
    assert reason in ("crashed", "mismatch")
    second = processes.run(cache_dir, CORRUPTS, AOTI_EAGER_MODE=mode)
    assert second == {"ok": True, "compiles": 0, "declined": {reason: 2}, "stderr": ""}
    assert work(cache_dir) == []


# -- two at once --


@pytest.mark.full
def test_two_processes_compile_each_key_once_between_them(cache_dir: Path, header: None) -> None:
    text = """
import json, torch, aoti_eager
x = torch.arange(12.0).reshape(3, 4)
with aoti_eager.register("aten::silu"):
    for _ in range(3):
        for rows in (1, 2, 3):
            t = x[:rows]
            assert torch.allclose(torch.ops.aten.silu(t), t * torch.sigmoid(t))
        assert aoti_eager.wait(300)
    stats = aoti_eager.stats()["aten::silu"]
print(json.dumps({"compiles": stats.compiles, "hits": stats.hits, "declines": stats.declines}))
"""
    both = [processes.start(cache_dir, text, AOTI_EAGER_MODE="background") for _ in range(2)]
    done = [processes.finish(process) for process in both]
    assert sum(one["compiles"] for one in done) == 3
    assert [(one["declines"], one["stderr"]) for one in done] == [(0, "")] * 2
    assert all(one["hits"] >= 3 for one in done)
    assert work(cache_dir) == []
    assert cache.verify().intact == 3
