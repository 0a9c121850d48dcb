"""Effects of a forward that no call of an op shows. Nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager._regions import replayed

from ..support.regions import inputs, reason_of, recorded, would_serve

pytestmark = pytest.mark.native

X = inputs(3, 4)
KEPT: list[Tensor] = []


@pytest.fixture(autouse=True)
def _no_compiles() -> Iterator[None]:
    with aoti_eager.config.scope(mode="cache_only"):
        yield
    KEPT.clear()


class Does(nn.Module):
    """Runs a function of a test."""

    def __init__(self, does: Callable[[Any, Tensor], Any], **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(inputs(4), requires_grad=False)
        self.does = does
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x)


def _keeps(model: Any, x: Tensor) -> Tensor:
    hidden = (x * model.weight).tanh()
    KEPT.append(hidden)
    return hidden.relu()


def _keeps_a_view(model: Any, x: Tensor) -> Tensor:
    hidden = (x * model.weight).tanh()
    KEPT.append(hidden[0])
    return hidden.relu()


def _keeps_on_the_result(model: Any, x: Tensor) -> Tensor:
    hidden = (x * model.weight).tanh()
    result = hidden.relu()
    result.hidden = hidden  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("does", [_keeps, _keeps_a_view, _keeps_on_the_result])
def test_a_tensor_that_is_kept_somewhere_stops(
    does: Callable[[Any, Tensor], Tensor], inference: bool
) -> None:
    model = Does(does)
    with fuse(model) as report, torch.inference_mode(inference):
        results = [model(X) for _ in range(4)]
        assert reason_of(report) == "side_effect"
        assert len(KEPT) == (4 if does is not _keeps_on_the_result else 0)
        assert all(torch.equal(one, results[0]) for one in results)


def _in_a_cycle(model: Any, x: Tensor) -> Tensor:
    hidden = (x * model.weight).tanh()

    def again(count: int) -> Tensor:
        return again(count - 1) if count else hidden.relu()

    return again(2)


def _gives_a_view(model: Any, x: Tensor) -> Tensor:
    return (x * model.weight).tanh().relu().t()


def _raises_within(model: Any, x: Tensor) -> Tensor:
    hidden = (x * model.weight).tanh()
    try:
        raise ValueError(hidden)
    except ValueError as error:
        return error.args[0].relu()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("does", [_in_a_cycle, _gives_a_view, _raises_within])
def test_a_tensor_that_python_has_not_freed_yet_is_not_kept(
    does: Callable[[Any, Tensor], Tensor], inference: bool
) -> None:
    model = Does(does)
    with fuse(model) as report, torch.inference_mode(inference):
        recorded(model, X)
        assert would_serve(model, X), report


def _sets_data(model: Any, x: Tensor) -> Tensor:
    x.data = torch.clamp(x, -0.1, 0.1)
    return (x + model.weight).relu()


def _sets_data_at_the_end(model: Any, x: Tensor) -> Tensor:
    y = (x + model.weight).relu()
    x.data = y * 2
    return y


def _sets_data_of_a_step(model: Any, x: Tensor) -> Tensor:
    y = x + model.weight
    y.data = y * 2
    return y.relu()


def _sets_data_of_the_result(model: Any, x: Tensor) -> Tensor:
    y = (x + model.weight).relu()
    y.data = y * 2
    return y


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (_sets_data, "changes_metadata"),
        (_sets_data_at_the_end, "writes_argument"),
        (_sets_data_of_a_step, "changes_metadata"),
        (_sets_data_of_the_result, "changes_metadata"),
    ],
)
def test_other_memory_for_a_tensor_stops(
    does: Callable[[Any, Tensor], Tensor], reason: str
) -> None:
    model = Does(does)
    with fuse(model) as report:
        for _ in range(3):
            given, plain = X.clone(), X.clone()
            assert torch.equal(model(given), does(model, plain))
            assert torch.equal(given, plain)
        assert reason_of(report) == reason


def test_other_strides_for_a_parameter_stop() -> None:
    def transposes(model: Any, x: Tensor) -> Tensor:
        y = (x @ model.square).relu()
        model.square.data = model.square.data.t()
        return y

    model = Does(transposes, square=nn.Parameter(inputs(4, 4), requires_grad=False))
    with fuse(model) as report:
        for _ in range(3):
            model(X)
        assert reason_of(report) == "writes_attribute"


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: ((x * m.weight).relu(), m.names),
        lambda m, x: {"y": (x * m.weight).relu(), "inner": m.table["inner"]},
    ],
)
def test_a_list_of_the_module_that_is_a_result_stops(does: Callable[[Any, Tensor], Any]) -> None:
    model = Does(does, names=["a"], table={"inner": ["b"]})
    with fuse(model) as report:
        recorded(model, X)
        assert reason_of(report) == "result_is_shared"


def test_a_list_that_is_twice_in_the_result_stops() -> None:
    def twice(model: Any, x: Tensor) -> Any:
        one = [(x * model.weight).relu()]
        return one, one

    model = Does(twice)
    with fuse(model) as report:
        recorded(model, X)
        assert reason_of(report) == "result_is_shared"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.all[0], "count", m.all[0].count + 1),
        lambda m: m.words.update({len(m.words): 1}),
        lambda m: setattr(m.kind, "count", m.kind.count + 1),
    ],
    ids=["an object in a list", "a large dict", "a class"],
)
def test_a_change_of_an_attribute_is_seen(change: Callable[[Any], object]) -> None:
    class Counts:
        count = 0

    def does(model: Any, x: Tensor) -> Tensor:
        change(model)
        return (x * model.weight).relu()

    model = Does(does, all=[Counts()], words=dict.fromkeys(range(1000), 1), kind=Counts)
    with fuse(model) as report:
        for _ in range(3):
            model(X)
        assert reason_of(report) == "writes_attribute"


def test_an_array_of_numpys_that_counts_is_seen() -> None:
    numpy = pytest.importorskip("numpy")

    def does(model: Any, x: Tensor) -> Tensor:
        model.counts[0] += 1
        return (x * model.weight).relu()

    model = Does(does, counts=numpy.zeros(2))
    with fuse(model) as report:
        for _ in range(3):
            model(X)
        assert reason_of(report) == "writes_attribute"
    assert model.counts[0] == 3


def test_what_no_call_of_an_op_computes_is_found_by_running_the_ops_once_more() -> None:
    memory = torch.zeros(4)
    shared: list[Any] = [memory.numpy()]

    def adds_in_between(model: Any, x: Tensor) -> Tensor:
        before = x * model.memory
        numpy.add(shared[0], 1.0, out=shared[0])
        return before - x * model.memory

    model, plain = Does(adds_in_between, memory=memory), torch.full((3, 4), -1.0) * X
    with fuse(model) as report:
        for _ in range(3):
            torch.testing.assert_close(model(X), plain)
        assert report.regions[0].reason == "not_by_ops"


def test_ops_that_give_nan_and_infinities_give_what_the_forward_does() -> None:
    model = Does(lambda m, x: (x * m.weight).log() / 0.0)
    with fuse(model) as report:
        recorded(model, X)
        assert report.regions[0].reason == "not_in_cache"
        assert would_serve(model, X)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.bool, torch.complex64])
def test_the_ops_are_run_once_more_for_results_of_any_dtype(dtype: torch.dtype) -> None:
    model = Does(lambda m, x: ((x * m.weight).abs() * 4.0).to(dtype))
    with fuse(model) as report:
        recorded(model, X)
        assert report.regions[0].reason == "not_in_cache"


def test_what_other_numbers_are_is_no_rounding() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        want = torch.tensor([1.0, 2.0, 4.0]).to(dtype)
        assert replayed._is_close(want, want.clone())
        assert not replayed._is_close(want, want + torch.tensor([0, 1, 0]).to(dtype) / 4)
    assert not replayed._is_close(torch.tensor([1, 2]), torch.tensor([1, 3]))
    gone = torch.tensor([1.0, float("nan"), float("inf")])
    assert replayed._is_close(gone, gone.clone())
    assert not replayed._is_close(gone, torch.tensor([1.0, 0.0, float("inf")]))
