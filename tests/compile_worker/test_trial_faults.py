"""Which faults a trial finds in a function that has them, and what it lets pass.

The library is a function here, too: the original's with a fault, or with its steps in another
order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aoti_eager._compile_worker import trial_runs
from aoti_eager._compile_worker.input_ranges import InputRanges
from aoti_eager._compile_worker.original_runs import Original
from aoti_eager._compile_worker.trial_runs import Trial
from aoti_eager._keys.call_template import call_template
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import parsed_schema

Function = Callable[..., Tensor]

HALF, BFLOAT = torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All data sets are tried: what else the machine does decides how many fit into the bound."""
    monkeypatch.setattr(trial_runs, "_MOST_CPU_S", 600.0)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """A trial of small tensors sets the thread count, as its process is its own elsewhere."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def trial_of(
    function: Function,
    library: Function,
    *args: Any,
    is_op: bool = False,
    ranges: InputRanges | None = None,
) -> Trial:
    """Return the trial of ``library`` in place of ``function``, for a call like this one."""
    names = ", ".join(f"Tensor a{i}" for i in range(len(args)))
    schema = parsed_schema(f"aetest::function({names}) -> Tensor")
    key = kernel_key(schema, "CPU", schema.bind(args, {}))
    template = call_template(schema, key)
    original = Original(template, function, [{"output": 0}], is_function=not is_op)
    return Trial(original, lambda inputs: [library(*inputs)], (), ranges)


def problem(function: Function, library: Function, *args: Any, is_op: bool = False) -> str | None:
    """Return what the trial finds."""
    with torch.no_grad():
        return trial_of(function, library, *args, is_op=is_op).problem()


X = torch.ones(16, 64)
ONE = torch.tensor(1.0)
INTEGERS = torch.ones(16, 64, dtype=torch.int32)


def naive_variance(x: Tensor) -> Tensor:
    return (x * x).mean(1) - x.mean(1) * x.mean(1)


def narrow_variance(x: Tensor) -> Tensor:
    """Add up in float32, one number after the other, as a vector's lanes do."""
    total, squares = torch.zeros(x.shape[0]), torch.zeros(x.shape[0])
    for column in x.unbind(1):
        total = total + column
    mean = total / x.shape[1]
    for column in x.unbind(1):
        squares = squares + (column - mean) * (column - mean)
    return squares / (x.shape[1] - 1)


def no_sign(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), x)


