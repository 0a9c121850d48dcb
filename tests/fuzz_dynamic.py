"""Dynamic kernels against eager: ``python -m tests.fuzz_dynamic [--calls 20000] [--long]``.

Draws calls of 25 ops and compares each with the original: exception, dtype, sizes, strides, values,
and all the memory that the arguments lie in. What lies between the elements of an argument is NaN,
so a kernel that reads beside them is found out by what it returns.

Each op has a few *main forms*, as a script would: ranks, dtypes, layouts, broadcasting and options
of which only sizes, offsets and data change from call to call. They make up 94% of the calls. The
other calls are of any form. Call ``n`` of an op depends on the seed, the op and ``n`` only, so that
``--ops OP`` repeats what a run of all ops did.

Prints a table and, last, JSON; exits with status 1 if a call differed, or
dynamic kernels served less than nine tenths of the calls.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import math
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import aoti_eager
from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._registration import registry

CALLS, LONG_CALLS = 20_000, 500_000
# Of the calls, that dynamic kernels are to serve.
LEAST_SHARE = 0.9
LAYOUTS = ("contiguous", "view", "sliced", "stepped", "expanded", "transposed")
# Layouts that need two dimensions, and one that no op may write to.
DEEP, SHARED = frozenset({"sliced", "transposed"}), frozenset({"expanded", "windows"})
# An op that raises for the others.
LAYOUTS_OF = {"aten::native_group_norm": ("contiguous", "view", "contiguous", "view")}
# Of a row with an infinity, eager's mean is NaN and that of compiled code is the infinity.
NO_INFINITY = frozenset({"aten::native_layer_norm", "aten::native_group_norm"})
OTHER_FORMS, INVALID, SPECIAL = 0.06, 0.01, 0.05
# Per dimension.
SIZE_0 = 0.003
MOST_ELEMENTS = 1 << 14
# Calls whose originals are run together: changing the mode takes a moment.
BATCH = 50
# Sizes around those of vectors and tiles.
EDGES = (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512)
# A kernel may be off by so many times the original's error, where assert_close finds them apart.
ALLOWED_ERROR = 2.0
# Of these, terms that cancel leave what their order makes of them, and eager's may be lucky.
SUMS = frozenset({"aten::sum.dim_IntList", "aten::var.correction"})


@dataclass
class TensorSpec:
    """A tensor as it is drawn: where it lies in a buffer of its own."""

    dtype: str
    sizes: list[int]
    strides: list[int]
    offset: int
    layout: str
    mutated: bool = False

    @property
    def extent(self) -> int:
        """Return how many elements of the buffer it spans from its offset on."""
        if 0 in self.sizes:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True))

    def make(self, generator: torch.Generator, special: list[float]) -> tuple[Tensor, Tensor]:
        """Return the tensor and its whole buffer, with NaN between the elements."""
        dtype = getattr(torch, self.dtype)
        length = self.offset + self.extent + 5
        if dtype is torch.bool:
            values = torch.rand(length, generator=generator) < 0.5
            return values.as_strided(self.sizes, self.strides, self.offset), values
        buffer = torch.full((length,), math.nan, dtype=dtype)
        inside = buffer.as_strided(self.sizes, self.strides, self.offset)
        values = torch.empty(length, dtype=torch.float64).normal_(generator=generator)
        if special:
            odd = torch.tensor(special, dtype=torch.float64)
            which = torch.randint(0, len(odd), (length,), generator=generator)
            replaced = torch.rand(length, generator=generator) < 0.1
            values = torch.where(replaced, odd[which], values)
        chosen = torch.zeros(length, dtype=torch.bool)
        chosen.as_strided(self.sizes, self.strides, self.offset).fill_(True)
        buffer.copy_(torch.where(chosen, values, torch.tensor(math.nan, dtype=torch.float64)))
        return inside, buffer


@dataclass
class Call:
    """A drawn call: specs of tensors in place of tensors."""

    op: str
    number: int
    form: str
    args: list[Any]
    kwargs: dict[str, Any]
    special: bool

    def make(self, same: Made | None = None) -> Made:
        """Return the call's arguments; the same ones every time, copied from ``same`` if given."""
        generator = torch.Generator().manual_seed(self.number)
        buffers: list[Tensor] = []
        special = [math.nan, -0.0, 0.0] if self.special else []
        if self.special and self.op not in NO_INFINITY:
            special += [math.inf, -math.inf]

        def built(value: Any) -> Any:
            if isinstance(value, TensorSpec):
                if same is None:
                    tensor, buffer = value.make(generator, special)
                else:
                    buffer = same.buffers[len(buffers)].clone()
                    tensor = buffer.as_strided(value.sizes, value.strides, value.offset)
                buffers.append(buffer)
                return tensor
            return [built(one) for one in value] if _has_specs(value) else value

        args = [built(value) for value in self.args]
        kwargs = {name: built(value) for name, value in self.kwargs.items()}
        return Made(args, kwargs, buffers)

    def specs(self) -> Iterator[TensorSpec]:
        """Give the specs of its tensors."""
        for value in [*self.args, *self.kwargs.values()]:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, TensorSpec):
                    yield one

    def to_json(self) -> dict[str, Any]:
        """Return what it takes to make the call again."""
        return asdict(self)


