"""Arguments and results of many kinds; fuse and undo in the middle of things."""

from __future__ import annotations

import collections
import copy
import gc
import itertools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import FusionReport, fuse

from ..support.regions import Policy, assert_same, assert_served, hits, inputs, seeded, served

pytestmark = pytest.mark.native


class Scaled(nn.Module):
    """A policy that reads something from elsewhere."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.policy = seeded(Policy)
        self.read = read

    def forward(self, x: Tensor) -> Any:
        return self.policy(x) * self.read(self) + 1


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

    def work(number: int) -> list[tuple[Any, Any]]:
        found = []
        with torch.no_grad():
            x = inputs(number % 4 + 1, 5, seed=number)
            want = plain(x)
            for _ in range(6):
                barrier.wait(60)
                found.append((model(x), want))
        return found

    with fuse(model) as report:
        found = list(threads.map(work, range(8)))
        for got, want in itertools.chain(*found):
            assert_same(got, want)
        assert hits(report) > 0
        (root,) = report.regions
        assert root.state == "served"


def test_copies_of_a_report_and_of_a_served_model_do_not_matter() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        served(report, lambda: model(x))
        other = copy.copy(model)
        assert_same(other(x), seeded(Policy)(x))
