from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._base.op_names import find_overload

from ..numerics import (
    hard_calls,
    norms,
    op_db_calls,
    reductions,
    sample_calls,
    samples,
    samples_ops,
)
from ..numerics.families import Options, family
from ..numerics.hard_calls import (
    BITS,
    Draw,
    HardCall,
    Outcome,
    slot_inputs,
)
from ..numerics.hard_families import Losses, Reductions
from ..numerics.kernels import DeclinedError, Kernels
from ..numerics.laboratory import Laboratory, RefusedError
from ..numerics.parts import Part
from ..numerics.rule import faults, merged
from ..support.kept_builds import make_cache_dir

OPTIONS = Options("x86-64-v4", ("float32", "bfloat16"))


# --- calls, on kernels of our own ----------------------------------------------------------------


class _Kernel:
    """A kernel that is eager, but for what ``change`` does to its results."""

    def __init__(self, op: str, change: Callable[..., Any], rest: Any) -> None:
        self._op = find_overload(op)
        self._change = change
        self._rest = rest

    def eager(self, inputs: Sequence[Any]) -> list[Tensor]:
        return self._listed(self._op(*inputs, self._rest))

    def compiled(self, inputs: Sequence[Any]) -> list[Tensor]:
        return self._listed(self._change(*inputs))

    @staticmethod
    def _listed(result: Any) -> list[Tensor]:
        return [result] if isinstance(result, Tensor) else list(result)


class _Kernels:
    def __init__(self, change: Callable[..., Any] | None) -> None:
        self._change = change

    def kernel(self, op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> _Kernel:
        if self._change is None:
            raise DeclinedError("no_kernel_of_its_own")
        return _Kernel(op, self._change, args[1])


def _run(
    change: Callable[..., Any] | None,
    op: str = "aten::cumsum",
    n: int = 257,
    rest: Any = 1,
    **options: Any,
) -> Outcome:
    call = HardCall(op, "rows", lambda draw: ([draw.rows(n), rest], {}), **options)
    outcome = Outcome()
    hard_calls.run(_Kernels(change), call, torch.float32, outcome)  # type: ignore[arg-type]
    return outcome


def test_eager_itself_is_right() -> None:
    outcome = _run(lambda x: x.cumsum(1))
    assert outcome.verdict.is_right
    assert outcome.calls == 1
    assert outcome.references == {"float64"}
    assert outcome.verdict.values == 257 * 8 * len(hard_calls.families(torch.float32))


def test_what_is_nearer_to_the_truth_than_eager_is_right() -> None:
    assert _run(lambda x: x.double().cumsum(1).float()).verdict.is_right


def test_sums_in_half_precision_are_found() -> None:
    outcome = _run(lambda x: x.bfloat16().cumsum(1).float(), n=33)
    assert not outcome.verdict.is_right
    assert "normal" in outcome.failing
    assert "zeros" not in outcome.failing


def test_an_infinity_that_is_lost_in_one_row_is_found() -> None:
    outcome = _run(lambda x: x.nan_to_num(posinf=1.0, neginf=-1.0, nan=float("nan")).cumsum(1))
    assert {"inf first", "inf last", "-inf middle", "all infinite"} <= set(outcome.failing)
    assert "normal" not in outcome.failing


def test_an_index_that_is_off_by_one_among_ties_is_found() -> None:
    def last(x: Tensor) -> Tensor:
        return x.shape[1] - 1 - x.flip(1).argmax(1)

    outcome = _run(last, "aten::argmax", how="equal")
    assert {"ties", "zeros"} <= set(outcome.failing)
    assert "ascending" not in outcome.failing


def test_a_variance_by_squares_is_found_where_the_mean_is_large() -> None:
    def variance(x: Tensor) -> Tensor:
        n = x.shape[1]
        return ((x * x).sum(1) - x.sum(1) ** 2 / n) / (n - 1)

    outcome = _run(variance, "aten::var.correction", rest=[1])
    assert {"offset 10000", "offset 1e+07", "constant large"} <= set(outcome.failing)


def test_a_lost_sign_of_zero_is_refused_where_bits_are_moved() -> None:
    outcome = _run(lambda x: x.roll(1) + 0.0, "aten::roll", rest=[1], how=BITS)
    wanted = {"negative zeros", "-0.0 first", "-0.0 middle", "-0.0 last"}
    assert set(outcome.failing) == wanted | {"descending"}  # It passes through -0.0.


def test_what_the_package_declines_and_what_eager_refuses_is_told_apart() -> None:
    assert _run(None).declined == {"no_kernel_of_its_own": 1}
    refused = _run(None, "aten::argmax", n=0)
    assert not refused.declined
    assert len(refused.refused) == 1


def test_tensors_of_a_call_come_in_the_order_of_the_schema() -> None:
    one, other = torch.ones(2), torch.zeros(2)
    assert slot_inputs("aten::cat", [[one, other], 0], {}) == [one, other]
    found = slot_inputs("aten::kl_div", [one, other, 1], {"log_target": True})
    assert found[0] is one
    assert found[1] is other


# --- the package's kernels: a fixed share --------------------------------------------------------


@pytest.fixture(scope="module")
def laboratory(
    tmp_path_factory: pytest.TempPathFactory, shared_cache_dir: Path
) -> Iterator[Laboratory]:
    directory = tmp_path_factory.mktemp("numerics")
    make_cache_dir(directory / "store", shared_cache_dir)  # Precompiled headers cost half a minute.
    kernels = Kernels(directory, "auto")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Laboratory(directory, kernels)
    torch.set_num_threads(threads)
    kernels.close()


@pytest.mark.share(of=2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("reductions", "aten::logsumexp"),
        ("reductions", "aten::amax"),
        ("reductions", "aten::any.dim"),
        ("norms", "aten::_softmax"),
    ],
)
def test_a_share_of_the_reductions_is_right(
    laboratory: Laboratory, name: str, op: str, dtype: str
) -> None:
    part = Part(op, dtype, "auto", name, span="test")
    answer = family(name).run(part, laboratory)
    assert faults(answer["measures"]) == []
    assert answer["measures"]["values"] > 300
    row = merged([{"outcome": "done", "part": part.to_json(), **answer}])
    assert row["status"] == "certified"


