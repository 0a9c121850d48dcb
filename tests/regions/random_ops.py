"""The grammar of random modules: for each op, a function that draws one line of a forward.

Longer than 350 lines, because a grammar is one table.
"""

# ruff: noqa: E501 - tables of short texts: one a line would be three times as long

from __future__ import annotations

from collections.abc import Callable

import torch

from .random_grammar import Draw, Value

_FLOATS = (torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16)
_TRIES = 400

GRAMMAR: dict[str, Callable[[Draw], object]] = {}

Rule = Callable[[Draw], object]


def rule(function: Rule) -> Rule:
    """Put a function into the grammar."""
    GRAMMAR[function.__name__.strip("_")] = function
    return function


def _float(value: Value) -> bool:
    return value.is_float


def _exact(value: Value) -> bool:
    return value.exact


def _exact_float(value: Value) -> bool:
    return value.exact and value.is_float


def _shaped(value: Value) -> bool:
    return value.dim > 0


def _matrix(value: Value) -> bool:
    return value.is_float and value.dim >= 2


# -- element by element --


@rule
def unary(d: Draw) -> object:
    x = d.pick(_float).name
    text = d.one_of(
        "torch.sin({})", "torch.cos({})", "torch.tanh({})", "torch.sigmoid({})", "{}.exp()",
        "torch.erf({})", "{}.square()", "{} ** 3", "({}.abs() + 0.1).sqrt()", "torch.expm1({})",
        "({}.abs() + 0.5).rsqrt()", "torch.log1p({}.abs())", "({}.abs() + 1).log()", "{} ** 2",
        "({}.abs() + 1) ** 0.5", "({}.abs() + 1).reciprocal()", "torch.atan({})", "{}.sinh()",
    )  # fmt: skip
    return d.line("unary", text.format(x))


@rule
def activation(d: Draw) -> object:
    x = d.pick(_float).name
    text = d.one_of(
        "F.silu({})", "F.gelu({})", "F.gelu({}, approximate='tanh')", "F.softplus({})",
        "F.leaky_relu({}, 0.1)", "F.elu({})", "F.mish({})", "F.hardswish({})", "F.relu6({})",
        "F.hardtanh({})", "F.logsigmoid({})", "F.selu({})", "F.hardsigmoid({})",
        "F.softsign({})", "F.tanhshrink({})", "F.celu({}, 0.7)",
    )  # fmt: skip
    return d.line("activation", text.format(x))


@rule
def exact_unary(d: Draw) -> object:
    x = d.pick()
    text = d.one_of("-{}", "{}.abs()", "{}.clamp(-1, 1)", "torch.relu({})", "{}.clamp(min=0)")
    return d.line("exact unary", text.format(x.name), exact=x.exact)


@rule
def step(d: Draw) -> object:
    x = d.pick(_exact_float).name
    text = d.one_of("{}.floor()", "{}.round()", "{}.sign()", "{}.trunc()", "{}.ceil()",
                    "({} > 0)", "({} * 2).to(torch.int64)", "{}.isnan()", "torch.heaviside({0}, {0})")  # fmt: skip
    return d.line("step", text.format(x), exact=True)


@rule
def binary(d: Draw) -> object:
    x, y = d.pick(), d.pick()
    text = d.one_of(
        "{} + {}", "{} - {}", "{} * {}", "{} / ({}.abs() + 1)", "torch.atan2({}, {})",
        "torch.add({}, {}, alpha=2)", "torch.hypot({}, {})", "torch.lerp({0}, {1}, 0.3)",
        "torch.sub({}, {}, alpha=0.5)", "torch.addcmul({0}, {1}, {0}, value=0.5)",
    )  # fmt: skip
    return d.line("binary", text.format(x.name, y.name))


@rule
def exact_binary(d: Draw) -> object:
    x, y = d.pick(), d.pick()
    text = d.one_of("torch.maximum({}, {})", "torch.minimum({}, {})", "torch.fmax({}, {})")
    return d.line("exact binary", text.format(x.name, y.name), exact=x.exact and y.exact)


