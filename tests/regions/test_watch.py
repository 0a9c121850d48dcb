"""What a recording sees of Python code: clocks, random numbers, effects; and its own errors."""

from __future__ import annotations

import datetime
import os
import random
import secrets
import signal
import sys
import types
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aoti_eager import fuse
from aoti_eager._regions import watch as watch_module
from aoti_eager._regions.numpy_random import NumpyRandom
from aoti_eager._regions.watch import Watch

from ..support.regions import Policy, assert_same, inputs, seeded

pytestmark = pytest.mark.native

generator = np.random.default_rng(0)
settings = types.ModuleType("settings")
settings.rng = np.random.RandomState(0)  # type: ignore[attr-defined]


class Holder:
    """A class that has a generator."""

    shared = np.random.default_rng(0)


def _draw_by_closure() -> Callable[[], object]:
    mine = np.random.Generator(np.random.MT19937(0))
    return lambda: mine.integers(3)


FICKLE: dict[str, tuple[Callable[[], object], str]] = {
    "urandom": (lambda: os.urandom(2), "urandom"),
    "secrets": (lambda: secrets.token_hex(2), "urandom"),
    "randbelow": (lambda: secrets.randbelow(3), "urandom"),
    "SystemRandom": (random.SystemRandom().random, "urandom"),
    "uuid1": (uuid.uuid1, "generate_time_safe"),
    "uuid4": (uuid.uuid4, "urandom"),
    "now": (datetime.datetime.now, "now"),
    "now, with a zone": (lambda: datetime.datetime.now(datetime.timezone.utc), "now"),
    "today": (datetime.date.today, "today"),
    "today, with a time": (datetime.datetime.today, "today"),
    "numpy's functions": (lambda: np.random.rand(2), "numpy.random"),
    "numpy's seed": (lambda: np.random.seed(3), "numpy.random"),
    "a new generator": (lambda: np.random.default_rng().normal(), "urandom"),
    "a global generator": (lambda: generator.normal(), "generator"),
    "a generator in a module": (lambda: settings.rng.rand(), "settings.rng"),
    "a variable of an outer function": (_draw_by_closure(), "mine"),
}
STEADY: dict[str, Callable[[], object]] = {
    "the process": os.getpid,
    "a date from text": lambda: datetime.date.fromisoformat("2020-01-01"),
    "a generator with a seed": lambda: np.random.default_rng(3).normal(),
    "a generator that rests": lambda: generator.bit_generator,
    "numpy's state": lambda: np.random.get_state(),
}


@pytest.mark.parametrize("name", FICKLE)
def test_what_differs_from_call_to_call_is_seen(name: str) -> None:
    call, word = FICKLE[name]
    watch = Watch()
    watch.run(lambda: call())
    assert word in watch.fickle
    assert not watch.failure


def test_a_clock_without_a_zone_is_seen() -> None:
    watch = Watch()
    watch.run(lambda: getattr(datetime.datetime, "utcnow")())  # noqa: B009 - it is deprecated
    assert "utcnow" in watch.fickle


@pytest.mark.parametrize("name", STEADY)
def test_what_is_the_same_in_each_call_is_none_of_that(name: str) -> None:
    watch = Watch()
    watch.run(lambda: STEADY[name]())
    assert (watch.fickle, watch.failure) == ("", "")


def test_numpys_generators_are_not_loaded_for_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = sys.modules["numpy.random"]
    monkeypatch.delitem(sys.modules, "numpy.random")
    numbers = NumpyRandom()
    assert numbers.drawn == ""
    assert "numpy.random" not in sys.modules
    monkeypatch.setitem(sys.modules, "numpy.random", loaded)
    assert "loads" in numbers.drawn


class Draws(nn.Module):
    """Draws by a generator that it has, in a way that a test chooses."""

    shared = np.random.default_rng(0)

    def __init__(self, way: Callable[[Draws], float]) -> None:
        super().__init__()
        self.child = seeded(Policy)
        self.rng, self.rngs = np.random.default_rng(0), [np.random.default_rng(0)]
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) + self.way(self)


