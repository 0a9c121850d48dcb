"""Constants of loaded libraries: listed, updated, swapped, folded, user-managed, from files."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._runner.library_container import LibraryContainer
from aoti_eager._runner.runner import ModelContainerRunner
from aoti_eager.errors import (
    AotiEagerWarning,
    ConstantError,
    LibraryRunError,
    MissingConstantsError,
    UnknownConstantError,
)

from ..support.runner_libraries import (
    TIMEOUT_S,
    Libraries,
    Load,
    X,
    constants_of,
    equal,
    eventually,
    loaded_thin,
    original_constants,
    running,
    scale,
    served,
    thin_constants,
    thin_inputs,
    thin_number,
    waiting,
    want,
    watched_tensor,
)

pytestmark = pytest.mark.both_paths

# -- what there are --


def test_constants_are_listed_with_both_names_and_dtypes(load: Load) -> None:
    runner = load("folded")
    names = runner.constant_names_to_original_fqns()
    assert set(original_constants()) < set(names.values())
    assert names["weight"] == "weight"
    assert "block.gain" not in names
    dtypes = runner.constant_names_to_dtypes()
    assert dtypes.keys() == names.keys()
    for name, tensor in original_constants().items():
        assert dtypes[next(n for n, fqn in names.items() if fqn == name)] == tensor.dtype


def test_constants_are_extracted_as_copies_by_their_names_in_the_program(load: Load) -> None:
    runner = load("folded")
    got = runner.extract_constants_map()
    assert got.keys() == original_constants().keys()
    for name, tensor in original_constants().items():
        assert torch.equal(got[name], tensor), name
        got[name].zero_()
    assert equal(runner.run([X]), want())


def test_the_inactive_buffer_has_no_constants_at_first(load: Load) -> None:
    for name in ("folded", "bare", "thin"):
        assert load(name).extract_constants_map(use_inactive=True) == {}


@pytest.mark.parametrize("name", ["folded", "bare", "blob"])
def test_extracted_constants_can_be_given_back(load: Load, name: str) -> None:
    first, second = load(name), load(name)
    first.update_constant_buffer(constants_of(name, 3))
    second.update_constant_buffer(first.extract_constants_map())
    assert equal(second.run([X]), want(3))


# -- update, swap, free --


@pytest.mark.parametrize("name", ["folded", "bare", "blob"])
def test_an_update_of_the_active_buffer_is_seen_by_the_next_run(load: Load, name: str) -> None:
    runner = load(name, 3)
    for value in (1, 2, None):
        runner.update_constant_buffer(constants_of(name, value))
        for _ in range(4):
            assert equal(runner.run([X]), want(value))


def test_constants_are_updated_under_their_names_in_the_library(load: Load) -> None:
    runner = load("folded")
    names = {fqn: name for name, fqn in runner.constant_names_to_original_fqns().items()}
    runner.update_constant_buffer({names[k]: v for k, v in constants_of("folded", 5).items()})
    assert equal(runner.run([X]), want(5))


@pytest.mark.parametrize("name", ["folded", "bare", "blob"])
@pytest.mark.parametrize(
    "lay_out",
    [
        lambda t: t.contiguous(),
        lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
        lambda t: torch.cat([torch.zeros(3, *t.shape[1:], dtype=t.dtype), t])[3:],
        lambda t: t.detach().clone().requires_grad_(t.is_floating_point()),
    ],
    ids=["contiguous", "transposed", "part of a storage", "requires_grad"],
)
def test_constants_of_any_layout_give_right_results(
    load: Load, name: str, lay_out: Callable[[Tensor], Tensor]
) -> None:
    """A library without weights does not tell its strides; a checkpoint's are contiguous."""
    runner = load(name)
    runner.update_constant_buffer({k: lay_out(v) for k, v in constants_of(name).items()})
    assert equal(runner.run([X]), want())


def test_a_run_without_constants_names_them(load: Load) -> None:
    for name in ("bare", "thin"):
        runner = load(name)
        with pytest.raises(MissingConstantsError, match="constants have no values") as caught:
            runner.run(thin_inputs() if name == "thin" else [X])
        assert len(caught.value.names) == (2 if name == "thin" else 6)
        with pytest.raises(MissingConstantsError):
            runner.run_const_fold()


