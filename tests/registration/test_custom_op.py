"""Operators of the user's own: what PyTorch sees of them, and what it says of wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import aoti_eager
from aoti_eager import custom_op, stats
from aoti_eager.errors import CustomOpError, CustomOpResultError, RegistrationError

from ..conftest import MakeOp, assert_close
from ..support import gradient_ops as functions
from ..support import processes


def scale_(x: Tensor, by: float) -> None:
    x.mul_(by)


def total(tensors: list[Tensor], by: float) -> Tensor:
    return torch.stack([(one * by).sum() for one in tensors]).sum()


def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def branch(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x * 2
    return x * 3


def pair(*sizes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*sizes, generator=generator), torch.rand(sizes[-1], generator=generator)


# -- what PyTorch sees --


@pytest.mark.full
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_passes(grad: bool, make_op: MakeOp, shared_cache: Path) -> None:
    x, weight = (one.requires_grad_(grad) for one in pair(3, 5))
    cube = pair(3, 5, 2)[0].requires_grad_(grad)
    cases = [
        (make_op(functions.rms_norm), (x, weight)),
        (make_op(functions.variance), (cube,)),
        (make_op(total), ([x, weight], 0.5)),
        (make_op(scale_, mutates_args=("x",)), (x.detach().clone(), 2.0)),
    ]
    for op, arguments in cases:
        torch.library.opcheck(op.op, arguments)


TABLE = torch.arange(5.0)


def times_table(x: Tensor) -> Tensor:
    return torch.tanh(x * TABLE)


@pytest.mark.full
def test_a_tensor_found_by_name_is_a_constant_of_traces(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op, x = make_op(times_table), pair(3, 5)[0]
    torch.library.opcheck(op.op, (x,))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), times_table(x))
    with pytest.raises(Exception, match="finds a tensor by name.*make it an argument"):
        compiled(x.clone().requires_grad_())


@pytest.mark.parametrize("wrong", [times_table, ("x",), None, 3])
def test_a_decorator_without_a_name_says_what_is_wanted(wrong: Any) -> None:
    with pytest.raises(CustomOpError, match="for the operator's name.*is wanted"):
        aoti_eager.custom_op(wrong)
    with pytest.raises(CustomOpError, match="by keyword"):
        aoti_eager.custom_op("aetest::wrong", ("x",))  # type: ignore[arg-type]


def test_what_is_no_op_is_refused_by_its_type(make_op: MakeOp) -> None:
    op = make_op(times_table)
    for wrong in (op, torch.softmax, 3):
        with pytest.raises(RegistrationError, match="an op is given as"):
            aoti_eager.register(wrong)  # type: ignore[arg-type]
        with pytest.raises(RegistrationError, match="an op is given as") as caught:
            aoti_eager.explain(wrong)  # type: ignore[arg-type]
        assert ("its op is one" in str(caught.value)) is (wrong is op)
        with pytest.raises(RegistrationError, match="an op is given as"):
            aoti_eager.constants(wrong)  # type: ignore[arg-type]
        with pytest.raises(RegistrationError, match="its name is wanted"):
            aoti_eager.mark_dynamic(wrong, "x", 0)  # type: ignore[arg-type]


@pytest.mark.both_paths
def test_a_call_is_served_and_seen_in_a_profile(make_op: MakeOp, shared_cache: Path) -> None:
    op = make_op(functions.rms_norm)
    x, weight = pair(3, 5)
    for _ in range(3):
        assert_close(op(x, weight), functions.rms_norm(x, weight))
        assert_close(op(x, weight=weight, eps=0.5), functions.rms_norm(x, weight, 0.5))
    assert stats()[op.name].hits >= 4
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ops.aetest.rms_norm(x, weight)
    names = {event.key for event in profile.key_averages()}
    assert {"aetest::rms_norm", "aoti_eager::aetest::rms_norm"} <= names


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_vmap_and_torch_func_go_through_what_the_function_consists_of(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(functions.rms_norm)
    x, weight = pair(4, 3, 5)
    want = functions.rms_norm(x, weight)
    assert_close(torch.vmap(lambda one: op(one, weight))(x), want)

    def loss(function: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda one: function(one, weight).pow(2).sum()

    for transform in (torch.func.grad, torch.func.hessian):
        got, expected = (transform(loss(f))(x[0]) for f in (op, functions.rms_norm))
        assert_close(got, expected)
    got = torch.vmap(torch.func.grad(loss(op)))(x)
    assert_close(got, torch.vmap(torch.func.grad(loss(functions.rms_norm)))(x))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [
            forward_ad.unpack_dual(f(dual, weight)).tangent for f in (op, functions.rms_norm)
        ]
    assert_close(*tangents)


def test_torch_compile_and_export_have_a_full_graph(make_op: MakeOp, shared_cache: Path) -> None:
    op = make_op(functions.rms_norm)
    x, weight = (one.requires_grad_() for one in pair(3, 5))
    compiled = torch.compile(lambda a, b: op(a, b) * 2, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, weight).sum(), (x, weight))
    want = torch.autograd.grad((functions.rms_norm(x, weight) * 2).sum(), (x, weight))
    assert_close(got, want)

    class Model(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return op(a, b) + 1

    exported = torch.export.export(Model(), tuple(one.detach() for one in (x, weight)))
    # By name: of an op that was defined anew, torch.ops may have another object.
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert str(op.op) in targets


def test_autocast_is_the_functions_own(make_op: MakeOp, shared_cache: Path) -> None:
    op = make_op(product)
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    for _ in range(2):
        assert op(a, b).dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        for one in (a, a.clone().requires_grad_()):
            assert op(one, b).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert op(a, b).dtype is torch.bfloat16
    assert op(a, b).dtype is torch.float32


@pytest.mark.both_paths
def test_what_is_written_to_has_its_version_counted(make_op: MakeOp, shared_cache: Path) -> None:
    op = make_op(scale_, mutates_args=("x",))
    x = torch.ones(3, 5)
    for _ in range(3):
        op(x, 2.0)
    assert_close(x, torch.full((3, 5), 8.0))
    assert x._version == 3
    assert stats()[op.name].hits >= 1
    leaf = torch.ones(3, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        op(leaf, 2.0)
    inner = leaf * 1
    op(inner, 2.0)
    inner.sum().backward()
    assert_close(leaf.grad, torch.full((3, 5), 2.0))


def test_a_list_of_tensors_has_its_gradients_from_the_function(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(total)
    tensors = [torch.ones(2, 3, requires_grad=True), torch.ones(4)]
    for _ in range(2):
        op(tensors, 0.5).backward()
    assert_close(tensors[0].grad, torch.ones(2, 3))


def test_a_backward_of_the_users_own(make_op: MakeOp, shared_cache: Path) -> None:
    op = make_op(functions.gelu_tanh)
    seen: list[int] = []

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        seen.append(len(ctx.saved_tensors))
        return gradient * 7

    op.register_autograd(backward, setup_context=setup_context)
    x = torch.randn(3, 5, requires_grad=True)
    op(x).sum().backward()
    assert_close(x.grad, torch.full((3, 5), 7.0))
    assert seen == [1]


# -- what it says of wrong ones --


def returns_a_number(x: Tensor) -> Tensor:
    return 3


def returns_its_input(x: Tensor) -> Tensor:
    return x


def returns_a_view(x: Tensor) -> Tensor:
    return x[0]


def returns_something(x: Tensor) -> None:
    return x + 1


def returns_three(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + 1, x + 2, x + 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (returns_a_number, "result 0 is int; its schema says Tensor"),
        (returns_its_input, "a result is an argument, a view of one or of another result"),
        (returns_a_view, "return a clone"),
        (returns_something, "returned Tensor; its schema says that it returns nothing"),
        (returns_three, "returned 3 results; its schema has 2"),
    ],
)
def test_wrong_results(function: Callable[..., Any], message: str, make_op: MakeOp) -> None:
    op = make_op(function)
    for x in (torch.ones(3, 5), torch.ones(3, 5, requires_grad=True)):
        with pytest.raises(CustomOpResultError, match=re.escape(message)) as caught:
            op(x)
        assert str(caught.value).startswith(op.name)


def no_annotation(x) -> Tensor:  # type: ignore[no-untyped-def]
    return x


def wrong_annotation(x: dict[str, Tensor]) -> Tensor:
    return x["a"]


@pytest.mark.parametrize(
    ("name", "function", "options", "message"),
    [
        ("rms_norm", functions.rms_norm, {}, "namespace::name is wanted"),
        ("::rms_norm", functions.rms_norm, {}, "namespace::name is wanted"),
        ("a::b.c", functions.rms_norm, {}, "namespace::name is wanted"),
        ("aten::rms_norm", functions.rms_norm, {}, "is PyTorch's; take one of yours"),
        ("aetest::f", no_annotation, {}, "must have a type annotation"),
        ("aetest::f", wrong_annotation, {}, "unsupported type"),
        ("aetest::f", functions.rms_norm, {"mutates_args": ("y",)}, "were not found"),
        ("aetest::f", torch.relu, {}, "defined with def is wanted"),
    ],
)
def test_wrong_definitions(
    name: str, function: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CustomOpError, match=re.escape(message)) as caught:
        custom_op(name, function, **options)
    assert name in str(caught.value)
    assert aoti_eager.registered_ops() == []


def test_a_name_is_one_functions_and_a_new_version_of_it_takes_its_place(make_op: MakeOp) -> None:
    op = make_op(branch)
    with pytest.raises(
        CustomOpError, match=r"tests\.registration\.test_custom_op\.product would take its place"
    ):
        custom_op(op.name, product)
    x = torch.ones(2, 3)
    assert_close(op(x), x * 2)
    again = make_op(branch)
    assert_close(again(x), x * 2)
    op.unregister()  # The older one: nothing happens.
    assert_close(again(x), x * 2)


def test_control_flow_that_depends_on_data_runs_as_it_is(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(branch)
    x = torch.ones(2, 3, requires_grad=True)
    for one in (x, -x, x.detach(), -x.detach()):
        assert_close(op(one), branch(one))
    assert stats()[op.name].declined.keys() == {"data_dependent_output"}
    with pytest.raises(torch._dynamo.exc.UserError, match="Could not guard on data-dependent"):
        torch.compile(lambda one: op(one), fullgraph=True, backend="eager")(x.detach())


# -- processes --

SCRIPT = """
import json, sys, time
import torch
from torch import Tensor

