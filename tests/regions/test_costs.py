"""What calls cost that no library serves, and those that one does."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import aoti_eager
from aoti_eager import FusionReport, fuse
from aoti_eager._base.torch_compat import tracing
from aoti_eager._keys.declines import REASONS
from aoti_eager._native.thread_state import native_thread_state
from aoti_eager._regions import fast_call, region_kernel, stopped_calls
from aoti_eager._regions.fast_call import FastCall, python_thread_state
from aoti_eager._regions.region import Region
from aoti_eager._regions.stop import HOPELESS, MAY_GO, OF_THE_MOMENT, STOPS, Stop
from aoti_eager._regions.stopped_calls import StoppedCalls
from aoti_eager._regions.target import Target
from aoti_eager._regions.waiting import Waiting

from ..support.regions import Policy, assert_same, hits, inputs, seeded, served

pytestmark = pytest.mark.native

LASTING, MAY_GO_CALLS, WITHOUT_HOPE = 100, 1000, 16


class Leaky(nn.Module):
    """A module that no library can serve, for a reason that lies in its code."""

    def forward(self, x: Tensor) -> Tensor:
        """Return something that depends on data."""
        return x * x.sum().item() + 1


def python_calls(call: Callable[[], object]) -> int:
    """Return how many functions of Python's a call runs."""
    count = 0

    def see(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def region_of(module: nn.Module) -> Region:
    forward = vars(module)["forward"]
    region = forward.region
    assert isinstance(region, Region)
    return region


# -- no hope --


def test_a_region_without_hope_is_given_up_and_costs_three_calls_of_python() -> None:
    model, plain, x = Leaky().eval(), Leaky().eval(), inputs(3)
    before = python_calls(lambda: plain(x))
    with fuse(model) as report:
        for _ in range(LASTING - 1):
            model(x)
        assert not region_of(model).stopped.given_up
        for _ in range(2):
            model(x)
        assert list(region_of(model).stopped.given_up) == [False]
        # The fused forward, torch.compiler.is_dynamo_compiling, and the count.
        assert python_calls(lambda: model(x)) - before == 3
        (state,) = report.regions
        assert (state.state, state.calls) == ("stopped", LASTING + 2)
        assert_same(model(x), plain(x))


def test_a_function_without_hope_keeps_its_wrapper_and_is_given_up() -> None:
    def single(x: Tensor) -> Tensor:
        return torch.tanh(x)

    x = inputs(3)
    before = python_calls(lambda: single(x))
    fast = fuse(single)
    for _ in range(WITHOUT_HOPE + 1):
        fast(x)
    assert python_calls(lambda: fast(x)) - before == 3
    (state,) = fast.report.regions
    assert (state.state, state.reason, state.calls) == ("stopped", "too_small", WITHOUT_HOPE + 2)
    fast.report.undo()


def test_other_modes_of_a_module_are_not_given_up_with_one(shared_cache: Path) -> None:
    class Train(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            y = self.policy(x) * 2
            return y * y.sum().item() if self.training else y

    model, x = Train().eval(), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        model.train()
        for _ in range(LASTING + 2):
            model(x)
        assert list(region_of(model).stopped.given_up) == [True]
        model.eval()
        before = report.regions[0].hits
        model(x)
        assert report.regions[0].hits == before + 1


def test_a_reason_that_may_go_is_waited_for_longer_and_looked_at_once_more(
    shared_cache: Path,
) -> None:
    model, x = nn.Sequential(seeded(Policy), nn.Tanh()).eval(), inputs(4, 5)
    with fuse(model) as report:
        handle = model[0].register_forward_hook(lambda *_: None)
        for _ in range(LASTING + 2):
            model(x)
        stopped = region_of(model).stopped
        assert report.regions[0].reason == "hooks"
        assert not stopped.given_up
        for _ in range(MAY_GO_CALLS - LASTING):
            model(x)
        assert list(stopped.given_up) == [False]
        handle.remove()
        for _ in range(1024 - MAY_GO_CALLS + 2):
            model(x)
        assert len(region_of(model).variants) == 1
        for _ in range(4):
            model(x)
        aoti_eager.wait()
        for _ in range(3):
            model(x)
        assert report.regions[0].state == "served"


def test_keys_beyond_those_that_are_remembered_leave_served_calls_alone(
    shared_cache: Path,
) -> None:
    class Some(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor, n: int = 0) -> Tensor:
            y = self.policy(x) * 2
            return y * y.sum().item() if n else y

    model, x = Some().eval(), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        for n in range(1, 200):
            model(x, n)
        region = region_of(model)
        assert len(region.stopped.by_key) == 64
        assert not region.stopped.given_up
        before = region.variants[0].hits
        model(x)
        assert region.variants[0].hits == before + 1


# -- modules that get their forward back --


class Pair(nn.Module):
    """Two modules of a single op each, in one that no library can serve."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Tanh()
        self.other = nn.Sequential(nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return something that depends on data."""
        return self.other(self.one(x)) * x.sum().item()


def withdrawn(calls: int = WITHOUT_HOPE + 4) -> tuple[Pair, FusionReport]:
    model = seeded(Pair)
    report = fuse(model)
    for _ in range(calls):
        model(inputs(2, 3))
    assert isinstance(model, Pair)
    assert isinstance(report, FusionReport)
    return model, report


def test_a_module_of_a_single_op_gets_its_forward_back() -> None:
    model, report = withdrawn()
    x, plain = inputs(2, 3), seeded(Pair)
    for module in (model.one, model.other, model.other[0]):
        assert "forward" not in vars(module)
    assert_same(model(x), plain(x))
    states = {one.path: one for one in report.regions}
    for path in ("one", "other", "other.0"):
        assert (states[path].state, states[path].reason) == ("stopped", "too_small")
        assert "it runs as it is" in str(states[path])
    assert "it runs as it is" not in str(states[""])
    report.undo()
    assert {one.state for one in report.regions} == {"undone"}
    assert_same(model(x), plain(x))


def test_a_module_whose_only_op_has_no_kernel_of_its_own_gets_its_forward_back(
    shared_cache: Path,
) -> None:
    model, plain = (seeded(lambda: nn.Linear(5, 3)) for _ in range(2))
    x = inputs(4, 5)
    with fuse(model) as report:
        for _ in range(WITHOUT_HOPE + 6):
            assert_same(model(x), plain(x))
        (state,) = report.regions
        assert (state.state, state.reason) == ("stopped", "no_kernel_of_its_own")
        assert "it runs as it is" in state.message
        assert "forward" not in vars(model)


def test_copies_and_pickles_of_such_modules_are_plain() -> None:
    model, report = withdrawn()
    x, plain = inputs(2, 3), seeded(Pair)
    twin = copy.deepcopy(model)
    assert "forward" not in vars(twin.one)
    assert_same(twin(x), plain(x))
    loaded = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
    assert_same(loaded(x), plain(x))
    report.undo()


def test_a_forward_that_somebody_has_set_meanwhile_stays() -> None:
    model = nn.Tanh()
    report = fuse(model)
    mine = vars(model)["forward"]
    other = lambda x: x + 1  # noqa: E731 - it is one line
    model.forward = other
    mine.withdraw()
    assert vars(model)["forward"] is other
    assert not mine.is_withdrawn
    assert report.regions[0].reason == "replaced"
    report.undo()
    assert vars(model)["forward"] is other


def test_a_forward_of_the_instances_own_comes_back() -> None:
    model = nn.Tanh()
    own = model.forward = lambda x: torch.sin(x)
    report = fuse(model)
    for _ in range(WITHOUT_HOPE + 1):
        model(inputs(3))
    assert vars(model)["forward"] is own
    report.undo()
    assert vars(model)["forward"] is own


def test_a_kind_of_call_with_more_ops_keeps_a_module_fused(shared_cache: Path) -> None:
    class Either(nn.Module):
        def forward(self, x: Tensor, more: bool = False) -> Tensor:
            return x.sin().cos() if more else x.sin()

    model, x = Either(), inputs(3)
    with fuse(model) as report:
        served(report, lambda: model(x, True))
        for _ in range(WITHOUT_HOPE + 2):
            model(x)
        before = hits(report)
        assert_same(model(x, True), x.sin().cos())
        assert hits(report) == before + 1


def test_threads_that_call_a_module_while_it_gets_its_forward_back() -> None:
    model, x = nn.Tanh(), inputs(3)
    want, errors, results = model(x), [], []
    start = threading.Barrier(4)

    def call() -> None:
        start.wait()
        try:
            for _ in range(200):
                with torch.no_grad():
                    results.append(model(x))
        except BaseException as error:  # noqa: BLE001 - the thread's result
            errors.append(error)

    report = fuse(model)
    threads = [threading.Thread(target=call) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not errors
    assert "forward" not in vars(model)
    assert len(results) == 800
    for result in results:
        assert_same(result, want)
    report.undo()


# -- stops of the moment --


def test_the_lists_of_reasons_are_of_reasons_that_there_are() -> None:
    known = {*STOPS, *REASONS}
    assert known >= MAY_GO | OF_THE_MOMENT | HOPELESS
    assert not MAY_GO & HOPELESS
    assert not (MAY_GO | HOPELESS) & OF_THE_MOMENT


def test_what_is_not_in_the_cache_is_asked_for_when_the_mode_changes() -> None:
    model, x = nn.Sequential(nn.Linear(5, 7), nn.Sigmoid()), inputs(4, 5)
    with fuse(model) as report:
        with aoti_eager.config.scope(mode="cache_only"):
            model(x)
            (variant,) = region_of(model).variants
            variant.waiting = Waiting(itertools.count(1, 1_000_000_000).__next__)
            for _ in range(2):
                model(x)
            (state,) = report.regions
            assert (state.state, state.reason) == ("stopped", "not_in_cache")
        served(report, lambda: [model(x) for _ in range(2)])
        assert [one.state for one in report.regions] == ["served"]


def test_a_refusal_of_the_moment_is_asked_about_again_at_the_64th_look(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    asked: list[object] = []
    ask = region_kernel.RegionKernel.ask_again
    monkeypatch.setattr(
        region_kernel.RegionKernel,
        "ask_again",
        lambda self, inputs: (asked.append(self), ask(self, inputs))[1],
    )
    empty = aoti_eager.config.scope(mode="cache_only", cache_dir=cache_dir)
    with empty, fuse(model) as report:
        model(x)
        (variant,) = region_of(model).variants
        variant.waiting = Waiting(itertools.count(1, 1_000_000_000).__next__)  # Each call looks.
        model(x)
        assert [one.path for one in report.regions] == [""]
        for _ in range(63):
            model(x)
        assert not asked
        for _ in range(3):
            model(x)
        assert len(asked) == 1, str(report)
        # Refused once more: the children are tried.
        assert "first" in [one.path for one in report.regions]


@pytest.mark.parametrize(
    "other", [lambda x: x.double(), lambda x: x.t().contiguous().t()], ids=["dtype", "strides"]
)
def test_calls_of_two_kinds_in_turn_are_both_served(other: Callable[[Tensor], Tensor]) -> None:
    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2.0).sin() + 1.0

    model, x = Waves().eval(), inputs(4, 5)
    kinds = [x, other(x)]
    with fuse(model) as report:
        for one in kinds:
            served(report, lambda one=one: [model(one) for _ in range(8)])
        before = [variant.hits for variant in region_of(model).variants]
        for _ in range(40):
            for one in kinds:
                assert_same(model(one), (one * 2.0).sin() + 1.0)
        after = [variant.hits for variant in region_of(model).variants]
        assert [variant.is_contested for variant in region_of(model).variants] == [False, False]
    # Some calls are recorded again.
    assert all(now - then > 30 for now, then in zip(after, before, strict=True))


def test_a_tensor_with_attributes_of_pythons_takes_no_short_way() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * getattr(x, "scale", 2.0)).sin() + 1.0

    model, x = Reads().eval(), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: [model(x) for _ in range(8)])
        while region_of(model)._fast is None:
            model(x)
        x.scale = 3.0  # type: ignore[attr-defined]
        assert_same(model(x), (x * 3.0).sin() + 1.0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own call
def test_forward_mode_differentiation_takes_no_short_way() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: [model(x) for _ in range(8)])
        while region_of(model)._fast is None:
            model(x)
        before = report.regions[0].hits
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            assert forward_ad.unpack_dual(model(dual)).tangent is not None
            assert forward_ad.unpack_dual(model(x)).tangent is None
        assert report.regions[0].hits == before


def test_a_tape_that_differed_once_is_recorded_anew(shared_cache: Path) -> None:
    flips: list[bool] = []

    class Flips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            y = self.policy(x)
            return y.cos() if flips else y.sin()

    model, x = Flips(), inputs(4, 5)
    with fuse(model) as report:
        model(x)
        flips.append(True)  # No guard sees what a method's closure holds.
        with pytest.warns(match="made different calls of ops"):
            model(x)
        assert report.regions[0].reason == "tape_differs"
        for _ in range(64):
            model(x)
        served(report, lambda: model(x))
        assert report.regions[0].state == "served"
        assert_same(model(x), seeded(Policy)(x).cos())


# -- regions whose library is being made --


def test_a_pending_library_is_looked_at_once_in_a_while() -> None:
    now = [1]
    waiting = Waiting(lambda: now[0])
    assert not waiting.is_resting()
    waiting.rest()
    assert waiting.is_resting()
    now[0] += 3_999_999
    assert waiting.is_resting()
    now[0] += 1
    assert not waiting.is_resting()
    waiting.rest()
    now[0] += 2_400_000  # Rests differ: kinds of calls that take turns are all seen.
    assert not waiting.is_resting()


def test_calls_beside_a_pending_library_do_not_read_their_arguments(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        for _ in range(2):
            model(x)
        region = region_of(model)
        (variant,) = region.variants
        monkeypatch.setattr(type(variant), "is_pending", True)
        monkeypatch.setattr(type(variant.kernel), "may_serve", False)
        monkeypatch.setattr(type(variant.kernel), "is_serving", False)
        monkeypatch.setattr(type(variant.kernel), "is_open", False)
        monkeypatch.setattr(type(variant.kernel), "has_candidate", False)
        now = [1]
        variant.waiting = Waiting(lambda: now[0])
        model(x)
        monkeypatch.setattr(
            "aoti_eager._regions.region.read_arguments", lambda *_: pytest.fail("it was looked at")
        )
        for _ in range(3):
            model(x)
        monkeypatch.undo()
        now[0] += 10_000_000
        assert served(report, lambda: model(x)) is not None


# -- kernels that garbage collections release --


def test_a_finalizer_takes_no_lock(shared_cache: Path) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    report = fuse(model)
    model(x)
    (variant,) = region_of(model).variants
    done = threading.Event()

    def release() -> None:
        region_kernel.release(variant.kernel)
        done.set()

    thread = threading.Thread(target=release)
    with region_kernel._lock:  # Another thread's finalizer does not wait for the lock.
        variant.kernel.users += 1
        thread.start()
        assert done.wait(60)
    thread.join()
    region_kernel.sweep()
    assert variant.kernel.users == 1
    assert len(aoti_eager.registered_ops()) == 1
    report.undo()
    assert aoti_eager.registered_ops() == []


# -- calls that are served --


@pytest.fixture(params=["native", "python"])
def thread_state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What asks for the thread's state, in C++ and in Python."""
    if request.param == "python":
        monkeypatch.setattr(fast_call, "native_thread_state", lambda: None)
        return python_thread_state
    state = native_thread_state()
    assert state is not None
    return state


def _under_trace(ask: Callable[[], object]) -> list[object]:
    found: list[object] = []

    def traced(x: Tensor) -> Tensor:
        found.append(ask())
        return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of jit.trace itself.
        torch.jit.trace(traced, inputs(3), check_trace=False)
    torch.vmap(traced)(inputs(3))
    torch.func.grad(lambda x: traced(x).sum())(inputs(3))
    return found


def test_both_states_of_a_thread_are_told_alike(thread_state: Callable[[], Any]) -> None:
    assert thread_state() is True
    with torch.enable_grad():
        assert thread_state() is False
    with torch.inference_mode():
        assert thread_state() is True
    with torch.autocast("cpu"):
        assert thread_state() is None
    with tracing.dispatch_mode(lambda op, args, kwargs: op(*args, **kwargs)):
        assert thread_state() is None
    with torch.device("cpu"):  # A mode that sees functions of torch's.
        assert thread_state() is None
    with forward_ad.dual_level():
        assert thread_state() is None
    assert _under_trace(thread_state) == [None, None, None]
    assert thread_state() is True


def test_calls_like_the_last_ones_take_the_short_way(
    thread_state: object, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = seeded(Policy), seeded(Policy)
    x = inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        for _ in range(8):
            model(x)
        assert isinstance(region_of(model)._fast, FastCall)
        # Other values, and other weights.
        assert_same(model(inputs(4, 5, seed=1)), plain(inputs(4, 5, seed=1)))
        for one in (model, plain):
            one.load_state_dict(seeded(Policy, 3).state_dict())
        assert_same(model(x), plain(x))
        before = hits(report)
        # What is not alike goes another way, and is right.
        for given in (inputs(2, 5), inputs(5, 4).t(), inputs(8, 5)[::2], x.double()[:0].float()):
            assert_same(model(given), plain(given))
        with pytest.raises(RuntimeError):
            model(x.double())
        with torch.enable_grad():
            assert model(x).requires_grad
        with torch.autocast("cpu"):
            assert model(x).dtype is torch.bfloat16
        assert_same(torch.vmap(model)(inputs(4, 5)), torch.vmap(plain)(inputs(4, 5)))
        model.squashes = plain.squashes = False
        assert_same(model(x), plain(x))
        assert hits(report) <= before + 1
        with aoti_eager.config.scope(mode="off"):
            assert_same(model(x), plain(x))


def test_the_short_way_ends_with_the_serving(shared_cache: Path) -> None:
    model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
    report = fuse(model)
    served(report, lambda: model(x))
    for _ in range(8):
        model(x)
    region = region_of(model)
    assert region._fast is not None
    (variant,) = region.variants
    variant.stopped = region.stopped.stopped((False, ()), Stop("slower", "for this test"))
    before = hits(report)
    assert_same(model(x), plain(x))
    assert hits(report) == before
    report.undo()
    assert region._fast is None
    assert_same(model(x), plain(x))


def test_a_call_that_is_recorded_again_is_not_skipped(shared_cache: Path) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        region = region_of(model)
        (variant,) = region.variants
        recorded = []
        again = region._record_again
        region._record_again = lambda *given: (recorded.append(variant.calls), again(*given))[1]  # type: ignore[method-assign]
        for _ in range(600):
            model(x)
        assert recorded == [8, 16, 32, 64, 128, 256, 512]


# -- counts --


def test_a_mode_is_given_up_by_the_reason_that_gives_most_hope() -> None:
    assert (stopped_calls._WITHOUT_HOPE, stopped_calls._LASTING, stopped_calls._MAY_GO) == (
        WITHOUT_HOPE,
        LASTING,
        MAY_GO_CALLS,
    )
    for reason, limit in (
        ("too_small", WITHOUT_HOPE),
        ("data_leaves", LASTING),
        ("hooks", MAY_GO_CALLS),
    ):
        stopped = StoppedCalls(Target(torch.sin, None), "", strict=False)
        hopeless: list[str] = []
        stopped.on_hopeless = lambda found=hopeless, reason=reason: found.append(reason)  # type: ignore[misc]
        stopped.stop("key", Stop(reason, ""))
        for _ in range(limit - 1):
            stopped.passes("key")
        assert not stopped.given_up
        stopped.passes("key")
        assert list(stopped.given_up) == [None]
        assert hopeless == (["too_small"] if reason == "too_small" else [])
