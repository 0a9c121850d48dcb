"""Killed processes, damaged entries, forks: a fused model is right, and a successor is served."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aoti_eager import cache

from ..support.kept_builds import make_cache_dir
from ..support.processes import finish, run, start
from ..support.workers import Marked, until

pytestmark = [pytest.mark.native, pytest.mark.full]

SCRIPT = """
import json, torch, aoti_eager
from tests.support.regions import Policy, seeded, inputs
model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
with torch.no_grad():
    report = aoti_eager.fuse(model)
    for _ in range(3):
        for _ in range(4):
            assert torch.allclose(model(x), plain(x), atol=1e-6)
        aoti_eager.wait()
(region,) = report.regions
stats = list(aoti_eager.stats().values())
print(json.dumps({
    "hits": region.hits, "state": region.state, "reason": region.reason,
    "compiles": sum(one.compiles for one in stats),
}))
"""
NATIVE = {"AOTI_EAGER_NATIVE": "1"}


@pytest.fixture
def path(tmp_path: Path, shared_cache_dir: Path) -> Path:
    return make_cache_dir(tmp_path / "store", shared_cache_dir)


@pytest.mark.compiles
@pytest.mark.parametrize("victim", ["the script", "the worker"])
def test_a_kill_while_a_region_compiles_leaves_nothing_wrong(victim: str, path: Path) -> None:
    marked = Marked()
    process = start(path, SCRIPT, AOTI_EAGER_MODE="background", **NATIVE, **marked.variables)
    until(marked.kernel_compiler, "a kernel is compiled", 300)
    if victim == "the script":
        process.kill()
        process.communicate()
    else:
        worker = marked.worker()
        assert worker is not None
        worker.send(signal.SIGKILL)
        finish(process)  # Its results are compared by itself.
    successor = run(path, SCRIPT, **NATIVE)
    assert (successor["state"], successor["reason"]) == ("served", "")
    assert successor["hits"] > 0
    cache.verify(cache_dir=path)
    assert cache.verify(cache_dir=path).damaged == ()


def _garble(name: str, old: bytes = b"", new: bytes = b"garbled") -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        file = entry / name
        content = file.read_bytes()
        assert old in content
        file.chmod(0o600)
        file.write_bytes(content.replace(old, new) if old else new)

    return damage


DAMAGES = {
    "the library": _garble("library.so"),
    "the record": _garble("entry.json"),
    "the tape": _garble("entry.json", b"aten::addmm", b"aten::addmv"),
    "the torch version": _garble("entry.json", b'"torch"', b'"lorch"'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_never_run_and_is_made_anew(name: str, path: Path) -> None:
    assert run(path, SCRIPT, **NATIVE)["hits"] > 0
    (entry,) = [one for one in cache.list(cache_dir=path) if one.status == "ready"]
    DAMAGES[name](entry.path)
    after = run(path, SCRIPT, **NATIVE)
    assert (after["state"], after["reason"]) == ("served", "")
    assert after["compiles"] == 1
    again = run(path, SCRIPT, **NATIVE)
    assert (again["compiles"], again["state"]) == (0, "served")


def test_an_entry_that_was_made_in_another_environment_is_not_used(path: Path) -> None:
    run(path, SCRIPT, **NATIVE)
    other = run(path, SCRIPT, **NATIVE, TORCHINDUCTOR_CPP_SIMDLEN="128")
    assert (other["compiles"], other["state"]) == (1, "served")


def test_two_processes_that_fuse_one_model_compile_it_once(path: Path) -> None:
    both = [start(path, SCRIPT, **NATIVE) for _ in range(2)]
    done = [finish(process) for process in both]
    assert sum(one["compiles"] for one in done) == 1
    assert all(one["hits"] > 0 for one in done)


def test_a_forked_child_of_a_fused_model_is_right_and_does_not_wait(shared_cache: Path) -> None:
    done = run(
        shared_cache,
        """
import os, json, threading, torch, aoti_eager
from tests.support.regions import Policy, seeded, inputs
model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
torch.set_grad_enabled(False)
report = aoti_eager.fuse(model)
for _ in range(4):
    model(x)
stop = threading.Event()

def call():
    with torch.no_grad():
        while not stop.is_set():
            model(x)
            str(report)

others = [threading.Thread(target=call) for _ in range(2)]
for one in others:
    one.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        try:
            before = report.regions[0].hits
            for given in (x, inputs(2, 5), x, inputs(3, 5)):
                for _ in range(4):
                    assert torch.allclose(model(given), plain(given), atol=1e-6)
            assert report.regions[0].hits > before
            report.undo()
            assert torch.allclose(model(x), plain(x), atol=1e-6)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for one in others:
    one.join()
assert torch.allclose(model(x), plain(x), atol=1e-6)
print(json.dumps({"codes": codes}))
""",
        **NATIVE,
    )
    assert done["codes"] == [0] * 5