def test_integers_and_flags_are_reduced_as_eager_does(laboratory: Laboratory) -> None:
    for dtype in ("int32", "bool"):
        part = Part("aten::amax", dtype, "auto", "reductions", span="test")
        assert faults(family("reductions").run(part, laboratory)["measures"]) == []


def test_what_has_no_kernel_of_its_own_is_declined(laboratory: Laboratory) -> None:
    part = Part("aten::sort.stable", "float32", "auto", "reductions", span="test")
    with pytest.raises(DeclinedError):
        family("reductions").run(part, laboratory)
    part = Part("aten::var.correction", "int32", "auto", "reductions", span="test")
    with pytest.raises(RefusedError):
        family("reductions").run(part, laboratory)


# --- samples -------------------------------------------------------------------------------------


def test_samples_are_compared_as_they_are_and_with_hard_data(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "aten::flip": [([torch.arange(33.0).view(3, 11), [1]], {})],
        "aten::avg_pool2d": [([torch.rand(1, 2, 9, 9), [3, 3]], {})],
    }
    monkeypatch.setattr(op_db_calls, "load", lambda directory, dtype: made)
    for op in made:
        part = Part(op, "float32", "auto", "samples", coverage="samples")
        answer = family("samples").run(part, laboratory)
        assert faults(answer["measures"]) == []
        regions = 1 + len(samples._FAMILIES)
        results = 33 if op == "aten::flip" else 2 * 3 * 3
        assert answer["measures"]["values"] == regions * results
    missing = Part("aten::roll", "float32", "auto", "samples", coverage="samples")
    with pytest.raises(RefusedError, match="no sample"):
        family("samples").run(missing, laboratory)


