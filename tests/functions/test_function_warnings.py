"""Functions that no kernel can serve: one warning an operator says why, and what to write."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager._base.warn_once import forget_warnings
from aoti_eager._dispatch import argument_watch
from aoti_eager._dispatch.original import OriginalKernel
from aoti_eager.errors import AotiEagerWarning

from ..conftest import MakeOp


@pytest.fixture(autouse=True)
def _threads_of_other_tests_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the threads that a test starts: in a script with more, a write may be another's."""
    there = threading.enumerate()

    def has_other_threads() -> bool:
        new = [one for one in threading.enumerate() if one not in there]
        return not all(one.name.startswith("aoti_eager") for one in new)

    monkeypatch.setattr(argument_watch, "_has_other_threads", has_other_threads)


@pytest.fixture
def said() -> Iterator[Callable[[], list[str]]]:
    """A function that gives the warnings so far."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AotiEagerWarning)
        yield lambda: [str(one.message) for one in caught]


def writes(x: Tensor, y: Tensor) -> Tensor:
    y.add_(1)
    return x * y


def reads(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def writes_to_a_list(x: Tensor, several: list[Tensor]) -> Tensor:
    several[1].add_(1)
    return x * several[0]


def writes_to_a_view(x: Tensor, y: Tensor) -> Tensor:
    y[0].zero_()
    return x * y


@pytest.mark.parametrize("mode", ["sync", "background", "cache_only"])
@pytest.mark.both_paths
def test_a_write_that_is_not_declared_is_one_warning(
    mode: str, make_op: MakeOp, said: Callable[[], list[str]], no_compiles: None
) -> None:
    op = make_op(writes)
    x, y = torch.ones(3), torch.zeros(3)
    with aoti_eager.config.scope(mode=mode):
        for step in range(1, 4):
            assert torch.equal(op(x, y), torch.full((3,), float(step)))
        op(x[:2], y[:2])
    if mode == "cache_only":
        assert said() == []  # Nothing is going to be compiled.
        return
    (message,) = said()
    assert message == (
        "aoti_eager: aetest::writes: its function writes to its argument 'y' and does not say so: "
        "write mutates_args=('y',) where custom_op makes its operator; no kernel serves it, the "
        "function itself runs"
    )
    assert aoti_eager.stats()[op.name].declined == {"mutates_constant": 4}


@pytest.mark.parametrize("function", [writes_to_a_list, writes_to_a_view])
def test_a_write_by_a_list_or_a_view_is_one(
    function: Any, make_op: MakeOp, said: Callable[[], list[str]], no_compiles: None
) -> None:
    op = make_op(function)
    other = [torch.zeros(3), torch.zeros(3)] if function is writes_to_a_list else torch.zeros(3)
    op(torch.ones(3), other)
    (message,) = said()
    assert f"mutates_args=({'several' if function is writes_to_a_list else 'y'!r},)" in message


def test_what_another_thread_may_write_meanwhile_is_not_the_functions(
    make_op: MakeOp,
    said: Callable[[], list[str]],
    no_compiles: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the function runs once: what else it does is done once, too."""
    op = make_op(reads)
    x, weight = torch.ones(3), torch.ones(3)
    original, runs = OriginalKernel.__call__, []

    def beside(self: OriginalKernel, keyset: Any, args: Any, kwargs: Any) -> Any:
        runs.append(args)
        weight.add_(1)  # As an optimizer of another thread does.
        return original(self, keyset, args, kwargs)

    monkeypatch.setattr(OriginalKernel, "__call__", beside)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        # One call asks for no kernel there, so the worker's trace does not come into it.
        with aoti_eager.config.scope(mode="background"):
            assert torch.equal(op(x, weight), torch.full((3,), 2.0))
    finally:
        done.set()
        other.join()
    assert len(runs) == 1
    assert said() == []
    assert aoti_eager.stats()[op.name].declined == {}


def test_a_write_in_inference_mode_is_found_by_the_trace(
    make_op: MakeOp, said: Callable[[], list[str]]
) -> None:
    op = make_op(writes)
    with torch.inference_mode():
        for _ in range(2):
            op(torch.ones(3), torch.zeros(3))
    (message,) = said()
    assert message.startswith("aoti_eager: aetest::writes: its function writes to its argument 'y'")
    # As a later process meets it, which finds the failure in the store.
    forget_warnings()
    op = make_op(writes)
    with torch.inference_mode():
        op(torch.ones(3), torch.zeros(3))
    assert said() == [message, message]


COUNTER = torch.zeros(3)


def counts(x: Tensor) -> Tensor:
    COUNTER.add_(1)
    return x * 2


def test_a_write_to_what_is_found_by_name_is_one(
    make_op: MakeOp, said: Callable[[], list[str]]
) -> None:
    make_op(counts)(torch.ones(3))
    (message,) = said()
    assert "aetest::counts: its function writes to 'COUNTER', which it finds by name" in message


def test_a_declared_write_is_none(make_op: MakeOp, said: Callable[[], list[str]]) -> None:
    op = make_op(writes, mutates_args=("y",))
    with aoti_eager.config.scope(mode="cache_only"):
        op(torch.ones(3), torch.zeros(3))
    with aoti_eager.config.scope(mode="background"):
        op(torch.ones(3), torch.zeros(3))
    assert said() == []


def made_by_exec() -> Any:
    names: dict[str, Any] = {"Tensor": Tensor, "__name__": "__main__"}
    exec("def made(x: Tensor) -> Tensor:\n    return x * 2\n", names)  # noqa: S102
    return names["made"]


def factor() -> float:
    import time

    return time.time() * 0 + 2


def calls_the_clock(x: Tensor) -> Tensor:
    return x * factor()


@pytest.mark.parametrize("mode", ["sync", "background"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.both_paths
def test_a_function_without_source_is_one_warning(
    mode: str, grad: bool, make_op: MakeOp, said: Callable[[], list[str]], no_compiles: None
) -> None:
    op = make_op(made_by_exec())
    x = torch.ones(3, requires_grad=grad)
    with aoti_eager.config.scope(mode=mode):
        for _ in range(3):
            assert torch.equal(op(x), x * 2)
            assert torch.equal(op(x.detach()), x * 2)
        op(x[:2])
    (message,) = said()
    assert message.startswith("aoti_eager: aetest::")
    assert "its function has no source that can be read, as of exec and at a prompt" in message
    assert "define it in a file, or in a notebook's cell; no kernel serves it" in message


def test_a_function_that_uses_what_no_worker_has_is_one_warning(
    make_op: MakeOp, said: Callable[[], list[str]], no_compiles: None
) -> None:
    op = make_op(calls_the_clock)
    for _ in range(2):
        op(torch.ones(3))
    (message,) = said()
    assert message.startswith("aoti_eager: aetest::calls_the_clock: its function imports modules")


def test_autocast_is_no_fault_of_the_function(
    make_op: MakeOp, said: Callable[[], list[str]]
) -> None:
    op = make_op(writes, mutates_args=("y",))
    with torch.autocast("cpu", torch.bfloat16):
        op(torch.ones(3), torch.zeros(3))
    assert aoti_eager.stats()[op.name].declined == {"unsupported_function": 1}
    assert said() == []