@rule
def number(d: Draw) -> object:
    x = d.pick()
    text = d.one_of("{} + 1", "{} * 0.5", "1 - {}", "{} / 3", "{} * 2", "2 / ({}.abs() + 1)",
                    "{} - 0.25", "True + {}", "0.1 * {} + 1e-3")  # fmt: skip
    return d.line("number", text.format(x.name))


@rule
def with_parameter(d: Draw) -> object:
    x = d.pick(_float)
    sizes = x.sizes[d.rng.randint(0, x.dim) :] if x.dim else []
    p = d.parameter(sizes, x.tensor.dtype)
    return d.line("parameter", d.one_of("{} + {}", "{} * {}", "{1} - {0}").format(x.name, p))


@rule
def compare(d: Draw) -> object:
    x, y = d.pick(_exact), d.pick(_exact)
    text = d.one_of("{} > {}", "{} == {}", "{} <= {}", "{} != {}", "torch.lt({}, {})")
    return d.line("compare", text.format(x.name, y.name), exact=True)


@rule
def logical(d: Draw) -> object:
    x, y = d.pick(_exact), d.pick(lambda v: not v.is_float)
    text = d.one_of("torch.logical_and({}, {})", "torch.logical_or({}, {})", "{1} ^ {1}",
                    "torch.logical_not({})", "{1} & {1}", "~{1}", "torch.logical_xor({}, {})")  # fmt: skip
    return d.line("logical", text.format(x.name, y.name), exact=True)


@rule
def whole_numbers(d: Draw) -> object:
    x = d.pick(lambda v: str(v.dtype) == "torch.int64")
    text = d.one_of("{} * 3 + 1", "{} << 1", "{} >> 1", "{} & 3", "{} ** 2", "{} / 4")
    if d.rng.random() < 0.1:  # Such a region is declined: a division of integers may raise.
        text = d.one_of("{} // 2", "{} % 3", "torch.div({}, 3, rounding_mode='trunc')")
    return d.line("whole numbers", text.format(x.name), exact=True)


@rule
def cast(d: Draw) -> object:
    x = d.pick()
    if x.is_float and x.exact and d.rng.random() < 0.3:
        text = d.one_of("{}.int()", "{}.bool()", "{}.long()", "{}.to(torch.int8)")
    else:
        text = d.one_of("{}.float()", "{}.double()", "{}.bfloat16()", "{}.to(torch.float32)",
                        "{}.half()", "{0}.type_as({0})")  # fmt: skip
    return d.line("cast", text.format(x.name), exact=x.exact)


@rule
def where(d: Draw) -> object:
    x, y = d.pick(_float), d.pick(_float)
    mask = d.pick(lambda v: v.dtype == "torch.bool")
    text = d.one_of(
        "torch.where({2}, {0}, {1})", "{0}.masked_fill({2}, -1.5)", "torch.where({2}, {0}, 0.0)"
    )
    return d.line("where", text.format(x.name, y.name, mask.name), exact=x.exact and y.exact)


@rule
def mask(d: Draw) -> object:
    x = d.pick(_shaped)
    return d.mask(x.sizes[d.rng.randrange(x.dim) :])


# -- views and copies --


@rule
def view(d: Draw) -> object:
    x = d.pick(_shaped)
    a, b = d.dim(x), d.dim(x)
    order = d.rng.sample(range(x.dim), x.dim)
    text = d.one_of(
        f"{{}}.transpose({a}, {b})", f"{{}}.permute({order})", "{}.flatten()", "{}.mT",
        "{}.reshape(-1)", f"{{}}.unsqueeze({a})", "{}.squeeze()", f"{{}}.movedim({a}, {b})",
        f"{{}}.flatten({min(a % x.dim, b % x.dim)}, {max(a % x.dim, b % x.dim)})",
        "{}.unsqueeze(0)", f"{{}}.swapaxes({a}, {b})", f"{{}}.squeeze({a})", "{}.view_as({})",
        f"{{}}.reshape({x.sizes[::-1]})", "{}.contiguous()", "{}.clone()",
    )  # fmt: skip
    return d.line("view", text.replace("{}", x.name), exact=x.exact)