def test_a_number_in_the_place_of_a_list_is_that_list() -> None:
    """As the dispatcher makes it: kernels are asked for with what it hands on."""
    x = torch.rand(1, 2, 9, 9)
    args, kwargs = samples.with_lists("aten::avg_pool2d", [x, 3], {"stride": 1})
    assert (args[1], kwargs) == ([3, 3], {"stride": [1, 1]})
    assert samples.with_lists("aten::avg_pool2d", [x, [3, 2], 1], {})[0][1:] == [[3, 2], [1, 1]]
    assert samples.with_lists("aten::fft_fftshift", [x, 2], {})[0][1] == [2]
    assert samples.with_lists("aten::flip", [x, [0]], {}) == ([x, [0]], {})


def test_filled_samples_keep_sizes_strides_integers_and_numbers() -> None:
    transposed = torch.rand(3, 4).t()
    args, kwargs = samples._filled([transposed, torch.tensor([1, 2]), 0.5], {"dim": 1})(
        Draw(hard_calls.families(torch.float32)[0], torch.float32)
    )
    assert (args[0].shape, args[0].stride()) == (transposed.shape, transposed.stride())
    assert not torch.equal(args[0], transposed)
    assert args[1].tolist() == [1, 2]
    assert args[2] == 0.5
    assert kwargs == {"dim": 1}


def test_recorded_calls_have_copies_and_other_metadata_each() -> None:
    recorder = op_db_calls._Recorder()
    x = torch.rand(3)
    with recorder:
        torch.flip(x, [0])
        torch.flip(x + 1, [0])
        torch.flip(x.expand(2, 3), [0])
        x.add_(1)
    assert len(recorder.calls["aten::flip"]) == 2
    assert "aten::add_.Tensor" not in recorder.calls
    for args, _ in recorder.calls["aten::flip"].values():
        assert args[0].data_ptr() != x.data_ptr()


# --- tables --------------------------------------------------------------------------------------


def test_the_lists_of_samples_name_ops_that_samples_are_for() -> None:
    names_ = {name.partition(".")[0] for name in samples_ops.OPS}
    assert names_ >= samples_ops.MOVEMENT | samples_ops.SELECTION | samples_ops.ORDERED
    assert not samples_ops.MOVEMENT & samples_ops.SELECTION


def test_eager_takes_the_sample_calls_of_our_own() -> None:
    for name, several in sample_calls.calls().items():
        assert name in samples_ops.OPS
        for args, kwargs in several:
            find_overload(f"aten::{name}")(*args, **kwargs)


def test_a_call_of_another_dtype_has_it_in_tensors_and_as_an_argument() -> None:
    call = ([torch.ones(2), torch.ones(2, dtype=torch.int64)], {"dtype": torch.float32})
    args, kwargs = op_db_calls.converted(*call, torch.float32, torch.bfloat16)
    assert [one.dtype for one in args] == [torch.bfloat16, torch.int64]
    assert kwargs == {"dtype": torch.bfloat16}


def test_no_overload_is_in_two_of_these_families() -> None:
    taken: dict[str, str] = {}
    for name in ("reductions", "norms", "losses", "samples", "unary", "binary"):
        for op in family(name).ops():
            assert op not in taken, f"{op}: in {taken.get(op)} and {name}"
            taken[op] = name


def test_parts_are_by_overload_and_dtype_and_small_ones_are_asked_for_by_share() -> None:
    parts = Reductions().parts(OPTIONS)
    assert len({part.name for part in parts}) == len(parts) == 2 * len(reductions.OPS)
    assert {part.span for part in parts} == {"default"}
    brief = Losses().parts(Options("x86-64-v4", ("float32",), share=1000))
    assert {part.span for part in brief} == {"brief"}
    full = Losses().parts(Options("x86-64-v4", ("float32",), exhaustive=True))
    assert {part.span for part in full} == {"full"}
    integers = Reductions().parts(Options("x86-64-v4", ("int64",)))
    assert "aten::sum" in {part.op for part in integers}
    assert "aten::var" not in {part.op for part in integers}
    assert norms.OPS