@dataclass
class Made:
    """A call's arguments, and the memory behind them."""

    args: list[Any]
    kwargs: dict[str, Any]
    buffers: list[Tensor]
    result: Any = None
    error: Exception | None = None

    def run(self, op: Callable[..., Any]) -> None:
        """Call ``op`` and keep what comes back."""
        try:
            self.result = op(*self.args, **self.kwargs)
        except Exception as error:  # noqa: BLE001 - the original's is compared with ours
            self.error = error


def _has_specs(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, TensorSpec) for one in value)


class Draw:
    """The dice of one call.

    What belongs to the form is drawn by ``form``, which never depends on what ``dice`` gave; sizes,
    offsets and the values of numbers are drawn by ``dice``.
    """

    def __init__(self, form: random.Random, dice: random.Random, layout: str, dtypes: list[str]):
        self.form, self.dice = form, dice
        self.invalid = dice.random() < INVALID
        self.dtype = form.choice(dtypes)
        self._layout: str | None = layout
        self.rank = form.choice((2, 3)) if layout in DEEP else form.choice((1, 2, 2, 3))

    def size(self) -> int:
        """Return a size: small ones as often as large ones."""
        chance = self.dice.random()
        if chance < SIZE_0 + SHARES.ones:
            return int(chance >= SIZE_0)
        if self.dice.random() < 0.2:
            return self.dice.choice(EDGES)
        return int(2 ** self.dice.uniform(1, math.log2(513)))

    def sizes(self, rank: int | None = None) -> list[int]:
        """Return the sizes of a tensor."""
        while True:
            sizes = [self.size() for _ in range(self.rank if rank is None else rank)]
            if math.prod(sizes) <= MOST_ELEMENTS:
                return sizes

    def usual(self, most: int = 256) -> int:
        """Return a size that a model has for good: another one only now and then."""
        size = self.form.choice([n for n in (16, 24, 33, 64, 100, 256) if n <= most])
        return self.size() if self.dice.random() < 0.03 else size

    def broadcast(self, sizes: list[int]) -> list[int]:
        """Return sizes that broadcast to ``sizes``, or, in an invalid call, do not."""
        how = self.form.choice(("same", "same", "same", "ones", "fewer"))
        ones = [self.form.random() < 0.5 for _ in sizes]
        fewer = self.form.randrange(1, len(sizes) + 1)
        if self.invalid:
            return [*sizes[:-1], sizes[-1] + 2]
        if how == "ones":
            return [1 if one else n for n, one in zip(sizes, ones, strict=True)]
        return sizes[-fewer:] if how == "fewer" else list(sizes)

    def tensor(
        self,
        sizes: list[int],
        *,
        mutated: bool = False,
        dtype: str | None = None,
        layout: str | None = None,
    ) -> TensorSpec:
        """Return a tensor of these sizes; the first of a call has the layout of the form."""
        if layout is None:
            layout, self._layout = self._layout, None
        if layout is None:
            layout = self.form.choice(("contiguous", "contiguous", *LAYOUTS, "windows"))
        dims = len(sizes)
        dim = self.form.randrange(dims) if dims else 0
        order = self.form.sample(range(dims), dims)
        if order == sorted(order):
            order.reverse()
        if layout in DEEP and dims < 2:
            layout = "view"
        if layout in SHARED and mutated and not self.invalid:
            layout = "stepped"
        step, gap, offset = self.form.choice((2, 3)), self.dice.randrange(1, 9), 0
        if layout == "contiguous" or not dims:
            strides = _strides(sizes)
        elif layout == "view":
            strides, offset = _strides(sizes), self.dice.randrange(1, 70)
        elif layout == "sliced":
            dim = max(1, dim)
            parent = [n + gap if i == dim else n for i, n in enumerate(sizes)]
            strides = _strides(parent)
            offset = self.dice.randrange(gap + 1) * strides[dim]
        elif layout == "stepped":
            parent = [n * step if i == dim else n for i, n in enumerate(sizes)]
            strides = [s * step if i == dim else s for i, s in enumerate(_strides(parent))]
            offset = self.dice.randrange(step)
        elif layout == "expanded":
            strides = _strides([1 if i == dim else n for i, n in enumerate(sizes)])
            strides[dim] = 0
        elif layout == "transposed":
            strides = [0] * dims
            for place, stride in zip(order, _strides([sizes[i] for i in order]), strict=True):
                strides[place] = stride
        else:
            strides = [1] * dims  # Elements overlap, as those of ``unfold`` do.
        return TensorSpec(dtype or self.dtype, list(sizes), strides, offset, layout, mutated)

    def option(self, *values: Any) -> Any:
        """Return one of the values, the same for all calls of the form."""
        return self.form.choice(values)

    def number(self, *values: float) -> float:
        """Return a number that the form has; another one now and then."""
        value = self.form.choice(values)
        if self.dice.random() >= SHARES.numbers:
            return value
        return self.dice.choice((0.0, -0.0, 1.0, -2.5, self.dice.gauss(0, 2), 1e30))

    def dim(self, rank: int | None = None) -> int:
        """Return a dimension, the same for all calls of the form."""
        dim = self.form.randrange(self.rank if rank is None else rank)
        negative = self.form.random() < 0.5
        if self.invalid:
            return 9
        return dim - (self.rank if rank is None else rank) if negative else dim


