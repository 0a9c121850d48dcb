"""``enable``: which modules are found, what that costs, and what it leaves alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager._base.torch_compat import tracing
from aoti_eager._regions import root_search, whole_script
from aoti_eager._regions.report import RegionState
from aoti_eager._regions.target import Fused

from ..support import processes
from ..support.regions import Policy, assert_same, hits, inputs, seeded, served

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def _enabled(_store: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enable for one test."""
    gc.collect()  # The models of earlier tests.
    monkeypatch.setattr(whole_script, "_roots", whole_script._Roots())
    aoti_eager.enable(include=(), regions=True)
    yield
    aoti_eager.disable()
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert tracing.own_module_hooks == []


def is_fused(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), Fused)


def is_looking() -> bool:
    search = whole_script._roots.search
    return search is not None and search.is_looking


def states(root: str = "Policy") -> list[RegionState]:
    return whole_script.region_states().get(root, [])


class Parent(nn.Module):
    """Calls a child; is itself no region, because it draws a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.child = seeded(Policy)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) + 0 * torch.rand(())


def test_a_root_is_fused_at_its_second_call_and_served_from_then_on() -> None:
    model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
    want = plain.forward(x)
    assert_same(model(x), want)
    assert not is_fused(model)
    for _ in range(5):
        assert_same(model(x), want)
    assert is_fused(model)
    (state,) = states()
    assert (state.path, state.name, state.state, state.calls) == ("", "Policy", "served", 4)
    assert state.hits > 0
    assert set(state.ops) <= aoti_eager.stats().keys()
    assert is_looking()


def test_a_module_within_another_is_no_root() -> None:
    model, x = Parent().eval(), inputs(4, 5)
    for _ in range(2):
        model(x)
    assert is_fused(model)
    assert not is_fused(model.child)
    for _ in range(4):
        model(x)
    assert is_fused(model.child)  # As a child of a region that has stopped.
    found = {one.path: one.state for one in states("Parent")}
    assert found == {"": "stopped", "child": "served"}


def test_a_child_that_the_script_calls_itself_is_a_root_too() -> None:
    model, x = Parent().eval(), inputs(4, 5)
    for _ in range(2):
        model.child(x)
    assert is_fused(model.child)
    assert not is_fused(model)


def test_what_is_known_outlives_the_model() -> None:
    def run() -> None:
        model = seeded(Policy)
        for _ in range(5):
            model(inputs(4, 5))

    for _ in range(2):
        run()
        gc.collect()
    assert not whole_script._roots.fusions
    assert {one.name for one in states()} == {"Policy"}
    assert sum(one.calls for one in states()) == 6


def test_a_training_runs_as_it_is_and_its_evaluation_is_served() -> None:
    model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
    with torch.enable_grad():
        for _ in range(4):
            model(x).sum().backward()
            plain(x).sum().backward()
        (state,) = states()
        assert state.state == "needs gradients"
    assert_same(model.first.weight.grad, plain.first.weight.grad)
    for _ in range(5):
        assert_same(model(x), plain(x))
    assert states()[0].state == "served"
    frozen = model.requires_grad_(False)
    with torch.enable_grad():
        before = states()[0].hits
        frozen(x)
        assert states()[0].hits == before + 1


def test_the_search_pauses_and_goes_on_when_a_model_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aoti_eager.disable()
    monkeypatch.setattr(root_search, "_PATIENCE", 10)
    aoti_eager.enable(include=(), regions=True)
    x = inputs(4, 5)
    for _ in range(11):
        nn.Identity()(x)
    assert not is_looking()
    model = seeded(Policy)
    assert is_looking()
    for _ in range(2):
        model(x)
    assert is_fused(model)


def test_hooks_of_others_stop_a_region_and_ours_does_not() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        assert is_looking()
        before = hits(report)
        handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, args: None)
        model(x)
        assert hits(report) == before
        aoti_eager.disable()  # The other hook is not taken for ours, which is gone.
        model(x)
        assert hits(report) == before
        assert aoti_eager.explain(model, x).reason == "hooks"
        handle.remove()
        model(x)
        assert hits(report) == before + 1


def test_fuse_takes_a_root_over() -> None:
    model, x = Parent().eval(), inputs(4, 5)
    for _ in range(4):
        model(x)
    with fuse(model, exclude="nothing") as report:
        assert [one.path for one in report.regions] == [""]
    assert not is_fused(model)
    for _ in range(4):
        model(x)
    other = Parent().eval()
    for _ in range(4):
        other(x)
    assert is_fused(other.child)
    with fuse(other.child) as report:
        assert [one.name for one in report.regions] == ["Policy"]


def test_disable_gives_the_forwards_back() -> None:
    model, x = Parent().eval(), inputs(4, 5)
    for _ in range(4):
        model(x)
    aoti_eager.disable()
    assert not any(map(is_fused, model.modules()))
    aoti_eager.disable()
    for _ in range(4):
        model(x)
    assert not is_fused(model)
    aoti_eager.enable(include=())
    assert not is_looking()


def test_a_forked_child_looks_for_no_modules() -> None:
    code = """
