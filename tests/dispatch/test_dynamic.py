"""Kernels for several sizes, compiled: what shares one, and that results are the original's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager import OpStats, cache, cli
from aoti_eager._compile_service import queue
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._dispatch import live_check
from aoti_eager._dispatch.key_state import COMPILING, Decline
from aoti_eager._keys.guards import text
from aoti_eager._registration import registry
from aoti_eager._store.entry import Status

from ..conftest import assert_close
from ..support import processes

pytestmark = pytest.mark.dynamic

aten = torch.ops.aten
GENERATOR = torch.Generator().manual_seed(6)


def rand(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=GENERATOR)


def whole(*sizes: int) -> Tensor:
    """Return whole numbers: sums of them are exact, in whatever order they are summed up."""
    return torch.randint(-9, 10, sizes, generator=GENERATOR).float()


def stats(op: str) -> OpStats:
    return aoti_eager.stats().get(op, OpStats())


def served(op: str, *, declines: int = 0) -> int:
    """Return how many calls a stored kernel served, or was compared in: one in each size class.

    So many were declined, and nothing failed.
    """
    found = stats(op)
    assert (found.declines, found.failures) == (declines, 0)
    return found.hits + found.misses - found.compiles


def entries(op: str) -> list[Any]:
    found = [detail for one in cache.list() for detail in cache.inspect(one.digest)]
    return [one.entry for one in found if one.entry.key.op == op]


def dynamic_entries(op: str) -> list[Any]:
    return [one for one in entries(op) if one.guards is not None]


def conditions(entry: Any) -> list[str]:
    return [text(one) for one in entry.guards.conditions]


def original(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with aoti_eager.config.scope(mode="off"):
        return op(*args, **kwargs)


def check(op: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Compare a call with the original's, sizes and strides too."""
    got, want = op(*args, **kwargs), original(op, *args, **kwargs)
    assert_close(got, want)
    if isinstance(got, Tensor):
        assert got.stride() == want.stride()


# -- few kernels --


@pytest.mark.full
@pytest.mark.both_paths
def test_sizes_that_vary_take_one_static_and_one_dynamic_kernel() -> None:
    with aoti_eager.register("aten::silu"):
        for rows in range(2, 40):
            check(aten.silu, rand(rows, 8))
        # Two size classes more than the one that it was compiled in.
        assert stats("aten::silu") == OpStats(hits=34, misses=4, compiles=2)
    static, dynamic = sorted(entries("aten::silu"), key=lambda one: one.guards is not None)
    assert dict(static.key.arguments)["self"]["sizes"] == [2, 8]
    assert dict(dynamic.key.arguments)["self"]["sizes"] == ["s0", 8]
    assert dynamic.guards.ranges["s0"][0] == 1


@pytest.mark.both_paths
def test_a_script_that_comes_back_compiles_nothing(shared_cache: Path) -> None:
    for _ in range(2):
        with aoti_eager.register("aten::silu"):
            for rows in range(2, 9):
                check(aten.silu, rand(rows, 8))
            last = stats("aten::silu")
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::silu"):
        before = served("aten::silu")
        for rows in range(100, 120):
            check(aten.silu, rand(rows, 8))
        assert served("aten::silu") == before + 20
    assert last.compiles <= 2


def test_a_size_of_one_is_served_where_it_was_tried_and_one_of_zero_is_not() -> None:
    with aoti_eager.register("aten::silu"):
        check(aten.silu, rand(5, 8))
        check(aten.silu, rand(6, 8))
        check(aten.silu, rand(1, 8))
        check(aten.silu, rand(9, 8)[3:4])
        assert stats("aten::silu") == OpStats(hits=1, misses=3, compiles=2)
        for sizes in ((0, 8), (7, 1), (7, 0), (7,), (7, 8, 1)):
            before = stats("aten::silu").hits
            with aoti_eager.config.scope(mode="cache_only"):
                check(aten.silu, rand(*sizes))
            assert stats("aten::silu").hits == before, sizes
        assert stats("aten::silu").compiles == 2


def test_another_dtype_has_kernels_of_its_own() -> None:
    with aoti_eager.register("aten::silu"):
        check(aten.silu, rand(5, 8))
        check(aten.silu, rand(6, 8))
        with aoti_eager.config.scope(mode="cache_only"):
            check(aten.silu, rand(7, 8).double())
        assert stats("aten::silu").hits == 0