start = time.perf_counter()
import aoti_eager

@aoti_eager.custom_op("mine::rms_norm")
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight * FACTOR

x, weight = torch.ones(4, 8, requires_grad=True), torch.ones(8, requires_grad=True)
for _ in range(3):
    gradients = torch.autograd.grad(rms_norm(x, weight).sum(), (x, weight))
heavy = [n for n in ("torch._dynamo", "torch._inductor", "sympy") if n in sys.modules]
forward, backward = (
    aoti_eager.stats()[n] for n in ("mine::rms_norm", "mine::_rms_norm_backward")
)
print(json.dumps({
    "heavy": heavy, "compiles": forward.compiles + backward.compiles,
    "hits": min(forward.hits, backward.hits), "gradient": gradients[1].tolist(),
    "seconds": time.perf_counter() - start,
}))
"""


@pytest.mark.full
def test_a_later_process_compiles_nothing_and_an_edited_function_misses(
    cache_dir: Path, tmp_path: Path
) -> None:
    def run(factor: int) -> Any:
        script = tmp_path / "mine.py"  # A function needs a file for its source.
        script.write_text(SCRIPT.replace("FACTOR", str(factor)))
        return processes.run(cache_dir, f"import runpy; runpy.run_path({str(script)!r})")

    first, second = run(2), run(2)
    assert first["compiles"] == 2
    assert (second["compiles"], second["heavy"]) == (0, [])
    assert second["hits"] >= 1
    edited = run(3)
    assert edited["compiles"] == 2
    for found, factor in ((first, 2), (second, 2), (edited, 3)):
        assert_close(torch.tensor(found["gradient"]), torch.full((8,), 4.0 * factor))


# -- what a function closes over --

SCALE = 2.0
TABLE = torch.full((5,), 3.0)


def scaled(x: Tensor) -> Tensor:
    return x * SCALE + TABLE


def shifted(x: Tensor, by: float = 0.5) -> Tensor:
    return torch.tanh(x) + by


@pytest.mark.both_paths
def test_a_global_that_changes_is_another_key_and_a_tensor_is_read_anew(
    make_op: MakeOp, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = make_op(scaled)
    x = torch.ones(3, 5, requires_grad=True)
    for scale in (2.0, 4.0, 2.0):
        monkeypatch.setitem(globals(), "SCALE", scale)
        for value in (3.0, 7.0):
            monkeypatch.setitem(globals(), "TABLE", torch.full((5,), value))
            for _ in range(3):
                got = op(x)
                assert_close(got, torch.full((3, 5), scale + value))
                assert_close(torch.autograd.grad(got.sum(), x)[0], torch.full((3, 5), scale))
                with torch.no_grad():
                    assert_close(op(x), torch.full((3, 5), scale + value))
    assert stats()[op.name].compiles <= 2
    assert stats()[op.name].hits >= 6


@pytest.mark.both_paths
def test_defaults_are_those_of_the_definition(make_op: MakeOp, shared_cache: Path) -> None:
    op = make_op(shifted)
    x = torch.ones(3, 5)
    for _ in range(2):
        assert_close(op(x), torch.tanh(x) + 0.5)
        assert_close(op(x, 0.25), torch.tanh(x) + 0.25)
        assert_close(op(x, by=0.5), torch.tanh(x) + 0.5)


class Box:
    """Something that no worker can have."""

    factor = 2.0


BOX = Box()


def boxed(x: Tensor) -> Tensor:
    return x * BOX.factor


@pytest.mark.both_paths
def test_what_cannot_be_in_a_key_is_named_and_the_function_runs(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(boxed)
    x = torch.ones(3, 5, requires_grad=True)
    for factor in (2.0, 5.0):
        BOX.factor = factor
        op(x).sum().backward()
        assert_close(x.grad, torch.full((3, 5), factor))
        x.grad = None
        assert_close(op(x.detach()), torch.full((3, 5), factor))
    assert stats()[op.name].declined.keys() == {"unsupported_function"}
    message = str(aoti_eager.explain(op.op, x.detach()))
    assert "BOX" in message


# -- autograd's rules --


def test_what_needs_no_gradient_gets_none_and_costs_no_kernel(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(functions.swiglu)
    gate, up = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    for _ in range(3):
        result = op(gate, up)
        (gradient,) = torch.autograd.grad(result.sum(), gate)
    want = torch.autograd.grad(functions.swiglu(gate, up).sum(), gate)[0]
    assert_close(gradient, want)
    before = stats()["aetest::_swiglu_backward"]
    with torch.no_grad():
        assert op(gate, up).grad_fn is None
    assert op(gate.detach(), up).grad_fn is None
    assert stats()["aetest::_swiglu_backward"] == before


@pytest.mark.full
@pytest.mark.both_paths
def test_gradients_in_any_layout_twice_and_of_one_result(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(functions.variance)
    x = torch.randn(2, 3, 4, requires_grad=True)
    for _ in range(3):
        mean, variance = op(x)
        want_mean, want_variance = functions.variance(x)
        # An expanded gradient; one of the results alone; the graph a second time.
        got = torch.autograd.grad(variance.sum(), x, retain_graph=True)
        assert_close(got, torch.autograd.grad(want_variance.sum(), x, retain_graph=True))
        got = torch.autograd.grad(mean, x, torch.ones(6)[::2], retain_graph=True)
        assert_close(got, torch.autograd.grad(want_mean, x, torch.ones(3), retain_graph=True))
        assert_close(
            torch.autograd.grad((mean * variance).sum(), x),
            torch.autograd.grad((want_mean * want_variance).sum(), x),
        )
    assert stats()["aetest::_variance_backward"].hits >= 3


@pytest.mark.both_paths
def test_a_graph_is_gone_after_its_backward(make_op: MakeOp, shared_cache: Path) -> None:
    op = make_op(functions.gelu_tanh)
    x = torch.randn(3, 5, requires_grad=True)
    for _ in range(4):
        total = op(x).sum()
        total.backward()
        with pytest.raises(RuntimeError, match="second time"):
            total.backward()


@pytest.mark.both_paths
def test_an_argument_that_was_written_to_since_is_an_error(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(functions.gelu_tanh)
    leaf = torch.randn(3, 5, requires_grad=True)
    for _ in range(3):
        x = leaf * 1
        result = op(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


@pytest.mark.both_paths
def test_the_mode_off_and_a_disabled_op_run_the_function(
    make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(functions.gelu_tanh)
    x = torch.randn(3, 5, requires_grad=True)
    for _ in range(3):
        op(x).sum().backward()
    before = [one.hits for one in stats().values()]
    with aoti_eager.config.scope(mode="off"):
        for _ in range(2):
            assert "Backward0" in op(x).grad_fn.name()
            op(x).sum().backward()
        assert [one.hits for one in stats().values()] == before
    op(x).sum().backward()
    assert [one.hits for one in stats().values()] > before
