"""What a self-test's answer decides: ops, libraries of a caller's and fused modules; what is kept.

The self-test's process is a stand-in that says what the test writes into a pipe, when the test
does.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base import checked_torch as checked
from aoti_eager._compile_service import self_test_process, this_torch, untested_torch
from aoti_eager._keys.declines import REASONS
from aoti_eager._native import library as native_library

from ..support import forked_python

REASON = "untested_torch"
# Seconds after which something hangs.
PATIENCE_S = 300.0
X = torch.linspace(-2, 2, 64).reshape(8, 8)


class Child:
    """The process that stands in for the self-test's.

    Attributes:
        answers: A pipe; the process says what is written there, and ends.
        environment: A file with the variables that the last process got.
    """

    CODE = """
import json, os, sys
sys.stdin.read()
with open(sys.argv[1] + ".environment", "w") as file:
    json.dump(dict(os.environ), file)
said = open(sys.argv[1]).read()
if said.startswith("kill "):
    os.kill(os.getpid(), int(said.split()[1]))
print(said)
"""

    def __init__(self, directory: Path) -> None:
        self.answers = directory / "answers"
        os.mkfifo(self.answers)
        self.environment = directory / "answers.environment"
        self.command = [sys.executable, "-S", "-c", self.CODE, str(self.answers)]

    def says(self, text: str) -> None:
        """Have the process that runs say a line, and wait until its words are known."""
        deadline = time.monotonic() + PATIENCE_S
        while (pipe := self._opened()) is None:
            assert time.monotonic() < deadline, "no process of a self-test reads what is said"
            assert untested_torch._threads, "no self-test was started"
            time.sleep(0.01)
        with os.fdopen(pipe, "w") as file:
            file.write(text)
        assert untested_torch.wait(PATIENCE_S)

    def _opened(self) -> int | None:
        """Return the pipe's end; ``None`` while no process has opened the other."""
        try:
            return os.open(self.answers, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def finds(self, *problems: str, is_lasting: bool = True, path: str = "C++") -> None:
        """Have the process that runs find problems, or none, and wait until they are known."""
        self.says(answer(*problems, is_lasting=is_lasting, path=path))


def answer(*problems: str, is_lasting: bool = True, path: str = "C++") -> str:
    found = {"torch": torch.__version__, "problems": problems, "is_lasting": is_lasting}
    return json.dumps({**found, "served": "all of it", "path": path})


def forget() -> None:
    """Know nothing in this process, as in the next one; what the store keeps stays."""
    untested_torch._found.clear()
    untested_torch._threads.clear()


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """A torch that was never checked, and the stand-in for its self-test."""
    made = Child(tmp_path)
    with pytest.MonkeyPatch.context() as patched, aoti_eager.config.scope(mode="background"):
        patched.setattr(checked, "is_checked", lambda: False)
        patched.setattr(this_torch, "_is_wanted", False)
        patched.setattr(self_test_process, "child_command", lambda *_: made.command)
        # Tests share a toolchain.
        patched.setattr(untested_torch, "_directory", lambda _: tmp_path / "self_tests")
        forget()
        untested_torch.tell_of_change()
        yield made
    self_test_process._end()
    untested_torch.wait(60)
    self_test_process.is_ending = False
    forget()
    untested_torch.tell_of_change()


def serves() -> bool:
    """Return what the next ``register`` finds; it starts a self-test if nothing is known."""
    return this_torch.may_serve()


# -- who asks --


@pytest.mark.native
def test_ops_are_registered_once_the_self_test_has_passed(child: Child, shared_cache: Path) -> None:
    before = torch.library.get_kernel("aten::silu", "CPU")
    with aoti_eager.register("aten::silu.default") as registration:
        assert registration.ops == ()
        assert registration.skipped == {"aten::silu": REASONS[REASON]}
        # A call costs what it costs without us.
        assert repr(torch.library.get_kernel("aten::silu", "CPU")) == repr(before)
        assert aoti_eager.explain("aten::silu", X).reason == REASON
        child.finds()
        assert aoti_eager.explain("aten::silu", X).reason is None
    with aoti_eager.config.scope(mode="sync"), aoti_eager.register("aten::silu.default"):
        for _ in range(3):
            torch.testing.assert_close(torch.nn.functional.silu(X), X * torch.sigmoid(X))
        assert aoti_eager.stats()["aten::silu"].hits > 0


@pytest.mark.native
def test_ops_of_a_callers_library_are_served_once_the_self_test_has_passed(
    child: Child, shared_cache: Path
) -> None:
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    aoti_eager.impl(library, "silu")
    want = torch.nn.functional.silu(X)
    assert torch.equal(torch.nn.functional.silu(X), want)
    stats = aoti_eager.stats()["aten::silu"]
    assert stats.declined == {"untested_torch": 2}
    assert aoti_eager.explain("aten::silu", X).reason == REASON
    child.finds()
    with aoti_eager.config.scope(mode="sync"):
        for _ in range(3):
            torch.testing.assert_close(torch.nn.functional.silu(X), want)
    assert aoti_eager.stats()["aten::silu"].declined == {"untested_torch": 2}
    assert aoti_eager.stats()["aten::silu"].hits > 0
    with aoti_eager.config.scope(untested_torch="0"):
        assert torch.equal(torch.nn.functional.silu(X), want)
    assert aoti_eager.stats()["aten::silu"].declined == {"untested_torch": 3}
    library._destroy()  # type: ignore[no-untyped-call]


MODULES = """
import json, sys, torch, aoti_eager
from aoti_eager._base import checked_torch
from aoti_eager._compile_service import self_test_process, untested_torch
from aoti_eager._native import library
from tests.support.regions import Policy, assert_same, hits, inputs, seeded, served
answer = sys.argv[1]
checked_torch.is_checked = lambda: False
say = "import sys; sys.stdin.read(); print(sys.argv[1])"
self_test_process.child_command = lambda *_: [sys.executable, "-S", "-c", say, answer]
untested_torch._directory = lambda _: untested_torch.Path(sys.argv[2])
untested_torch._start, start = lambda: None, untested_torch._start
model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
with torch.no_grad(), aoti_eager.fuse(model) as report:
    for _ in range(3):
        assert_same(model(x), plain(x))
    (region,) = report.regions
    found = [[region.state, region.reason, str(report)]]
    explained = aoti_eager.explain(model, x)
    found.append([explained.verdict, explained.reason])
    start()
    untested_torch.wait()
    assert untested_torch._known().passed
    assert_same(model(x), plain(x))
    found.append([hits(report), library.is_loaded()])
    aoti_eager.wait()
    with aoti_eager.config.scope(mode="sync"):
        served(report, lambda: model(x))
    found.append([hits(report) > 0, library.is_loaded()])
    before = hits(report)
    with aoti_eager.config.scope(untested_torch="0"):
        assert_same(model(x), plain(x))
        found.append(report.regions[0].reason)
    assert hits(report) == before
print(json.dumps(found))
"""


@pytest.mark.native
def test_modules_are_served_after_a_wait_once_the_self_test_has_passed(
    tmp_path: Path, shared_cache: Path
) -> None:
    """In a process of its own: no other test has loaded the C++ path there."""
    done = forked_python.run(
        [sys.executable, "-c", MODULES, answer(), str(tmp_path / "self_tests")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "AOTI_EAGER_CACHE_DIR": str(shared_cache),
            "AOTI_EAGER_MODE": "background",
            "AOTI_EAGER_GATE": "0",
        },
    )
    assert done.returncode == 0, done.stderr
    before, explained, meanwhile, after, refused = json.loads(done.stdout.splitlines()[-1])
    assert before[:2] == ["runs as before", REASON]
    assert REASONS[REASON] in before[2]
    assert explained == ["declined", REASON]
    assert meanwhile == [0, False]
    assert after == [True, True]
    assert refused == REASON


@pytest.mark.native
def test_a_wait_does_not_go_past_the_self_test(child: Child, shared_cache: Path) -> None:
    aoti_eager.register("aten::silu.default")
    assert not aoti_eager.wait(0.0)
    child.finds("pointwise: a kernel's result differs")
    assert aoti_eager.wait(60)
    assert this_torch.is_refused()
    assert not this_torch.may_use_native()


# -- which path --


@pytest.mark.parametrize(
    ("native", "compiler", "wanted"), [("auto", None, "1"), ("0", None, "0"), ("1", "none", "0")]
)
def test_the_path_is_tested_that_is_to_serve(
    child: Child,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    native: str,
    compiler: str | None,
    wanted: str,
) -> None:
    if compiler is not None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("AOTI_EAGER_ENABLE", "1")
    with aoti_eager.config.scope(native=native):
        assert not serves()
        child.finds()
        given = json.loads(child.environment.read_text())
        assert given["AOTI_EAGER_NATIVE"] == wanted
        assert "AOTI_EAGER_ENABLE" not in given, "the self-test serves what it is about"


@pytest.mark.native
def test_where_the_test_went_by_python_the_cpp_path_is_not_loaded(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aoti_eager._compile_service import native_path

    with aoti_eager.config.scope(native="auto"):
        assert not serves()
        child.finds(path="Python")
        for _ in range(2):
            assert serves()
            assert native_library.is_loaded()  # By another test, with a torch that was checked.
            assert not native_path.prepare()
            forget()  # The store keeps which path it was.
        # A pass of the Python path alone says nothing of a process that wants the other, tested.
    with aoti_eager.config.scope(native="0"):
        assert not serves()


@pytest.mark.native
def test_a_real_self_test_goes_by_cpp(shared_cache: Path) -> None:
    """The C++ path that the run has built is found; regions are recorded by it."""
    outcome = self_test_process.self_test(["pointwise", "region"], 300.0)
    assert outcome.passed, outcome.message
    assert outcome.path == "C++"
    assert "region served" in outcome.message


def test_what_the_child_raises_is_lasting_or_not() -> None:
    """By the real program; its calls raise at once."""
    for error, is_lasting in (("AttributeError('no such name')", True), ("MemoryError()", False)):
        code = f"""
import sys
from aoti_eager._commands import self_test
def fails(name):
    raise {error}
self_test._tried = fails
self_test.serve_child()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], input='["number"]', capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outcome = self_test_process._outcome(0, done.stdout, done.stderr)
        assert not outcome.passed
        assert outcome.message.startswith(f"number: {error.partition('(')[0]}")
        assert outcome.is_lasting is is_lasting


# -- what is kept --


def rerun(child: Child, *problems: str, **options: Any) -> None:
    """Run the self-test once more, as ``doctor`` does."""
    assert untested_torch.wait(60)
    untested_torch._threads.clear()
    untested_torch._start()
    child.finds(*problems, **options)


def test_the_last_answer_holds(child: Child) -> None:
    assert not serves()
    child.finds()
    forget()
    assert serves(), "the store keeps a pass"
    for problems, want in ([["softmax: differs"], False], [[], True], [["again"], False]):
        rerun(child, *problems)
        assert serves() is want
        forget()
        assert serves() is want, "a failure replaces a pass, and a pass a failure"


@pytest.mark.parametrize(
    "said",
    [
        f"kill {int(signal.SIGKILL)}",
        f"kill {int(signal.SIGTERM)}",
        "no JSON",
        answer("pointwise: MemoryError", is_lasting=False),
    ],
)
def test_what_a_passing_fault_did_is_not_kept(child: Child, said: str) -> None:
    assert not serves()
    child.says(said)
    assert not serves(), "and no second test runs in this process"
    forget()
    assert untested_torch._kept() is None
    assert not serves()
    child.finds()
    assert serves(), "the next process has tested again"


@pytest.mark.parametrize("said", [f"kill {int(signal.SIGSEGV)}", answer("number: differs")])
def test_what_every_process_would_find_is_kept(child: Child, said: str) -> None:
    assert not serves()
    child.says(said)
    forget()
    assert not serves()
    assert not untested_torch._threads, "no test runs"


def test_a_test_that_cannot_start_or_does_not_end_is_not_kept(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(self_test_process, "child_command", lambda *_: ["/nowhere/python"])
        outcome = untested_torch.run_and_keep()
        assert outcome is not None
        assert "cannot be started" in outcome.message
    forget()
    assert untested_torch._kept() is None
    monkeypatch.setattr(self_test_process, "SELF_TEST_TIMEOUT_S", 0.0)
    outcome = untested_torch.run_and_keep()
    assert outcome is not None
    assert "has not ended after 0 s" in outcome.message
    forget()
    assert untested_torch._kept() is None


# -- who is told --


def test_a_kernel_that_asks_under_its_lock_tells_nobody(child: Child) -> None:
    """Who is told wants the locks of all kernels, and another thread may hold these."""
    assert not serves()
    child.finds()
    told: list[str] = []
    this_torch.on_change(lambda: told.append(threading.current_thread().name))
    try:
        forget()
        this_torch._forget()
        assert not this_torch.is_refused(), "the store keeps a pass"
        forget()
        assert this_torch.may_use_native()
        assert told == []
        forget()
        assert serves()
        assert told == [threading.current_thread().name]
    finally:
        this_torch._observers.pop()


def test_the_answer_is_looked_up_once_after_a_change_of_settings(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[None] = []
    real = untested_torch.compiler_on_path

    def compiler_on_path() -> str | None:
        looked.append(None)
        return real()

    monkeypatch.setattr(untested_torch, "compiler_on_path", compiler_on_path)
    for _ in range(2):
        with aoti_eager.config.scope(gate=False):
            looked.clear()
            this_torch._forget()
            for _ in range(50):
                assert this_torch.is_refused()
            assert len(looked) == 1
    assert not serves()
    child.finds()
    assert not this_torch.is_refused(), "an answer that changes is looked up again"


# -- when a test begins --


def test_a_mode_that_compiles_begins_the_test_that_another_mode_did_not(child: Child) -> None:
    with aoti_eager.config.scope(mode="cache_only"):
        with aoti_eager.config.scope(mode="background"):
            assert not untested_torch._threads, "nobody has asked to be served"
        assert not serves()
        assert not untested_torch._threads, "nothing is compiled in this mode"
        with aoti_eager.config.scope(mode="background"):
            assert len(untested_torch._threads) == 1
            child.finds()
        assert not this_torch.is_refused()


def test_another_path_has_a_test_of_its_own(child: Child) -> None:
    for count, (native, path, wanted) in enumerate((("0", "Python", "0"), ("auto", "C++", "1"))):
        with aoti_eager.config.scope(native=native):
            assert len(untested_torch._threads) == 2 * count, "begun by the change of settings"
            assert not serves()
            child.finds(path=path)
            assert json.loads(child.environment.read_text())["AOTI_EAGER_NATIVE"] == wanted
            assert serves()