@rule
def part(d: Draw) -> object:
    x = d.pick(_shaped)
    dim = d.dim(x)
    size = x.sizes[dim]
    start = d.rng.randrange(size)
    text = d.one_of(
        f"{{}}.select({dim}, {start})", f"{{}}.narrow({dim}, {start}, {size - start})",
        f"{{}}[{start}:]", "{}[..., ::2]", f"{{}}[..., {start % x.sizes[-1]}]", "{}[-1]",
        "{}[None]", f"{{}}[..., -{1 + start % x.sizes[-1]}:]", "{}[..., :-1]",
    )  # fmt: skip
    return d.line("part", text.replace("{}", x.name), exact=x.exact)


@rule
def expand(d: Draw) -> object:
    x = d.pick()
    n = d.rng.choice([2, 3, 4])
    text = d.one_of(
        f"{{}}.expand({[n, *x.sizes]})", f"{{}}.unsqueeze(-1).expand({[*x.sizes, n]})",
        f"{{}}.repeat({[n, *[1] * x.dim]})", f"{{}}.repeat_interleave({n}, -1)", f"{{}}.tile({n})",
        f"torch.broadcast_to({{}}, {[n, *x.sizes]})",
    )  # fmt: skip
    return d.line("expand", text.replace("{}", x.name), exact=x.exact)


@rule
def moved(d: Draw) -> object:
    x = d.pick(_shaped)
    dim = d.dim(x)
    text = d.one_of(f"{{}}.flip({dim})", f"{{}}.roll(1, {dim})", "{}.roll(2)", "{}.rot90()",
                    "torch.tril({})", "torch.triu({}, 1)", "{}.diagonal(0, -2, -1)",
                    f"{{}}.unfold({dim}, 1, 1)", f"{{}}.unfold({dim}, 2, 1)", "torch.diag_embed({})")  # fmt: skip
    return d.line("moved", text.replace("{}", x.name), exact=x.exact)


@rule
def divided(d: Draw) -> object:
    x = d.pick(lambda v: v.dim > 0 and max(v.sizes) > 1)
    dim = x.sizes.index(max(x.sizes))
    text = d.one_of(
        f"{{}}.chunk(2, {dim})", f"{{}}.split(2, {dim})", f"torch.tensor_split({{}}, 2, {dim})",
        f"{{}}.split([1, {x.sizes[dim] - 1}], {dim})", f"{{}}.unbind({dim})",
    )  # fmt: skip
    return d.line("divided", text.replace("{}", x.name), exact=x.exact)


@rule
def joined(d: Draw) -> object:
    x = d.pick(_shaped)
    y = d.pick(lambda v: v.dim == x.dim)
    dim = d.dim(x)
    text = d.one_of(
        "torch.cat([{}, {}], {})", "torch.stack([{}, {}], {})", "torch.hstack([{}, {}])"
    )
    exact = x.exact and y.exact and x.dtype == y.dtype
    return d.line("joined", text.format(x.name, y.name, dim), exact=exact)


@rule
def padded(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim > 1)
    text = d.one_of("F.pad({}, (1, 2))", "F.pad({}, (0, 1, 1, 0), value=0.5)", "F.pad({}, (-1, 1))",
                    "F.pad({}, (1, 1), mode='reflect')", "F.pad({}, (1, 1), mode='replicate')")  # fmt: skip
    return d.line("padded", text.format(x.name), exact=x.exact)


@rule
def made(d: Draw) -> object:
    x = d.pick(_float)
    n = x.sizes[-1] if x.dim else 1
    text = d.one_of(
        "torch.zeros_like({0}) + {0}", "torch.ones_like({0}) * {0}", f"torch.arange({n}) * {{0}}",
        f"{{0}} + torch.tensor({[0.5 * i for i in range(n)]})", "torch.full_like({0}, 0.5) - {0}",
        f"torch.linspace(0, 1, {n}) + {{0}}", f"{{0}}.new_zeros({n}) + {{0}}", f"torch.eye({n}) + {{0}}",
        f"{{0}} * torch.ones({n}, dtype=torch.float64)", "{0} + torch.tensor(2)",
    )  # fmt: skip
    return d.line("made", text.format(x.name))


