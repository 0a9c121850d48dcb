"""What reports say is what happens; copies, pickles and reports do not bind a model."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager._compile_service import native_path
from aoti_eager._native import library as native_library
from aoti_eager._native import recorder
from aoti_eager._regions import recorded_call, whole_script
from aoti_eager._regions import region as region_module
from aoti_eager._regions.recordings import Recordings
from aoti_eager._regions.target import Fused

from ..support.regions import Policy, assert_same, assert_served, inputs, seeded, served

pytestmark = pytest.mark.native


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - made here


def is_fused(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), Fused)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = seeded(Policy)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


# -- why nothing is served --


def _under_autocast(call: Callable[[], Any]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call()


def _with_profile(call: Callable[[], Any]) -> None:
    before = sys.getprofile()
    sys.setprofile(lambda *_: None)
    try:
        call()
    finally:
        sys.setprofile(before)


def _off(call: Callable[[], Any]) -> None:
    with aoti_eager.config.scope(mode="off"):
        call()


@pytest.mark.parametrize(
    ("way", "words"),
    [(_under_autocast, "under autocast"), (_with_profile, "profiler"), (_off, "mode off")],
)
def test_a_report_says_why_calls_ran_as_before(
    way: Callable[[Callable[[], Any]], None], words: str
) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        for _ in range(3):
            way(lambda: model(x))
        (state,) = report.regions
        assert state.state == "runs as before"
        assert words in state.message
        assert "runs as before" in str(report)
        served(report, lambda: model(x))


def test_a_report_says_that_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    monkeypatch.setattr(native_library, "is_loaded", lambda: False)
    monkeypatch.setattr(native_path, "_build", native_path._Build())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with fuse(model) as report:
        model(x)
        (state,) = report.regions
        assert (state.state, state.message) == (
            "runs as before",
            "its calls came without the C++ path: no C++ compiler is found",
        )


def test_a_symbolic_trace_is_no_stop() -> None:
    model, x = Outer(), inputs(4, 5)
    with fuse(model.inner, strict=True) as report:
        torch.fx.symbolic_trace(model)
        (state,) = report.regions
        assert (state.state, state.path) == ("runs as before", "")
        assert "trace" in state.message
        assert_served(report, lambda: model.inner(x), copy.deepcopy(model.inner)(x))


def test_a_recording_that_cannot_go_on_is_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    end_ = recorder.Recording.__exit__
    found: list[recorder.Recording] = []

    def ends(recording: recorder.Recording, *rest: Any) -> None:
        end_(recording, None, None, None)
        found.append(recording)
        raise ValueError("a fault")

    monkeypatch.setattr(recorder.Recording, "__exit__", ends)
    with fuse(model) as report:
        assert_same(model(x), want)
        assert found
        assert report.regions[0].reason == "not_recorded"
        assert "a fault" in report.regions[0].message


def test_a_thread_that_records_already_has_its_forward_run() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        with recorder.record():
            assert_same(model(x), want)
        assert report.regions[0].reason == ""
        served(report, lambda: model(x))


def test_a_recording_that_a_fork_ended_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = Recordings()
    assert recordings.begin("key")
    assert not recordings.begin("key")
    monkeypatch.setattr("aoti_eager._regions.recordings.os.getpid", lambda: 1)
    assert recordings.begin("key")
    recordings.end("key")
    assert recordings.begin("key")


# -- gradients --


class OwnNoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy = seeded(Policy)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x) * 2 + 1


class Detaches(OwnNoGrad):
    def forward(self, x: Tensor) -> Tensor:
        return (self.policy(x) * 2 + 1).detach()


def test_a_forward_that_switches_gradients_off_is_served_with_gradients_on() -> None:
    model, x = OwnNoGrad().eval(), inputs(4, 5)
    want = model(x)
    with fuse(model) as report, torch.enable_grad():
        got = served(report, lambda: model(x))
        assert_same(got, want)
        with torch.no_grad():
            assert_served(report, lambda: model(x), want)
        assert len(report.regions) == 1


def test_a_forward_that_detaches_its_results_waits_for_no_grad(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = Detaches().eval(), inputs(4, 5)
    want = model(x)
    recorded = []
    record = recorded_call.record_call
    monkeypatch.setattr(region_module, "record_call", lambda *a: recorded.append(a) or record(*a))
    with fuse(model) as report:
        with torch.enable_grad():
            for _ in range(6):
                assert_same(model(x), want)
            assert len(recorded) == 1
            assert report.regions[0].state == "needs gradients"
        assert_served(report, lambda: model(x), want)


def test_a_training_has_its_gradients() -> None:
    model, plain, x = seeded(Policy).train(), seeded(Policy).train(), inputs(4, 5)
    with fuse(model) as report, torch.enable_grad():
        for _ in range(4):
            model(x).sum().backward()
            plain(x).sum().backward()
        assert_same(model.first.weight.grad, plain.first.weight.grad)
        assert report.regions[0].state == "needs gradients"


# -- functions and methods --


def doubled(x: Tensor) -> Tensor:
    return (x * 2).tanh() + 1


class Agent:
    """An object with a fused method."""

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = scale
        self.net = seeded(Policy)

    def act(self, x: Tensor) -> Tensor:
        """Return an action."""
        return self.net(x) * self.scale + 1


class Slotted:
    __slots__ = ()

    def act(self, x: Tensor) -> Tensor:
        return (x * 2).tanh()


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return an object whose method is decorated: not at the import, as that would build C++."""
    monkeypatch.setattr(Agent, "act", fuse(Agent.act))
    yield Agent()
    Agent.act.report.undo()  # type: ignore[attr-defined]