class SHARES:
    """How often a size is 1, and a number another one than its form's."""

    ones = 0.006
    numbers = 0.01


def _strides(sizes: Sequence[int]) -> list[int]:
    strides, stride = [0] * len(sizes), 1
    for dim in reversed(range(len(sizes))):
        strides[dim] = stride
        stride *= max(1, sizes[dim])
    return strides


Drawn = tuple[list[Any], dict[str, Any]]


def unary(*numbers: tuple[float, ...]) -> Callable[[Draw], Drawn]:
    """Return how a unary op's call is drawn, with ``numbers`` behind the tensor."""

    def draw(d: Draw) -> Drawn:
        return [d.tensor(d.sizes()), *(d.number(*values) for values in numbers)], {}

    return draw


def unary_out(d: Draw) -> Drawn:
    """A tensor, and where its result goes."""
    sizes = d.sizes()
    x = d.tensor(sizes)
    return [x], {"out": d.tensor(_out_sizes(d, sizes), mutated=True)}


def _out_sizes(d: Draw, sizes: list[int]) -> list[int]:
    # One that is empty is resized.
    return [0] if d.dice.random() < 0.02 else sizes


def clamp(d: Draw) -> Drawn:
    """Bounds, of which one may be absent."""
    x, low, high = d.tensor(d.sizes()), d.number(-0.5, 0), d.number(0.5, 1)
    return [x, *d.option((low, high), (low, None), (None, high))], {}


