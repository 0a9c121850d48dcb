"""Kernels serve where the laboratory's certificates say that they may."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._dispatch import certificates as certificates_module
from aoti_eager._dispatch.certificates import (
    Certificate,
    Certificates,
    deciding_dtypes,
    instruction_set,
    read_certificates,
    refusal,
    shipped,
)
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import op_schema
from aoti_eager._workloads import warm as warm_module
from aoti_eager._workloads import workload

TARGET = cpu_target(cpu_features())
LEVEL = instruction_set(TARGET)
X = torch.randn(4, 8)

MUL = Certificate("aten::mul.Tensor", "float32", LEVEL, True, 0.5, 0.5, 0, "exhaustive", "")


@pytest.fixture
def issued(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the package's certificates by those that are given."""

    def issue(*certificates: Certificate) -> None:
        monkeypatch.setattr(certificates_module, "shipped", lambda op: Certificates(certificates))

    return issue


def refused(op: Any, *args: Any, **kwargs: Any) -> str | None:
    schema = op_schema(op)
    key = kernel_key(schema, "CPU", schema.bind(args, kwargs))
    return refusal(schema, key, TARGET, required=True)


def test_an_op_serves_with_a_certificate_for_its_dtype(issued: Callable[..., None]) -> None:
    issued(MUL)
    with aoti_eager.config.scope(
        mode="sync", gate=False, certified=True
    ):  # What is slower would not serve.
        with aoti_eager.register("aten::mul.Tensor"):
            for _ in range(2):
                torch.mul(X, X)
                torch.mul(X.double(), X.double())
        stats = aoti_eager.stats()["aten::mul.Tensor"]
    assert (stats.hits, stats.declined) == (1, {"uncertified": 2})


def test_the_message_says_what_was_found(issued: Callable[..., None]) -> None:
    issued(replace(MUL, is_certified=False, reason="NaN instead of inf at 3e38"))
    assert refused(torch.ops.aten.mul.Tensor, X, X) == (
        f"aten::mul.Tensor: float32 code for {LEVEL}: NaN instead of inf at 3e38"
    )
    assert refused(torch.ops.aten.mul_.Tensor, X, X) == (
        f"aten::mul_.Tensor: float32 code for {LEVEL}: NaN instead of inf at 3e38"
    )
    assert refused(torch.ops.aten.add.Tensor, X, X) == (
        f"aten::add.Tensor: float32 code for {LEVEL} was not looked at"
    )


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (torch.ops.aten.mul_.Tensor, (X, X)),
        (torch.ops.aten.mul.out, (X, X)),
        (torch.ops.aten._foreach_mul.List, ([X], [X])),
        (torch.ops.aten._foreach_mul_.List, ([X], [X])),
        (torch.ops.aten.mul.Tensor, (X, 2.0)),
        (torch.ops.aten.mul.Tensor, (X, torch.arange(8))),
        (torch.ops.aten.mul.Tensor, (torch.arange(8), 1.5)),
    ],
    ids=["in place", "out", "foreach", "foreach in place", "number", "mixed", "ints by a float"],
)
def test_variants_share_the_certificate_of_the_functional_op(
    issued: Callable[..., None], op: Any, args: tuple[Any, ...]
) -> None:
    out = {"out": X.clone()} if op is torch.ops.aten.mul.out else {}
    issued(MUL)
    assert refused(op, *args, **out) is None
    issued()
    assert refused(op, *args, **out) is not None


def test_a_certificate_is_of_one_instruction_set(issued: Callable[..., None]) -> None:
    issued(replace(MUL, target="x86-64-v1"))
    assert refused(torch.ops.aten.mul.Tensor, X, X) is not None


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "dtypes"),
    [
        (torch.ops.aten.mul.Tensor, (X, X.half()), {}, ["float16", "float32"]),
        (torch.ops.aten.mul.Tensor, (X, torch.ones(8, dtype=torch.bool)), {}, ["float32"]),
        (torch.ops.aten.mul.Tensor, (torch.arange(8), 2), {}, ["int64"]),
        (torch.ops.aten.mul.Tensor, (torch.arange(8), 2.0), {}, ["float32"]),
        (torch.ops.aten.pow.Tensor_Scalar, (torch.arange(8), 0.5), {}, ["float32"]),
        (
            torch.ops.aten.sum.dim_IntList,
            (X, [0]),
            {"dtype": torch.float64},
            ["float32", "float64"],
        ),
        (torch.ops.aten._to_copy.default, (X,), {"dtype": torch.int32}, ["float32"]),
        (torch.ops.aten.full.default, ([2], 1), {}, ["float32"]),
        (torch.ops.aten.where.self, (X > 0, X, X), {}, ["float32"]),
        (torch.ops.aten.cat.default, ([X.bool(), X.int()],), {}, ["bool", "int32"]),
        (torch.ops.aten.native_layer_norm.default, (X, [8], None, None, 1e-5), {}, ["float32"]),
    ],
)
def test_the_dtypes_that_decide(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dtypes: list[str]
) -> None:
    schema = op_schema(op)
    key = kernel_key(schema, "CPU", schema.bind(args, kwargs))
    assert deciding_dtypes(schema, key) == dtypes


def test_code_for_this_very_cpu_has_the_certificates_of_its_level() -> None:
    assert instruction_set(cpu_target(cpu_features(), "native")) == LEVEL