@pytest.mark.parametrize(
    "way",
    [lambda m: m.rng.normal(), lambda m: m.rngs[0].normal(), lambda m: m.shared.normal()],
    ids=["an attribute", "a list", "the class"],
)
def test_a_module_that_draws_by_its_generator_stops(
    way: Callable[[Draws], float],
) -> None:
    model, x = Draws(way).eval(), inputs(4, 5)
    with fuse(model) as report:
        model(x)
        assert report.regions[0].reason == "python_state", str(report)


# -- errors of the watch --


class Odd:
    """Objects of it raise when they are looked at."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise RuntimeError("no class")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class OddKind(type):
    """Classes of it have no module."""

    @property
    def __module__(cls) -> Any:  # type: ignore[override]
        raise RuntimeError("no module")


class OddDict(dict[str, int], metaclass=OddKind):
    """A dict whose class raises when it is looked at; its methods are C's."""


def test_objects_that_raise_when_they_are_looked_at_do_not_reach_the_forward() -> None:
    watch = Watch()
    odd = OddDict(a=1)
    assert watch.run(lambda: (odd.get("a"), os.urandom(1))[0]) == 1
    assert "RuntimeError" in watch.failure
    assert "urandom" in watch.fickle  # The watch goes on.
    assert sys.getprofile() is None


def test_a_recording_whose_watch_has_failed_is_dropped() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = seeded(Policy)

        def forward(self, x: Tensor) -> Tensor:
            OddDict(a=1).get("a")
            return self.child(x) * 2.0

    model, x = Model(), inputs(4, 5)
    want = model.child(x) * 2.0
    with fuse(model) as report:
        assert_same(model(x), want)
        assert report.regions[0].reason == "not_recorded"
        assert "RuntimeError" in report.regions[0].message


def test_an_object_without_a_class_is_called_as_before() -> None:
    watch = Watch()
    assert watch.run(lambda: [Odd()].__len__()) == 1
    assert watch.failure == ""


def test_a_forward_that_ends_the_watch_is_dropped() -> None:
    watch = Watch()
    watch.run(lambda: sys.setprofile(None))
    assert "setprofile" in watch.failure


def test_a_forward_that_watches_itself_keeps_its_own_watch() -> None:
    def mine(frame: types.FrameType, event: str, arg: Any) -> None:
        pass

    watch = Watch()
    try:
        watch.run(lambda: sys.setprofile(mine))
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)
    assert "setprofile" in watch.failure


def test_the_error_of_a_signals_handler_reaches_the_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def handler(number: int, frame: types.FrameType | None) -> None:
        raise TimeoutError("late")

    def look(self: Watch, function: Any, frame: types.FrameType) -> None:
        if getattr(function, "__name__", "") == "getcwd":
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    monkeypatch.setattr(Watch, "_see_function", look)
    watch = Watch()
    try:
        with pytest.raises(TimeoutError, match="late"):
            watch.run(os.getcwd)
    finally:
        signal.signal(signal.SIGUSR1, before)
    # The interpreter has ended the watch; a forward may have caught the error.
    assert watch.failure


def test_a_forward_that_recurses_too_deep_raises_its_own_error() -> None:
    def deep(number: int) -> int:
        return len([number]) + deep(number + 1)

    watch = Watch()
    with pytest.raises(RecursionError):
        watch.run(lambda: deep(0))
    assert sys.getprofile() is None


# -- whose code it is --


def test_a_package_beside_with_a_name_that_begins_alike_is_not_ours() -> None:
    ours = watch_module._ROOMS.rstrip(os.sep)
    for directory, is_beside in (
        (os.path.join(ours, "_dispatch"), True),
        (os.path.join(ours, "_regions"), False),
        (os.path.join(ours, "_regions_other"), True),
        (f"{ours}_other", False),
    ):
        code = compile("0", os.path.join(directory, "model.py"), "exec")
        assert watch_module._is_beside(code) is is_beside, directory


def test_a_package_beside_torch_is_the_users() -> None:
    directory = os.path.dirname(torch.__file__)
    for name, is_torch in ((directory, True), (f"{directory}vision", False)):
        code = compile("0", os.path.join(name, "model.py"), "exec")
        assert watch_module._is_torch(code) is is_torch
