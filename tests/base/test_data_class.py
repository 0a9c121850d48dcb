"""Data classes behave as those of ``dataclasses``, and what they are made of is made late."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from types import ModuleType
from typing import Any

import pytest

from aoti_eager._base import data_class

MODULES = [data_class, dataclasses]
Make = Callable[..., Any]


def point(module: Any, **options: Any) -> Any:
    @module.dataclass(frozen=True, slots=True, **options)
    class Point:
        """A point."""

        x: int
        y: int = 2
        names: dict[str, int] = module.field(default_factory=dict, hash=False)
        secret: bytes = module.field(default=b"", repr=False, compare=False)

        @property
        def total(self) -> int:
            return self.x + self.y

    return Point


def changeable(module: Any) -> Any:
    @module.dataclass(slots=True)
    class Box:
        content: list[int] = module.field(default_factory=list)

    return Box


@pytest.mark.parametrize("module", MODULES)
def test_what_a_frozen_class_does(module: ModuleType) -> None:
    cls = point(module)
    one, same, other = cls(1), cls(1, secret=b"?"), cls(x=1, y=3)
    assert (one.x, one.y, one.names, one.secret, one.total) == (1, 2, {}, b"", 3)
    assert one.names is not same.names
    assert one == same != other
    assert one != (1, 2, {}, b"")
    assert hash(one) == hash(same) == hash((1, 2))
    assert repr(one).endswith("Point(x=1, y=2, names={})")
    assert str(cls.__doc__) == "A point."
    assert cls.__match_args__ == ("x", "y", "names", "secret")
    with pytest.raises(FrozenInstanceError, match="'x'"):
        one.x = 2
    with pytest.raises(FrozenInstanceError, match="'x'"):
        del one.x
    for lacking in ({}, {"x": 1, "z": 2}):
        with pytest.raises(TypeError):
            cls(**lacking)
    with pytest.raises((AttributeError, TypeError)):
        one.z = 2
    assert not hasattr(one, "__dict__")
    assert copy.copy(one) == copy.deepcopy(one) == one


@pytest.mark.parametrize("module", MODULES)
def test_a_class_that_can_change_has_no_hash(module: ModuleType) -> None:
    cls = changeable(module)
    one = cls()
    one.content = [1]
    assert one == cls([1]) != cls()
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    assert repr(one).endswith("Box(content=[1])")


@pytest.mark.parametrize("module", MODULES)
def test_instances_are_themselves_without_eq(module: ModuleType) -> None:
    cls = point(module, eq=False)
    assert cls(1) != cls(1)
    assert len({cls(1), cls(1)}) == 2


@pytest.mark.parametrize("module", MODULES)
def test_the_functions_of_dataclasses_take_instances(module: ModuleType) -> None:
    cls = point(module)
    one = cls(1, names={"a": 1})
    assert dataclasses.is_dataclass(cls)
    assert dataclasses.is_dataclass(one)
    assert [f.name for f in dataclasses.fields(cls)] == ["x", "y", "names", "secret"]
    assert dataclasses.replace(one, y=5) == cls(1, 5, {"a": 1})
    assert dataclasses.asdict(one) == {"x": 1, "y": 2, "names": {"a": 1}, "secret": b""}
    assert dataclasses.astuple(one) == (1, 2, {"a": 1}, b"")
    assert list(inspect.signature(type(one)).parameters)


@data_class.dataclass(frozen=True, slots=True)
class Sent:
    x: int
    inside: tuple[int, ...] = ()


def test_instances_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(Sent(1, (2, 3)))) == Sent(1, (2, 3))  # noqa: S301 - ours


def test_methods_of_the_class_itself_stay() -> None:
    @data_class.dataclass(frozen=True, slots=True)
    class Named:
        name: str

        def __repr__(self) -> str:
            return "mine"

        def __hash__(self) -> int:
            return 7

    assert repr(Named("a")) == "mine"
    assert hash(Named("a")) == 7
    assert Named("a") == Named("a")


def test_one_that_contains_itself_is_printed() -> None:
    cls = changeable(data_class)
    one = cls()
    one.content.append(one)
    assert "..." in repr(one)


def test_a_class_that_derives_from_one_has_its_methods() -> None:
    class Further(Sent):
        pass

    assert Further(1) == Further(1)
    assert repr(Further(1)).endswith("Further(x=1, inside=())")
    assert dataclasses.replace(Further(1), x=2).x == 2


@pytest.mark.parametrize("field", ["init", "kw_only"])
def test_what_no_class_needs_is_refused(field: str) -> None:
    with pytest.raises(TypeError, match="must be an argument"):

        @data_class.dataclass(frozen=True, slots=True)
        class Odd:
            x: int = data_class.field(default=1, **{field: field == "kw_only"})  # type: ignore[call-overload]

    with pytest.raises(TypeError, match="has slots"):
        data_class.dataclass(frozen=True)
    with pytest.raises(TypeError, match="derives"):

        @data_class.dataclass(frozen=True, slots=True)
        class Derived(Sent):
            y: int = 1


def test_the_constructor_is_compiled_once_for_a_class_with_many_instances() -> None:
    cls = changeable(data_class)
    before = cls.__init__
    cls()
    assert cls.__init__ is before
    for _ in range(100):
        cls()
    after = cls.__init__
    assert before is not after
    cls()
    assert cls.__init__ is after


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("number", [1, 100], ids=["the first instance", "of many"])
def test_a_constructor_takes_what_it_takes(module: ModuleType, number: int) -> None:
    cls = point(module)
    for _ in range(number):
        one = cls(1, 5, names={"a": 1})
    assert (one.x, one.y, one.names, one.secret) == (1, 5, {"a": 1}, b"")
    for args, kwargs, said in (
        ((), {}, "missing 1 required positional argument: 'x'"),
        ((1,), {"x": 1}, "multiple values for argument 'x'"),
        ((1,), {"z": 1}, "unexpected keyword argument 'z'"),
        ((1, 2, {}, b"", 5), {}, "takes from 2 to 5 positional arguments but 6 were given"),
    ):
        cls = point(module)
        for _ in range(number - 1):
            cls(1)
        with pytest.raises(TypeError, match=said):
            cls(*args, **kwargs)
        assert cls(1).y == 2


def test_a_class_that_is_first_used_at_exit_leaves_the_status_of_the_script_alone() -> None:
    """Ctrl-C ends a script by the signal, so that a shell's loop ends with it."""
    text = """
import atexit
from aoti_eager._base.data_class import dataclass

@dataclass(slots=True)
class One:
    value: int

atexit.register(lambda: One(1))
raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_what_dataclasses_makes_for_a_copy_takes_no_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signature takes milliseconds of Python, in which a script's calls wait."""
    made = point(data_class)(1)

    def signature(*arguments: object, **options: object) -> None:
        raise AssertionError("a signature was made")

    monkeypatch.setattr(inspect, "signature", signature)
    assert dataclasses.replace(made, x=3).x == 3
    assert dataclasses.asdict(made)["x"] == 1