@rule
def write(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim > 0)
    y = d.pick(_float).name
    text = d.one_of(
        "{}[..., 0] = 1.5", "{}.mul_(2)", "{}.add_(Y)", "{}[..., ::2].add_(1)", "{}[0].copy_(Y)",
        "{}.transpose(0, -1).mul_(Y)", "{}.view(-1)[0] = 0.25", "{}[..., 1:] = {}[..., :-1].clone()",
        "{}.clamp_(-0.5, 0.5)", "torch.nn.functional.relu({}, inplace=True)", "{}.zero_().add_(Y)",
        "{}[-1] += Y", "{}.select(-1, 0).sub_({}.select(-1, -1))", "{}.masked_fill_(Y > 9, 0.5)",
    )  # fmt: skip
    if "{}[..., :-1]" in text or "select(-1, -1)" in text:
        text = text.replace("{}", "{0}")
    return d.write(x, text.replace("Y", y))


@rule
def write_in_place(d: Draw) -> object:
    # Views of the value see the write, and what it is a view of.
    x = d.pick(lambda v: v.is_float and v.dim > 0 and not d.is_given(v))
    text = d.one_of("{}.mul_(0.5)", "{}.add_(1)", "{}[..., 0] = 0.5", "{}[-1:].neg_()", "{} += 0.25",
                    "{}.clamp_(-1, 1)", "{}.transpose(0, -1)[0].fill_(0.75)")  # fmt: skip
    return d.write_in_place(x, text.format(x.name))


# -- many elements to one --


@rule
def reduction(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim > 0)
    dim = d.dim(x)
    text = d.one_of(
        "{}.sum()", f"{{}}.sum({dim})", f"{{}}.mean({dim}, keepdim=True)", "{}.mean()",
        f"{{}}.var({dim}, correction=0)", f"{{}}.std({dim}, correction=0)", f"{{}}.logsumexp({dim})",
        f"{{}}.norm(dim={dim})", f"torch.linalg.vector_norm({{}}, dim={dim})", f"{{}}.prod({dim})",
        f"{{}}.cumsum({dim})", f"torch.var_mean({{}}, {dim}, correction=0)", f"{{}}.sum({dim}, dtype=torch.float64)",
        f"{{}}.nansum({dim})", "{}.norm()", f"{{}}.cumprod({dim})", f"torch.std_mean({{}}, {dim}, correction=0)",
    )  # fmt: skip
    return d.line("reduction", text.replace("{}", x.name))


@rule
def extreme(d: Draw) -> object:
    x = d.pick(_shaped)
    dim = d.dim(x)
    text = d.one_of(f"{{}}.amax({dim})", f"{{}}.amin({dim}, keepdim=True)", "{}.max()", "{}.amin()",
                    "torch.aminmax({})")  # fmt: skip
    return d.line("extreme", text.replace("{}", x.name), exact=x.exact)


@rule
def place(d: Draw) -> object:
    x = d.pick(lambda v: v.exact and v.dim > 0 and v.dtype in ("torch.float32", "torch.float64"))
    dim = d.dim(x)
    text = d.one_of(f"{{}}.argmax({dim})", f"{{}}.max({dim})", f"{{}}.argmin({dim})",
                    f"{{}}.sort({dim}, stable=True)", f"{{}}.topk(1, {dim})", f"{{}}.min({dim}, keepdim=True)",
                    f"{{}}.argsort({dim}, stable=True)", f"{{}}.cummax({dim})")  # fmt: skip
    if d.rng.random() < 0.03:
        text = f"{{}}.median({dim})"
    return d.line("place", text.replace("{}", x.name), exact=True)


@rule
def count(d: Draw) -> object:
    x = d.pick(lambda v: not v.is_float and v.dim > 0)
    dim = d.dim(x)
    text = d.one_of(f"{{}}.sum({dim})", f"{{}}.any({dim})", f"{{}}.all({dim})", "{}.sum()",
                    f"{{}}.cumsum({dim})", "{}.any()", f"torch.count_nonzero({{}}, {dim})")  # fmt: skip
    return d.line("count", text.replace("{}", x.name), exact=True)