def binary(d: Draw) -> Drawn:
    """Two tensors that broadcast, in either order; or a number for the second."""
    sizes = d.sizes()
    a, b = d.tensor(sizes), d.tensor(d.broadcast(sizes))
    number = d.option(False, False, False, False, True)
    swapped = d.option(False, False, True)
    if number:
        return [a, d.dice.choice((2.0, -1.5, d.dice.gauss(0, 1)))], {}
    return [b, a] if swapped else [a, b], {}


def add(d: Draw) -> Drawn:
    """The same, with an alpha."""
    args, kwargs = binary(d)
    alpha = d.number(1, 1, 2, 0.5)
    return args, kwargs if alpha == 1 else {"alpha": alpha}


def add_out(d: Draw) -> Drawn:
    """The same, into a tensor."""
    sizes = d.sizes()
    a, b = d.tensor(sizes), d.tensor(d.broadcast(sizes))
    return [a, b], {"out": d.tensor(_out_sizes(d, sizes), mutated=True)}


def add_(d: Draw) -> Drawn:
    """In place."""
    sizes = d.sizes()
    a, b = d.tensor(sizes, mutated=True), d.tensor(d.broadcast(sizes))
    alpha = d.number(1, 1, -0.1)
    return [a, b], {} if alpha == 1 else {"alpha": alpha}


def clamp_(d: Draw) -> Drawn:
    """In place."""
    return [d.tensor(d.sizes(), mutated=True), d.number(0, -1)], {}


def ternary(d: Draw) -> Drawn:
    """Three tensors and a value."""
    sizes = d.sizes()
    tensors = [d.tensor(sizes), d.tensor(d.broadcast(sizes)), d.tensor(d.broadcast(sizes))]
    return tensors, {"value": d.number(1, 0.5)}


def where(d: Draw) -> Drawn:
    """A condition and two tensors."""
    sizes = d.sizes()
    first, second = d.tensor(sizes), d.tensor(d.broadcast(sizes))
    return [d.tensor(d.broadcast(sizes), dtype="bool"), first, second], {}


def reduction(d: Draw) -> Drawn:
    """Some dimensions, or all of them."""
    x, dim, keep = d.tensor(d.sizes()), d.dim(), d.option(False, True)
    return [x, d.option([dim], [dim], []), keep], {}


def var(d: Draw) -> Drawn:
    """The same with a correction."""
    x, dim, keep = d.tensor(d.sizes()), d.dim(), d.option(False, True)
    return [x, [dim]], {"correction": d.option(1, 0), "keepdim": keep}


def softmax(d: Draw) -> Drawn:
    """One dimension."""
    return [d.tensor(d.sizes()), d.dim(), False], {}


def layer_norm(d: Draw) -> Drawn:
    """The last dimension is a model's width."""
    width = d.usual()
    leading = d.sizes(d.rank - 1)
    while math.prod(leading) * width > 4 * MOST_ELEMENTS:
        leading = d.sizes(d.rank - 1)
    x = d.tensor([*leading, width])
    affine = d.option(True, True, False)
    weights = [d.tensor([width]), d.tensor([width])]
    return [x, [width + d.invalid], *(weights if affine else (None, None)), 1e-5], {}


def group_norm(d: Draw) -> Drawn:
    """Three dimensions: batch, channels, pixels."""
    groups, per_group = d.option(1, 2, 4), d.option(1, 3, 8)
    channels = groups * per_group
    n, pixels = d.size(), d.usual()
    while n > 2 * MOST_ELEMENTS // (channels * pixels):
        n = d.size()
    x = d.tensor([n, channels, pixels])
    affine = d.option(True, True, False)
    # Eager reads beyond those of half precision that are not contiguous.
    weights = [d.tensor([channels], layout=d.option("contiguous", "view")) for _ in range(2)]
    sizes = x.sizes
    rest = [sizes[0], channels, sizes[2], groups + d.invalid, 1e-5]
    return [x, *(weights if affine else (None, None)), *rest], {}


def cat(d: Draw) -> Drawn:
    """Tensors that differ in one dimension."""
    sizes, dim, count = d.sizes(), d.dim(), d.option(2, 2, 3)
    tensors = []
    for _ in range(count):
        mine = list(sizes)
        if abs(dim) < 9:
            mine[dim] = min(d.size(), 64)
        tensors.append(d.tensor(mine))
    return [tensors, dim], {}