def test_a_decorated_method_is_served_for_each_object(agent: Any) -> None:
    other: Any = Agent(3.0)
    x = inputs(4, 5)
    policy = agent.net(x)
    assert_served(agent.act.report, lambda: agent.act(x), policy * 2.0 + 1)
    assert_served(other.act.report, lambda: other.act(x), policy * 3.0 + 1)
    assert_same(Agent.act(agent, x), policy * 2.0 + 1)
    assert agent.act is agent.act
    assert agent.act.__doc__ == "Return an action."


def test_copies_of_an_object_have_their_own_methods(agent: Any) -> None:
    x = inputs(4, 5)
    policy = agent.net(x)
    served(agent.act.report, lambda: agent.act(x))
    for one in (copy.copy(agent), copy.deepcopy(agent), pickled(agent)):
        one.scale = 5.0
        assert_same(one.act(x), policy * 5.0 + 1)
    assert_same(agent.act(x), policy * 2.0 + 1)


def test_an_object_with_a_fused_method_is_freed(agent: Any) -> None:
    other: Any = Agent()
    other.act(inputs(4, 5))
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_a_method_of_an_object_with_slots_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(4, 5)
    monkeypatch.setattr(Slotted, "act", fuse(Slotted.act))
    assert_same(Slotted().act(x), (x * 2).tanh())


def test_a_fused_function_is_copied_and_pickled_as_functions_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = inputs(4, 5)
    fast = fuse(doubled)
    assert_served(fast.report, lambda: fast(x), (x * 2).tanh() + 1)
    assert copy.deepcopy([fast])[0] is fast
    assert copy.copy(fast) is fast
    assert pickled(fast) is doubled
    monkeypatch.setattr(sys.modules[__name__], "doubled", fast)  # As a decorator does.
    assert pickled(fast) is fast
    assert pickled(fuse(operator.neg)) is operator.neg
    fast.report.undo()


def test_a_module_with_a_fused_function_and_a_report_is_copied_pickled_and_served() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)
            self.act = fast

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.policy(x))

    fast: Any = fuse(_tripled)
    model, x = Holder().eval(), inputs(4, 5)
    want = model(x)
    report = fuse(model)
    model.report = report
    assert_served(report, lambda: model(x), want)
    assert report.regions[0].reason == ""
    copied = copy.deepcopy(model)
    assert_same(copied(x), want)
    assert copied.report is report
    assert "served" in pickled(report)
    report.undo()
    assert not is_fused(copied)
    fast.report.undo()


def _tripled(x: Tensor) -> Tensor:
    return (x * 3).tanh() + 1


# -- copies, replicas, and the end --


def test_a_replica_of_a_module_calls_its_own_forward() -> None:
    model, x = Outer(), inputs(4, 5)
    with fuse(model):
        replica = model._replicate_for_data_parallel()
        assert not is_fused(replica)
        replica._modules["inner"] = nn.Identity()
        assert_same(replica(x), x + 1)
        assert is_fused(model)
    mine = Outer()
    mine.forward = own = lambda x: x * 7  # type: ignore[method-assign]
    with fuse(mine):
        assert vars(mine._replicate_for_data_parallel())["forward"] is own


def test_undo_reaches_copies() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        copied = copy.deepcopy(model)
        again = copy.deepcopy(copied)
        assert_served(report, lambda: model(x), want)
        assert is_fused(again)
        copied(x)
    for one in (model, copied, again):
        assert not is_fused(one)
        assert_same(one(x), want)


def test_disable_reaches_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_script, "_roots", whole_script._Roots())
    aoti_eager.enable(include=(), regions=True)
    model, x = seeded(Policy), inputs(4, 5)
    for _ in range(3):
        model(x)
    copied = copy.deepcopy(model)
    for _ in range(3):
        copied(x)
    del model
    gc.collect()
    assert is_fused(copied)
    assert sum(one.calls for one in whole_script.region_states()["Policy"]) == 4
    aoti_eager.disable()
    assert not is_fused(copied)
    copied(x)


def test_a_report_holds_no_model() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    report = fuse(model)
    model(x)
    model(x)
    before = report.regions
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert report.regions == before
    report.undo()


def test_a_report_holds_no_model_after_undo() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    report = fuse(model)
    model(x)
    report.undo()
    assert {one.state for one in report.regions} == {"undone"}
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None  # As a model that was never fused.
    finally:
        gc.enable()
    assert {one.state for one in report.regions} == {"undone"}


def test_the_forward_alone_keeps_the_model_as_a_bound_method_does() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    fuse(model)
    forward = model.forward
    del model
    gc.collect()
    assert_same(forward(x), want)
    forward.regions.undo()  # type: ignore[attr-defined]
