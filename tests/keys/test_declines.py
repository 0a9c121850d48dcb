"""Everything that must decline: the result is the original's, and the reason is counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._keys.call_template import call_template
from aoti_eager._keys.declines import call_decline
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._keys.schema import op_schema
from aoti_eager._registration import registry
from aoti_eager._store.entry import Entry, Status

from ..conftest import assert_close
from ..support import forked_python
from ..support.failing_library import make_fail

pytestmark = pytest.mark.both_paths

aten = torch.ops.aten


def declined(op: str) -> dict[str, int]:
    return dict(aoti_eager.stats().get(op, OpStats()).declined)


def name_of(op: Any) -> str:
    return str(op.name())


def assert_declines(op: Any, reason: str, call: Callable[[], Any]) -> None:
    """Assert that two calls give what the original gives and are both counted under ``reason``."""
    torch.manual_seed(3)
    expected = call()
    name = name_of(op)
    with aoti_eager.register(op):
        before = aoti_eager.stats().get(name, OpStats())
        for _ in range(2):
            torch.manual_seed(3)
            assert_equal(call(), expected, compare_values=reason != "uninitialised")
        after = aoti_eager.stats()[name]
    counted = {
        r: n - before.declined.get(r, 0)
        for r, n in after.declined.items()
        if n != before.declined.get(r, 0)
    }
    assert counted == {reason: 2}
    assert after.hits == before.hits


def assert_equal(got: Any, expected: Any, *, compare_values: bool = True) -> None:
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype
        assert got.layout == expected.layout
        if expected.is_nested:
            return
        assert got.shape == expected.shape
        if expected.layout is torch.strided:
            assert got.stride() == expected.stride()
            assert not compare_values or torch.equal(
                torch.nan_to_num(got), torch.nan_to_num(expected)
            )
    elif isinstance(expected, tuple | list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other, compare_values=compare_values)
    else:
        assert got == expected


X = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
Y = X.clone()  # `clone` itself calls `copy_`, so what tests that must not
I64 = torch.arange(8)

# Ops of which no call can be served.
ALWAYS: list[tuple[Any, str, Callable[[], Any]]] = [
    (aten.bernoulli.default, "random", lambda: aten.bernoulli(X.abs().clamp(max=1))),
    (aten.native_dropout.default, "random", lambda: aten.native_dropout(X, 0.5, True)),
    (aten.randn.default, "random", lambda: torch.randn(4)),
    (aten.empty.memory_format, "uninitialised", lambda: aten.empty.memory_format([3])),
    (aten.empty_like.default, "uninitialised", lambda: aten.empty_like(X)),
    (aten.empty_strided.default, "uninitialised", lambda: torch.empty_strided((2, 3), (1, 2))),
    (aten.view.default, "returns_view", lambda: X.view(64)),
    (aten.split.Tensor, "returns_view", lambda: X.split(4)),
    (aten.resize_.default, "changes_metadata", lambda: torch.zeros(0).resize_(0)),
    (aten.squeeze_.default, "changes_metadata", lambda: torch.ones(1, 3).squeeze_()),
    (aten.set_.source_Tensor, "changes_metadata", lambda: torch.ones(1).set_(X)),
    (aten.nonzero.default, "data_dependent_output", lambda: aten.nonzero(X > 0)),
    (aten.masked_select.default, "data_dependent_output", lambda: aten.masked_select(X, X > 0)),
    (aten._local_scalar_dense.default, "data_dependent_output", lambda: X[0, 0].item()),
    (aten.index_fill.int_Scalar, "error_depends_on_data", lambda: X.index_fill(0, I64, 2.0)),
    (aten.take.default, "error_depends_on_data", lambda: aten.take(X, I64)),
    (
        aten.scatter.src,
        "error_depends_on_data",
        lambda: aten.scatter(X, 0, I64[None, :], torch.ones(1, 8)),
    ),
    (
        aten.multi_margin_loss.default,
        "error_depends_on_data",
        lambda: aten.multi_margin_loss(X, I64),
    ),
    (
        aten.as_strided_copy.default,
        "reads_storage_offset",
        lambda: aten.as_strided_copy(X[1:], [2, 2], [1, 1]),
    ),
    (aten.is_same_size.default, "non_tensor_result", lambda: aten.is_same_size(X, X)),
]


@pytest.mark.parametrize(
    ("op", "reason", "call"), ALWAYS, ids=[f"{reason}-{name_of(op)}" for op, reason, _ in ALWAYS]
)
def test_ops_that_can_never_be_served(
    op: Any, reason: str, call: Callable[[], Any], no_compiles: None
) -> None:
    assert_declines(op, reason, call)


# Calls that the key alone rules out.
BY_KEY: list[tuple[str, Any, str, Callable[[], Any]]] = [
    (
        "a conjugated tensor",
        aten.mm.default,
        "unsupported_tensor",
        lambda: torch.mm((X + 0j).conj(), X + 1j),
    ),
    (
        "integer division",
        aten.div.Tensor_mode,
        "error_depends_on_data",
        lambda: torch.div(I64, I64 + 1, rounding_mode="floor"),
    ),
    (
        "integer remainder",
        aten.remainder.Tensor,
        "error_depends_on_data",
        lambda: torch.remainder(I64, I64 + 1),
    ),
    (
        "x.add_(x)",
        aten.add_.Tensor,
        "mutated_argument_overlaps",
        lambda: (lambda t: t.add_(t))(X.clone()),
    ),
    (
        "out= that is an input",
        aten.add.out,
        "mutated_argument_overlaps",
        lambda: (lambda t: torch.add(t, X, out=t))(X.clone()),
    ),
    (
        "views of one storage",
        aten.copy_.default,
        "mutated_argument_overlaps",
        lambda: Y[:, ::2].copy_(Y[:, 1::2]),
    ),
    (
        "a list of which two overlap",
        aten._foreach_mul_.Scalar,
        "mutated_argument_overlaps",
        lambda: (lambda t: torch._foreach_mul_([t, t[0]], 2.0) or t)(X.clone()),
    ),
]


@pytest.mark.parametrize(
    ("what", "op", "reason", "call"), BY_KEY, ids=[what for what, *_ in BY_KEY]
)
def test_calls_that_the_key_rules_out(
    what: str, op: Any, reason: str, call: Callable[[], Any], no_compiles: None
) -> None:
    assert_declines(op, reason, call)


def test_a_generator_declines(no_compiles: None) -> None:
    """Ops that take one are declined as random already; the key refuses it all the same."""
    from aoti_eager._keys.kernel_key import argument_component
    from aoti_eager._keys.schema import op_schema
    from aoti_eager.errors import UnsupportedArgumentError

    schema = op_schema(aten.randn.generator)
    argument = next(a for a in schema.arguments if a.name == "generator")
    with pytest.raises(UnsupportedArgumentError, match="random streams") as raised:
        argument_component(schema.op, argument, torch.Generator())
    assert raised.value.reason == "unsupported_argument_type"


def test_a_class_argument_declines_the_op(no_compiles: None) -> None:
    """Only ops of TorchScript classes take one; they are composite, so the op is asked directly."""
    from aoti_eager._keys.declines import op_decline
    from aoti_eager._keys.schema import op_schema

    op = aten.record_stream.default  # (Tensor(a!) self, Stream s) -> ()
    assert op_decline(op, op_schema(op)) == "unsupported_argument_type"


# Calls that are known only after a look at the graph or the result.
BY_COMPILE: list[tuple[Any, str, Callable[[], Any]]] = [
    (aten._unsafe_view.default, "result_shares_storage", lambda: aten._unsafe_view(X, [64])),
    (aten.mm.default, "no_kernel_of_its_own", lambda: torch.mm(X, X)),
    (aten.topk.default, "no_kernel_of_its_own", lambda: torch.topk(X, 2)),
    (aten.linalg_qr.default, "needs_proxy_executor", lambda: aten.linalg_qr(X)),
    (aten._to_sparse.default, "unsupported_tensor", lambda: aten._to_sparse(X)),
    (
        aten._nested_tensor_from_tensor_list.default,
        "does_not_trace",
        lambda: aten._nested_tensor_from_tensor_list([X, X]),
    ),
    (aten.isin.Tensor_Tensor, "error_depends_on_data", lambda: torch.isin(X, X)),
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("op", "reason", "call"),
    BY_COMPILE,
    ids=[f"{reason}-{name_of(op)}" for op, reason, _ in BY_COMPILE],
)
def test_calls_that_the_compile_rules_out_are_remembered_by_the_store(
    op: Any, reason: str, call: Callable[[], Any], shared_cache: Path, monkeypatch: Any
) -> None:
    assert_declines(op, reason, call)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a remembered decline was compiled again")

    monkeypatch.setattr(CompileService, "publish", never)
    assert_declines(op, reason, call)  # registered anew, with empty tables


def test_an_out_argument_of_the_wrong_size_is_resized_by_the_original(no_compiles: None) -> None:
    with aoti_eager.register("aten::add.out"):
        before = declined("aten::add.out")
        for _ in range(2):
            out = torch.empty(3)
            with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
                assert torch.add(X, X, out=out) is out
            assert_close(out, X + X)
            out = torch.empty(0)
            torch.add(X, X, out=out)
            assert_close(out, X + X)
        after = declined("aten::add.out")
    assert after["out_resized"] - before.get("out_resized", 0) == 4


def test_a_mutated_argument_that_overlaps_itself_raises_what_the_original_raises(
    no_compiles: None,
) -> None:
    with pytest.raises(RuntimeError) as plain:
        torch.zeros(1, 8).expand(8, 8).add_(X)
    with aoti_eager.register("aten::add_.Tensor"):
        for _ in range(2):
            with pytest.raises(RuntimeError) as served:
                torch.zeros(1, 8).expand(8, 8).add_(X)
            assert str(served.value) == str(plain.value)
        assert declined("aten::add_.Tensor")["mutated_argument_overlaps"] >= 2


def test_a_device_without_a_compile_backend_declines() -> None:
    with aoti_eager.register("aten::silu", dispatch_key="CUDA"):
        assert {c.always_declined for c in registry.caches()} == {"unsupported_device"}


def test_generated_code_that_corrupts_memory_ends_a_child_and_not_the_script(
    shared_cache: Path,
) -> None:
    """torch 2.13 stores int64 vectors into the bool result of add(bool, bool, alpha=3)."""
    mask = torch.ones(64, dtype=torch.bool)
    op = aten.add.Tensor
    expected = torch.add(mask, mask, alpha=3)
    with aoti_eager.register(op):
        before = aoti_eager.stats().get("aten::add.Tensor", OpStats())
        for _ in range(2):
            assert torch.equal(torch.add(mask, mask, alpha=3), expected)
        after = aoti_eager.stats()["aten::add.Tensor"]
    assert after.hits == before.hits
    reasons = {r for r, n in after.declined.items() if n != before.declined.get(r, 0)}
    assert reasons <= {"crashed", "mismatch"}
    assert len(reasons) == 1


def test_a_mismatch_with_an_override_quarantines_the_entry_with_a_report(
    cache_dir: Path, shared_cache: Path
) -> None:
    """What is compiled is torch's op; an earlier override means another one, and it wins."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("silu", lambda t: t + 100, "CPU")
    try:
        with aoti_eager.register("aten::silu"):
            before = declined("aten::silu")
            for _ in range(3):
                assert_close(aten.silu(X), X + 100)
            after = declined("aten::silu")
            key = aoti_eager.explain("aten::silu", X).key
    finally:
        library._destroy()
    assert after["mismatch"] - before.get("mismatch", 0) == 3
    assert key is not None
    listed = [one for one in aoti_eager.cache.list() if one.digest == key.digest]
    (bad,) = [one for one in listed if one.reason == "mismatch"]
    assert bad.status == "quarantined"
    (details,) = aoti_eager.cache.inspect(bad.digest)
    assert details.entry.message is not None
    assert "result 0: values" in details.entry.message
    assert details.log


