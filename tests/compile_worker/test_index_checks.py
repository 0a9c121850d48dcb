"""Checks of indices in generated code, rewritten so that they fail in order, or refused."""

from __future__ import annotations

import pytest

from aoti_eager._compile_worker.index_checks import (
    has_unchecked_calls,
    with_caught_checks,
    with_checked_calls,
)

CHECK = 'AOTI_TORCH_CHECK((0 <= tmp0) & (tmp0 < 50L), "index out of bounds: 0 <= tmp0 < 50L");'


def kernel(*body: str) -> str:
    lines = ['extern "C"  void  cpp_fused_0(const int64_t* in_ptr0,', "    float* out_ptr0)", "{"]
    return "\n".join(["#include <prefix.h>", *lines, *(f"    {line}" for line in body), "}", ""])


def loop(*body: str, pragma: str = "#pragma omp for", loops: int = 1) -> list[str]:
    nested = [line for n in range(loops) for line in (f"for(int64_t x{n}=0; x{n}<8; x{n}++)", "{")]
    return [pragma, *nested, *body, *["}"] * loops]


def parallel(*body: str) -> list[str]:
    return [
        "#pragma omp parallel num_threads(2)",
        "{",
        "int tid = omp_get_thread_num();",
        *body,
        "}",
    ]


def test_a_check_outside_of_parallel_regions_throws_by_itself() -> None:
    text = kernel("for(int64_t x0=0; x0<8; x0++)", "{", CHECK, "}")
    caught = with_caught_checks(text)
    assert caught is not None
    assert "try" not in caught
    assert CHECK in caught


@pytest.mark.parametrize("loops", [1, 2])
def test_the_body_of_a_parallel_loop_catches(loops: int) -> None:
    pragma = "#pragma omp for" + (" collapse(2)" if loops == 2 else "")
    text = kernel(*parallel(*loop("{", CHECK, "}", pragma=pragma, loops=loops)))
    caught = with_caught_checks(text)
    assert caught is not None
    lines = [line.strip() for line in caught.splitlines()]
    attempt = lines.index("try {")
    assert lines[attempt - 2].startswith(f"for(int64_t x{loops - 1}=")
    assert lines[attempt + 1 : attempt + 5] == [
        *("{", CHECK, "}"),
        "} catch (...) { aoti_eager_caught.keep(); }",
    ]
    assert lines[3:5] == ["{", "aoti_eager::CaughtCheck aoti_eager_caught;"]
    assert lines[-2:] == ["aoti_eager_caught.rethrow();", "}"]


def test_a_block_for_one_thread_catches_too() -> None:
    text = kernel(*parallel("#pragma omp single", "{", CHECK, "}"))
    caught = with_caught_checks(text)
    assert caught is not None
    assert caught.count("try {") == 1


def test_loops_without_checks_stay_as_they_are() -> None:
    text = kernel(*parallel(*loop("out_ptr0[x0] = 1;"), *loop(CHECK)))
    caught = with_caught_checks(text)
    assert caught is not None
    assert caught.count("try {") == 1
    assert with_caught_checks(kernel(*parallel(*loop("f();")))) == kernel(*parallel(*loop("f();")))


def test_a_simd_loop_with_a_check_is_a_plain_loop() -> None:
    text = kernel(*loop(CHECK, pragma="#pragma omp simd simdlen(8)"))
    caught = with_caught_checks(text)
    assert caught is not None
    assert "simd" not in caught


@pytest.mark.parametrize(
    "body",
    [
        parallel(CHECK),
        parallel("#pragma omp critical", "{", CHECK, "}"),
        parallel(*loop(CHECK, pragma="#pragma omp for nowait")),
        parallel(*loop(CHECK, pragma="#pragma omp for collapse(2)")),
        parallel("#pragma omp for", CHECK),
        ["#pragma omp parallel for", "for(;;)", "{", CHECK, "}"],
        ["#pragma omp parallel num_threads(2)", "for(;;)", "{", CHECK, "}"],
    ],
)
def test_a_form_that_is_not_known_is_refused(body: list[str]) -> None:
    assert with_caught_checks(kernel(*body)) is None


def test_a_check_outside_of_all_kernels_is_refused() -> None:
    assert with_caught_checks(CHECK) is None
    assert with_caught_checks(f"{CHECK}\n{kernel('f();')}") is None
    assert with_caught_checks(f"{kernel('f();')}\nstatic void g() {{\n{CHECK}\n}}\n") is None


def test_an_error_of_atens_is_looked_at() -> None:
    wrapper = '    aoti_torch_cpu_scatter_reduce_two_out(buf0, buf0,0,g(arg1, 2),arg0, "sum",1);\n'
    assert has_unchecked_calls(wrapper)
    checked = with_checked_calls(wrapper)
    assert checked.strip().startswith("AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_scatter_reduce")
    assert checked.strip().endswith('"sum",1));')
    assert not has_unchecked_calls(checked)
