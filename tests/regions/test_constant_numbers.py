"""Numbers that a forward takes to Python: those made of no input are the same in each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aoti_eager import fuse

from ..support.regions import Policy, assert_same, assert_served, inputs, seeded

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Asking(nn.Module):
    """A module whose code goes on by what ``ask`` returns."""

    def __init__(self, ask: Callable[[Asking, Tensor], bool | float]) -> None:
        super().__init__()
        self.policy = seeded(Policy)
        self.positions = nn.Parameter(torch.arange(4.0))
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        """Return the policy's result, changed by the answer: x (batch, 5)."""
        return self.policy(x) * float(self.ask(self, x))


def _packed(module: Asking, x: Tensor) -> bool:
    """Ask as models ask whether a batch has several sequences in a row."""
    positions = torch.arange(x.size(1)).unsqueeze(0).expand(x.size(0), -1)
    first = positions[:, :1] - 1
    steps = torch.diff(positions, prepend=first, dim=-1)
    return bool(((steps != 1).cumsum(-1)[:, -1] == 0).all())


def _written(module: Asking, x: Tensor) -> float:
    table = torch.zeros(2, 3)
    table[0].fill_(2.0)
    table[1, 1:] = torch.tensor([3.0, 4.0])
    return table.sum().item()


def _equal(module: Asking, x: Tensor) -> bool:
    return torch.equal(torch.ones(3), torch.full((3,), 1.0))


def _parts(module: Asking, x: Tensor) -> float:
    first, second = torch.arange(6).split(3)
    return float(first.sum() + second.unbind(0)[1])


CONSTANT = (_packed, _written, _equal, _parts)


def _of_data(module: Asking, x: Tensor) -> float:
    return float(x[0, 0] > 0)


def _of_sizes_and_data(module: Asking, x: Tensor) -> float:
    return (torch.arange(5) + x[0]).sum().item()


def _of_a_parameter(module: Asking, x: Tensor) -> float:
    return float(module.positions.max())


def _of_memory_that_data_was_written_to(module: Asking, x: Tensor) -> float:
    table = torch.zeros(2, 5)
    table[1].copy_(x[0])
    return table.sum().item()


def _of_a_list_that_data_was_written_to(module: Asking, x: Tensor) -> float:
    parts = [torch.zeros(5), torch.ones(5)]
    torch._foreach_add_(parts, [x[0], x[1]])
    return parts[1].sum().item()


def _of_data_in_parts(module: Asking, x: Tensor) -> float:
    return x.cumsum(1).unbind(0)[1].sum().item()


def _of_memory_that_nothing_was_written_to(module: Asking, x: Tensor) -> float:
    return float(torch.empty(2).numel() + (torch.empty(2) != torch.empty(2)).sum().item() * 0)


def _of_random_numbers(module: Asking, x: Tensor) -> float:
    return float(torch.rand(3).max() > 2)


VARYING = (
    _of_data,
    _of_sizes_and_data,
    _of_a_parameter,
    _of_memory_that_data_was_written_to,
    _of_a_list_that_data_was_written_to,
    _of_data_in_parts,
    _of_memory_that_nothing_was_written_to,
    _of_random_numbers,
)


@pytest.mark.parametrize("ask", CONSTANT)
def test_a_number_made_of_no_input_stops_nothing(
    ask: Callable[[Asking, Tensor], float], shared_cache: Path
) -> None:
    model = seeded(lambda: Asking(ask))
    for x in (inputs(4, 5), inputs(4, 5, seed=1)):
        want = model(x)
        with fuse(model) as report:
            assert_served(report, lambda x=x: model(x), want)  # type: ignore[misc]
            assert [one.path for one in report.regions] == [""]


@pytest.mark.parametrize("ask", VARYING)
def test_a_number_that_an_input_decides_stops_a_region(
    ask: Callable[[Asking, Tensor], float], shared_cache: Path
) -> None:
    model = seeded(lambda: Asking(ask))
    with fuse(model) as report:
        for seed in range(4):
            x = inputs(4, 5, seed=seed)
            got = model(x)
            want = model.policy(x) * float(ask(model, x))
            assert_same(got, want)
        whole = report.regions[0]
        assert whole.state == "stopped"
        reasons = ("data_dependent_output", "random", "uninitialised")
        assert whole.reason in reasons, report


def test_sizes_that_a_number_is_made_of_are_a_kind_of_call(shared_cache: Path) -> None:
    def ask(module: Asking, x: Tensor) -> float:
        return torch.arange(x.size(0)).sum().item()

    model = seeded(lambda: Asking(ask))
    with fuse(model) as report:
        for rows in (4, 3, 4, 3, 4, 3):
            x = inputs(rows, 5)
            assert_same(model(x), model.policy(x) * float(sum(range(rows))))
        assert report.regions[0].hits