@pytest.mark.both_paths
def test_where_dynamic_is_false_every_size_has_a_kernel() -> None:
    with aoti_eager.register("aten::silu"):
        with aoti_eager.config.scope(dynamic=False):
            for rows in (5, 6):
                check(aten.silu, rand(rows, 8))
        assert dynamic_entries("aten::silu") == []
        for rows in (7, 8, 9, 10):
            check(aten.silu, rand(rows, 8))
        assert len(dynamic_entries("aten::silu")) == 1
        before = stats("aten::silu")
        with aoti_eager.config.scope(dynamic=False, mode="cache_only"):
            for rows in (9, 10, 11):  # Two of them have been served by it.
                check(aten.silu, rand(rows, 8))
            assert stats("aten::silu").hits == before.hits
        for rows in (9, 10, 11):
            check(aten.silu, rand(rows, 8))
        assert stats("aten::silu").hits == before.hits + 3


def test_where_dynamic_is_true_the_first_kernel_has_symbols() -> None:
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::silu"):
        for sizes in ((5, 8), (6, 9), (7, 3)):
            check(aten.silu, rand(*sizes))
        assert (served("aten::silu"), stats("aten::silu").compiles) == (2, 1)


@pytest.mark.full
def test_an_op_whose_sizes_shape_the_code_has_a_kernel_for_each() -> None:
    op = "aten::_adaptive_avg_pool2d"
    with aoti_eager.register(op):
        for width in (6, 7, 7):
            check(aten._adaptive_avg_pool2d, rand(1, 2, width, 4), [4, 2])
    (failed,) = dynamic_entries(op)
    assert (failed.status, failed.reason) == (Status.DECLINED, "not_dynamic")
    assert "depends on each of the sizes" in failed.message
    sizes = [dict(one.key.arguments)["self"]["sizes"] for one in entries(op) if one.library]
    assert sorted(sizes) == [[1, 2, 6, 4], [1, 2, 7, 4]]
    # Another process does not try again.
    with aoti_eager.register(op):
        check(aten._adaptive_avg_pool2d, rand(1, 2, 8, 4), [4, 2])
    assert len(entries(op)) == 4


@pytest.mark.full
def test_static_kernels_of_the_store_count_where_no_dynamic_one_can_be_had() -> None:
    """Else each process that comes back would compile one more, or four."""
    op = "aten::_adaptive_avg_pool2d"
    for turn in range(2):
        with aoti_eager.register(op):
            before = stats(op)
            for width in (6, 7, 8, 9, 10, 11, 12):
                check(aten._adaptive_avg_pool2d, rand(1, 2, width, 4), [4, 2])
            after = stats(op)
        refused = [one.declined.get("specialisation_cap", 0) for one in (before, after)]
        assert refused[1] - refused[0] == 2
        assert sum(one.library is not None for one in entries(op)) == 4
        compiles = 0 if turn else 4
        assert after.compiles - before.compiles == compiles


# -- layouts --


def layouts() -> Iterator[Callable[[int, int], Tensor]]:
    yield lambda m, n: rand(m, n)
    yield lambda m, n: rand(n, m).t()
    yield lambda m, n: rand(m, n + 3)[:, :n]
    yield lambda m, n: rand(m, 2 * n)[:, ::2]
    yield lambda m, n: rand(m, 3 * n + 5)[:, ::3][:, :n]
    yield lambda m, n: rand(n, 3 * m + 7)[:, ::3][:, :m].t()
    yield lambda m, n: rand(m + 5, n)[2 : m + 2]
    yield lambda m, n: rand(n)[None].expand(m, n)
    yield lambda m, n: rand(m, 1).expand(m, n)
    yield lambda m, n: rand(4 * m * n)[1:].as_strided((m, n), (1, 2))  # Its elements overlap.


@pytest.mark.full
@pytest.mark.parametrize("index", range(10))
def test_every_layout_of_one_input_gives_the_originals_strides(
    index: int, shared_cache: Path
) -> None:
    make = list(layouts())[index]
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::silu"):
        for m, n in ((5, 6), (7, 4), (3, 3), (30, 2), (2, 30), (64, 65)):
            check(aten.silu, make(m, n))
        assert stats("aten::silu").failures == 0
        assert served("aten::silu") >= 4


