"""What a guard sees of Python state: each change makes the call another kind of call.

Nothing is compiled: a call is one that a library would serve if a variant's guard takes the call.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import aoti_eager
from aoti_eager import fuse

from ..support.regions import inputs, look, reason_of, recorded, would_serve

pytestmark = pytest.mark.native

X = inputs(3, 4)


@pytest.fixture(autouse=True)
def _no_compiles() -> Iterator[None]:
    with aoti_eager.config.scope(mode="cache_only"):
        yield


class Attributed(nn.Module):
    """Multiplies by a parameter, and by what a test reads from the module."""

    def __init__(self, read: Callable[[Any], Any], **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(inputs(4), requires_grad=False)
        self.read = read
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight * self.read(self)).relu()


class Config:
    """An object with attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Classed:
    """A class with values of its own; tests change them and put them back."""

    scale = 2.0
    table = {"a": 2.0}  # noqa: RUF012 - the tests change it
    inner = Config(scale=2.0)
    dtype = torch.float32

    def method(self) -> float:
        return 2.0


class WithClass(Attributed):
    """A module whose class has values."""

    inner = Config(scale=2.0)
    dtype = torch.float32


class Slotted:
    """An object with a slot that is not set."""

    __slots__ = ("scale",)


@dataclasses.dataclass
class Data:
    """A dataclass."""

    scale: float = 2.0


class Key(enum.Enum):
    """A key of a dict."""

    A = 1


def _by_local(model: Any) -> Any:
    return model.local.scale


def _matched(model: Any) -> float:
    match model.data:
        case Data(scale=2.0):
            return 2.0
        case _:
            return 3.0


def _shared_depth() -> Attributed:
    shared = Config(sub=Config(scale=2.0))
    one = Config(b=Config(shared=shared))
    return Attributed(lambda m: m.shared.sub.scale + bool(m.a.b.shared), a=one, shared=shared)


def _set(path: str, value: Any) -> Callable[[Any], object]:
    """Return a function that sets an attribute of a module, by its path."""
    *way, name = path.split(".")
    return lambda model: setattr(functools.reduce(getattr, way, model), name, value)