@rule
def softmax(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim > 0)
    dim = d.dim(x)
    text = d.one_of(f"F.softmax({{}}, {dim})", f"F.log_softmax({{}}, {dim})", f"F.normalize({{}}, dim={dim})",
                    f"F.softmin({{}}, {dim})", f"F.softmax({{}}, {dim}, dtype=torch.float32)")  # fmt: skip
    return d.line("softmax", text.replace("{}", x.name))


# -- products --


@rule
def linear(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim > 0)
    out = d.rng.choice([1, 2, 3, 4, 8, 16])
    w = d.parameter([out, x.sizes[-1]], x.tensor.dtype)
    bias = f", {d.parameter([out], x.tensor.dtype)}" if d.rng.random() < 0.7 else ""
    return d.line("linear", f"F.linear({x.name}, {w}{bias})")


@rule
def product(d: Draw) -> object:
    x = d.pick(_matrix)
    n = x.sizes[-1]
    w = d.parameter([n, d.rng.choice([1, 2, 4, 8])], x.tensor.dtype)
    square = f"({x.name} @ {x.name}.mT) / {n}"
    text = d.one_of(f"{x.name} @ {w}", square, f"torch.matmul({x.name}, {w})", f"{w}.t() @ {x.name}.mT",
                    f"torch.einsum('...ij,jk->...ik', {x.name}, {w})", f"{x.name} @ {w}[:, 0]",
                    f"torch.tensordot({x.name}, {w}, 1)")  # fmt: skip
    return d.line("product", text)


@rule
def batched_product(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim == 3)
    text = d.one_of("torch.bmm({0}, {0}.mT) / 4", "torch.baddbmm({0} @ {0}.mT, {0}, {0}.mT, beta=0.5) / 8",
                    "torch.einsum('bij,bkj->bik', {0}, {0}) / 4")  # fmt: skip
    return d.line("batched product", text.format(x.name))


@rule
def addmm(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim == 2)
    n = d.rng.choice([1, 3, 8])
    w, b = d.parameter([x.sizes[1], n], x.tensor.dtype), d.parameter([n], x.tensor.dtype)
    options = d.one_of("", ", beta=0.5", ", alpha=2.0")
    return d.line("addmm", f"torch.addmm({b}, {x.name}, {w}{options})")


@rule
def attention(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim in (3, 4))
    n = x.sizes[-1]
    w = d.parameter([n, n], x.tensor.dtype)
    options = d.one_of("", ", is_causal=True", ", scale=0.3")
    text = f"F.scaled_dot_product_attention({x.name}, {x.name} @ {w}, {x.name} * 0.5{options})"
    return d.line("attention", text)


@rule
def convolution(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim in (3, 4))
    c, k, out = x.sizes[1], d.rng.choice([1, 3]), d.rng.choice([1, 2, 4])
    w = d.parameter([out, c, *[k] * (x.dim - 2)], x.tensor.dtype)
    b = d.one_of("None", d.parameter([out], x.tensor.dtype))
    options = d.one_of("padding=1", "padding=1, stride=2", "padding=2, dilation=2", "padding=1")
    return d.line("convolution", f"F.conv{x.dim - 2}d({x.name}, {w}, {b}, {options})")


@rule
def pooling(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim in (3, 4))
    text = d.one_of("F.avg_pool{n}d({x}, 2)", "F.adaptive_avg_pool{n}d({x}, 1)", "F.max_pool{n}d({x}, 2)",
                    "F.max_pool{n}d({x}, 3, 1, 1)", "F.interpolate({x}, scale_factor=2)",
                    "F.avg_pool{n}d({x}, 3, 1, 1)", "F.adaptive_avg_pool{n}d({x}, 2)")  # fmt: skip
    return d.line("pooling", text.format(n=x.dim - 2, x=x.name))


# -- norms --


