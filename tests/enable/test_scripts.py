"""``enable``, ``disable`` and ``use``: which ops are served, where, and what is given back."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager._enable import scripts
from aoti_eager._registration import registry
from aoti_eager.errors import ConfigError, RegistrationError, UnknownOpError

from ..support import processes

X = torch.linspace(-2, 2, 64).reshape(8, 8)
SILU, TANH = "aten::silu.default", "aten::tanh.default"
# They register, which waits for nothing, and compile nothing.
pytestmark = [pytest.mark.native, pytest.mark.usefixtures("_cached_only")]


@pytest.fixture
def _cached_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile nothing: which ops are served does not depend on their kernels."""
    monkeypatch.setitem(aoti_eager.config._scopes[-1], "mode", "cache_only")


def serving() -> set[str]:
    """Return the ops of torch's whose kernels do not pass calls through."""
    return {
        cache.schema.op
        for cache in registry.caches()
        if not cache.bypassed and cache.schema.op.startswith("aten::")
    }


def test_the_preset_is_served_and_given_back() -> None:
    before = torch.library.get_kernel("aten::std.correction", "CPU")
    aoti_eager.enable()
    ops = serving()
    assert len(ops) > 5
    assert {op for op in aoti_eager.registered_ops() if op.startswith("aten::")} == ops
    torch.std(X, 1)
    assert aoti_eager.stats()["aten::std.correction"].calls == 1
    aoti_eager.disable()
    assert serving() == set()
    torch.std(X, 1)
    assert aoti_eager.stats()["aten::std.correction"].calls == 1
    scripts._switch.uninstall()  # If another thread of the run has kept disable from doing so.
    assert repr(torch.library.get_kernel("aten::std.correction", "CPU")) == repr(before)
    assert aoti_eager.registered_ops() == []


def test_presets_nest() -> None:
    found = {}
    for preset in ("inference", "training", "all"):
        aoti_eager.enable(preset)
        found[preset] = serving()
    assert found["inference"] < found["training"] < found["all"]
    assert not [op for op in found["inference"] if "backward" in op]
    with pytest.raises(ConfigError, match="'inference', 'training', 'all'"):
        aoti_eager.enable("serving")
    assert serving() == found["all"]


def test_a_second_call_replaces_the_first_ones_choice() -> None:
    aoti_eager.enable(include=[SILU, TANH])
    aoti_eager.enable(include=[SILU, TANH])
    assert serving() == {"aten::silu", "aten::tanh"}
    aoti_eager.enable(include=SILU)
    assert serving() == {"aten::silu"}
    aoti_eager.disable()
    aoti_eager.disable()
    assert serving() == set()


def test_names_globs_packets_and_files(tmp_path: Path) -> None:
    aoti_eager.enable(include="aten::*layer_norm*", exclude="aten::*backward*")
    assert serving() == {"aten::native_layer_norm"}
    aoti_eager.enable(include=torch.ops.aten.silu, exclude=torch.ops.aten.silu.out)
    assert serving() == {"aten::silu"}
    file = tmp_path / "ops.txt"
    file.write_text("# Activations\naten::silu.default\n\naten::*tanh  # and its kin\n")
    aoti_eager.enable(include=file)
    assert {"aten::silu", "aten::tanh"} <= serving()
    aoti_eager.enable(include=[file], exclude=[file])
    assert serving() == set()
    aoti_eager.enable(include=())
    assert serving() == set()


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    aoti_eager.enable(include=SILU)
    with pytest.raises(UnknownOpError):
        aoti_eager.enable(include="aten::silus")
    with pytest.raises(UnknownOpError):
        aoti_eager.enable(exclude="aten::silus")
    with pytest.raises(RegistrationError):
        aoti_eager.enable(exclude=[7])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"none\.txt"):
        aoti_eager.enable(include=tmp_path / "none.txt")
    assert serving() == {"aten::silu"}, "what was in force stays so"


