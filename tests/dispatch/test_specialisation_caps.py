"""Which calls dynamic kernels serve, and what counts against the caps, with real kernels."""

from __future__ import annotations

import pytest
import torch

import aoti_eager
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._registration import registry
from aoti_eager.errors import CompileError

from ..conftest import assert_close

pytestmark = pytest.mark.dynamic

aten = torch.ops.aten
SILU = "aten::silu"


def test_keys_whose_compiles_fail_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op of which every kernel fails must not ask for each new shape for ever."""
    asked = []

    def publish(*args: object, **more: object) -> None:
        asked.append(args)
        raise CompileError("mismatch", "as on some machines", remember=True)

    monkeypatch.setattr(CompileService, "publish", publish)
    with aoti_eager.config.scope(static_cap=3, dynamic=False), aoti_eager.register(SILU):
        for size in range(2, 12):
            aten.silu(torch.ones(size))
        declined = aoti_eager.stats()[SILU].declined
    assert len(asked) == 3
    assert declined == {"mismatch": 3, "specialisation_cap": 7}


@pytest.mark.parametrize("options", [{"dynamic": "auto"}, {"dynamic": False, "static_cap": 7}])
def test_what_explain_foresees_is_what_happens(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(*args: object, **more: object) -> None:
        raise CompileError("mismatch", "as on some machines", remember=True)

    monkeypatch.setattr(CompileService, "publish", publish)
    shapes = [(size, 3) for size in range(2, 12)] + [(1, 1), (0, 1), (4,), (5,)]
    seen = set()
    with aoti_eager.config.scope(**options), aoti_eager.register(SILU):
        for shape in shapes:
            foreseen = aoti_eager.explain(SILU, torch.ones(shape))
            aten.silu(torch.ones(shape))
            happened = aoti_eager.explain(SILU, torch.ones(shape))
            is_capped = [one.reason == "specialisation_cap" for one in (foreseen, happened)]
            assert is_capped[0] == is_capped[1], shape
            seen.add(is_capped[0])
    assert seen == {False, True}


@pytest.mark.full
@pytest.mark.compiles
def test_dynamic_kernels_that_others_have_left_do_not_count() -> None:
    """Another script's kernels in the store must not keep this one from having its own."""
    with aoti_eager.config.scope(dynamic_cap=1):
        with aoti_eager.register(SILU):
            for size in (3, 4):
                aten.silu(torch.ones(size))
        with aoti_eager.register(SILU):  # With a table of its own, as another process has.
            for size in (5, 6, 7):
                aten.silu(torch.ones(size, 3))
                aten.silu(torch.ones(size, 2, dtype=torch.float64))
            cache = next(iter(registry.caches()))
            assert cache.table.dynamic.kernels.count == 1
            kernels = cache.table.kernels.values()
            assert {kernel.is_dynamic for kernel in kernels} == {False, True}


@pytest.mark.full
@pytest.mark.both_paths
@pytest.mark.compiles
def test_two_kernels_of_one_pattern_are_two_libraries() -> None:
    """Eager's strides depend on which size is larger: guards, not words, tell the kernels apart."""

    def overlapping(*sizes: int) -> torch.Tensor:
        return torch.arange(sum(sizes) * 1.0).as_strided(sizes, (1, 1))

    shapes = [(20, 30), (36, 44), (70, 11), (60, 12), (10, 50), (90, 8), (36, 45)]
    with aoti_eager.register(SILU):
        for shape in shapes:
            got = aten.silu(overlapping(*shape))
            with aoti_eager.config.scope(mode="off"):
                want = aten.silu(overlapping(*shape))
            assert_close(got, want, check_stride=True)
        stats = aoti_eager.stats()[SILU]
        cache = next(iter(registry.caches()))
        assert cache.table.dynamic.kernels.count == 2
    assert stats.declined == {}
    assert stats.compiles == 3


@pytest.mark.full
@pytest.mark.compiles
def test_sizes_of_1_are_let_in_together_only_where_they_were_right_together() -> None:
    """Eager takes a turned tensor for contiguous if all but one of its sizes are 1."""
    shapes = [(3, 4, 5), (6, 7, 8), (5, 1, 1), (5, 2, 1), (1, 5, 1), (1, 2, 3), (1, 1, 1)]
    with aoti_eager.register(SILU):
        for shape in shapes:
            turned = torch.randn(shape).permute(2, 1, 0)
            got = aten.silu(turned)
            with aoti_eager.config.scope(mode="off"):
                want = aten.silu(turned)
            assert_close(got, want, check_stride=True)
        cache = next(iter(registry.caches()))
        served = [kernel for kernel in cache.table.kernels.values() if kernel.is_dynamic]
        assert len(served) >= 3  # (6, 7, 8), (5, 2, 1) and (1, 2, 3).
