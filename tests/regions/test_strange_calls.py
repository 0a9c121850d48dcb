"""Calls of fused models out of the ordinary: traces, modes, watchers, undo in the middle."""

from __future__ import annotations

import collections
import copy
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import aoti_eager
from aoti_eager import FusionReport, fuse

from ..support.regions import Policy, assert_same, assert_served, hits, inputs, seeded, served

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def _store(shared_cache: Path) -> None:
    """Use the run's shared store: the models are few."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Scaled(nn.Module):
    """A policy that reads something from elsewhere."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.policy = seeded(Policy)
        self.read = read

    def forward(self, x: Tensor) -> Any:
        return self.policy(x) * self.read(self) + 1


# -- traces and modes --


class _DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.tanh else result


def _profiled(model: nn.Module, x: Tensor) -> Any:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        return model(x)


def _traced_by_python(model: nn.Module, x: Tensor) -> Any:
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        return model(x)
    finally:
        sys.settrace(before)


def _profiled_by_python(model: nn.Module, x: Tensor) -> Any:
    seen: list[str] = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        result = model(x)
        assert sys.getprofile() is not None
        return result
    finally:
        sys.setprofile(None)
        assert seen


def _under(mode: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Any]:
    def call(model: nn.Module, x: Tensor) -> Any:
        with mode():
            return model(x)

    return call


def _jvp(model: nn.Module, x: Tensor) -> Any:
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))


def _functional(model: nn.Module, x: Tensor) -> Any:
    weights = {name: one * 2 for name, one in model.named_parameters()}
    return torch.func.functional_call(model, weights, (x,))


def _gradient(model: nn.Module, x: Tensor) -> Any:
    with torch.enable_grad():
        return torch.func.grad(lambda one: model(one).sum())(x)


WAYS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "functional_call": _functional,
    "vmap": lambda model, x: torch.func.vmap(model)(x),
    "jvp": _jvp,
    "grad": _gradient,
    "a dispatch mode": _under(_DispatchMode),
    "a function mode": _under(_FunctionMode),
    "autocast": _under(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "inference mode": _under(torch.inference_mode),
    "a profiler": _profiled,
    "sys.settrace": _traced_by_python,
    "sys.setprofile": _profiled_by_python,
    "jit.trace": lambda model, x: torch.jit.trace(model, (x,), check_trace=False)(x),
    "conjugated": lambda model, x: model(torch.complex(x, x).conj().real),
    "inference tensors": lambda model, x: model(_inference_tensor(x)),
    "vmap over weights": lambda model, x: torch.func.vmap(
        lambda weight: torch.func.functional_call(model, {"first.weight": weight}, (x,))
    )(torch.stack([torch.ones(8, 5), torch.zeros(8, 5)])),
}


def _inference_tensor(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("name", WAYS)
def test_a_call_in_another_way_gives_what_the_plain_model_gives(name: str, is_warm: bool) -> None:
    model, plain, x = seeded(Policy), seeded(Policy), inputs(4, 5)
    way = WAYS[name]
    want = plain(x)
    with fuse(model) as report:
        if is_warm:
            served(report, lambda: model(x))
        for _ in range(3):
            assert_same(way(model, x), way(plain, x))
        assert_served(report, lambda: model(x), want)
        assert_same(way(model, x), way(plain, x))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["compile", "inside", "export"])
def test_a_fused_model_can_be_compiled_and_exported(way: str) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model) as report:
        served(report, lambda: model(x))
        before = hits(report)
        torch._dynamo.reset()
        if way == "compile":
            made: Any = torch.compile(model, backend="eager")
        elif way == "inside":
            made = torch.compile(lambda one: model(one) + 0, backend="eager")
        else:
            made = torch.export.export(model, (x,)).module()
        assert_same(made(x), want)
        assert_same(made(x), want)
        assert hits(report) == before
        assert_served(report, lambda: model(x), want)
    torch._dynamo.reset()