def test_a_block_takes_the_place_of_what_is_enabled() -> None:
    aoti_eager.enable(include=SILU)
    with aoti_eager.use(include=TANH):
        assert serving() == {"aten::tanh"}
        with aoti_eager.use(include=[SILU, TANH], exclude=SILU):
            assert serving() == {"aten::tanh"}
        with aoti_eager.use(include=()):
            assert serving() == set()
        assert serving() == {"aten::tanh"}
    assert serving() == {"aten::silu"}
    with pytest.raises(ZeroDivisionError), aoti_eager.use(include=TANH):
        raise ZeroDivisionError
    assert serving() == {"aten::silu"}


def test_disable_ends_blocks_as_well() -> None:
    with aoti_eager.use(include=TANH):
        aoti_eager.disable()
        assert serving() == set()
    assert serving() == set()


def test_blocks_of_threads_end_in_any_order(threads) -> None:
    with aoti_eager.use(include=[SILU, TANH]):
        pass  # The kernels are in the dispatcher before there are threads.
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with aoti_eager.use(include=TANH):
            entered.set()
            assert leave.wait(60)

    with aoti_eager.use(include=SILU):
        running = threads.submit(other)
        assert entered.wait(60)
        assert serving() == {"aten::tanh"}
    assert serving() == {"aten::tanh"}
    leave.set()
    running.result(60)
    assert serving() == set()


def test_threads_that_call_meanwhile_are_served_or_not_and_right(threads) -> None:
    want = torch.nn.functional.silu(X)
    with aoti_eager.use(include=SILU):
        pass
    done = threading.Event()

    def call() -> int:
        number = 0
        while not done.is_set():
            assert torch.equal(torch.nn.functional.silu(X), want)
            number += 1
        return number

    running = [threads.submit(call) for _ in range(3)]
    for _ in range(20):
        with aoti_eager.use(include=SILU):
            torch.nn.functional.silu(X)
        aoti_eager.enable(include=SILU)
        aoti_eager.disable()
        assert scripts._switch.held == {"aten::silu"}, "another thread may be calling it"
    done.set()
    assert all(one.result(60) for one in running)


def test_what_register_holds_stays_served() -> None:
    with aoti_eager.register(SILU):
        aoti_eager.enable(include=[SILU, TANH])
        with aoti_eager.use(include=()):
            assert serving() == {"aten::silu"}
        aoti_eager.disable()
        assert serving() == {"aten::silu"}


FORKED = """
import json, os
import torch, aoti_eager
from aoti_eager._registration import registry
from tests.support.regions import Policy, seeded, inputs
x, model = torch.linspace(-2, 2, 64).reshape(8, 8), seeded(Policy)
torch.set_grad_enabled(False)
aoti_eager.enable(include="aten::silu.default", regions=True, children={children})
want = model(inputs(4, 5))
for _ in range(2):
    model(inputs(4, 5))
read, write = os.pipe()
def found():
    before = aoti_eager.stats()["aten::silu"].calls
    torch.nn.functional.silu(x)
    calls = aoti_eager.stats()["aten::silu"].calls - before
    same = torch.allclose(model(inputs(4, 5)), want)
    hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    return [calls, "forward" in vars(model), same, hooks]
if os.fork() == 0:
    os.write(write, json.dumps(found()).encode())
    os._exit(0)
os.wait()
print(json.dumps({{"child": json.loads(os.read(read, 999)), "parent": found()}}))
"""


@pytest.mark.parametrize("children", [False, True])
def test_a_forked_child_runs_the_originals_unless_asked(children: bool) -> None:
    """In a process of its own: this one may have other threads."""
    code = FORKED.format(children=children)
    found = processes.run(Path(str(aoti_eager.config.cache_dir)), code)
    assert found["parent"] == [1, True, True, 1]
    assert found["child"] == [int(children), children, True, 0]


def test_what_fell_back_is_said_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "aoti_eager"):
        aoti_eager.enable(include=[SILU, TANH])
        torch.nn.functional.silu(X)
        torch.nn.functional.silu(X)
        aoti_eager.disable()
    (line,) = [one.getMessage() for one in caplog.records if " of 2 calls" in one.getMessage()]
    assert line.startswith("enabled: 2 ops; of 2 calls, 0 were served")
    assert "not_in_cache 2" in line
    assert aoti_eager.stats()["aten::silu"].declined == {"not_in_cache": 2}