@pytest.mark.full
def test_layouts_of_one_pattern_and_another_order_do_not_share_a_kernel() -> None:
    """Steps of 44 and 2, and of 2 and 60, are two symbols both; their guards say which is more."""
    wide, narrow = rand(40, 44), rand(60, 60)
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::silu"):
        check(aten.silu, wide[:, ::2][:, :15])
        check(aten.silu, narrow[:50, ::2].t()[:13])
        check(aten.silu, wide[:30, ::2][:, :14])
        check(aten.silu, narrow[:40, ::2].t()[:12])
        assert (served("aten::silu"), stats("aten::silu").compiles) == (2, 2)
    one, other = dynamic_entries("aten::silu")
    assert one.key == other.key
    assert one.guards != other.guards


@pytest.mark.full
def test_broadcasting_is_a_part_of_the_pattern(shared_cache: Path) -> None:
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::add.Tensor"):
        for m, n in ((5, 6), (7, 4), (30, 2), (6, 6)):
            for x, y in (
                (rand(m, n), rand(n)),
                (rand(m, 1), rand(n)),
                (rand(m, n), rand(n, m).t()),
            ):
                check(aten.add.Tensor, x, y)
        assert stats("aten::add.Tensor").failures == 0
        assert served("aten::add.Tensor") >= 9
        with pytest.raises(RuntimeError, match="must match the size"):
            aten.add.Tensor(rand(5, 6), rand(5, 7))


@pytest.mark.full
def test_other_ranks_and_memory_formats(shared_cache: Path) -> None:
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::silu"):
        for b, c, h, w in ((2, 3, 4, 5), (4, 2, 6, 3), (3, 3, 3, 3)):
            check(aten.silu, rand(b, c, h, w))
            check(aten.silu, rand(b, c, h, w).to(memory_format=torch.channels_last))
            check(aten.silu, rand(b * c * h))
        assert (served("aten::silu"), stats("aten::silu").compiles) == (6, 3)


# -- what is written to --


@pytest.mark.full
@pytest.mark.both_paths
def test_an_argument_that_is_written_to(shared_cache: Path) -> None:
    with aoti_eager.register("aten::mul_.Tensor"):
        for rows in range(2, 9):
            x, y = whole(rows, 5), whole(rows, 5)
            want = x.double() * y.double()
            assert x.mul_(y) is x
            assert_close(x, want.float())
        x = whole(4, 10)
        want = x.clone()
        want[:, ::2] = (x[:, ::2].double() * 2).float()
        x[:, ::2].mul_(torch.full((4, 5), 2.0))
        assert_close(x, want)
        assert stats("aten::mul_.Tensor").hits >= 4


def test_an_out_argument(shared_cache: Path) -> None:
    with aoti_eager.register("aten::add.out"):
        for rows in range(2, 9):
            x, y, out = whole(rows, 5), whole(rows, 5), torch.empty(rows, 5)
            want = original(torch.add, x, y)
            assert torch.add(x, y, out=out) is out
            assert_close(out, want)
        assert stats("aten::add.out").hits >= 4
        with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
            out = torch.empty(2, 3)
            torch.add(whole(20, 5), whole(20, 5), out=out)
        assert out.shape == (20, 5)


# -- a check in each size class --


@pytest.mark.full
@pytest.mark.both_paths
def test_a_kernel_is_compared_once_in_each_size_class() -> None:
    with aoti_eager.register("aten::silu"):
        for rows in (8, 9):
            check(aten.silu, rand(rows, 8))
        for rows, misses in ((10, 0), (11, 0), (40, 1), (41, 0), (200, 1), (201, 0), (42, 0)):
            before = stats("aten::silu").misses
            check(aten.silu, rand(rows, 8))
            assert stats("aten::silu").misses == before + misses, rows
    with aoti_eager.register("aten::silu"):  # What was right is known for good.
        before = stats("aten::silu").hits
        for rows in (12, 43, 202):
            check(aten.silu, rand(rows, 8))
        assert stats("aten::silu").hits == before + 3