def test_a_fake_mode_around_a_call_takes_the_plain_way() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.empty(4, 5)).shape == (4, 3)
        assert_served(report, lambda: model(x), seeded(Policy)(x))


class Sub(Tensor):
    """A subclass whose ops are plain tensors' ops."""


def test_subclasses_sparse_and_quantized_arguments_run_as_they_are() -> None:
    class Any_(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.dequantize() * 2 if x.is_quantized else x * 2 * 1.5

    for make in (
        lambda: inputs(4, 5).as_subclass(Sub),
        lambda: inputs(4, 5).to_sparse(),
    ):
        model, plain = Any_(), Any_()
        with fuse(model) as report:
            for _ in range(4):
                got, want = model(make()), plain(make())
                assert type(got) is type(want)
                assert_same(
                    (got.to_dense() if got.is_sparse else got.as_subclass(Tensor)),
                    (want.to_dense() if want.is_sparse else want.as_subclass(Tensor)),
                )
            assert hits(report) == 0
            assert report.regions[0].reason == "unsupported_argument"


def test_a_parameter_of_a_subclass_runs_as_it_is() -> None:
    class Logged(Tensor):
        calls = 0

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            Logged.calls += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    model, x = seeded(Policy), inputs(4, 5)
    model.first.weight = nn.Parameter(model.first.weight.data.as_subclass(Logged))
    want = model(x)
    with fuse(model) as report:
        for _ in range(5):
            before = Logged.calls
            got = model(x)
            assert Logged.calls > before
            assert type(got) is type(want)
            assert_same(got.as_subclass(Tensor), want.as_subclass(Tensor))
        assert hits(report) == 0


# -- arguments and results --


class Named(NamedTuple):
    first: Tensor
    rest: dict[str, Any]


def test_arguments_and_results_of_many_kinds_are_served() -> None:
    class Kinds(nn.Module):
        def forward(
            self, x: Tensor, *more: Tensor, scale: float, options: dict[str, Any], none: None = None
        ) -> Any:
            total = x.sin() * scale + options["deep"]["t"]
            for one in more:
                total = total + one
            if options["flag"]:
                total = total.cos()
            rest = collections.OrderedDict(b=total * 2, a=(none, x.dtype, scale))
            return Named(total, rest), [total, x]

    model, plain, x = Kinds(), Kinds(), inputs(3)
    options = {"deep": {"t": inputs(3, seed=1)}, "flag": True}

    def call(one: nn.Module, **changed: Any) -> Any:
        return one(x, inputs(3, seed=2), x, scale=0.5, options={**options, **changed})

    with fuse(model) as report:
        got, want = served(report, lambda: call(model)), call(plain)
        assert_same(got, want)
        assert type(got[0]) is Named
        assert got[0].first is got[1][0]
        assert got[1][1] is x
        assert_same(call(model, flag=False), call(plain, flag=False))
        assert_same(model(x, scale=2, options=options), plain(x, scale=2, options=options))
        with pytest.raises(TypeError):
            model(x)


def test_a_generator_that_is_an_argument_is_read_once() -> None:
    def total(parts: Any) -> Tensor:
        return sum(parts) * 2

    fast = fuse(total)
    for _ in range(3):
        assert_same(fast(one for one in (inputs(3), inputs(3))), inputs(3) * 4)
    assert fast.report.regions[0].reason == "unsupported_argument"
    fast.report.undo()


# -- functions of many kinds --


class Agent:
    """A class that is no module, with a network."""

    scale = 2.0

    def __init__(self) -> None:
        self.net = seeded(Policy)
        self.shift = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.act(x) * 2

    def act(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale + self.shift


class Slotted:
    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 2.0


def _closure(agent: Agent) -> Callable[[Tensor], Tensor]:
    def act(x: Tensor) -> Tensor:
        return agent.net(x) * agent.scale + agent.shift

    return act


def _plain_function(x: Tensor, w: Tensor, *, factor: float = 1.0) -> Tensor:
    return torch.tanh(x @ w) * factor


def _shift(agent: Agent) -> None:
    agent.shift = 3.0


def _scale(agent: Agent) -> None:
    agent.scale = 5.0


def _weights(agent: Agent) -> None:
    agent.net.first.weight.mul_(0.5)


def _network(agent: Agent) -> None:
    agent.net = seeded(Policy, 4)


@pytest.mark.parametrize("change", [_shift, _scale, _weights, _network])
@pytest.mark.parametrize(
    "function",
    [lambda agent: agent.act, lambda agent: agent, _closure, lambda agent: lambda x: agent.act(x)],
    ids=["method", "object", "closure", "lambda"],
)
def test_functions_see_changes_of_what_they_refer_to(
    function: Callable[[Agent], Any], change: Callable[[Agent], None]
) -> None:
    agent, plain, x = Agent(), Agent(), inputs(4, 5)
    fast = fuse(function(agent))
    try:
        for _ in range(4):
            assert_same(fast(x), function(plain)(x))
        for one in (agent, plain):
            change(one)
        for _ in range(4):
            assert_same(fast(x), function(plain)(x))
        assert hits(fast.report) > 0
    finally:
        fast.report.undo()


def test_partial_functions_and_defaults_are_served() -> None:
    w, x = inputs(5, 3), inputs(4, 5)
    partial = functools.partial(_plain_function, w=w, factor=2.0)
    fast = fuse(partial)
    assert_served(fast.report, lambda: fast(x), partial(x))
    w.mul_(2)
    assert_same(fast(x), partial(x))
    fast.report.undo()

    def with_default(x: Tensor, w: Tensor = w) -> Tensor:
        return torch.tanh(x @ w) * 2

    fast = fuse(with_default)
    assert_served(fast.report, lambda: fast(x), with_default(x))
    w.mul_(2)
    assert_same(fast(x), with_default(x))
    fast.report.undo()


FLAGS = {"doubled": False}


@pytest.mark.parametrize("name", ["a class", "slots", "by name", "grad mode", "a deque"])
def test_state_that_forward_reads_is_seen_when_it_changes(name: str) -> None:
    def read(module: Any) -> Any:
        if name == "a class":
            return module.factor
        if name == "slots":
            return module.config.factor
        if name == "by name":
            return getattr(module, f"factor_{module.mode}")
        if name == "grad mode":
            return 3.0 if torch.is_grad_enabled() else 2.0
        return float(sum(module.recent))

    pair = []
    for _ in range(2):
        kind = type("Kind", (Scaled,), {"factor": 2.0})
        model = kind(read).requires_grad_(False)
        model.config, model.mode, model.factor_a = Slotted(), "a", 2.0
        model.recent = collections.deque([1, 2])
        pair.append(model)

    def change(model: Any) -> None:
        type(model).factor = 5.0
        model.config.factor = 5.0
        model.factor_a = 5.0
        model.recent.append(3)

    x = inputs(4, 5)
    with fuse(pair[0]) as report:
        served(report, lambda: pair[0](x))
        for one in pair:
            change(one)
        with torch.set_grad_enabled(name == "grad mode"):
            for _ in range(3):
                assert_same(pair[0](x), pair[1](x))


def test_a_flag_outside_of_the_contract_is_found_by_a_recording() -> None:
    model = Scaled(lambda module: 2.0 if FLAGS["doubled"] else 1.0)
    x = inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        FLAGS["doubled"] = True
        try:
            with pytest.warns(UserWarning, match="made different calls of ops"):
                for _ in range(10):
                    got = model(x)
            assert_same(got, seeded(Policy)(x) * 2 + 1)
            root = next(one for one in report.regions if not one.path)
            assert root.reason == "tape_differs"
        finally:
            FLAGS["doubled"] = False


# -- fuse and undo in the middle of things --


def test_undo_inside_of_a_call() -> None:
    reports: list[FusionReport] = []

    def read(module: Any) -> float:
        if reports and module.undoes:
            reports[0].undo()
        return 2.0

    for first in (True, False):
        model, plain = Scaled(read), Scaled(lambda module: 2.0)
        x = inputs(4, 5)
        model.undoes = first
        reports[:] = [fuse(model)]
        for _ in range(4):
            assert_same(model(x), plain(x))
        model.undoes = True
        assert_same(model(x), plain(x))
        reports[0].undo()
        assert_same(model(x), plain(x))
        assert "forward" not in vars(model)
        del model
    gc.collect()
    assert aoti_eager.registered_ops() == []


def test_fuse_inside_of_a_forward() -> None:
    class Fuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            reports.append(fuse(self.policy))
            return self.policy(x) * 2

    reports: list[FusionReport] = []
    model, x = Fuses(), inputs(4, 5)
    want = seeded(Policy)(x) * 2
    with fuse(model):
        for _ in range(6):
            assert_same(model(x), want)
    for _ in range(4):
        assert_same(model(x), want)
    for report in reports:
        report.undo()
    assert "forward" not in vars(model.policy)


def test_a_module_that_calls_itself_on_less_is_served() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = seeded(lambda: nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > 1:
                n = x.shape[0] // 2
                x = torch.cat([self(x[:n]), self(x[n:])])
            return torch.tanh(self.linear(x))

    model, plain, x = seeded(Halves), seeded(Halves), inputs(4, 4)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), plain(x))
        assert_same(model(x[:2]), plain(x[:2]))
        assert_same(model(x[:1]), plain(x[:1]))


def test_a_module_that_its_parent_calls_twice_is_served_in_both_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()))

        def forward(self, x: Tensor, draws: bool) -> Tensor:
            y = self.one(self.one(x))
            return y + torch.rand(()) * 0 if draws else y

    for draws in (False, True):
        model, plain, x = seeded(Twice), seeded(Twice), inputs(4, 4)
        want = plain(x, draws)
        with fuse(model) as report:
            assert_served(report, lambda: model(x, draws), want)  # noqa: B023