def test_an_override_never_gets_a_kernel_that_was_checked_against_torch(shared_cache: Path) -> None:
    """Right cold and wrong warm would be the worst of both."""
    with aoti_eager.register("aten::tanh"):
        aten.tanh(X)
        hits = aoti_eager.stats()["aten::tanh"].hits
        aten.tanh(X)
        assert aoti_eager.stats()["aten::tanh"].hits == hits + 1
    library = torch.library.Library("aten", "IMPL")
    library.impl("tanh", lambda t: t - 1, "CPU")
    try:
        for _ in range(2):  # cold, then from the store
            with aoti_eager.register("aten::tanh"):
                for _ in range(2):
                    assert_close(aten.tanh(X), X - 1)
    finally:
        library._destroy()


def test_an_op_of_the_scripts_own_is_not_known_to_the_worker(shared_cache: Path) -> None:
    library = torch.library.Library("aoti_eager_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    try:
        op = torch.ops.aoti_eager_test.twice.default
        with (
            aoti_eager.register(op),
            pytest.warns(aoti_eager.errors.AotiEagerWarning, match="not defined in the compile"),
        ):
            for _ in range(2):
                assert_close(op(X), X * 2)
            assert declined("aoti_eager_test::twice") == {"op_not_in_worker": 2}
    finally:
        library._destroy()


def test_a_compile_that_takes_too_long_declines_and_its_worker_is_killed(
    shared_cache: Path,
) -> None:
    x = torch.randn(3, 5, 7)
    with (
        aoti_eager.config.scope(compile_timeout_s=0.05),
        aoti_eager.register("aten::silu"),
        pytest.warns(aoti_eager.errors.AotiEagerWarning, match=r"no library after 0\.05 s"),
    ):
        before = declined("aten::silu").get("compile_timeout", 0)
        for _ in range(2):
            assert_close(aten.silu(x), x * torch.sigmoid(x))
        assert declined("aten::silu")["compile_timeout"] - before == 2


def test_a_worker_that_dies_twice_declines(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aoti_eager._compile_service import cache_context, worker_process

    cache_context.close_workers()
    monkeypatch.setattr(
        worker_process, "child_command", lambda *a: [sys.executable, "-c", "raise SystemExit(9)"]
    )
    x = torch.randn(3, 5, 9)
    with (
        aoti_eager.register("aten::silu"),
        pytest.warns(aoti_eager.errors.AotiEagerWarning, match="worker died twice"),
    ):
        for _ in range(2):
            assert_close(aten.silu(x), x * torch.sigmoid(x))
        assert declined("aten::silu")["worker_died"] == 2


def test_no_compiler_declines_with_one_warning_that_says_what_to_install(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x = torch.randn(3, 5, 11)
    with aoti_eager.config.scope(dynamic=False), aoti_eager.register("aten::silu"):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        with pytest.warns(aoti_eager.errors.AotiEagerWarning, match="apt-get install") as given:
            for _ in range(2):
                assert_close(aten.silu(x), x * torch.sigmoid(x))
                aten.silu(x[0])
        assert len(given) == 1
        assert declined("aten::silu")["no_compiler"] == 4


def test_a_library_that_cannot_be_loaded_declines(cache_dir: Path, no_compiles: None) -> None:
    publish_text_as_library(torch.ops.aten.silu.default, X)
    with aoti_eager.register("aten::silu"):
        before = declined("aten::silu").get("library_unloadable", 0)
        for _ in range(2):
            assert_close(aten.silu(X), X * torch.sigmoid(X))
        assert declined("aten::silu")["library_unloadable"] - before == 2


def publish_text_as_library(op: Any, *args: Any) -> Entry:
    """Store a whole entry whose library is no library, with the right digest."""
    from aoti_eager._compile_service import cache_context
    from aoti_eager._keys.kernel_key import kernel_key
    from aoti_eager._keys.schema import op_schema

    schema = op_schema(op)
    key: KernelKey = kernel_key(schema, "CPU", schema.bind(args, {}))
    context = cache_context.current()
    entry = Entry(
        Status.READY,
        key,
        context.environment,
        context.target.name,
        context.target.requires,
        outputs=({"output": 0},),
        checked=True,
    )
    with context.store.workspace() as work:
        library = work / "text"
        library.write_text("this is no shared object")
        return context.store.publish(entry, work, library, "").entry


@pytest.fixture
def failing_silu(shared_cache: Path, tmp_path: Path) -> Iterator[None]:
    """Have the loaded kernel of silu on ``X`` raise in its next run."""
    with aoti_eager.register(["aten::silu", "aten::silu_"]):
        aten.silu(X)
        aten.silu_(X.clone())
        for cache in registry.caches():
            make_fail(cache, tmp_path)
        yield


def test_a_hit_that_throws_reruns_the_original_and_declines_from_then_on(
    failing_silu: None,
) -> None:
    with pytest.warns(aoti_eager.errors.AotiEagerWarning, match="the library failed"):
        assert_close(aten.silu(X), X * torch.sigmoid(X))
    before = declined("aten::silu").get("run_failed", 0)
    assert_close(aten.silu(X), X * torch.sigmoid(X))
    assert declined("aten::silu")["run_failed"] - before == 1


def test_a_hit_that_throws_and_may_have_mutated_raises_what_happened(failing_silu: None) -> None:
    x = X.clone()
    with pytest.raises(aoti_eager.errors.RunnerError, match="aten::silu_.*the library failed"):
        aten.silu_(x)
    assert_close(aten.silu_(x), X * torch.sigmoid(X))


def test_past_the_cap_new_keys_decline_and_old_ones_hit(shared_cache: Path) -> None:
    # What other tests have stored must not serve these keys, whatever their sizes.
    settings = {"static_cap": 1, "dynamic": False}
    with aoti_eager.config.scope(**settings), aoti_eager.register("aten::silu"):
        before = aoti_eager.stats()["aten::silu"] if declined("aten::silu") else OpStats()
        aten.silu(X)
        hits = aoti_eager.stats()["aten::silu"].hits
        unseen = torch.randn(2, 2, 2, 2, 3)
        for _ in range(2):
            assert_close(aten.silu(unseen), unseen * torch.sigmoid(unseen))
        aten.silu(X)
        after = aoti_eager.stats()["aten::silu"]
    assert after.hits >= hits + 1
    assert after.declined["specialisation_cap"] - before.declined.get("specialisation_cap", 0) == 2


INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.share(of=2)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_of_every_width_are_served(shared_cache: Path, dtype: str) -> None:
    x = torch.arange(200).to(getattr(torch, dtype))
    with aoti_eager.register("aten::bitwise_and.Tensor"):
        before = aoti_eager.stats().get("aten::bitwise_and.Tensor", OpStats())
        assert torch.equal(x & x, x)
        assert torch.equal(x & x, x)
        after = aoti_eager.stats()["aten::bitwise_and.Tensor"]
    assert after.hits - before.hits >= 1
    assert after.declines == before.declines


def test_dtypes_that_no_kernel_takes_decline_by_their_names() -> None:
    """Every dtype of torch; those of less than a byte begin as longer ones do."""
    schema = op_schema(aten.silu.default)
    names = sorted(n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype))
    declining = set()
    for name in names:
        tensor = {"dtype": name, "layout": "strided", "sizes": [4], "strides": [1]}
        tensor |= {"device": "cpu", "conj": False, "neg": False}
        key = KernelKey("aten::silu", "CPU", (("self", tensor),), (("threads", 1),))
        if call_decline(call_template(schema, key)) is not None:
            declining.add(name)
    small = {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)} & set(names)
    assert {name for name in declining if "int" in name and "q" not in name} == small
    assert {n for n in names if n.startswith(("q", "bits", "float4"))} == declining - small


def test_calls_inside_a_trace_run_the_original_and_are_not_remembered(
    shared_cache: Path, no_compiles: None
) -> None:
    real = torch.randn(7, 3)

    def backend(graph: Any, example: Any) -> Any:
        assert_close(aten.silu(real), real * torch.sigmoid(real))
        return graph.forward

    with aoti_eager.register("aten::silu"):
        before = declined("aten::silu").get("tracing", 0)
        torch.compile(lambda t: t + 1, backend=backend)(real)
        assert declined("aten::silu").get("tracing", 0) - before == 1


@pytest.mark.full
def test_an_inductor_setting_that_cannot_be_sent_declines(shared_cache: Path) -> None:
    code = f"""
import torch, torch._inductor.config as inductor, warnings
import aoti_eager
warnings.simplefilter("ignore")
inductor.post_grad_custom_pre_pass = print
x = torch.randn(4)
with aoti_eager.config.scope(cache_dir={str(shared_cache)!r}), aoti_eager.register("aten::silu"):
    torch.ops.aten.silu(x), torch.ops.aten.silu(x)
print(aoti_eager.stats()["aten::silu"].declined)
"""
    out = forked_python.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=shared_cache
    ).stdout
    assert "{'setting_not_portable': 2}" in out


