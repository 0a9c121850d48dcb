"""What ends a first run, and what of that is remembered: the trial server, and real children.

The children run what a request says before they try its library.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._compile_worker.fork_server import ForkServer
from aoti_eager._compile_worker.library_runs import trial_server

from ..support.child_patches import patch_children
from .test_trial import X, request

aten = torch.ops.aten

PATCH = """
_try = _try_library

def _try_library(request):
    exec(request.get("before", ""), globals())
    return _try(request)
"""
WRONG_CODE = ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE")
FROM_OUTSIDE = (
    *("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT", "SIGXCPU", "SIGQUIT", "SIGALRM", "SIGTERM"),
    *("SIGKILL", "SIGVTALRM", "SIGPROF", "SIGPWR", "SIGTRAP", "SIGSYS", "SIGRTMIN"),
)

Try = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """The server of first runs, as the worker has it."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("patches")
        patch_children(patch, directory, {"aoti_eager._compile_worker.trial": PATCH})
        server = trial_server()
        yield server
        server.close()


@pytest.fixture(scope="module")
def good(shared_cache_dir: Path) -> Path:
    """A library that passes."""
    with aoti_eager.config.scope(
        cache_dir=shared_cache_dir, mode="sync", gate=False, dynamic=False, native="0"
    ):
        with aoti_eager.register("aten::silu"):
            aten.silu(X)
        (entry,) = [
            e
            for e in aoti_eager.cache.list()
            if (e.op, e.inputs, e.status) == ("aten::silu", "f32[8,8]", "ready")
        ]
    return entry.path / "library.so"


@pytest.fixture
def try_(server: ForkServer, good: Path) -> Try:
    """A function that has the good library tried, or another, after some code in the child."""

    def run(before: str = "", **changed: Any) -> dict[str, Any]:
        library = Path(changed.pop("library", good))
        asked = {**request(aten.silu.default, X, library=library), "before": before, **changed}
        return server.run(asked)

    return run


def kill(name: str) -> str:
    """Return code that sends its process a signal."""
    number = int(getattr(signal, name))
    # Who runs the tests may have it ignored, as nohup does, and children inherit that.
    default = "" if name in ("SIGKILL", "SIGSTOP") else f"signal.signal({number}, signal.SIG_DFL); "
    return f"import os, signal, time; {default}os.kill(os.getpid(), {number}); time.sleep(5)"


def test_the_library_passes_where_nothing_ends_it(try_: Try) -> None:
    assert try_()["compared"] > 3


def test_threads_of_a_first_run_do_not_spin(try_: Try) -> None:
    policy = 'assert __import__("os").environ["OMP_WAIT_POLICY"] == "PASSIVE"'
    assert "message" not in try_(policy)


@pytest.mark.parametrize("name", WRONG_CODE)
def test_the_signals_of_wrong_code_are_remembered(name: str, try_: Try) -> None:
    answer = try_(kill(name))
    assert (answer["reason"], answer["remember"]) == ("crashed", True)
    assert answer["message"] == f"the process ended with {name}"


@pytest.mark.parametrize("name", FROM_OUTSIDE)
def test_a_signal_that_somebody_has_sent_is_not_remembered(name: str, try_: Try) -> None:
    """Slurm sends such before a job's end."""
    answer = try_(kill(name))
    assert (answer["reason"], answer["remember"]) == ("crashed", False)
    assert answer["message"] == f"the process ended with {name}"


def test_a_signal_without_a_name_ends_a_child_and_not_the_server(try_: Try) -> None:
    number = int(signal.SIGRTMIN) + 3
    answer = try_(f"import os; os.kill(os.getpid(), {number})")
    assert (answer["message"], answer["remember"]) == (f"the process ended with SIG{number}", False)
    assert try_()["compared"] > 3


