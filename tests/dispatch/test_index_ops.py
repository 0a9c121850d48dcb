"""Ops that read by indices: served, and an index out of range raises what the original raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import aoti_eager

from ..conftest import assert_close
from ..support.outcomes import outcome

aten = torch.ops.aten

pytestmark = pytest.mark.native

X = torch.randn(6, 10)
WEIGHT = torch.rand(10)
LOG_P = torch.randn(6, 10).log_softmax(1)
LOG_P_2D = torch.randn(2, 5, 3, 4).log_softmax(1)

# Op, call, the largest index that is in range, and whether negative ones count from the end.
CASES: list[tuple[Any, Callable[[Tensor], Tensor], tuple[int, ...], int, bool]] = [
    (aten.index_select.default, lambda i: torch.index_select(X, 1, i), (7,), 9, False),
    (aten.gather.default, lambda i: torch.gather(X, 1, i), (6, 3), 9, False),
    (aten.embedding.default, lambda i: F.embedding(i, X), (2, 4), 5, False),
    (aten.index.Tensor, lambda i: X[:, i], (2, 5), 9, True),
    (aten.index.Tensor, lambda i: X[i, torch.arange(3)], (4, 3), 5, True),
    (aten.nll_loss_forward.default, lambda i: F.nll_loss(LOG_P, i, WEIGHT), (6,), 9, False),
    (aten.nll_loss2d_forward.default, lambda i: F.nll_loss(LOG_P_2D, i), (2, 3, 4), 4, False),
]
NAMES = [f"{n} {case[0]}" for n, case in enumerate(CASES)]


def hits(op: Any) -> int:
    return aoti_eager.stats()[str(op).removesuffix(".default").replace("aten.", "aten::")].hits


@pytest.mark.parametrize(("op", "call", "sizes", "most", "wraps"), CASES, ids=NAMES)
def test_a_served_call_raises_for_an_index_out_of_range(
    shared_cache: Path,
    op: Any,
    call: Callable[[Tensor], Tensor],
    sizes: tuple[int, ...],
    most: int,
    wraps: bool,
) -> None:
    good = torch.randint(0, most + 1, sizes)
    bad = []
    for number in (most + 1, -1, -most - 2, torch.iinfo(torch.int64).max, -(2**63)):
        for place in (0, -1):
            one = good.clone()
            one.view(-1)[place] = number
            bad.append(one)
    wanted = [outcome(lambda i=i: call(i)) for i in bad]
    assert [kind for kind, _, _ in wanted].count("returned") == (2 if wraps else 0)
    with aoti_eager.register(op):
        call(good)
        for one, want in zip(bad, wanted, strict=True):
            assert outcome(lambda i=one: call(i)) == want
        before = hits(op)
        other = torch.randint(0, most + 1, sizes)
        got = call(other)
        assert hits(op) - before == 1, "an error of the arguments is none of the library's"
    assert_close(got, call(other))


@pytest.mark.parametrize(
    ("op", "call"),
    [
        (aten.index.Tensor, lambda: X[X > 0]),
        (aten.index.Tensor, lambda: X[:, torch.tensor([1, 0] * 5, dtype=torch.uint8)]),
    ],
    ids=["bool", "uint8"],
)
@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8 is now deprecated")
def test_a_mask_declines_by_its_dtype(op: Any, call: Callable[[], Tensor]) -> None:
    want = call()
    with aoti_eager.register(op):
        assert torch.equal(call(), want)
        assert aoti_eager.stats()["aten::index.Tensor"].declined == {"data_dependent_output": 1}


@pytest.mark.parametrize(
    ("op", "call"),
    [
        (aten.gather.out, lambda i, out: torch.gather(X, 1, i, out=out)),
        (aten.index_select.out, lambda i, out: torch.index_select(X, 1, i[0], out=out)),
    ],
)
def test_what_writes_to_an_argument_declines(
    op: Any, call: Callable[[Tensor, Tensor], Tensor]
) -> None:
    with aoti_eager.register(op) as registration:
        call(torch.zeros(6, 10, dtype=torch.int64), torch.empty(6, 10))
        (name,) = registration.ops
        assert aoti_eager.stats()[name].declined == {"error_depends_on_data": 1}


@pytest.mark.parametrize("targets_", [[3, -100, 9, 0, -100, 1], [-100] * 6], ids=["some", "all"])
def test_an_ignored_target_is_ignored(shared_cache: Path, targets_: list[int]) -> None:
    targets = torch.tensor(targets_)
    with aoti_eager.register(aten.nll_loss_forward.default):
        for weight in (WEIGHT, None):
            F.nll_loss(LOG_P, torch.zeros(6, dtype=torch.int64), weight)
            before = hits(aten.nll_loss_forward.default)
            got = F.nll_loss(LOG_P, targets, weight)
            assert hits(aten.nll_loss_forward.default) - before == 1
            with aoti_eager.config.scope(mode="off"):
                want = F.nll_loss(LOG_P, targets, weight)
            assert_close(got, want, equal_nan=True)  # The mean of nothing is NaN.


def test_a_language_models_loss_has_the_original_gradients(shared_cache: Path) -> None:
    logits, targets = torch.randn(6, 10, requires_grad=True), torch.randint(0, 10, (6,))

    def step() -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(logits, targets)
        return loss, torch.autograd.grad(loss, logits)[0]

    want = step()
    with aoti_eager.register([aten.nll_loss_forward.default, aten._log_softmax.default]):
        step()
        before = hits(aten.nll_loss_forward.default)
        got = step()
        assert hits(aten.nll_loss_forward.default) - before == 1
    assert_close(got, want)


@pytest.mark.dynamic
def test_one_kernel_for_several_sizes_checks_against_the_size_of_its_call(
    shared_cache: Path,
) -> None:
    """A place in a larger table is none in a smaller one, although one kernel serves both."""
    with aoti_eager.register(aten.embedding.default):
        for rows, count in ((40, 6), (50, 7), (60, 9), (45, 8)):
            table = torch.randn(rows, 16)
            places = torch.randint(0, rows, (count,))
            for _ in range(2):
                assert torch.equal(F.embedding(places, table), table[places])
            places[count // 2] = rows
            for _ in range(2):
                with pytest.raises(IndexError):
                    F.embedding(places, table)
        stats = aoti_eager.stats()["aten::embedding"]
    assert stats.hits >= 4
    entries = [one for one in aoti_eager.cache.list() if one.op == "aten::embedding"]
    assert any("s0" in one.inputs for one in entries), "a kernel for several sizes was made"