def foreach_add(d: Draw) -> Drawn:
    """Two lists."""
    lists = _lists(d, mutated=False)
    return lists, {"alpha": d.number(1, 0.5)}


def foreach_mul_(d: Draw) -> Drawn:
    """A list in place, and a number."""
    (tensors, _) = _lists(d, mutated=True)
    return [tensors, d.number(0.9, 2)], {}


def _lists(d: Draw, *, mutated: bool) -> list[list[TensorSpec]]:
    first, second = [], []
    for _ in range(d.option(2, 3)):
        sizes = d.sizes()
        first.append(d.tensor(sizes, mutated=mutated))
        second.append(d.tensor(sizes if not d.invalid else [*sizes, 3]))
    return [first, second]


def threshold_backward(d: Draw) -> Drawn:
    """A gradient, a tensor, a number."""
    sizes = d.sizes()
    return [d.tensor(sizes), d.tensor(sizes), d.number(0, 0.5)], {}


OPS: dict[str, Callable[[Draw], Drawn]] = {
    "aten::exp": unary(),
    "aten::silu": unary(),
    "aten::tanh": unary(),
    "aten::leaky_relu": unary((0.01, 0.2)),
    "aten::pow.Tensor_Scalar": unary((2, 3, 0.5)),
    "aten::clamp": clamp,
    "aten::add.Tensor": add,
    "aten::mul.Tensor": binary,
    "aten::div.Tensor": binary,
    "aten::maximum": lambda d: _two_tensors(d),
    "aten::addcmul": ternary,
    "aten::where.self": where,
    "aten::threshold_backward": threshold_backward,
    "aten::sum.dim_IntList": reduction,
    "aten::amax": reduction,
    "aten::var.correction": var,
    "aten::native_layer_norm": layer_norm,
    "aten::native_group_norm": group_norm,
    "aten::_softmax": softmax,
    "aten::cat": cat,
    "aten::add_.Tensor": add_,
    "aten::clamp_min_": clamp_,
    "aten::add.out": add_out,
    "aten::_foreach_add.List": foreach_add,
    "aten::_foreach_mul_.Scalar": foreach_mul_,
}


def _two_tensors(d: Draw) -> Drawn:
    sizes = d.sizes()
    return [d.tensor(sizes), d.tensor(d.broadcast(sizes))], {}


def draw(op: str, number: int, seed: int) -> Call:
    """Return call ``number`` of ``op``."""
    dice = random.Random(f"{seed}/{op}/{number}")
    place = list(OPS).index(op)
    dtypes = ["float32", "float32", ("float64", "bfloat16")[place % 2]]
    if dice.random() < OTHER_FORMS:
        name, layout = "other", dice.choice((*LAYOUTS, "windows"))
        form = random.Random(dice.random())
    else:
        layouts = LAYOUTS_OF.get(op, LAYOUTS)
        main = dice.randrange(len(layouts))
        name, layout = f"main {main}", layouts[main]
        form = random.Random(f"{seed}/{op}/form/{main}")
    args, kwargs = OPS[op](Draw(form, dice, layout, dtypes))
    return Call(op, number, name, args, kwargs, dice.random() < SPECIAL)


def overload_of(name: str) -> Any:
    """Return the overload with this name."""
    base, _, overload = name.partition("::")[2].partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


# -- comparison --