def test_one_that_is_wrong_for_large_sizes_serves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with aoti_eager.register("aten::silu"):
        for rows in (8, 9, 10):
            check(aten.silu, rand(rows, 8))
        problems = live_check.LiveCheck.problems

        def wrong(self: Any, kernel: Any, outputs: Any, result: Tensor, before: Any) -> list[str]:
            return [*problems(self, kernel, outputs, result, before), "wrong"]

        monkeypatch.setattr(live_check.LiveCheck, "problems", wrong)
        check(aten.silu, rand(400, 8))
        monkeypatch.undo()
        assert stats("aten::silu").declined == {"mismatch": 1}
        hits = stats("aten::silu").hits
        check(aten.silu, rand(11, 8))
        assert stats("aten::silu").hits == hits
    (found,) = dynamic_entries("aten::silu")
    assert found.status is Status.QUARANTINED


# -- int arguments that are sizes --


@pytest.mark.full
@pytest.mark.both_paths
def test_ints_that_repeat_sizes_are_read_from_the_tensors() -> None:
    op, groups = "aten::native_group_norm", 4

    def call(n: int, channels: int, pixels: int) -> None:
        x, weight, bias = rand(n, channels, pixels), rand(channels), rand(channels)
        check(aten.native_group_norm, x, weight, bias, n, channels, pixels, groups, 1e-5)

    with aoti_eager.register(op):
        for n, pixels in ((4, 32), (5, 32), (6, 32), (7, 33), (9, 40), (8, 8), (32, 40), (1, 40)):
            call(n, 8, pixels)
        assert stats(op).compiles == 3
        assert stats(op).failures == 0
        with pytest.raises(RuntimeError):
            aten.native_group_norm(rand(6, 8, 32), None, None, 6, 8, 31, groups, 1e-5)
        x = rand(6, 8, 32)  # Numbers that are no sizes of it, and as many elements.
        check(aten.native_group_norm, x, None, None, 3, 16, 32, groups, 1e-5)
    patterns = [dict(one.key.arguments) for one in dynamic_entries(op)]
    assert {"size": "s0"} in [arguments["N"] for arguments in patterns]


@pytest.mark.full
def test_a_list_of_ints_that_repeats_sizes(shared_cache: Path) -> None:
    op = "aten::native_layer_norm"
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register(op):
        for rows, width in ((5, 24), (7, 33), (3, 3), (40, 100)):
            x, weight = rand(rows, width), rand(width)
            check(aten.native_layer_norm, x, [width], weight, None, 1e-5)
            check(aten.native_layer_norm, x, [rows, width], None, None, 1e-5)
        assert stats(op).failures == 0
        assert served(op) >= 4


@pytest.mark.full
def test_a_number_before_a_tensor_is_not_taken_for_it(shared_cache: Path) -> None:
    op = "aten::elu_backward"
    with (
        aoti_eager.config.scope(dynamic=True, check=False),
        aoti_eager.register(op),
    ):
        for rows, alpha in ((5, 1.5), (7, 1.25), (9, 2.5)):
            check(aten.elu_backward, rand(rows, 5), alpha, 1.25, 1.75, False, rand(rows, 5))
        assert stats(op) == OpStats(hits=2, misses=1, compiles=1)


# -- reductions and lists --


@pytest.mark.both_paths
def test_a_reduction_of_short_rows_does_not_serve_long_ones() -> None:
    """Inductor adds up long rows of single precision in another way."""
    op = "aten::_softmax"

    def call(columns: int) -> None:
        check(aten._softmax, rand(8, columns), 1, False)

    with aoti_eager.register(op):
        for columns in (60, 61, 62, 4095, 4096):
            call(columns)
        assert (served(op), stats(op).compiles) == (3, 2)
        (short,) = dynamic_entries(op)
        assert short.guards.ranges == {"s0": (1, 4096)}
        assert conditions(short) == ["(s0 <= 4096)"]
        with aoti_eager.config.scope(mode="cache_only"):
            call(4097)
            assert served(op, declines=1) == 3
        for columns in (4098, 4099, 5000, 61):
            call(columns)
        assert stats(op).compiles == 3
        assert served(op, declines=1) == 6
    assert {bounds for one in dynamic_entries(op) for bounds in one.guards.ranges.values()} == {
        (1, 4096),
        (4097, (1 << 63) - 1),
    }