@rule
def norm(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim > 1 and v.sizes[-1] > 1)
    n, c, dtype = x.sizes[-1], x.sizes[1], x.tensor.dtype
    w, b = d.parameter([n], dtype), d.parameter([n], dtype)
    scale, shift = d.parameter([c], dtype), d.parameter([c], dtype)
    mean, var = d.parameter([c], dtype), d.parameter([c], dtype, positive=True)
    text = d.one_of(
        f"F.layer_norm({{}}, [{n}], {w}, {b})", f"F.layer_norm({{}}, [{n}])", f"F.rms_norm({{}}, [{n}], {w})",
        f"F.batch_norm({{}}, {mean}, {var}, {scale}, {shift})", f"F.group_norm({{}}, 1, {scale}, {shift})",
        f"F.batch_norm({{}}, {mean}, {var})", "F.instance_norm({})", f"F.group_norm({{}}, {c})",
    )  # fmt: skip
    return d.line("norm", text.replace("{}", x.name))


# -- indices --


@rule
def embedding(d: Draw) -> object:
    words, size = d.rng.choice([3, 7]), d.rng.choice([1, 4, 8])
    table = d.parameter([words, size], d.pick(_float).tensor.dtype)
    ids = d.integers([d.rng.choice([1, 2, 5]) for _ in range(d.rng.choice([1, 2]))], words)
    return d.line("embedding", f"F.embedding({ids.name}, {table})")


@rule
def gather(d: Draw) -> object:
    x = d.pick(_shaped)
    dim = d.dim(x)
    ids = d.integers(x.sizes, x.sizes[dim]).name
    flat = d.integers([d.rng.choice([1, 3])], x.sizes[dim]).name
    first = d.integers([2], x.sizes[0]).name
    text = d.one_of(f"{{}}.gather({dim}, {ids})", f"{{}}.index_select({dim}, {flat})", f"{{}}[{first}]",
                    f"{{}}[..., {ids}.view(-1)[:1] * 0]")  # fmt: skip
    if d.rng.random() < 0.03:  # It divides integers, and is declined.
        text = f"torch.take_along_dim({{}}, {ids}, {dim})"
    return d.line("gather", text.replace("{}", x.name), exact=x.exact)


@rule
def scatter(d: Draw) -> object:
    x = d.pick(lambda v: v.is_float and v.dim > 0)
    dim = d.dim(x)
    ids = d.integers(x.sizes, x.sizes[dim]).name
    flat = d.integers([x.sizes[dim]], x.sizes[dim]).name
    text = d.one_of(f"{{}}.scatter_add({dim}, {ids}, {{}})", f"{{}}.index_add({dim}, {flat}, {{}})",
                    f"{{}}.scatter({dim}, {ids}, 0.5)")  # fmt: skip
    if d.rng.random() < 0.03:  # It raises for wrong indices, and the library could not.
        text = f"{{}}.scatter_reduce({dim}, {ids}, {{}}, 'amax')"
    return d.line("scatter", text.replace("{}", x.name))


@rule
def one_hot(d: Draw) -> object:
    ids = d.integers([d.rng.choice([2, 3])], 4).name
    text = d.one_of(f"({ids}[:, None] == torch.arange(4)).float()", f"torch.bucketize({ids}, torch.arange(4))",
                    f"{ids}.unsqueeze(-1) + torch.arange(3)")  # fmt: skip
    return d.line("one hot", text, exact=True)


def drawn(seed: int) -> Draw:
    """Return a drawn module's parts: 4 to 14 lines of ops."""
    draw = Draw(seed)
    rng = draw.rng
    with torch.no_grad():
        dtype = rng.choice(_FLOATS)
        sizes = [rng.choice([1, 2, 3, 4, 5, 8, 16]) for _ in range(rng.choice([1, 2, 2, 3, 3, 4]))]
        draw.floats(sizes, dtype)
        if rng.random() < 0.6:
            draw.floats(sizes if rng.random() < 0.5 else sizes[1:], rng.choice([dtype, *_FLOATS]))
        names = list(GRAMMAR)
        wanted, tries = rng.randint(4, 14), 0
        while len(draw.lines) < wanted and tries < _TRIES:
            tries += 1
            try:
                GRAMMAR[rng.choice(names)](draw)
            except LookupError:
                continue
        draw.finish()
    return draw
