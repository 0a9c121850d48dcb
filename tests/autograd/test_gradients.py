"""Gradients of the user's own ops: what autograd gives, by compiled forward and backward."""

from __future__ import annotations

import json
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import aoti_eager
from aoti_eager import CustomOp, stats
from aoti_eager._autograd.kernel import AutogradKernel
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._dispatch.key_state import Decline
from aoti_eager._native.autograd_kernel import NativeAutogradKernel
from aoti_eager._registration import registry
from aoti_eager.errors import AotiEagerWarning, CustomOpError, StoreError

from ..conftest import MakeOp, assert_close
from ..support import gradient_ops as functions


def leaf(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=dtype).requires_grad_()


def plain(*sizes: int, seed: int = 9) -> Tensor:
    return leaf(*sizes, seed=seed).detach()


CASES: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "rms_norm": (functions.rms_norm, lambda: (leaf(3, 5), leaf(5, seed=1))),
    "layer_norm_residual": (
        functions.layer_norm_residual,
        lambda: (leaf(3, 5), leaf(3, 5, seed=1), leaf(5, seed=2), leaf(5, seed=3)),
    ),
    "swiglu": (functions.swiglu, lambda: (leaf(3, 5), leaf(3, 5, seed=1))),
    "gelu_tanh": (functions.gelu_tanh, lambda: (leaf(3, 5),)),
    "rotary": (functions.rotary, lambda: (leaf(2, 3, 4), plain(3, 2), plain(3, 2, seed=8))),
    "cross_entropy": (functions.cross_entropy, lambda: (leaf(4, 5), torch.tensor([0, 3, 2, 4]))),
    "masked_softmax": (functions.masked_softmax, lambda: (leaf(3, 5), plain(3, 5) > -0.5, 0.5)),
    "affine": (functions.affine, lambda: (leaf(3, 5), leaf(5, seed=1), leaf(3, 1, seed=2))),
    "variance": (functions.variance, lambda: (leaf(2, 3, 4),)),
    "cosine": (functions.cosine, lambda: (leaf(3, 5), leaf(1, 5, seed=1))),
    "huber": (functions.huber, lambda: (leaf(3, 5), leaf(3, 5, seed=1), 0.75)),
    "bilinear": (functions.bilinear, lambda: (leaf(3, 4), leaf(4, 2, seed=1), None)),
}


def counts(op: CustomOp) -> tuple[Any, Any]:
    """Return what happened to calls of an op, and of its gradient's."""
    namespace, _, local = op.name.partition("::")
    found = stats()
    return found[op.name], found[f"{namespace}::_{local}_backward"]


def results_of(op: Callable[..., Any], *arguments: Any) -> list[Tensor]:
    """Return the results of a call."""
    found = op(*arguments)
    return [found] if isinstance(found, Tensor) else list(found)


def run(op: Callable[..., Any], *arguments: Any) -> list[Tensor]:
    """Return the results and gradients of a call."""
    results = results_of(op, *arguments)
    wanted = [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]
    total = sum((one * (index + 1)).sum() for index, one in enumerate(results))
    return [*results, *torch.autograd.grad(total, wanted)]


@pytest.mark.share(of=14)
@pytest.mark.both_paths
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_first_and_second_order(name: str, make_op: MakeOp, shared_cache: Any) -> None:
    function, make = CASES[name]
    op, arguments = make_op(function), make()
    run(op, *arguments)  # Compiled, and compared; then the gradient of each result alone.
    for result in results_of(op, *arguments):
        wanted = [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]
        torch.autograd.grad(result.sum(), wanted, retain_graph=True, allow_unused=True)
    forward, backward = counts(op)
    assert gradcheck(op, arguments)
    assert counts(op)[0].hits > forward.hits
    assert counts(op)[1].hits > backward.hits
    assert counts(op)[1].declines == backward.declines
    assert gradgradcheck(op, arguments)
    assert sum(one.failures for one in counts(op)) == forward.failures + backward.failures