def problem_of(call: Call, want: Made, got: Made) -> str | None:
    """Return how a call differs from the original, or nothing. To be run with the mode off."""
    if want.error is not None or got.error is not None:
        if type(want.error) is type(got.error):
            return None
        return f"raised {got.error!r} instead of {want.error!r}"
    mine, theirs = _flat(got.result), _flat(want.result)
    if len(mine) != len(theirs):
        return f"{len(mine)} results instead of {len(theirs)}"
    for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        problem = _metadata(a, b)
        if problem is not None:
            return f"result {index}: {problem}"
    aliased = [_aliases(made) for made in (got, want)]
    if aliased[0] != aliased[1]:
        return f"results are arguments {aliased[0]} instead of {aliased[1]}"
    pairs = [(f"result {i}", a, b) for i, (a, b) in enumerate(zip(mine, theirs, strict=True))]
    for index, spec in enumerate(call.specs()):
        a, b = got.buffers[index], want.buffers[index]
        if not spec.mutated and not _same(a, b):
            return f"argument {index} was written to"
        if spec.mutated:
            pairs.append((f"memory of argument {index}", a, b))
    exact: Made | None = None
    for place, (where_, a, b) in enumerate(pairs):
        if _same_bits(a, b):
            continue  # Twenty times as fast to find out.
        try:
            torch.testing.assert_close(a, b, equal_nan=True)
        except AssertionError as error:
            if exact is None:
                exact = _exact(call)
            truths = None if exact is None else [*_flat(exact.result), *_written(call, exact)]
            truth = None if truths is None else truths[place]
            if truth is None or not _is_no_worse(a, b, truth, _rounding(call, want)):
                return f"{where_}: " + " ".join(str(error).split())
    return None


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [one for value in result or () for one in _flat(value)]


def _metadata(got: Tensor, want: Tensor) -> str | None:
    for name in ("dtype", "shape", "stride", "storage_offset"):
        mine, theirs = (getattr(tensor, name) for tensor in (got, want))
        if callable(mine):
            mine, theirs = mine(), theirs()
        if mine != theirs:
            return f"{name} {mine} instead of {theirs}"
    return None