def test_the_setting_off_serves_and_on_again_declines(issued: Callable[..., None]) -> None:
    issued()
    with (
        aoti_eager.config.scope(mode="sync", gate=False),  # What is slower would not serve.
        aoti_eager.register("aten::mul.Tensor"),
    ):
        for certified, hits in ((True, 0), (False, 1), (True, 1)):
            with aoti_eager.config.scope(certified=certified):
                for _ in range(2):
                    torch.mul(X, X)
                assert aoti_eager.stats()["aten::mul.Tensor"].hits == hits


def test_explain_says_why(issued: Callable[..., None]) -> None:
    issued()
    with aoti_eager.config.scope(certified=True):
        explained = aoti_eager.explain("aten::mul.Tensor", X, X)
    assert (explained.verdict, explained.reason) == ("declined", "uncertified")
    assert "was not looked at" in explained.message


def test_functions_of_the_users_need_none(issued: Callable[..., None]) -> None:
    issued()

    @aoti_eager.custom_op("certificates_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x + x

    # What is slower would not serve.
    with aoti_eager.config.scope(mode="sync", gate=False, certified=True):
        for _ in range(2):
            twice(X)
        assert aoti_eager.stats()["certificates_test::twice"].hits == 1
    twice.unregister()


def test_warm_compiles_nothing_that_could_not_serve(issued: Callable[..., None]) -> None:
    issued(MUL)
    recorder = workload.start_recording()
    try:
        with (
            aoti_eager.config.scope(mode="cache_only"),
            aoti_eager.register("aten::mul.Tensor"),
        ):
            torch.mul(X, X)
    finally:
        workload.stop_recording()
    issued()
    with aoti_eager.config.scope(certified=True):
        report = cache.warm(recorder.calls())
    assert report.declined == {"uncertified": 1}
    assert report.compiled == 0


@pytest.mark.parametrize("words", ["nonsense", "aten::mul.Tensor(Tensor self) -> Tensor"])
def test_a_workload_with_a_schema_that_makes_no_sense_is_no_error_here(words: str) -> None:
    schema = op_schema(torch.ops.aten.mul.Tensor)
    call = workload.Call(kernel_key(schema, "CPU", (X, X)), None, words)
    assert not warm_module._is_refused(call, TARGET)


def test_a_document_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2"):
        read_certificates(json.dumps({"format": 2, "rows": []}))


@pytest.mark.skipif(LEVEL not in ("x86-64-v4", "x86-64-v3"), reason="the certificates are of these")
def test_an_op_that_inductor_compiles_wrongly_is_not_served() -> None:
    """With ``ceil_mode``, compiled code leaves out a share of the last window."""

    def call() -> torch.Tensor:
        op = torch.ops.aten.avg_pool2d_backward
        grad = torch.ones(1, 3, 1, 4)
        return op(grad, grad.new_ones(1, 3, 1, 9), [1, 6], [1, 3], [0, 2], True, True, None)

    want = call()
    with aoti_eager.register("aten::avg_pool2d_backward"):
        for _ in range(2):
            assert torch.equal(call(), want)
        stats = aoti_eager.stats()["aten::avg_pool2d_backward"]
    assert stats.declined == {"uncertified": 2}


def test_the_packages_own_certificates_can_be_read() -> None:
    found = shipped().find("aten::erfinv", "float32", "x86-64-v4")
    assert found is not None
    assert found.is_certified


def test_of_one_op_the_packages_own_file_says_what_it_says_among_all() -> None:
    assert len(shipped()) > 400
    parts = {op: shipped(op) for op, _, _ in shipped()._found}
    assert sum(map(len, parts.values())) == len(shipped())
    for (op, dtype, target), certificate in shipped()._found.items():
        assert parts[op].find(op, dtype, target) == certificate
    assert not len(shipped("aten::mul"))


def test_a_document_that_is_laid_out_otherwise_is_read_in_full() -> None:
    row = ["aten::mul.Tensor", "float32", LEVEL, "certified", 0.5, 0.5, 0, "exhaustive", ""]
    found = read_certificates(json.dumps({"format": 1, "rows": [row]}), "aten::mul.Tensor")
    assert found.find("aten::mul.Tensor", "float32", LEVEL) == MUL


def test_without_the_setting_an_op_declines_that_was_found_wrong(
    issued: Callable[..., None],
) -> None:
    """The default."""
    issued(replace(MUL, is_certified=False, reason="NaN instead of inf at 3e38"))
    with aoti_eager.register("aten::mul.Tensor"):
        torch.mul(X, X)
        assert aoti_eager.stats()["aten::mul.Tensor"].declined == {"uncertified": 1}
        explained = aoti_eager.explain("aten::mul.Tensor", X, X)
    assert (explained.verdict, explained.reason) == ("declined", "uncertified")


def test_without_the_setting_an_op_serves_that_has_none(issued: Callable[..., None]) -> None:
    """The default, while the laboratory has not looked at all ops."""
    issued()
    with (
        aoti_eager.config.scope(mode="sync", gate=False),  # What is slower would not serve.
        aoti_eager.register("aten::mul.Tensor"),
    ):
        for _ in range(2):
            torch.mul(X, X)
        assert aoti_eager.stats()["aten::mul.Tensor"].hits == 1