@pytest.mark.parametrize("name", ["rms_norm", "affine", "variance"])
def test_what_eager_gives_in_float32(name: str, make_op: MakeOp, shared_cache: Any) -> None:
    function, make = CASES[name]
    op = make_op(function)
    arguments = [one.detach().float().requires_grad_() for one in make()]
    for _ in range(3):
        assert_close(run(op, *arguments), run(op.__wrapped__, *arguments))
    assert counts(op)[1].hits >= 1


# -- what eager does, and a compiled gradient must not change --


def halves(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x * 2 + 1, (x * y).sqrt()


@pytest.mark.full
@pytest.mark.both_paths
def test_a_result_that_nobody_uses_has_no_gradient(make_op: MakeOp, shared_cache: Any) -> None:
    op = make_op(halves)
    for _ in range(6):  # The function, Python's node, C++'s.
        x, y = (torch.full((3,), v, requires_grad=True) for v in (0.0, 1.0))
        op(x, y)[0].sum().backward()
        assert_close(x.grad, torch.full((3,), 2.0))  # Not NaN: 0 times infinity.
        assert y.grad is None
    for _ in range(3):
        x, y = (torch.full((3,), v, requires_grad=True) for v in (4.0, 1.0))
        sum(one.sum() for one in op(x, y)).backward()
        assert_close(x.grad, torch.full((3,), 2.25))
        assert_close(y.grad, torch.full((3,), 1.0))


@pytest.mark.full
@pytest.mark.both_paths
@pytest.mark.parametrize("event", ["unregister", "register_autograd", "redefine"])
def test_a_graph_outlives_its_op(event: str, make_op: MakeOp, shared_cache: Any) -> None:
    op = make_op(functions.gelu_tanh)
    x = torch.randn(3, 5, requires_grad=True)
    (want,) = torch.autograd.grad(functions.gelu_tanh(x).sum(), x)
    for _ in range(3):
        run(op, x)
    results = [op(x), op(x)]
    if event == "unregister":
        op.unregister()
        with pytest.raises(CustomOpError, match="was taken out"):
            op(x)
    elif event == "redefine":
        code = functions.gelu_tanh.__code__.replace(co_firstlineno=1)
        again = types.FunctionType(code, vars(functions), "gelu_tanh")
        again.__annotations__ = functions.gelu_tanh.__annotations__
        make_op(again)
    else:
        op.register_autograd(lambda ctx, gradient: gradient * 7)
    for result in results:
        assert_close(torch.autograd.grad(result.sum(), x)[0], want)


@pytest.mark.both_paths
def test_a_checkpoint_saves_the_same_each_time(make_op: MakeOp, shared_cache: Any) -> None:
    op = make_op(functions.gelu_tanh)
    x = torch.randn(3, 5, requires_grad=True)
    for _ in range(5):
        total = checkpoint(lambda one: op(one * 1.0).sin(), x, use_reentrant=False).sum()
        (got,) = torch.autograd.grad(total, x)
        (want,) = torch.autograd.grad(functions.gelu_tanh(x).sin().sum(), x)
        assert_close(got, want)
        run(op, x)  # A kernel comes.


def doubled(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.full
@pytest.mark.both_paths
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_sparse_batched_and_dual_gradients(make_op: MakeOp, shared_cache: Any) -> None:
    op, twice = make_op(functions.gelu_tanh), make_op(doubled)
    weight = torch.randn(7, 4, requires_grad=True)
    batch = torch.randn(2, 4, 7).transpose(1, 2)
    for _ in range(5):
        rows = torch.nn.functional.embedding(torch.tensor([0, 2]), twice(weight), sparse=True)
        want = doubled(weight)[[0, 2]]
        got = [torch.autograd.grad(one.sum(), weight)[0].to_dense() for one in (rows, want)]
        assert_close(*got)
        (got_batch,) = torch.autograd.grad(op(weight), weight, batch, is_grads_batched=True)
        want_batch = [
            torch.autograd.grad(functions.gelu_tanh(weight), weight, one)[0] for one in batch
        ]
        assert_close(got_batch, torch.stack(want_batch))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones(7, 4), torch.full((7, 4), 2.0))
            tangents = [
                forward_ad.unpack_dual(torch.autograd.grad(f(weight), weight, dual)[0]).tangent
                for f in (op, functions.gelu_tanh)
            ]
        assert_close(*tangents)


@pytest.mark.both_paths
def test_what_cannot_be_saved_is_no_error(make_op: MakeOp, shared_cache: Any) -> None:
    with torch.inference_mode():
        row = torch.ones(5)
    column = torch.randn(3, 1, requires_grad=True)
    add = make_op(plus)
    for _ in range(4):
        run(add, torch.ones(5), column)
        (got,) = torch.autograd.grad(add(row, column).sum(), column)
        assert_close(got, torch.full((3, 1), 5.0))


def plus(a: Tensor, b: Tensor) -> Tensor:
    return a + b


@pytest.mark.both_paths
def test_a_backward_under_autocast_computes_as_the_forward_did(
    make_op: MakeOp, shared_cache: Any
) -> None:
    op = make_op(functions.bilinear)
    x, weight = (one.detach().float().requires_grad_() for one in (leaf(3, 4), leaf(4, 2)))
    (want, _) = torch.autograd.grad(functions.bilinear(x, weight).sum(), (x, weight))
    for _ in range(4):
        result = op(x, weight).sum()
        with torch.autocast("cpu", torch.bfloat16):
            (got, _) = torch.autograd.grad(result, (x, weight))
        assert_close(got, want)


@pytest.mark.full
@pytest.mark.native
def test_calls_that_wait_for_their_kernel_do_not_pass_python(
    make_op: MakeOp, shared_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, x = make_op(functions.variance), leaf(2, 3, 7).detach().float().requires_grad_()
    may_compile = threading.Event()
    compile_ = CompileService.publish

    def publish(*args: Any, **kwargs: Any) -> Any:
        assert may_compile.wait(60.0)
        return compile_(*args, **kwargs)

    monkeypatch.setattr(CompileService, "publish", publish)
    with aoti_eager.config.scope(mode="background"):
        want = run(functions.variance, x)
        passed, call = 0, AutogradKernel.__call__

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal passed
            passed += 1
            return call(*args, **kwargs)

        monkeypatch.setattr(AutogradKernel, "__call__", counted)
        got = [run(op, x) for _ in range(6)]
        assert passed == 2  # It asks, and tells C++.
        may_compile.set()
        assert aoti_eager.wait(120.0)
        got += [run(op, x) for _ in range(6)]
        assert counts(op)[1].hits >= 3
    for one in got:
        assert_close(one, want)


@pytest.mark.full
def test_asking_for_kernels_gives_back_no_random_number_of_another_thread(
    make_op: MakeOp, shared_cache: Any
) -> None:
    op, drawn, done = make_op(functions.swiglu), [], threading.Event()

    def draw() -> None:
        while not done.is_set():
            drawn.append(torch.randint(1 << 62, (1,)).item())
            time.sleep(1e-4)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for rows in range(2, 5):
            run(op, *(torch.randn(rows, 5, requires_grad=True) for _ in range(2)))
    finally:
        done.set()
        thread.join()
    assert len(set(drawn)) == len(drawn)


def asked(op: CustomOp, rows: int) -> Tensor:
    """Ask for the kernels of a call, and return its argument."""
    x = torch.randn(rows, 3, 7, requires_grad=True)
    op(x)
    return x


@pytest.mark.full
@pytest.mark.native
def test_a_kernel_that_comes_while_another_call_is_declined_is_not_missed(
    make_op: MakeOp, shared_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = make_op(functions.variance)
    with aoti_eager.config.scope(mode="background"):
        xs = [asked(op, rows) for rows in (2, 3, 4)]
        tellers: list[threading.Thread] = []
        put = NativeAutogradKernel.put_decline

        def slow_put(kernel: NativeAutogradKernel, key: bytes) -> None:
            # A worker decides on another key of the op, at the worst of times.
            table = gradient_table(op)
            tellers.append(threading.Thread(target=table._tell))
            tellers[-1].start()
            time.sleep(0.02)
            put(kernel, key)

        monkeypatch.setattr(NativeAutogradKernel, "put_decline", slow_put)
        for x in xs:
            op(x)
        assert aoti_eager.wait(120.0)
        for x in xs:
            for _ in range(3):
                op(x)
        for teller in tellers:
            teller.join()
        before = counts(op)[1].hits
        for x in xs:
            run(op, x)
        assert counts(op)[1].hits == before + len(xs)


def gradient_table(op: CustomOp) -> Any:
    """Return the table of the op's gradient."""
    assert op._gradients is not None
    compiled = op._gradients.compiled
    assert compiled is not None
    assert compiled._gradients is not None
    return compiled._gradients._table


def go_on_telling(table: Any, done: threading.Event) -> None:
    """Do what a worker does that has decided on a key."""
    while not done.is_set():
        with table._lock:
            table._tell()


@pytest.mark.native
def test_an_op_is_unregistered_while_a_worker_decides(make_op: MakeOp, shared_cache: Any) -> None:
    with aoti_eager.config.scope(mode="cache_only"):
        for _ in range(20):
            op = make_op(functions.swiglu)
            for _ in range(2):
                run(op, *(torch.randn(2, 5, requires_grad=True) for _ in range(2)))
            done = threading.Event()
            thread = threading.Thread(target=go_on_telling, args=(gradient_table(op), done))
            thread.start()
            op.unregister()
            done.set()
            thread.join()


def test_strict_raises_in_a_training_call_too(make_op: MakeOp, tmp_path: Any) -> None:
    op = make_op(functions.swiglu)
    x = torch.randn(2, 5, requires_grad=True)
    (tmp_path / "file").write_text("no directory")
    with aoti_eager.config.scope(cache_dir=tmp_path / "file"):
        with aoti_eager.config.scope(strict=True), pytest.raises(StoreError):
            op(x, x)
        with pytest.warns(AotiEagerWarning, match="originals run"):
            assert_close(op(x, x), functions.swiglu(x, x))


def scaled_tanh(x: Tensor, by: float) -> Tensor:
    return torch.tanh(x) * by


@pytest.mark.full
def test_numbers_that_go_on_changing_are_not_asked_for(make_op: MakeOp, shared_cache: Any) -> None:
    op = make_op(scaled_tanh)
    x = torch.randn(3, 5, requires_grad=True)
    with aoti_eager.config.scope(static_cap=2):
        for step in range(12):
            run(op, x, 1.0 + step)
        assert stats()["aetest::_scaled_tanh_backward"].calls <= 4
        for by in (1.5, 2.5):
            op(x.detach(), by)
        explained = aoti_eager.explain("aetest::scaled_tanh", x.detach(), 3.5)
        assert explained.reason == "specialisation_cap"
        assert explained.message.endswith("static specialisations; what kept changing: by")


def noisy(x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(torch.sin(x), 0.5)


@pytest.mark.both_paths
def test_asking_for_kernels_takes_no_random_number(make_op: MakeOp, shared_cache: Any) -> None:
    op, x = make_op(noisy), torch.randn(64, requires_grad=True)
    assert aoti_eager.explain(op.op, x).reason == "unsupported_function"
    run(op, x)
    assert "random" in (aoti_eager.explain(op.op, x).gradient or "")
    torch.manual_seed(5)
    want = [run(noisy, x) for _ in range(4)]
    torch.manual_seed(5)
    got = [run(op, x) for _ in range(4)]
    for ours, theirs in zip(got, want, strict=True):
        assert all(map(torch.equal, ours, theirs))


def without_gradient(x: Tensor) -> Tensor:
    return torch.special.zeta(torch.exp(x) + 1, torch.exp(x))


@pytest.mark.both_paths
def test_a_function_without_a_gradient_is_one_until_somebody_wants_it(
    make_op: MakeOp, shared_cache: Any
) -> None:
    op, x = make_op(without_gradient), torch.randn(3, 5, requires_grad=True)
    for _ in range(4):
        result = op(x)
        assert_close(result, without_gradient(x))
        with pytest.raises(NotImplementedError, match="derivative for .zeta. is not implemented"):
            result.sum().backward()


FACTOR = torch.nn.Parameter(torch.full((5,), 3.0))


def times_factor(x: Tensor) -> Tensor:
    return torch.sin(x) * FACTOR


@pytest.mark.both_paths
def test_what_a_function_finds_by_name_has_its_gradient_and_its_value_of_the_forward(
    make_op: MakeOp, shared_cache: Any
) -> None:
    op = make_op(times_factor)
    for _ in range(4):
        x = torch.ones(5, requires_grad=True)
        FACTOR.grad = None
        op(x).sum().backward()
        assert_close(FACTOR.grad, torch.sin(torch.ones(5)))
        op(x.detach()).sum().backward()
        assert_close(FACTOR.grad, 2 * torch.sin(torch.ones(5)))
        result = op(x)
        with torch.no_grad():
            FACTOR.mul_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


def test_functions_of_one_definition_are_two(make_op: MakeOp) -> None:
    def make(by: float) -> Callable[[Tensor], Tensor]:
        def scaled(x: Tensor) -> Tensor:
            return x * by

        return scaled

    first = make_op(make(2.0))
    with pytest.raises(CustomOpError, match="give one of them another name"):
        make_op(make(3.0))
    assert_close(first(torch.ones(3)), torch.full((3,), 2.0))


@pytest.mark.both_paths
def test_explain_says_what_becomes_of_a_gradient(make_op: MakeOp, shared_cache: Any) -> None:
    op = make_op(functions.swiglu)
    x, y = (torch.randn(3, 5, requires_grad=True) for _ in range(2))

    def gradient(*arguments: Any) -> str:
        return aoti_eager.explain(op.op, *arguments).gradient or ""

    with torch.no_grad():
        assert gradient(x, y) == ""
    assert gradient(x.detach(), y.detach()) == ""
    assert "no such call has wanted a gradient yet" in gradient(x, y)
    run(op, x, y)
    assert gradient(x, y) == "a backward kernel serves it"
    assert "its gradient: a backward kernel" in str(aoti_eager.explain(op.op, x, y))
    assert "no such call" in gradient(x, y.detach())
    with torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one):
        assert gradient(x, y).startswith("autograd follows the function: of such calls")
    with aoti_eager.config.scope(mode="off"):
        assert gradient(x, y).endswith("switched off")
    with aoti_eager.config.scope(static_cap=1):
        assert "static_cap" in gradient(x, y.detach())
    assert aoti_eager.explain(op.op, x, y, dispatch_key="CUDA").gradient is None
    (table,) = (c.table for c in registry.caches() if c.schema.op.endswith("_backward"))
    (key,) = table.kernels
    count = next(iter(registry.caches())).counters.declined("slower")
    table.decline(key, Decline("slower", "by far", count, None))
    assert gradient(x, y).endswith("its backward kernel is declined (slower): by far")


@pytest.mark.both_paths
def test_a_backward_kernel_is_measured_by_the_training_step(
    native_library: None, make_op: MakeOp, cache_dir: Any
) -> None:
    op = make_op(functions.swiglu)
    x, y = (torch.randn(64, 64, requires_grad=True) for _ in range(2))
    with aoti_eager.config.scope(gate=True):
        run(op, x, y)
        (table,) = (c.table for c in registry.caches() if c.schema.op.endswith("_backward"))
        # Whoever wins: it was timed on the hit path that serves, though C++ is loaded on either.
        assert {one.reason for one in table.declines.values()} <= {"slower"}
        assert len(table.declines) + len(table.kernels) + len(table.candidates) == 1
    verdicts = [json.loads(path.read_text()) for path in cache_dir.glob("verdicts/*/*.json")]
    assert len(verdicts) == 2
    assert all(one["compared"] for one in verdicts)
