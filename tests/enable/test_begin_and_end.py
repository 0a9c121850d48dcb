"""``enable`` and ``use`` change what they must, leave nothing behind when they fail, and say so."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._enable import scripts
from aoti_eager._regions import root_search, whole_script
from aoti_eager._registration import registry

from ..support import forked_python

SILU, TANH = "aten::silu.default", "aten::tanh.default"
# They register, which waits for nothing, and compile nothing.
pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def _cached_only(settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile nothing: what is registered does not depend on kernels."""
    monkeypatch.setitem(aoti_eager.config._scopes[-1], "mode", "cache_only")
    monkeypatch.setattr(whole_script, "_roots", whole_script._Roots())


def serving() -> set[str]:
    return {one.schema.op for one in registry.caches() if not one.bypassed}


def all_hooks() -> int:
    module: Any = torch.nn.modules.module
    return len(module._global_forward_pre_hooks) + len(module._global_module_registration_hooks)


@pytest.fixture
def hooks() -> Callable[[], int]:
    """A function that returns how many of torch's global hooks have come since the test began."""
    before = all_hooks()
    return lambda: all_hooks() - before


def test_blocks_only_switch_flags_while_modules_are_fused(
    monkeypatch: pytest.MonkeyPatch, hooks: Callable[[], int]
) -> None:
    aoti_eager.enable(include=[SILU, TANH], regions=True)
    prepared: list[str] = []
    monkeypatch.setattr(whole_script, "prepare", lambda: prepared.append("") or True)
    for regions in (False, True):
        with aoti_eager.use(include=SILU, regions=regions):
            assert serving() == {"aten::silu"}
        assert serving() == {"aten::silu", "aten::tanh"}
    assert prepared == [], "the end of a block changes nothing in the dispatcher"
    assert hooks() > 0
    aoti_eager.disable()
    assert hooks() == 0


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (registry, "prepare_for_misses"),
        (registry.Registration, "disable"),
        (registry.Registration, "select"),
        (whole_script, "prepare"),
        (root_search.RootSearch, "_go_on"),
    ],
)
@pytest.mark.parametrize(
    "begin", [aoti_eager.enable, lambda **options: aoti_eager.use(**options).__enter__()]
)
def test_what_raises_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
    hooks: Callable[[], int],
    place: Any,
    name: str,
    begin: Callable[..., Any],
) -> None:
    before = repr(torch.library.get_kernel("aten::silu", "CPU"))
    fails = [True]
    real = getattr(place, name)

    def fail_once(*arguments: Any, **options: Any) -> Any:
        if fails:
            fails.pop()
            raise ZeroDivisionError
        return real(*arguments, **options)

    aoti_eager.enable(include=TANH)
    monkeypatch.setattr(place, name, fail_once)
    with pytest.raises(ZeroDivisionError):
        begin(include=SILU, regions=True)
    assert not fails
    assert serving() == {"aten::tanh"}
    assert aoti_eager.registered_ops() == ["aten::tanh"]
    assert hooks() == 0
    assert repr(torch.library.get_kernel("aten::silu", "CPU")) == before
    assert scripts._switch.held == {"aten::tanh"}
    assert scripts._switch.used == []
    aoti_eager.enable(include=SILU, regions=True)
    assert serving() == {"aten::silu"}
    assert hooks() > 0


def test_a_block_looks_for_modules_once_something_can_be_served(
    monkeypatch: pytest.MonkeyPatch, hooks: Callable[[], int]
) -> None:
    answers = [False, False, True]
    with monkeypatch.context() as patched:
        patched.setattr(whole_script, "prepare", lambda: answers.pop(0))
        aoti_eager.enable(include=TANH, regions=True)
        assert hooks() == 0
        with aoti_eager.use(include=TANH, regions=True):
            assert hooks() == 0
        assert answers == [True], "the end of a block prepares nothing"
        with aoti_eager.use(include=TANH, regions=True):
            assert hooks() > 0
        assert hooks() > 0, "``enable`` has wanted them, too"
    aoti_eager.disable()
    assert hooks() == 0


def test_what_raises_leaves_an_earlier_search_as_it_was(
    monkeypatch: pytest.MonkeyPatch, hooks: Callable[[], int]
) -> None:
    aoti_eager.enable(include=TANH, regions=True)
    before = hooks()
    with monkeypatch.context() as patched:
        patched.setattr(root_search.RootSearch, "_go_on", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            aoti_eager.enable(include=SILU, regions=True)
    assert serving() == {"aten::tanh"}
    assert hooks() == before > 0


def test_blocks_of_a_script_leave_what_the_verb_run_has_fused(hooks: Callable[[], int]) -> None:
    scripts.fuse_script()
    assert hooks() > 0
    with aoti_eager.use(include=SILU, regions=True, children=False):
        assert whole_script._roots.children
    assert whole_script._roots.children
    aoti_eager.enable(include=SILU)
    assert hooks() > 0
    aoti_eager.disable()
    assert hooks() == 0


@pytest.mark.parametrize("children", [False, True])
def test_a_block_in_a_forked_child_looks_for_modules_itself(children: bool) -> None:
    code = f"""
import os, torch, aoti_eager
from aoti_eager._regions import whole_script
def looks():
    search = whole_script._roots.search
    return int(search is not None and search.is_looking)
aoti_eager.config.mode = "cache_only"
aoti_eager.enable(include=(), regions=True, children={children})
if os.fork() == 0:
    found = [looks()]
    with aoti_eager.use(include=()):
        found.append(looks())
    with aoti_eager.use(include=(), regions=True):
        found.append(looks())
    aoti_eager.enable(include=())
    print(*found, looks(), flush=True)
    os._exit(0)
os.wait()
print(looks())
"""
    done = forked_python.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0 0 1 0\n1\n", done.stderr


def test_where_nothing_can_be_served_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "can_serve", lambda: False)
    with caplog.at_level(logging.INFO, "aoti_eager"):
        for _ in range(3):
            aoti_eager.enable(include=[SILU, TANH])
            assert scripts._switch.registrations == []
    lines = [one.getMessage() for one in caplog.records if "enabled" in one.getMessage()]
    assert lines == ["enabled: 0 ops are served, of 2 that were chosen"] * 3


def test_switching_on_and_off_beside_a_thread_keeps_one_registration(threads: Any) -> None:
    done = threading.Event()
    waiting = threads.submit(done.wait, 60)
    for _ in range(5):
        aoti_eager.enable(include=[SILU, TANH])
        assert len(scripts._switch.registrations) == 1
        aoti_eager.disable()
    assert len(registry._observers) == 0
    done.set()
    assert waiting.result(60)


def test_a_disable_without_an_enable_loads_no_regions() -> None:
    code = (
        "import sys, torch, aoti_eager; aoti_eager.disable()\n"
        "print([name for name in sys.modules if name.startswith('aoti_eager._regions')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