def test_a_forward_that_somebody_replaces_is_theirs() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    report = fuse(model)
    served(report, lambda: model(x))
    mine = model.forward
    model.forward = lambda one: mine(one) * 2
    assert_same(model(x), seeded(Policy)(x) * 2)
    assert (report.regions[0].state, report.regions[0].reason) == ("stopped", "replaced")
    report.undo()
    assert_same(model(x), seeded(Policy)(x) * 2)
    del model.forward
    assert_same(model(x), seeded(Policy)(x))


def test_what_the_first_calls_alone_do_does_not_stop_a_module() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = seeded(Policy)
            self.mask: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.mask is None:
                print("made a mask")
                self.mask = torch.ones(3)
            return self.policy(x) * self.mask

    model, x = Lazy(), inputs(4, 5)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), seeded(Policy)(x))
        assert len(report.regions) == 1


def test_a_vector_times_a_matrix_is_served() -> None:
    model, plain = (
        seeded(lambda: nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh())) for _ in "ab"
    )
    x = inputs(5)
    with fuse(model) as report:
        assert_served(report, lambda: model(x), plain(x))


def test_threads_that_record_at_once_get_their_own_results(threads: Any) -> None:
    barrier = threading.Barrier(8)
    model, plain = seeded(Policy), seeded(Policy)

    def work(number: int) -> bool:
        with torch.no_grad():
            x = inputs(number % 4 + 1, 5, seed=number)
            want = plain(x)
            for _ in range(6):
                barrier.wait(60)
                assert_same(model(x), want)
        return True

    with fuse(model) as report:
        assert all(threads.map(work, range(8)))
        assert hits(report) > 0
        (root,) = report.regions
        assert root.state == "served"


def test_copies_of_a_report_and_of_a_served_model_do_not_matter() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        other = copy.copy(model)
        assert_same(other(x), seeded(Policy)(x))