def _aliases(made: Made) -> list[int | None]:
    arguments = _flat([v for v in [*made.args, *made.kwargs.values()] if _is_tensors(v)])
    return [
        next((i for i, one in enumerate(arguments) if one is result), None)
        for result in _flat(made.result)
    ]


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, list) and all(isinstance(one, Tensor) for one in value)
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return _same_bits(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(a.element_size())
    if bits is None or a.dtype != b.dtype or a.layout is not torch.strided or a.is_complex():
        return torch.equal(a, b)
    return torch.equal(a.view(bits), b.view(bits))


def _written(call: Call, made: Made) -> list[Tensor]:
    return [made.buffers[i] for i, spec in enumerate(call.specs()) if spec.mutated]


def _exact(call: Call) -> Made | None:
    """Return the call made in double precision."""
    wide = copy.deepcopy(call)
    for spec in wide.specs():
        if spec.dtype != "bool":
            spec.dtype = "float64"
    made, narrow = wide.make(), call.make()
    for mine, theirs in zip(made.buffers, narrow.buffers, strict=True):
        mine.copy_(theirs)  # As rounded.
    made.run(overload_of(call.op))
    return made if made.error is None else None


def _rounding(call: Call, made: Made) -> float:
    """Return the error that any order of a sum's terms may come to; 0 for what is no sum."""
    if call.op not in SUMS:
        return 0.0
    terms = made.args[0].to(torch.float64).nan_to_num(0.0, 0.0, 0.0)
    eps = torch.finfo(made.args[0].dtype).eps
    return float(4 * eps * math.sqrt(terms.numel()) * terms.abs().max())


def _is_no_worse(got: Tensor, want: Tensor, exact: Tensor, rounding: float) -> bool:
    mine, theirs, truth = (t.to(torch.float64) for t in (got, want, exact))
    finite = torch.isfinite(mine) & torch.isfinite(theirs) & torch.isfinite(truth)
    odd = ~finite & ~((mine == theirs) | (mine.isnan() & theirs.isnan()))
    if bool(odd.any()):
        return False
    if not bool(finite.any()):
        return True
    error, allowed = ((t - truth).abs()[finite].max() for t in (mine, theirs))
    return bool(error <= max(ALLOWED_ERROR * float(allowed), rounding))


# -- the run --


@dataclass
class Tally:
    """What became of the calls of one op."""

    calls: int = 0
    dynamic: int = 0
    static: int = 0
    compiled: int = 0
    compared: int = 0
    raised: int = 0
    declined: dict[str, int] = field(default_factory=collections.Counter)
    static_kernels: int = 0
    dynamic_kernels: int = 0
    compiles: int = 0
    layouts: dict[str, int] = field(default_factory=collections.Counter)
    unserved: dict[str, int] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Return the share of the calls that raised nothing which dynamic kernels served."""
        return self.dynamic / max(1, self.calls - self.raised)


class Fuzz:
    """One run; ``tallies`` by op and ``mismatches`` are what comes of it."""

    def __init__(self, ops: Sequence[str], seed: int) -> None:
        self.ops, self.seed = list(ops), seed
        self.tallies = {op: Tally() for op in ops}
        self.mismatches: list[dict[str, Any]] = []
        # Valid calls, and those that dynamic kernels served, of either half of the run.
        self.halves = [[0, 0], [0, 0]]

    def run(self, calls: int, deadline: float | None = None) -> None:
        """Make ``calls`` calls, of each op in turn; the ops must be registered."""
        caches = {cache.schema.op: cache for cache in registry.caches()}
        for start in range(0, calls, BATCH):
            if deadline is not None and time.monotonic() > deadline:
                break
            batch = [
                draw(self.ops[i % len(self.ops)], i // len(self.ops), self.seed)
                for i in range(start, min(start + BATCH, calls))
            ]
            got = [call.make() for call in batch]
            with aoti_eager.config.scope(mode="off"):
                want = [call.make(made) for call, made in zip(batch, got, strict=True)]
                for call, made in zip(batch, want, strict=True):
                    made.run(overload_of(call.op))
            served = [
                self._call(call, made, caches[call.op])
                for call, made in zip(batch, got, strict=True)
            ]
            half = self.halves[2 * start >= calls]
            half[0] += sum(by != "raised" for by in served)
            half[1] += served.count("dynamic")
            with aoti_eager.config.scope(mode="off"):
                for call, mine, theirs, by in zip(batch, got, want, served, strict=True):
                    self._compare(call, mine, theirs, by)
        for op in self.ops:
            self._finish(caches[op], self.tallies[op])

    def _call(self, call: Call, made: Made, cache: KernelCache) -> str:
        """Make a call and return by what it was served."""
        tally = self.tallies[call.op]
        key = cache.key(*made.args, **made.kwargs)
        before = cache.counters.snapshot()
        made.run(cache.op)
        after = cache.counters.snapshot()
        tally.calls += 1
        for layout in {spec.layout for spec in call.specs()}:
            tally.layouts[layout] += 1
        if made.error is not None:
            tally.raised += 1
            return "raised"
        if after.hits > before.hits:
            # C++ finds dynamic kernels by their patterns, without this key.
            kernel = cache.table.kernels.get(key)
            by = "dynamic" if kernel is None or kernel.is_dynamic else "static"
            setattr(tally, by, getattr(tally, by) + 1)
        elif after.misses > before.misses:
            # Once in each size class a kernel runs beside the original, whose result is returned.
            by = "compiled" if after.compiles > before.compiles else "compared"
            setattr(tally, by, getattr(tally, by) + 1)
        else:
            reason = next(r for r, n in after.declined.items() if n != before.declined.get(r, 0))
            tally.declined[reason] += 1
            by = f"declined: {reason}"
            decline = cache.table.declines.get(key)
            if reason in SUSPICIOUS and decline is not None and after.failures > before.failures:
                tally.failures.append(f"{decline.message} [{json.dumps(call.to_json())}]")
        if by != "dynamic":
            ones = any(n < 2 for spec in call.specs() for n in spec.sizes)
            tally.unserved[f"{call.form}{', a size of 0 or 1' if ones else ''}: {by}"] += 1
        return by

    def _compare(self, call: Call, got: Made, want: Made, by: str) -> None:
        problem = problem_of(call, want, got)
        if problem is None:
            return
        found = {"problem": problem, "by": by, "seed": self.seed, **call.to_json()}
        self.mismatches.append(found)
        print("MISMATCH", json.dumps(found), file=sys.stderr, flush=True)

    def _finish(self, cache: KernelCache, tally: Tally) -> None:
        table = cache.table
        kernels = table.kernels.values()
        tally.static_kernels = sum(not kernel.is_dynamic for kernel in kernels)
        tally.dynamic_kernels = table.dynamic.kernels.count
        tally.compiles = cache.counters.snapshot().compiles

    @property
    def share(self) -> float:
        """Return the share of all valid calls that dynamic kernels served."""
        tallies = self.tallies.values()
        served = sum(tally.dynamic for tally in tallies)
        return served / max(1, sum(tally.calls - tally.raised for tally in tallies))

    def to_json(self) -> dict[str, Any]:
        """Return the results."""
        return {
            "seed": self.seed,
            "calls": sum(tally.calls for tally in self.tallies.values()),
            "mismatches": self.mismatches,
            "dynamic_share": round(self.share, 4),
            "shares_of_halves": [round(of / max(1, calls), 4) for calls, of in self.halves],
            "ops": {
                op: {**vars(tally), "dynamic_share": round(tally.share, 4)}
                for op, tally in self.tallies.items()
            },
        }

    def table(self) -> str:
        """Return the results for people."""
        names = (
            "calls",
            "dynamic",
            "static",
            "compiled",
            "compared",
            "raised",
            "decl.",
            "share",
            "kernels",
        )
        lines = [f"{'op':28}" + "".join(f"{name:>10}" for name in names) + "  declined"]
        for op, t in self.tallies.items():
            declined = ", ".join(f"{reason} {n}" for reason, n in sorted(t.declined.items()))
            values = (t.calls, t.dynamic, t.static, t.compiled, t.compared, t.raised)
            values += (sum(t.declined.values()),)
            lines.append(
                f"{op:28}"
                + "".join(f"{value:>10}" for value in values)
                + f"{t.share:>10.1%}{f'{t.dynamic_kernels}+{t.static_kernels}':>10}  {declined}"
            )
        return "\n".join(lines)


# Reasons that say that something is wrong with a library or with us.
SUSPICIOUS = frozenset(
    {"mismatch", "crashed", "raised", "compile_failed", "run_failed", "internal_error"}
    | {"worker_died", "library_unloadable"}
)


def fuzz(
    ops: Sequence[str],
    calls: int,
    seed: int,
    *,
    minutes: float | None = None,
    **settings: Any,
) -> Fuzz:
    """Return a finished run with its ops registered for its time."""
    warnings.filterwarnings("ignore", message="An output with one or more elements was resized")
    done = Fuzz(ops, seed)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with (
        aoti_eager.config.scope(mode="sync", gate=False, dynamic="auto", **settings),
        aoti_eager.register([overload_of(op) for op in ops]),
    ):
        done.run(calls, deadline)
    return done


def main() -> None:
    """Print a table and JSON; status 1 if a call differed or dynamic kernels served too few."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--long", action="store_true", help=f"make {LONG_CALLS} calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=list(OPS), metavar="OP")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--numbers", type=float, default=SHARES.numbers, help="share that vary")
    parser.add_argument("--ones", type=float, default=SHARES.ones, help="share of sizes that are 1")
    parser.add_argument("--dynamic-cap", type=int)
    parser.add_argument("--static-cap", type=int)
    parser.add_argument("--min-share", type=float, default=LEAST_SHARE, help="of dynamic kernels")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    SHARES.numbers, SHARES.ones = options.numbers, options.ones
    caps = {"dynamic_cap": options.dynamic_cap, "static_cap": options.static_cap}
    start = time.monotonic()
    done = fuzz(
        options.ops,
        LONG_CALLS if options.long else options.calls,
        options.seed,
        minutes=options.minutes,
        **{name: value for name, value in caps.items() if value is not None},
    )
    result = {**done.to_json(), "seconds": round(time.monotonic() - start, 1)}
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))
    print(done.table())
    names = ("seed", "calls", "dynamic_share", "shares_of_halves", "seconds")
    summary = {name: result[name] for name in names}
    print(json.dumps({**summary, "mismatches": len(done.mismatches)}))
    for found in done.mismatches[:20]:
        print(json.dumps(found))
    sys.exit(1 if done.mismatches or done.share < options.min_share else 0)


if __name__ == "__main__":
    # A fifth of every compile, and nothing of what is computed.
    os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
    main()