def test_a_list_of_tensors(shared_cache: Path) -> None:
    with aoti_eager.register("aten::cat"):
        for m, n in ((3, 4), (5, 6), (7, 8), (9, 9)):
            check(aten.cat.default, [rand(m, 5), rand(n, 5)], 0)
        with aoti_eager.config.scope(mode="cache_only"):
            before = stats("aten::cat").hits
            check(aten.cat.default, [rand(3, 5), rand(4, 5), rand(2, 5)], 0)
            assert stats("aten::cat").hits == before
        assert before >= 2
        assert stats("aten::cat").failures == 0


# -- the store --

SCRIPT = """
import json
import torch
import aoti_eager

wrong = 0
with aoti_eager.register("aten::silu"):
    for rows in range(50, 70):
        x = torch.full((rows, 8), 0.5)
        wrong += not torch.equal(torch.ops.aten.silu(x), torch.ops.aten.silu(x[:1]).expand(rows, 8))
    found = aoti_eager.stats()["aten::silu"]
print(json.dumps({"wrong": wrong, "served": found.hits + found.misses, "compiles": found.compiles}))
"""


def test_another_process_is_served_by_what_was_stored(cache_dir: Path) -> None:
    with aoti_eager.register("aten::silu"):
        for rows in (5, 6):
            check(aten.silu, rand(rows, 8))
    found = processes.run(cache_dir, SCRIPT, AOTI_EAGER_MODE="cache_only")
    assert (found["wrong"], found["served"], found["compiles"]) == (0, 40, 0)


@pytest.mark.both_paths
def test_what_another_process_compiled_meanwhile_is_used() -> None:
    with aoti_eager.register("aten::silu"):
        check(aten.silu, rand(5, 8))
        check(aten.silu, rand(6, 8))
    (stored,) = dynamic_entries("aten::silu")
    with aoti_eager.register("aten::silu"):
        directory = next(one.path for one in cache.list() if one.digest == stored.digest)
        hidden = directory.parent.rename(directory.parent.parent.with_name("hidden"))
        check(aten.silu, rand(5, 8))  # It is seen that there is none.
        with aoti_eager.config.scope(mode="cache_only"):
            check(aten.silu, rand(7, 8))
        hidden.rename(directory.parent)
        check(aten.silu, rand(7, 8))
        check(aten.silu, rand(8, 8))
    assert stats("aten::silu").compiles == 2


@pytest.mark.parametrize("damage", ["library", "entry", "deleted"])
def test_a_damaged_one_is_removed_and_made_anew(damage: str) -> None:
    with aoti_eager.register("aten::silu"):
        for rows in (5, 6):
            check(aten.silu, rand(rows, 8))
    (before,) = [one for one in cache.list() if "s0" in one.inputs]
    library = before.path / "library.so"
    if damage == "library":
        library.write_bytes(b"\x7fELF damaged")
    elif damage == "entry":
        (before.path / "entry.json").write_text("{}")
    else:
        library.unlink()
    with aoti_eager.register("aten::silu"):
        for rows in (5, 7, 9):
            check(aten.silu, rand(rows, 8))
        assert stats("aten::silu").hits >= 2
    (after,) = [one for one in cache.list() if "s0" in one.inputs]
    assert after.status == "ready"
    assert after.digest == before.digest
    assert cache.verify().damaged == ()


def test_a_library_that_is_opened_a_second_time_is_looked_at_again() -> None:
    """A large call opens it anew, to let the interpreter go meanwhile."""
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::silu"):
        check(aten.silu, rand(5, 8))
        (one,) = cache.list()
        library = one.path / "library.so"
        library.rename(one.path / "moved")  # What is mapped stays what it is.
        library.write_bytes(b"\x7fELF damaged")
        check(aten.silu, rand(6, 8))
        check(aten.silu, rand(300, 300))
        assert stats("aten::silu").declined == {}
        assert stats("aten::silu").compiles == 2


# -- wrong results --