def test_a_full_update_must_give_all_parameters(load: Load) -> None:
    runner = load("folded")
    constants = constants_of("folded", 2)
    del constants["weight"], constants["columns"]
    for update in (runner.update_constant_buffer, runner.update_inactive_constant_buffer):
        with pytest.raises(MissingConstantsError, match="lacks 'weight', 'columns'") as caught:
            update(constants)
        assert caught.value.names == ("weight", "columns")
    assert equal(runner.run([X]), want())


@pytest.mark.parametrize("inactive", [False, True])
def test_buffers_and_tensor_constants_may_be_missing_with_a_warning(
    load: Load, inactive: bool
) -> None:
    runner = load("folded")
    constants = constants_of("folded", 2)
    kept = {name: constants_of("folded")[name] for name in ("counts", "_tensor_constant0")}
    given = {name: t for name, t in constants.items() if name not in kept}
    with pytest.warns(AotiEagerWarning, match="lacks .*, which keep their values") as w:
        if inactive:
            runner.update_inactive_constant_buffer(given)
        else:
            runner.update_constant_buffer(given)
    assert [warning.filename for warning in w] == [__file__], "it is not the caller who is shown"
    if inactive:
        runner.swap_constant_buffer()
    assert equal(runner.run([X]), served(X, constants | kept))


def test_a_partial_update_leaves_the_others(load: Load) -> None:
    runner = load("folded")
    change = {"columns": torch.full((16, 8), 9.0)}
    runner.update_constant_buffer(change, validate_full_update=False)
    assert equal(runner.run([X]), served(X, constants_of("folded") | change))


def test_a_partial_update_of_the_inactive_buffer_makes_no_full_one(load: Load) -> None:
    runner = load("folded")
    runner.update_constant_buffer({"weight": torch.ones(16, 16)}, True, False)
    with pytest.raises(MissingConstantsError, match="the inactive buffer lacks") as caught:
        runner.swap_constant_buffer()
    assert {"columns", "block.gain"} <= set(caught.value.names)
    with pytest.raises(MissingConstantsError):
        runner.run_const_fold(use_inactive=True)
    assert equal(runner.run([X]), want())
    rest = {k: v for k, v in constants_of("folded", 1).items() if k != "weight"}
    runner.update_constant_buffer(rest, True, False)
    runner.swap_constant_buffer()
    assert equal(runner.run([X]), want(1))


@pytest.mark.parametrize("name", ["folded", "thin"])
@pytest.mark.parametrize("user_managed", [False, True])
def test_an_update_with_a_wrong_tensor_updates_nothing(
    load: Load, name: str, user_managed: bool
) -> None:
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    before = runner.extract_constants_map()
    good = {n: torch.full_like(t, 7) for n, t in before.items()}
    bad: list[tuple[Any, type[Exception]]] = [
        ({**good, next(iter(good)): None}, ConstantError),
        ({**good, next(iter(good)): torch.zeros(3)}, ConstantError),
        ({**good, next(iter(good)): next(iter(good.values())).double()}, ConstantError),
        ({**good, next(iter(good)): next(iter(good.values())).to("meta")}, ConstantError),
        ({**good, "unknown": torch.zeros(3)}, UnknownConstantError),
    ]
    for (constants, kind), inactive in itertools.product(bad, (False, True)):
        with pytest.raises(kind):
            runner.update_constant_buffer(constants, inactive, True, user_managed)
        for n, tensor in runner.extract_constants_map().items():
            assert torch.equal(tensor, before[n])
        assert runner.extract_constants_map(use_inactive=True) == {}


def test_a_constant_given_twice_or_folded_is_refused(load: Load) -> None:
    runner = load("folded")
    with pytest.raises(ConstantError, match="'block.gain' is given twice"):
        runner.update_constant_buffer({"block.gain": X[0], "block_gain_0": X[0]}, False, False)
    folded = next(c.name for c in runner.constants if c.folded)
    with pytest.raises(ConstantError, match="is folded"):
        runner.update_constant_buffer({folded: X}, False, False)


def test_an_update_of_nothing_is_nothing(load: Load) -> None:
    load("folded").update_constant_buffer({}, validate_full_update=False)
    load("dynamic").update_constant_buffer({})