Case = tuple[Callable[[], Attributed], Callable[[Any], object]]
CASES: dict[str, Case] = {
    "an object in a list": (
        lambda: Attributed(lambda m: m.all[0].scale, all=[Config(scale=2.0)]),
        lambda m: setattr(m.all[0], "scale", 3.0),
    ),
    "an object in a dict in a tuple": (
        lambda: Attributed(lambda m: m.all[0]["a"].scale, all=({"a": Config(scale=2.0)},)),
        lambda m: setattr(m.all[0]["a"], "scale", 3.0),
    ),
    "an object in a set": (
        lambda: Attributed(lambda m: next(iter(m.all)).scale, all={Config(scale=2.0)}),
        lambda m: [setattr(one, "scale", 3.0) for one in m.all],
    ),
    "a module in a list": (
        lambda: Attributed(lambda m: m.all[0](m.weight).sum(), all=[nn.LeakyReLU(0.1)]),
        lambda m: setattr(m.all[0], "negative_slope", 0.5),
    ),
    "the mode of a module in a list": (
        lambda: Attributed(lambda m: m.all[0](m.weight).sum(), all=[nn.Dropout(0.0).eval()]),
        lambda m: m.all[0].train(),
    ),
    "a missing attribute": (
        lambda: Attributed(lambda m: getattr(m.config, "scale", 2.0), config=Config(other=1)),
        lambda m: setattr(m.config, "scale", 3.0),
    ),
    "an attribute in place of another": (
        lambda: Attributed(lambda m: getattr(m.config, "scale", 2.0), config=Config(other=1)),
        lambda m: (delattr(m.config, "other"), setattr(m.config, "scale", 3.0)),
    ),
    "a missing slot": (
        lambda: Attributed(lambda m: getattr(m.config, "scale", 2.0), config=Slotted()),
        lambda m: setattr(m.config, "scale", 3.0),
    ),
    "an object's __dict__": (
        lambda: Attributed(lambda m: m.config.scale, config=Config(scale=2.0)),
        lambda m: setattr(m.config, "__dict__", {"scale": 3.0}),
    ),
    "deep within objects": (
        lambda: Attributed(
            lambda m: m.a.b.c.d.e.scale,
            a=Config(b=Config(c=Config(d=Config(e=Config(scale=2.0))))),
        ),
        _set("a.b.c.d.e.scale", 3.0),
    ),
    "an object that is met twice": (_shared_depth, _set("shared.sub.scale", 3.0)),
    "a class as an attribute": (
        lambda: Attributed(
            lambda m: m.config.scale, config=type("Own", (Classed,), {"scale": 2.0})
        ),
        _set("config.scale", 3.0),
    ),
    "a method of a class": (
        lambda: Attributed(lambda m: m.config.method(), config=type("Own", (Classed,), {})()),
        lambda m: setattr(type(m.config), "method", lambda self: 3.0),
    ),
    "an item of a class's dict": (
        lambda: Attributed(
            lambda m: m.config.table["a"], config=type("Own", (Classed,), {"table": {"a": 2.0}})()
        ),
        lambda m: type(m.config).table.update(a=3.0),
    ),
    "by a name made at run time": (
        lambda: Attributed(lambda m: getattr(m.config, f"s{1}"), config=Config(s1=2.0)),
        lambda m: setattr(m.config, "s1", 3.0),
    ),
    "all attributes as arguments": (
        lambda: Attributed(lambda m: Data(**vars(m.config)).scale, config=Config(scale=2.0)),
        lambda m: setattr(m.config, "scale", 3.0),
    ),
    "names of a loop": (
        lambda: Attributed(
            lambda m: sum(getattr(m.config, name) for name in ("one", "two")),
            config=Config(one=1.0, two=1.0),
        ),
        lambda m: setattr(m.config, "two", 3.0),
    ),
    "asdict": (
        lambda: Attributed(lambda m: dataclasses.asdict(m.data)["scale"], data=Data()),
        lambda m: setattr(m.data, "scale", 3.0),
    ),
    "a pattern": (lambda: Attributed(_matched, data=Data()), _set("data.scale", 3.0)),
    "a partial's argument": (
        lambda: Attributed(lambda m: m.part(), part=functools.partial(float, *[2.0])),
        lambda m: setattr(m, "part", functools.partial(float, 3.0)),
    ),
    "a nested container": (
        lambda: Attributed(lambda m: m.all[0]["a"][1], all=[{"a": [1.0, 2.0]}]),
        lambda m: m.all[0]["a"].__setitem__(1, 3.0),
    ),
    "the type of an item of a set": (
        lambda: Attributed(lambda m: next(iter(m.all)), all={2}),
        lambda m: (m.all.clear(), m.all.add(2.0)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_change_makes_another_kind_of_call(name: str) -> None:
    make, change = CASES[name]
    model = make()
    with fuse(model) as report:
        recorded(model, X)
        assert would_serve(model, X), report
        change(model)
        assert not would_serve(model, X)


def _undone(owner: Any, name: str, value: Any, check: Callable[[], None]) -> None:
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        check()
    finally:
        setattr(owner, name, before)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (WithClass.inner, "scale", 3.0),
        (WithClass, "dtype", torch.float64),
        (Attributed, "forward", lambda self, x: x),
        (nn.Linear, "forward", lambda self, x: x),
        (nn.Module, "__call__", lambda self, x: x),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_change_of_a_class_makes_another_kind_of_call(owner: Any, name: str, value: Any) -> None:
    def read(m: Any) -> Any:
        return m.layer(m.weight).sum().to(m.dtype) * m.inner.scale

    model = WithClass(read, layer=nn.Linear(4, 4).requires_grad_(False))
    with fuse(model) as report:
        recorded(model, X)
        assert would_serve(model, X), report
        _undone(owner, name, value, lambda: _assert(not would_serve(model, X)))
        assert would_serve(model, X)


def _assert(condition: bool) -> None:
    assert condition


def test_a_forward_that_is_replaced_on_the_class_runs_in_the_next_call() -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    model = Doubles()
    with fuse(model):
        recorded(model, X)
        model.__class__ = Halves  # type: ignore[assignment]
        assert torch.equal(model(X), X / 2)
        Halves.forward = Doubles.forward  # type: ignore[method-assign]
        assert torch.equal(model(X), X * 2)


class Anchored(nn.Module):
    """Asks a parameter for its type, and reads none of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(2, 2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.anchor.dtype) * 2).relu() + self.anchor.stride(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.to("meta"),
        lambda m: setattr(m.anchor, "data", m.anchor.data.t()),
        lambda m: setattr(m.anchor, "data", torch.empty(2, 1)),
        lambda m: setattr(m, "anchor", nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)),
    ],
    ids=["type", "device", "strides", "sizes", "layout"],
)
def test_the_metadata_of_a_tensor_that_is_not_read_is_guarded(
    change: Callable[[Any], object],
) -> None:
    model = Anchored()
    with fuse(model):
        recorded(model, X)
        assert would_serve(model, X)
        change(model)
        assert not would_serve(model, X)


def test_whether_a_parameter_requires_gradients_is_guarded_where_code_asks() -> None:
    model = Attributed(lambda m: 2.0 if m.weight.requires_grad else 3.0)
    with fuse(model), torch.no_grad():
        recorded(model, X)
        assert would_serve(model, X)
        model.requires_grad_(True)
        assert not would_serve(model, X)


def test_the_grad_mode_is_guarded_where_code_makes_a_tensor_require_gradients() -> None:
    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((x * 2).detach().requires_grad_() * 3).sin()

    model = Makes()
    with fuse(model):
        with torch.no_grad():
            recorded(model, X)
            assert would_serve(model, X)
        with torch.enable_grad():
            assert not would_serve(model, X)
            assert model(X).requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own call
def test_forward_mode_differentiation_keeps_its_tangents() -> None:
    model = Attributed(lambda m: 2.0)
    with fuse(model) as report:
        recorded(model, X)
        before = report.regions[0].calls
        look(model)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(X, torch.ones_like(X))
            assert forward_ad.unpack_dual(model(dual)).tangent is not None
        (region,) = report._fusion.regions  # type: ignore[attr-defined]
        assert report.regions[0].calls == before + 1
        assert region.why_plain == "under forward-mode differentiation"


# -- modules whose parts are replaced --


def _new_tables(model: Any, other: Any) -> None:
    vars(model).update(vars(other))


def _new_parameters(model: Any, other: Any) -> None:
    model.__dict__["_parameters"] = vars(other)["_parameters"]


@pytest.mark.parametrize("replace", [_new_tables, _new_parameters])
def test_replaced_tables_of_a_module_give_the_new_weights(
    replace: Callable[[Any, Any], None],
) -> None:
    model, other = Attributed(abs), Attributed(abs)
    model.read = other.read = lambda m: 2.0
    other.weight.mul_(3.0)
    with fuse(model):
        recorded(model, X)
        forward = vars(model)["forward"]
        replace(model, other)
        model.forward = forward
        taken = would_serve(model, X)
        assert not taken or any(one is other.weight for one in taken)


def test_a_replaced_child_is_freed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).requires_grad_(False)
    with fuse(model, include=nn.Sequential):
        recorded(model, X)
        old = weakref.ref(model[0])
        model[0] = nn.Linear(4, 4).requires_grad_(False)
        recorded(model, X)
        gc.collect()
        assert old() is None


def test_heads_that_come_and_go_leave_room_for_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).requires_grad_(False)
    with aoti_eager.config.scope(region_cap=2), fuse(model, include=nn.Sequential) as report:
        for _ in range(5):
            model[0] = nn.Linear(4, 4).requires_grad_(False)
            recorded(model, X)
            assert would_serve(model, X), report


def test_a_copy_by_a_class_of_its_own_way_of_copying_calls_the_copy() -> None:
    class Copies(Attributed):
        def __deepcopy__(self, memo: dict[int, Any]) -> Copies:
            new = Copies.__new__(Copies)
            new.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return new

    model = Copies(lambda m: m.scale, scale=2.0)
    want = model(X)
    with fuse(model):
        recorded(model, X)
        other = copy.deepcopy(model)
        other.scale = 20.0
        assert torch.allclose(other(X), want * 10)
        assert torch.allclose(model(X), want)
        again = copy.deepcopy(other)
        again.scale = 2.0
        assert torch.allclose(again(X), want)


# -- functions --


def test_variables_of_one_name_below_a_decorator_are_told_apart() -> None:
    def scaled(w: Tensor) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
        def decorate(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            @functools.wraps(function)
            def inner(x: Tensor) -> Tensor:
                return function(x) * w

            return inner

        return decorate

    def made(w: Tensor) -> Callable[[Tensor], Tensor]:
        def added(x: Tensor) -> Tensor:
            return (x + w).relu()

        return added

    one, other = torch.ones(4), torch.ones(4)
    fast = fuse(scaled(one)(made(other)))
    try:
        for _ in range(3):
            fast(X)
        taken = would_serve(fast, X)
        assert {id(one), id(other)} <= {id(tensor) for tensor in taken}
    finally:
        fast.report.undo()


def test_a_number_of_another_thread_is_seen() -> None:
    model = Attributed(_by_local, local=threading.local())
    model.local.scale = 2.0
    found = []

    def work() -> None:
        model.local.scale = 3.0
        found.append(would_serve(model, X))

    with fuse(model):
        recorded(model, X)
        assert would_serve(model, X)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [[]]


def test_what_is_put_on_an_argument_is_a_part_of_the_key() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * getattr(x, "scale", 2.0)).relu()

    model, y, z = Reads(), X.clone(), X.clone()
    y.scale, z.scale = 3.0, object()  # type: ignore[attr-defined]
    with fuse(model):
        recorded(model, X)
        assert would_serve(model, X)
        assert not would_serve(model, y)
        assert torch.equal(model(y), (y * 3.0).relu())
        with pytest.raises(TypeError):
            model(z)


@pytest.mark.parametrize("key", [torch.float32, Key.A, (1, "a")])
def test_tensors_in_a_dict_are_found_by_any_key(key: Any) -> None:
    model = Attributed(lambda m: m.masks[key], masks={key: torch.ones(4)})
    with fuse(model) as report:
        recorded(model, X)
        assert would_serve(model, X), report


# -- what no guard compares --


def test_a_large_container_within_a_container_stops_with_its_path() -> None:
    model = Attributed(lambda m: m.tables["a"][0], tables={"a": dict.fromkeys(range(300), 2.0)})
    with fuse(model) as report:
        recorded(model, X)
        assert reason_of(report) == "large_attribute"
        assert "tables" in report.regions[0].message


def test_objects_with_too_many_values_stop_with_a_path() -> None:
    many = [Config(scale=2.0, more=[1.0] * 100) for _ in range(30)]
    model = Attributed(lambda m: m.many[0].scale + m.many[0].more[0], many=many)
    with fuse(model) as report:
        recorded(model, X)
        assert reason_of(report) == "large_attribute"
        assert "many[" in report.regions[0].message


def test_containers_that_nobody_reads_are_not_copied() -> None:
    class Counted(dict[int, int]):
        walks = 0

        def __iter__(self) -> Iterator[int]:
            Counted.walks += 1
            return super().__iter__()

    model = Attributed(lambda m: 2.0, words=Counted.fromkeys(range(1000), 1))
    Counted.walks = 0
    with fuse(model):
        recorded(model, X)
        assert would_serve(model, X)
    assert Counted.walks == 0


def test_an_iterator_stops() -> None:
    model = Attributed(lambda m: next(m.numbers), numbers=iter([2.0] * 50))
    with fuse(model) as report:
        recorded(model, X)
        assert reason_of(report) == "python_state"
        assert "numbers" in report.regions[0].message