def test_a_bus_error_is_remembered_if_a_second_run_has_it_too(try_: Try, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    before = f"open({str(runs)!r}, 'a').write('run '); {kill('SIGBUS')}"
    answer = try_(before)
    assert (answer["reason"], answer["remember"]) == ("crashed", True)
    assert answer["message"] == "the process ended with SIGBUS"
    assert runs.read_text() == "run run "


@pytest.mark.parametrize("then", ["passes", "SIGUSR1", "SIGSEGV"])
def test_a_bus_error_that_a_second_run_does_not_have_is_none(
    then: str, try_: Try, tmp_path: Path
) -> None:
    """A file that was cut short and is whole again, a disk that was full."""
    been = tmp_path / "been"
    later = "" if then == "passes" else kill(then)
    first = f"open({str(been)!r}, 'w'); {kill('SIGBUS')}"
    answer = try_(f"import os\nexec({later!r} if os.path.exists({str(been)!r}) else {first!r})")
    if then == "passes":
        assert answer["compared"] > 3
    else:
        assert answer["message"] == f"the process ended with {then}"
        assert answer["remember"] is (then == "SIGSEGV")


# --- memory and threads ---


def build(tmp_path: Path, body: str) -> Path:
    """Return a library that runs ``body`` when it is loaded."""
    source = tmp_path / "loads.cpp"
    source.write_text(f"""
#include <cstdio>
#include <cstdlib>
#include <new>
#include <system_error>
#include <cerrno>
__attribute__((constructor)) static void start() {{ {body} }}
""")
    library = tmp_path / "loads.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("throw std::bad_alloc();", "std::bad_alloc"),
        (
            "throw std::system_error(EAGAIN, std::generic_category());",
            "Resource temporarily unavailable",
        ),
        ('fputs("libgomp: Out of memory allocating 64 bytes\\n", stderr); abort();', "libgomp"),
    ],
)
def test_code_that_aborts_because_it_gets_no_memory_or_thread_is_tried_again(
    body: str, told: str, try_: Try, tmp_path: Path
) -> None:
    answer = try_(library=str(build(tmp_path, body)))
    assert (answer["reason"], answer["remember"]) == ("crashed", False)
    assert answer["message"].startswith("the process ended with SIGABRT: ")
    assert told in answer["message"]


def test_code_that_aborts_for_a_reason_of_its_own_says_which_and_is_remembered(
    try_: Try, tmp_path: Path
) -> None:
    answer = try_(library=str(build(tmp_path, 'fputs("index out of range\\n", stderr); abort();')))
    assert answer == {
        "reason": "crashed",
        "message": "the process ended with SIGABRT: index out of range",
        "log": "index out of range\n",
        "remember": True,
        "signal": "SIGABRT",
    }


def test_of_a_child_that_complains_without_end_the_last_is_told(try_: Try) -> None:
    before = "import os\nfor i in range(50_000): os.write(2, b'line %d\\n' % i)\nos.abort()"
    answer = try_(before)
    assert answer["message"].endswith("\nline 49999")
    assert len(answer["message"]) < 1100
    assert answer["remember"]


NO_MEMORY = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 24),) * 2)
"""


def test_a_child_without_the_memory_for_its_arguments_is_not_remembered(
    try_: Try, good: Path
) -> None:
    asked = request(aten.silu.default, torch.ones(4096, 4096), library=good)
    answer = try_(NO_MEMORY, key=asked["key"])
    assert (answer["reason"], answer["remember"]) == ("crashed", False)
    assert "can't allocate memory" in answer["message"]


RAISES = """
import os, sys
class LibraryRunner:
    def __init__(self, *args, **options): pass
    def run(self, inputs):
        os.write(2, {said!r}.encode())
        raise {error}
"""


@pytest.mark.parametrize(
    ("error", "said", "remember"),
    [
        ("RuntimeError('the sizes are wrong')", "", True),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: 64 bytes')", "", False),
        ("RuntimeError('run_impl() API call failed')", "Exception: std::bad_alloc", False),
        ("MemoryError()", "", False),
        ("OSError(24, 'Too many open files')", "", False),
    ],
)
def test_a_first_run_that_raises_for_want_of_memory_is_tried_again(
    error: str, said: str, remember: bool, try_: Try
) -> None:
    answer = try_(RAISES.format(error=error, said=said))
    assert (answer["reason"], answer["remember"]) == ("raised", remember)


def test_a_library_that_cannot_be_loaded_is_never_remembered(try_: Try, tmp_path: Path) -> None:
    """The mount may allow it tomorrow."""
    text = tmp_path / "library.so"
    text.write_text("text")
    answer = try_(library=str(text))
    assert (answer["reason"], answer["remember"]) == ("library_unloadable", False)
    assert try_(timeout_s=0.2, before="import time; time.sleep(5)")["remember"] is False