def test_an_update_of_the_active_buffer_waits_for_running_calls_and_keeps_new_ones_waiting(
    thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    gate, run = running(threads, thin)
    update = threads.submit(thin.update_constant_buffer, thin_constants(3))
    eventually(lambda: waiting(thin) == 1)
    later = threads.submit(thin.run, thin_inputs())
    eventually(lambda: waiting(thin) == 2)
    assert not update.done()
    gate.open()
    update.result(TIMEOUT_S)
    assert torch.equal(run.result(TIMEOUT_S)[0], X * 2)
    assert torch.equal(later.result(TIMEOUT_S)[0], X * 3)


def test_an_update_of_the_inactive_buffer_leaves_running_calls_alone(
    thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    gate, run = running(threads, thin)
    thin.update_inactive_constant_buffer(thin_constants(3))
    assert not run.done()
    assert scale(thin) == 2  # on the other instance
    gate.open()
    assert torch.equal(run.result(TIMEOUT_S)[0], X * 2)
    assert scale(thin) == 2


def test_a_swap_waits_for_running_calls(
    thin: ModelContainerRunner, threads: ThreadPoolExecutor
) -> None:
    gate, run = running(threads, thin)
    thin.update_inactive_constant_buffer(thin_constants(3))
    swap = threads.submit(thin.swap_constant_buffer)
    eventually(lambda: waiting(thin) == 1)
    later = threads.submit(thin.run, thin_inputs())
    eventually(lambda: waiting(thin) == 2)
    assert not swap.done()
    gate.open()
    swap.result(TIMEOUT_S)
    assert torch.equal(run.result(TIMEOUT_S)[0], X * 2)
    assert torch.equal(later.result(TIMEOUT_S)[0], X * 3)


def test_a_swap_is_not_starved_by_calls_that_keep_coming(
    load: Load, threads: ThreadPoolExecutor
) -> None:
    """Two callers on two instances: without an order, one of them would always be running."""
    runner = loaded_thin(load, 2)
    stop = threading.Event()

    def keep_calling() -> int:
        for count in itertools.count():
            if stop.is_set():
                return count
            runner.run(thin_inputs(milliseconds=1))
        raise AssertionError

    callers = [threads.submit(keep_calling) for _ in range(4)]
    for value in range(3, 13):
        runner.update_inactive_constant_buffer(thin_constants(value))
        runner.swap_constant_buffer()
        assert scale(runner) == value
    stop.set()
    assert all(caller.result(TIMEOUT_S) > 0 for caller in callers)


@pytest.mark.parametrize("name", ["folded", "bare", "blob", "thin"])
def test_swapping_exchanges_the_two_buffers(load: Load, name: str) -> None:
    runner = load(name, 2)

    def give(value: int, inactive: bool) -> None:
        constants = thin_constants(value) if name == "thin" else constants_of(name, value)
        runner.update_constant_buffer(constants, inactive)

    def check(value: int) -> None:
        if name == "thin":
            assert scale(runner) == value
        else:
            assert equal(runner.run([X]), want(value))

    give(1, False)
    check(1)
    give(2, True)
    check(1)
    for value in (2, 1, 2, 1):
        runner.swap_constant_buffer()
        check(value)
        check(value)
    give(3, True)
    check(1)
    give(4, False)
    check(4)
    runner.swap_constant_buffer()
    check(3)
    runner.swap_constant_buffer()
    check(4)


@pytest.mark.parametrize("name", ["folded", "bare", "thin"])
def test_a_swap_to_a_buffer_without_constants_is_refused(load: Load, name: str) -> None:
    runner = loaded_thin(load, 1) if name == "thin" else load(name)
    with pytest.raises(MissingConstantsError, match="the inactive buffer lacks .* update it with"):
        runner.swap_constant_buffer()


def test_a_swap_in_a_library_without_constants_changes_nothing(load: Load) -> None:
    runner = load("dynamic", 2)
    runner.swap_constant_buffer()
    assert torch.equal(runner.run([X])[0], X * 2)
    runner.free_inactive_constant_buffer()
    runner.run_const_fold()
    runner.run_const_fold(use_inactive=True)
    assert torch.equal(runner.run([X])[0], X * 2)


@pytest.mark.parametrize("name", ["folded", "bare", "thin"])
def test_a_freed_buffer_needs_an_update_before_a_swap(load: Load, name: str) -> None:
    runner = load(name)

    def constants(value: int) -> dict[str, Tensor]:
        return thin_constants(value) if name == "thin" else constants_of(name, value)

    runner.update_constant_buffer(constants(1))
    runner.free_inactive_constant_buffer()
    for value in (2, 3):
        runner.update_inactive_constant_buffer(constants(value))
        runner.swap_constant_buffer()
        runner.free_inactive_constant_buffer()
        assert runner.extract_constants_map(use_inactive=True) == {}
        with pytest.raises(MissingConstantsError, match="the inactive buffer lacks"):
            runner.swap_constant_buffer()
        assert scale(runner) == value if name == "thin" else equal(runner.run([X]), want(value))


@pytest.mark.parametrize("name", ["folded", "blob", "proxy", "bare", "thin"])
@pytest.mark.parametrize("user_managed", [False, True], ids=["copied", "user_managed"])
def test_buffers_are_updated_swapped_and_freed_again_and_again(
    load: Load, name: str, user_managed: bool
) -> None:
    """AOTInductor's container ends the process in the second update after a free."""
    runner = load(name)
    given = []
    for value in (1, 2, 3, 4, 5):
        if name == "thin":
            constants = thin_constants(value)
        elif name == "proxy":
            constants = {
                fqn: torch.full_like(tensor, value)
                for fqn, tensor in runner.extract_constants_map(use_inactive=False).items()
            }
        else:
            constants = constants_of(name, value)
        given.append(constants)
        runner.update_constant_buffer(constants, True, True, user_managed)
        runner.swap_constant_buffer()
        if name == "thin":
            assert scale(runner) == value
        elif name == "proxy":
            assert len(runner.run([X])) > 0
        else:
            assert equal(runner.run([X]), want(value))
        runner.free_inactive_constant_buffer()
        assert runner.extract_constants_map(use_inactive=True) == {}


def test_a_free_without_a_run_between_leaves_the_active_buffer(load: Load) -> None:
    runner = load("folded")
    runner.run([X])
    for value in (2, 3, 4):
        runner.update_inactive_constant_buffer(constants_of("folded", value))
        runner.swap_constant_buffer()
        runner.free_inactive_constant_buffer()
    assert equal(runner.run([X]), want(4))


def test_a_free_that_cannot_fold_frees_nothing(load: Load) -> None:
    runner = load("folded")
    runner.run([X])
    broken = constants_of("folded", 2) | {"weight": torch.full((16, 16), torch.nan)}
    runner.update_inactive_constant_buffer(broken)
    runner.swap_constant_buffer()
    with pytest.raises(LibraryRunError):
        runner.free_inactive_constant_buffer()
    runner.swap_constant_buffer()
    assert equal(runner.run([X]), want())
    runner.free_inactive_constant_buffer()
    runner.update_inactive_constant_buffer(constants_of("folded", 5))
    runner.swap_constant_buffer()
    assert equal(runner.run([X]), want(5))


def test_after_a_free_a_missing_constant_is_taken_from_the_active_buffer(load: Load) -> None:
    """What the freed buffer had is gone, though AOTInductor's container still points to it."""
    runner = load("folded")
    runner.update_inactive_constant_buffer(constants_of("folded", 2))
    runner.swap_constant_buffer()
    runner.free_inactive_constant_buffer()
    constants = constants_of("folded", 3)
    del constants["counts"], constants["_tensor_constant0"]
    with pytest.warns(AotiEagerWarning, match="keep their values"):
        runner.update_inactive_constant_buffer(constants)
    runner.swap_constant_buffer()
    kept = {name: constants_of("folded", 2)[name] for name in ("counts", "_tensor_constant0")}
    assert equal(runner.run([X]), served(X, constants | kept))


def test_an_update_that_fails_in_the_library_leaves_one_set_of_constants(
    libraries: Libraries, load: Load
) -> None:
    """The second of three models refused; none of them runs with what only some have."""
    runner = loaded_thin(load, 3)
    failure = thin_number(libraries.so("thin"), "thin_fail_update")
    failure.value = 2
    with pytest.raises(LibraryRunError, match="an update of constants failed: no more constants"):
        runner.update_constant_buffer(thin_constants(3))
    assert [scale(runner) for _ in range(3)] == [2, 2, 2]
    runner.update_inactive_constant_buffer(thin_constants(4))
    failure.value = 2
    with pytest.raises(LibraryRunError, match="no more constants today"):
        runner.swap_constant_buffer()
    assert [scale(runner) for _ in range(3)] == [2, 2, 2]
    runner.swap_constant_buffer()
    assert [scale(runner) for _ in range(3)] == [4, 4, 4]


# -- folding --


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The buffers that AOTInductor's containers folded, in order: whether the inactive one."""
    found: list[bool] = []
    fold = LibraryContainer.fold

    def watched(self: LibraryContainer, inactive: bool, stream: int | None) -> None:
        found.append(inactive)
        fold(self, inactive, stream)

    monkeypatch.setattr(LibraryContainer, "fold", watched)
    return found


def test_constants_are_folded_once_whichever_thread_comes_first(
    load: Load, threads: ThreadPoolExecutor, folds: list[bool]
) -> None:
    runner = load("folded", 3)
    barrier = threading.Barrier(8)

    def run() -> list[Tensor]:
        barrier.wait(TIMEOUT_S)
        return runner.run([X])

    for future in [threads.submit(run) for _ in range(8)]:
        assert equal(future.result(TIMEOUT_S), want())
    assert folds == [False]


def test_constants_are_folded_again_after_an_update_only(load: Load, folds: list[bool]) -> None:
    runner = load("folded")
    for value in (1, 2):
        folds.clear()
        runner.update_constant_buffer(constants_of("folded", value))
        assert folds == []
        for _ in range(3):
            assert equal(runner.run([X]), want(value))
        assert folds == [False]


def test_constants_can_be_folded_before_the_first_run(load: Load, folds: list[bool]) -> None:
    runner = load("folded")
    runner.run_const_fold()
    assert folds == [False]
    assert equal(runner.run([X]), want())
    assert folds == [False]


def parameters(value: int) -> dict[str, Tensor]:
    """Return all but what may be missing: with tensor constants, folding waits for the swap."""
    constants = constants_of("folded", value)
    del constants["_tensor_constant0"]
    return constants


def test_the_inactive_buffer_can_be_folded_before_the_swap(load: Load, folds: list[bool]) -> None:
    runner = load("folded", 2)
    runner.run([X])
    runner.update_constant_buffer(parameters(2), True, False)
    folds.clear()
    runner.run_const_fold(use_inactive=True)
    assert folds == [True]
    assert equal(runner.run([X]), want())
    runner.swap_constant_buffer()
    table = {"_tensor_constant0": original_constants()["_tensor_constant0"]}
    assert equal(runner.run([X]), served(X, parameters(2) | table))
    assert folds == [True], "it was folded again"


def test_folding_the_inactive_buffer_leaves_its_own_tensor_constants(load: Load) -> None:
    """AOTInductor's container would put the active buffer's in their place."""
    runner = load("folded")
    runner.update_inactive_constant_buffer(constants_of("folded", 2))
    runner.swap_constant_buffer()  # The original ones are inactive now.
    runner.update_constant_buffer(parameters(3), True, False)
    runner.run_const_fold(use_inactive=True)
    table = original_constants()["_tensor_constant0"]
    assert torch.equal(runner.extract_constants_map(True)["_tensor_constant0"], table)
    runner.swap_constant_buffer()
    assert equal(runner.run([X]), served(X, parameters(3) | {"_tensor_constant0": table}))
    runner.run_const_fold()
    assert equal(runner.run([X]), served(X, parameters(3) | {"_tensor_constant0": table}))


def test_a_folding_that_fails_is_tried_again_by_the_next_run(load: Load) -> None:
    runner = load("folded")
    constants = constants_of("folded")
    constants["weight"] = torch.full((16, 16), torch.nan)
    runner.update_constant_buffer(constants)
    for _ in range(3):
        with pytest.raises(LibraryRunError, match="folding the constants failed: .*histc"):
            runner.run([X])
    with pytest.raises(LibraryRunError, match="folding the constants failed"):
        runner.run_const_fold()
    runner.update_constant_buffer(constants_of("folded", 2))
    assert equal(runner.run([X]), want(2))


@pytest.mark.parametrize("num_models", [1, 3])
def test_a_folding_of_the_inactive_buffer_that_fails_disturbs_no_run(
    load: Load, threads: ThreadPoolExecutor, num_models: int
) -> None:
    """AOTInductor leaves the instance that failed on the inactive buffer, for the next run."""
    runner = load("folded", num_models)
    stop = threading.Event()

    def keep_running() -> int:
        for count in itertools.count():
            if stop.is_set():
                return count
            assert equal(runner.run([X]), want())
        raise AssertionError

    runs = [threads.submit(keep_running) for _ in range(4)]
    constants = parameters(2)
    constants["weight"] = torch.full((16, 16), torch.nan)
    try:
        for _ in range(30):
            runner.update_constant_buffer(constants, True, False)
            with pytest.raises(LibraryRunError, match="folding the constants failed"):
                runner.run_const_fold(use_inactive=True)
    finally:
        stop.set()
    assert all(run.result(TIMEOUT_S) > 0 for run in runs)


# -- user-managed --


def test_a_user_managed_constant_is_read_where_it_is(load: Load) -> None:
    runner = load("bare", 2)
    constants = constants_of("bare", 1)
    runner.update_constant_buffer(constants, user_managed=True)
    assert equal(runner.run([X]), want(1))
    for tensor in constants.values():
        tensor.fill_(4)
    for _ in range(3):
        assert equal(runner.run([X]), want(4))
    extracted = runner.extract_constants_map()["weight"]
    assert extracted.data_ptr() != constants["weight"].data_ptr()


def test_a_user_managed_constant_of_a_thin_library_is_read_where_it_is(load: Load) -> None:
    runner = load("thin", 2)
    constants = thin_constants(1)
    runner.update_constant_buffer(constants, user_managed=True)
    assert scale(runner) == 1
    for tensor in constants.values():
        tensor.fill_(4)
    assert [scale(runner) for _ in range(2)] == [4, 4]


def test_folded_constants_see_a_user_managed_one_after_folding(load: Load) -> None:
    runner = load("folded")
    constants = constants_of("folded", 1)
    runner.update_constant_buffer(constants, user_managed=True)
    assert equal(runner.run([X]), want(1))
    constants["weight"].fill_(2)
    runner.run_const_fold()
    assert equal(runner.run([X]), served(X, constants))


@pytest.mark.parametrize("name", ["bare", "folded", "thin"])
def test_a_user_managed_constant_is_kept_until_it_is_replaced(load: Load, name: str) -> None:
    runner = load(name, 2)

    def given() -> tuple[dict[str, Tensor], list[Callable[[], bool]]]:
        values = thin_constants(2) if name == "thin" else constants_of(name, 2)
        # Of an empty one there is no memory to watch; the order of dimensions would be lost.
        watched = {n: watched_tensor(t) for n, t in values.items() if t.dim() == 1 and t.numel()}
        tensors = values | {n: tensor for n, (tensor, _) in watched.items()}
        return tensors, [is_held for _, is_held in watched.values()]

    def inputs() -> list[Tensor]:
        return thin_inputs() if name == "thin" else [X]

    # Replaced by other ones of the user's, by copies, by way of the inactive buffer, by the end.
    held: list[list[Callable[[], bool]]] = []
    for _ in range(2):
        tensors, watches = given()
        runner.update_constant_buffer(tensors, user_managed=True)
        del tensors
        held.append(watches)
        runner.run(inputs())
        assert all(is_held() for is_held in watches)
    assert not any(is_held() for is_held in held[0])
    runner.update_constant_buffer(runner.extract_constants_map())
    assert not any(is_held() for is_held in held[1])

    tensors, watches = given()
    runner.update_constant_buffer(tensors, use_inactive=True, user_managed=True)
    del tensors
    runner.swap_constant_buffer()
    runner.run(inputs())
    assert all(is_held() for is_held in watches)
    runner.swap_constant_buffer()
    assert all(is_held() for is_held in watches)
    runner.free_inactive_constant_buffer()
    assert not any(is_held() for is_held in watches)

    tensors, watches = given()
    runner.update_constant_buffer(tensors, user_managed=True)
    del tensors
    runner.close()
    assert not any(is_held() for is_held in watches)


def test_a_user_managed_constant_is_kept_through_a_partial_update(load: Load) -> None:
    runner = load("bare")
    constants = constants_of("bare", 1)
    gain, is_held = watched_tensor(constants["block.gain"])
    runner.update_constant_buffer({**constants, "block.gain": gain}, user_managed=True)
    del gain
    runner.update_constant_buffer({"weight": torch.full((16, 16), 2.0)}, False, False)
    assert is_held()
    changed = {"weight": torch.full((16, 16), 2.0)}
    assert equal(runner.run([X]), served(X, constants_of("", 1) | changed))


def test_a_user_managed_constant_of_another_layout_is_refused(load: Load) -> None:
    for name in ("bare", "folded"):
        constants = constants_of(name)
        constants["columns"] = constants["columns"].contiguous()
        with pytest.raises(ConstantError, match=r"'columns' has strides \(8, 1\).*\(1, 16\)"):
            load(name).update_constant_buffer(constants, user_managed=True)


def test_a_user_managed_tensor_that_the_user_sets_anew_stays_what_it_was(load: Load) -> None:
    runner = load("thin")
    constants = thin_constants(1)
    runner.update_constant_buffer(constants, user_managed=True)
    for tensor in constants.values():
        tensor.data = torch.full((16,), 9.0)
    assert scale(runner) == 1


# -- the file --


def test_a_package_loads_the_file_of_its_constants(libraries: Libraries) -> None:
    with ModelContainerRunner(libraries.package("blob"), 3) as runner:
        for _ in range(4):
            assert equal(runner.run([X]), want())


def test_constants_come_from_a_file_again_and_again(libraries: Libraries, load: Load) -> None:
    """The library's own function frees the constants of its first call and goes on using them."""
    runner = load("blob", 2)
    path = libraries.weights()
    runner.update_constant_buffer_from_blob(path)
    assert equal(runner.run([X]), want())
    for _ in range(3):
        runner.update_constant_buffer(constants_of("blob", 2))
        assert equal(runner.run([X]), want(2))
        runner.update_constant_buffer_from_blob(path)
        assert equal(runner.run([X]), want())
    for name, tensor in runner.extract_constants_map().items():
        assert torch.equal(tensor, original_constants()[name])


def test_constants_come_from_a_file_into_the_inactive_buffer(
    libraries: Libraries, load: Load
) -> None:
    runner = load("blob")
    runner.update_constant_buffer(constants_of("blob", 2))
    runner.update_constant_buffer_from_blob(libraries.weights(), use_inactive=True)
    assert equal(runner.run([X]), want(2))
    runner.swap_constant_buffer()
    assert equal(runner.run([X]), want())


def test_the_first_constants_can_come_from_a_file_into_the_inactive_buffer(
    libraries: Libraries, load: Load
) -> None:
    runner = load("blob")
    runner.update_constant_buffer_from_blob(libraries.weights(), use_inactive=True)
    with pytest.raises(MissingConstantsError):
        runner.run([X])
    runner.swap_constant_buffer()
    assert equal(runner.run([X]), want())


def test_a_file_of_another_size_is_refused(
    libraries: Libraries, load: Load, tmp_path: Path
) -> None:
    runner = load("blob")
    runner.update_constant_buffer_from_blob(libraries.weights())
    content = libraries.weights().read_bytes()
    path = tmp_path / "weights.blob"
    for wrong in (content[:-1], content + b"\0", b""):
        path.write_bytes(wrong)
        for inactive in (False, True):
            with pytest.raises(ConstantError, match=f"has {len(wrong)} bytes; .* take") as caught:
                runner.update_constant_buffer_from_blob(path, inactive)
            assert "weight" in caught.value.names
    assert equal(runner.run([X]), want())


def test_a_file_that_is_not_there_is_an_os_error(load: Load, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load("blob").update_constant_buffer_from_blob(tmp_path / "missing.blob")
    with pytest.raises(ConstantError):
        load("blob").update_constant_buffer_from_blob(tmp_path)


def test_a_library_without_such_a_file_says_so(libraries: Libraries, load: Load) -> None:
    for name in ("bare", "thin", "dynamic", "proxy"):
        with pytest.raises(ConstantError, match="was not compiled for a file of constants"):
            load(name).update_constant_buffer_from_blob(libraries.weights())