FAULTS: dict[str, tuple[Function, Function, tuple[Tensor, ...]]] = {
    "remainder by floor": (
        lambda x: (x % (2 * math.pi)) * 0.5,
        lambda x: (x - torch.floor(x / (2 * math.pi)) * (2 * math.pi)) * 0.5,
        (X,),
    ),
    "remainder of tensors by floor": (
        torch.remainder,
        lambda x, y: x - torch.floor(x / y) * y,
        (X, X),
    ),
    "variance by squares": (lambda x: x.var(1, correction=0), naive_variance, (X,)),
    "variance in float32": (
        lambda x: x.var(1),
        narrow_variance,
        (torch.ones(8, 512),),
    ),
    "deviation whose squares overflow": (
        lambda x: x.std(1),
        lambda x: narrow_variance(x).sqrt(),
        (X,),
    ),
    "acosh by squaring": (torch.acosh, lambda x: torch.log(x + torch.sqrt(x * x - 1)), (X,)),
    "acosh by squaring, double": (
        torch.acosh,
        lambda x: torch.log(x + torch.sqrt(x * x - 1)),
        (X.double(),),
    ),
    "expm1 of small numbers": (torch.expm1, lambda x: torch.exp(x) - 1, (X,)),
    "atanh of small numbers": (
        torch.atanh,
        lambda x: 0.5 * torch.log((1 + x) / (1 - x)),
        (X,),
    ),
    "a quotient that is not rounded first": (
        lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        lambda x, y: torch.trunc(x.float() / y.float()).to(x.dtype),
        (X.to(BFLOAT), X.to(BFLOAT)),
    ),
    **{
        f"a number for an overflow, {str(dtype).removeprefix('torch.')}": (
            torch.mul,
            lambda x, y: torch.where((x * y).isinf(), 7.0, x * y),
            (X.to(dtype), X.to(dtype)),
        )
        for dtype in (HALF, BFLOAT, torch.float32)
    },
    "a number for a sum that overflows": (
        lambda x: (x * x).sum(1),
        lambda x: torch.where((x * x).sum(1).isinf(), 3.0, (x * x).sum(1)),
        (X,),
    ),
    "a maximum without NaN": (
        lambda x: x.amax(1),
        lambda x: torch.where(x.isnan(), -math.inf, x).amax(1),
        (X,),
    ),
    "a clamp that loses NaN": (
        lambda x: x.clamp(-1, 1),
        lambda x: torch.where(x > -1, torch.where(x < 1, x, 1.0), -1.0),
        (X,),
    ),
    "a mean of a row with one infinity": (
        lambda x: torch.var_mean(x, 1)[1],
        lambda x: x.mean(1),
        (X,),
    ),
    "an infinity in a row that ends as no number": (
        lambda x: x.sum(1),
        lambda x: (x - x.amax(1, True)).sum(1) + x.amax(1) * x.shape[1],
        (X.double(),),
    ),
    "a gradient in double whose last term is left out": (
        lambda x, y: x * torch.sigmoid(y) * (1 + y * (1 - torch.sigmoid(y))),
        lambda x, y: x * torch.sigmoid(y),
        (X.double(), X.double()),
    ),
    "a constant in the eleventh digit, double": (
        lambda x: x * 0.1,
        lambda x: x * 0.100000000003,
        (X.double(),),
    ),
    "a softmax that is not shifted": (
        lambda x: x.softmax(1),
        lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        (X,),
    ),
    "sums in half precision": (
        lambda x: functional.layer_norm(x, (512,)),
        lambda x: (
            (x - x.cumsum(1)[:, -1:] / 512)
            * torch.rsqrt(x.float().var(1, keepdim=True, correction=0) + 1e-5).half()
        ),
        (torch.ones(4, 512, dtype=HALF),),
    ),
    "a column left out": (lambda x: x.sum(1), lambda x: x[:, :-1].sum(1), (X,)),
    "a row left as it was": (
        lambda x: x * 2,
        lambda x: torch.cat([x[:-1] * 2, x[-1:]]),
        (X,),
    ),
    "a constant in the fifth digit": (lambda x: x * 0.1, lambda x: x * 0.100003, (X,)),
    "an epsilon left out": (
        lambda x: x / (x.abs() + 1e-8),
        lambda x: x / x.abs(),
        (X,),
    ),
    "denormal numbers flushed": (
        lambda x: x * 0.5,
        lambda x: torch.where((x * 0.5).abs() < 1.1754943508222875e-38, 0.0, x * 0.5),
        (X,),
    ),
    "a strict comparison": (torch.ge, torch.gt, (X, X)),
    "a comparison with the same number": (
        lambda x: torch.where(x > 6, 0.0, x),
        lambda x: torch.where(x >= 6, 0.0, x),
        (X,),
    ),
    "halves away from zero": (torch.round, lambda x: torch.floor(x + 0.5), (X,)),
    "a shift past the width": (
        lambda x, y: x << y,
        lambda x, y: x << (y & 31),
        (INTEGERS, INTEGERS),
    ),
    "a product that is exact": (
        lambda x, y: x * y,
        lambda x, y: (x.double() * y.double()).clamp(-(2**31), 2**31 - 1).to(torch.int32),
        (INTEGERS, INTEGERS),
    ),
    "a product in float": (
        lambda x, y: x * y,
        lambda x, y: (x.float() * y.float()).to(torch.int32),
        (INTEGERS, INTEGERS),
    ),
    "one element": (
        lambda x, y: x % y,
        lambda x, y: x - torch.floor(x / y) * y,
        (ONE, ONE),
    ),
    "one element and infinity": (
        torch.fmod,
        lambda x, y: torch.where(y.isinf() & x.isfinite(), math.nan, torch.fmod(x, y)),
        (ONE, ONE),
    ),
    "an expanded argument": (
        lambda x, y: x + y,
        lambda x, y: x + y[:, :1],
        (X, torch.ones(64).expand(16, 64)),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str) -> None:
    function, library, args = FAULTS[name]
    assert problem(function, library, *args) is not None
    assert problem(function, function, *args) is None


def test_what_found_it_is_said() -> None:
    said = problem(torch.acosh, lambda x: torch.log(x + torch.sqrt(x * x - 1)), X)
    assert said is not None
    assert said.startswith("on ")
    assert " data: result 0: values: " in said
    assert "instead of" in said
    assert "in double precision" in said
    assert "wrong elements" in said


def llama(x: Tensor, weight: Tensor) -> Tensor:
    """The norm of models of the Llama kind: in float32, whatever comes."""
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return weight * (wide * torch.rsqrt(variance + 1e-6)).to(x.dtype)


def fused_llama(x: Tensor, weight: Tensor) -> Tensor:
    """The same as a kernel has it: other sums, rounded to half precision at the end."""
    wide = x.float()
    variance = (wide * wide).flip(-1).sum(-1, keepdim=True) * (1 / x.shape[-1])
    return (weight.float() * (wide * (1 / torch.sqrt(variance + 1e-6)))).to(x.dtype)


def lanes(x: Tensor) -> Tensor:
    """Add up in sixteen lanes, one number after the other."""
    total = torch.zeros(x.shape[0], 16, dtype=x.dtype)
    for part in x.split(16, 1):
        total = total + part
    return total.sum(1)


PASSING: dict[str, tuple[Function, Function, tuple[Tensor, ...]]] = {
    "a norm": (llama, fused_llama, (X, torch.ones(64))),
    "a norm in bfloat16": (llama, fused_llama, (X.to(BFLOAT), torch.ones(64, dtype=BFLOAT))),
    "a norm in float16": (llama, fused_llama, (X.to(HALF), torch.ones(64, dtype=HALF))),
    "a sum in another order": (lambda x: x.sum(1), lanes, (X,)),
    "a sum in another order, double": (lambda x: x.sum(1), lanes, (X.double(),)),
    "a sum of all in another order, double": (
        lambda x: x.sum(),
        lambda x: lanes(x).flip(0).sum(),
        (X.double(),),
    ),
    "a logarithm of a softmax, double": (
        lambda x: x.log_softmax(1),
        lambda x: x - x.amax(1, True) - (x - x.amax(1, True)).exp().flip(1).sum(1, True).log(),
        (X.double(),),
    ),
    "a gradient of a norm, double": (
        lambda g, x: (
            g / x.norm(dim=1, keepdim=True)
            - x * (g * x).sum(1, keepdim=True) / x.norm(dim=1, keepdim=True) ** 3
        ),
        lambda g, x: (
            g / lanes(x * x).sqrt()[:, None]
            - x * lanes(g * x)[:, None] / lanes(x * x).sqrt()[:, None] ** 3
        ),
        (X.double(), X.double()),
    ),
    "a variance in one pass more, double": (
        lambda x: x.var(1),
        lambda x: lanes((x - lanes(x)[:, None] / 64).pow(2)) / 63,
        (X.double(),),
    ),
    "a sum of all": (lambda x: x.sum(), lambda x: lanes(x).flip(0).sum(), (X,)),
    "a mean": (lambda x: x.mean(1), lambda x: lanes(x) / 64, (X,)),
    "a softmax": (
        lambda x: x.softmax(1),
        lambda x: (x - x.amax(1, True)).exp() * (1 / (x - x.amax(1, True)).exp().sum(1, True)),
        (X,),
    ),
    "half precision rounded once": (
        lambda x, y: torch.tanh(x * y) + x,
        lambda x, y: (torch.tanh(x.float() * y.float()) + x.float()).to(x.dtype),
        (X.to(BFLOAT), X.to(BFLOAT)),
    ),
    "a difference of large numbers": (
        lambda x, y: x * 3 - y * 3,
        lambda x, y: (x.double() * 3 - y.double() * 3).float(),
        (X, X),
    ),
    "a layer norm in two passes": (
        lambda x: functional.layer_norm(x, (64,)),
        lambda x: (
            (x - lanes(x)[:, None] / 64) * torch.rsqrt(x.var(1, keepdim=True, correction=0) + 1e-5)
        ),
        (X,),
    ),
    "an exponential within two units": (
        lambda x: torch.exp(x),
        lambda x: torch.exp(x.double()).float(),
        (X,),
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_is_as_good_as_the_original_passes(name: str) -> None:
    function, library, args = PASSING[name]
    assert problem(function, library, *args) is None


def test_a_lost_sign_of_zero_is_counted_and_declines_nothing() -> None:
    with torch.no_grad():
        trial = trial_of(lambda x: x * 1.0, no_sign, X)
        assert trial.problem() is None
    assert trial.lost_signs > 0
    assert trial.compared > 3


def test_data_that_the_original_refuses_is_left_out() -> None:
    def choosy(x: Tensor) -> Tensor:
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError("not a probability")
        return torch.log(x)

    with torch.no_grad():
        trial = trial_of(choosy, torch.log, X)
        assert trial.problem() is None
    assert trial.compared >= 2
    assert problem(choosy, lambda x: torch.log(x + 1e-6), X) is not None


def test_integers_that_are_places_stay_small_where_large_ones_are_refused() -> None:
    places = torch.ones(16, dtype=torch.int64)
    assert problem(lambda x, i: x[i] * 2, lambda x, i: x[i] * 2, X, places) is None
    found = problem(lambda x, i: x[i] * 2, lambda x, i: x[i] * 2.0001, X, places)
    assert found is not None


PLACES = torch.zeros(4, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("library", "taken"),
    [
        (lambda x, i: torch.gather(x, 0, i), None),
        (lambda x, i: torch.gather(x, 0, i.clamp(max=15)), 16),
        (lambda x, i: torch.gather(x, 0, torch.where(i < 0, i + 16, i)), -1),
        # One row is not checked.
        (lambda x, i: torch.gather(x, 0, torch.cat([i[:-1], i[-1:].clamp(0, 15)])), 16),
        (lambda x, i: torch.gather(x, 0, torch.cat([i[:1].clamp(0, 15), i[1:]])), 16),
    ],
    ids=["good", "the end", "negative", "the last place", "the first place"],
)
def test_a_library_refuses_the_integers_that_the_original_refuses(
    library: Function, taken: int | None
) -> None:
    def gather(x: Tensor, i: Tensor) -> Tensor:
        return torch.gather(x, 0, i)

    with torch.no_grad():
        found = trial_of(gather, library, X, PLACES, ranges=InputRanges(most={1: 15})).problem()

    assert found == (taken and f"takes {taken} in 'a1', which the original refuses")


@pytest.mark.parametrize("further", [(), (-1, -16)])
def test_integers_outside_of_the_range_are_tried(further: tuple[int, ...]) -> None:
    def by_place(x: Tensor, i: Tensor) -> Tensor:
        return x[i]

    def without_negative(x: Tensor, i: Tensor) -> Tensor:
        return x[i.clamp(min=0) + (i < -16) * 99]

    ranges = InputRanges(most={1: 15}, further={1: further} if further else {})
    with torch.no_grad():
        trial = trial_of(by_place, without_negative, X[:, :3], PLACES[:, 0], ranges=ranges)
        assert (trial.problem() is not None) is bool(further)


def test_a_library_may_refuse_what_the_original_takes_beyond_the_range() -> None:
    def wraps(x: Tensor, i: Tensor) -> Tensor:
        return x[i]

    with torch.no_grad():
        found = trial_of(wraps, wraps, X, PLACES, ranges=InputRanges(most={1: 15})).problem()

    assert found is None, "negative numbers count from the end in both"