def test_a_dynamic_kernel_that_fails_its_check_is_quarantined_and_static_ones_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems = live_check.LiveCheck.problems
    told: list[int] = []

    def once(self: Any, *args: Any) -> list[str]:
        found = problems(self, *args)
        told.append(1)
        return ["result 0: made up"] if len(told) == 2 else found

    monkeypatch.setattr(live_check.LiveCheck, "problems", once)
    with aoti_eager.register("aten::silu"):
        for rows in (5, 6, 7, 8):
            check(aten.silu, rand(rows, 8))
        assert stats("aten::silu").declined == {"mismatch": 1}
        check(aten.silu, rand(7, 8))
        assert stats("aten::silu").hits == 1
    (wrong,) = dynamic_entries("aten::silu")
    assert wrong.status is Status.QUARANTINED
    sizes = [dict(one.key.arguments)["self"]["sizes"] for one in entries("aten::silu")]
    assert [7, 8] in sizes
    assert [8, 8] in sizes


# -- what users see --


def test_explain_and_the_cap_say_what_kept_changing() -> None:
    caps = {"dynamic": "auto", "dynamic_cap": 1, "static_cap": 1}
    with aoti_eager.config.scope(**caps), aoti_eager.register("aten::silu"):
        for rows in (5, 6):
            check(aten.silu, rand(rows, 8))
        check(aten.silu, rand(5, 4, 8))
        check(aten.silu, rand(5, 9, 8))
        explained = aoti_eager.explain("aten::silu", rand(5, 9, 8))
        assert explained.reason == "specialisation_cap"
        assert "what kept changing: self.size(1)" in explained.message
        assert "self.size(0)" not in explained.message
        before = stats("aten::silu")
        foreseen = aoti_eager.explain("aten::silu", rand(5, 10, 8))
        assert foreseen.reason == "specialisation_cap"
        assert "what kept changing: self.size(1)" in foreseen.message
        assert stats("aten::silu") == before
        # It is what then happens.
        check(aten.silu, rand(5, 10, 8))
        assert aoti_eager.explain("aten::silu", rand(5, 10, 8)).message.endswith(foreseen.message)
        with aoti_eager.config.scope(mode="off"):
            assert aoti_eager.explain("aten::silu", rand(5, 11, 8)).verdict == "miss"


def test_explain_knows_that_a_stored_kernel_serves_other_sizes() -> None:
    with aoti_eager.register("aten::silu"):
        for rows in (5, 6):
            check(aten.silu, rand(rows, 8))
        explained = aoti_eager.explain("aten::silu", rand(7, 8))
        assert explained.verdict == "stored"
        assert "for several sizes" in explained.message
        with aoti_eager.config.scope(dynamic=False):
            assert aoti_eager.explain("aten::silu", rand(7, 8)).verdict == "miss"
        check(aten.silu, rand(7, 8))
        assert aoti_eager.explain("aten::silu", rand(7, 8)).verdict == "hit"
    assert aoti_eager.explain("aten::silu", rand(9, 8)).verdict == "stored"


def test_inspect_says_the_guards_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::_softmax"):
        check(aten._softmax, rand(3, 30), 1, False)
    (one,) = cache.list()
    assert one.inputs == "f32[s0,s1]"
    assert cli.main(["inspect", one.digest[:16]]) == 0
    lines = capsys.readouterr().out.splitlines()
    guards = lines[lines.index("  guards") + 1 :]
    assert guards[:3] == ["    1 <= s0", "    1 <= s1 <= 4096", "    (s1 <= 4096)"]
    assert cli.main(["list"]) == 0
    assert "f32[s0,s1]" in capsys.readouterr().out


# -- in the background --


@pytest.fixture
def in_background() -> Iterator[None]:
    # What is tested here begins when a kernel is asked for; ``test_rare`` has when that is.
    with aoti_eager.config.scope(mode="background", compile_after=1):
        yield
    assert queue.background.wait(60.0)


@pytest.mark.full
@pytest.mark.both_paths
def test_a_family_waits_for_one_dynamic_kernel(in_background: None) -> None:
    with aoti_eager.register("aten::silu"):
        check(aten.silu, rand(5, 8))
        assert queue.background.wait(120.0)
        for rows in (6, 7, 8, 9, 6, 7):  # One asks for it, and three more wait.
            check(aten.silu, rand(rows, 8))
        assert aoti_eager.wait(120.0)
        assert stats("aten::silu").compiles == 2
        assert stats("aten::silu").hits == 0
        for _ in range(3):  # Compared, taken over by C++, served.
            for rows in (6, 7, 8, 9, 10):
                check(aten.silu, rand(rows, 8))
        assert aoti_eager.wait(120.0)
        before = stats("aten::silu")
        for rows in (6, 7, 8, 9, 10, 11, 12):
            check(aten.silu, rand(rows, 8))
        assert stats("aten::silu").hits == before.hits + 7
        assert stats("aten::silu").compiles == 2
        assert stats("aten::silu").declines == 0