def test_an_error_of_ours_runs_the_original_with_one_warning(
    no_compiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("aoti_eager._dispatch.call_reader.call_template", broken)
    with (
        aoti_eager.register("aten::silu"),
        pytest.warns(aoti_eager.errors.AotiEagerWarning, match="ZeroDivisionError") as given,
    ):
        before = declined("aten::silu").get("internal_error", 0)
        for _ in range(2):
            assert_close(aten.silu(X), X * torch.sigmoid(X))
        assert declined("aten::silu")["internal_error"] - before == 2
    assert len(given) == 1


@pytest.mark.parametrize(
    "op", [aten.native_batch_norm.default, aten.batch_norm.default], ids=["native", "composite"]
)
def test_statistics_that_a_schema_does_not_list_are_written_once(op: Any) -> None:
    def call(training: bool) -> tuple[list[float], list[float]]:
        mean, var = torch.zeros(2), torch.ones(2)
        more = (False,) if op is aten.batch_norm.default else ()
        op(X4, None, None, mean, var, training, 0.5, 1e-5, *more)
        return mean.tolist(), var.tolist()

    want = {training: call(training) for training in (True, False)}
    assert want[True] != want[False] == ([0, 0], [1, 1])
    with aoti_eager.register(op) as registration:
        for training in (True, False, True, False):
            assert call(training) == want[training]
        (name,) = (n for n in registration.ops if n.startswith("aten"))
        stats = aoti_eager.stats()[name]
        assert stats.declined == {"undeclared_write": 2}
        assert stats.hits == 1


X4 = torch.arange(24.0).reshape(3, 2, 4)