import json, os, torch, aoti_eager
from aoti_eager._regions import whole_script
aoti_eager.enable(include=(), regions=True)
read, write = os.pipe()
if os.fork() == 0:
    hooks = torch.nn.modules.module._global_forward_pre_hooks
    os.write(write, str(len(hooks)).encode())
    os._exit(0)
os.wait()
print(json.dumps({"child": int(os.read(read, 9)), "parent": whole_script._roots.search.is_looking}))
"""
    got = processes.run(Path(str(aoti_eager.config.cache_dir)), code)
    assert (got["child"], got["parent"]) == (0, True)


COMPILED = """
import json, sys, warnings
import torch
from torch import nn
warnings.simplefilter("error")
import aoti_eager
from aoti_eager._regions import whole_script
from tests.support.regions import Policy, seeded, inputs
if {import_first}:
    import torch._dynamo
model, other, x = seeded(Policy), seeded(Policy), inputs(4, 5)
aoti_eager.enable(include=(), regions=True)
imported = [name for name in sys.modules if name.startswith("torch._dynamo")]
compiles = 0
def backend(graph, given):
    global compiles
    compiles += 1
    return graph
with torch.no_grad():
    want = model(x)
    for _ in range({calls}):
        model(x)
    fast = torch.compile({target}, backend=backend, fullgraph=True)
    same = all(torch.equal(fast(x), want) for _ in range(3))
    after = torch.compile(lambda x: other(x), backend=backend, fullgraph=True)
    looks = whole_script._roots.search.is_looking
    aoti_eager.disable()
    fast(x)
print(json.dumps(dict(imported=imported, compiles=compiles, same=same, looks=looks)))
"""


@pytest.mark.parametrize("target", ["model", "lambda x: model(x)"])
@pytest.mark.parametrize(("import_first", "calls"), [(False, 0), (False, 4), (True, 0)])
def test_compiled_code_is_compiled_once_and_without_a_warning(
    target: str, import_first: bool, calls: int
) -> None:
    code = COMPILED.format(target=target, import_first=import_first, calls=calls)
    got = processes.run(Path(str(aoti_eager.config.cache_dir)), code)
    assert (got["imported"] == []) is not import_first
    assert got["same"]
    # Undoing what was fused changes the model, and so the compiled code's guards.
    assert got["compiles"] == (2 if calls else 1)
    assert not got["looks"]


def _scripted(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.script(model)(x)


def _traced(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.trace(model, x)(x)


def _exported(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,)).module()(x)


@pytest.mark.full
@pytest.mark.parametrize("way", [_scripted, _traced, _exported])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fused_model_is_scripted_traced_and_exported_as_the_plain_one(way: Any) -> None:
    model, x = nn.Sequential(nn.Linear(5, 3), nn.Tanh()).eval(), inputs(4, 5)
    want = model(x)
    for _ in range(4):
        model(x)
    assert is_fused(model)
    assert_same(way(model, x), want)
    assert is_fused(model)