@pytest.mark.full
def test_a_family_without_a_dynamic_kernel_gets_static_ones(in_background: None) -> None:
    op = "aten::_adaptive_avg_pool2d"

    def call(width: int) -> None:
        check(aten._adaptive_avg_pool2d, rand(1, 2, width, 4), [4, 2])

    with aoti_eager.register(op):
        for width in (6, 7, 7):
            call(width)
            assert aoti_eager.wait(120.0)
        for width, _ in itertools.product((6, 7), range(3)):
            call(width)
        assert stats(op).hits >= 2
        assert stats(op).declines == 0
    assert [one.reason for one in dynamic_entries(op)] == ["not_dynamic"]


@pytest.mark.full
def test_a_compile_that_dies_leaves_nobody_waiting(
    in_background: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = threading.Event()

    def publish(service: Any, *args: Any, **more: Any) -> Any:
        called.wait(60.0)
        raise RuntimeError("made up")

    with aoti_eager.register("aten::silu"):
        check(aten.silu, rand(5, 8))
        assert queue.background.wait(120.0)
        monkeypatch.setattr(CompileService, "publish", publish)
        with pytest.warns(aoti_eager.errors.AotiEagerWarning, match="made up"):
            for rows in (6, 7, 8):
                check(aten.silu, rand(rows, 8))
            called.set()
            assert queue.background.wait(120.0)
        monkeypatch.undo()
        for _ in range(3):
            for rows in (7, 8):
                check(aten.silu, rand(rows, 8))
            assert aoti_eager.wait(120.0)
        assert stats("aten::silu").hits >= 2
        assert COMPILING not in stats("aten::silu").declined


def test_a_tensor_whose_elements_share_memory_has_no_part_in_a_dynamic_kernel() -> None:
    """Rows of a wider buffer: how wide is a symbol, and narrower than a row is another thing."""
    buffer, op = torch.zeros(4000), "aten::add_.Tensor"
    with aoti_eager.register(op):
        for rows, wide in ((5, 10), (6, 12), (7, 11), (5, 9)):
            x = buffer.as_strided((rows, 8), (wide, 1))
            before = x.clone()
            assert_close(x.add_(torch.ones(rows, 8)), before + 1)
        assert dynamic_entries(op)
        hits = stats(op).hits
        buffer.as_strided((5, 8), (7, 1)).add_(torch.ones(5, 8))
        assert stats(op).hits == hits


@pytest.mark.native
def test_cpp_matches_nothing_by_a_kernel_that_is_gone() -> None:
    with aoti_eager.register("aten::silu"):
        for rows in (5, 6, 7):
            check(aten.silu, rand(rows, 7))
        kernels = next(one for one in registry.caches() if one.table.kernels)
        table = kernels.table
        key, kernel = next((k, one) for k, one in table.kernels.items() if one.is_dynamic)
        count = kernels.counters.declined("run_failed")
        table.decline(key, Decline("run_failed", "on purpose", count, kernel.words))
        (entry,) = dynamic_entries("aten::silu")
        table.distrust(entry.digest)
        hits = stats("aten::silu").hits
        check(aten.silu, rand(8, 7))
        assert stats("aten::silu").hits == hits


@pytest.mark.native
def test_a_call_of_numbers_alone_has_a_size_class(shared_cache: Path) -> None:
    """Its pattern has symbols for numbers, and no tensor: torch.linalg.pinv calls ``full`` so."""
    with aoti_eager.register("aten::full"):
        for number in (1.5, 2.5, 3.5, -4.25):
            got = torch.full((), number, dtype=torch.float64)
            assert got.item() == number
    assert stats("aten::full").failures == 0
    assert stats("aten::full").declined.get("internal_error", 0) == 0
