"""Tapes: canonical, readable, read back with care, and replayed."""

from __future__ import annotations

import json
import re
import weakref

import pytest
import torch
from torch import Tensor

from aoti_eager._base.torch_compat.tracing import dispatch_mode
from aoti_eager._functions.tape import SCHEMA, Tape, TapeFunction, op_name
from aoti_eager._functions.tape_call import TapeCall
from aoti_eager._keys.kernel_key import tensor_component
from aoti_eager._keys.schema import parsed_schema
from aoti_eager.errors import TapeError
from tests.support.tapes import (
    Attention,
    Convolutions,
    GraphLayer,
    module_tensors,
    policy,
    tape_of,
)


def models():
    torch.manual_seed(0)
    return {
        "policy": (policy(), [torch.randn(2, 17)]),
        "attention": (Attention(), [torch.randint(0, 50, (2, 5))]),
        "convolutions": (Convolutions(), [torch.randn(2, 3, 8, 8)]),
        "graph": (
            GraphLayer(),
            [torch.randn(6, 16), torch.randint(0, 6, (9,)), torch.randint(0, 6, (9,))],
        ),
    }


@pytest.mark.parametrize("name", list(models()))
def test_a_replay_gives_what_the_call_gave(name: str) -> None:
    module, arguments = models()[name]
    recorded = tape_of(module, arguments, module_tensors(module))
    with torch.no_grad():
        for mine, theirs in zip(
            recorded.tape.replay(recorded.inputs), recorded.results, strict=True
        ):
            assert torch.equal(mine, theirs)
        others = [torch.rand_like(one) if one.is_floating_point() else one for one in arguments]
        given = [*others, *recorded.inputs[len(arguments) :]]
        assert torch.equal(recorded.tape.replay(given)[0], module(*others))


@pytest.mark.parametrize("name", list(models()))
def test_two_recordings_of_equal_calls_are_equal(name: str) -> None:
    module, arguments = models()[name]
    first, second = (tape_of(module, arguments, module_tensors(module)).tape for _ in range(2))
    assert first == second
    assert first.digest == second.digest
    text = json.dumps(first.document())
    assert Tape.from_document(json.loads(text)) == first
    name = op_name(first)
    assert name == op_name(second) != op_name(first, "another dtype")
    assert re.fullmatch(r"aoti_eager_region::t_[0-9a-f]{24}", name)
    assert parsed_schema(name + SCHEMA).op == name


def test_arguments_that_equal_their_defaults_are_left_out() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    said = tape_of(lambda a, b: torch.add(a, b, alpha=1), [x, y]).tape
    unsaid = tape_of(torch.add, [x, y]).tape
    other = tape_of(lambda a, b: torch.add(a, b, alpha=2), [x, y]).tape
    assert said == unsaid
    assert said.digest != other.digest


def test_a_tensor_is_named_by_its_origin_after_a_write() -> None:
    tape = tape_of(lambda x: x.neg().add_(x).mul_(2.0), [torch.randn(3)]).tape
    assert [call.op for call in tape.calls] == [
        "aten::neg",
        "aten::add_.Tensor",
        "aten::mul_.Tensor",
    ]
    assert tape.outputs == ({"result": [0, 0]},)
    x = torch.randn(3)
    assert torch.equal(tape.replay([x])[0], torch.zeros(3))


def test_lists_of_results_and_numbers_and_small_constants_are_replayed() -> None:
    numbers = torch.tensor([1.0, float("nan"), -0.0])

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        first, _, third = x.split([1, 2, 3])
        return first * 0.1 + third, third + torch.nan_to_num(numbers)

    x = torch.randn(6)
    recorded = tape_of(function, [x])
    assert any("data" in s for call in recorded.tape.calls for _, s in call.sources())
    for mine, theirs in zip(recorded.tape.replay([x]), recorded.results, strict=True):
        assert torch.equal(mine, theirs)


def test_a_replay_drops_results_after_their_last_use() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(50):
            x = x + 1.0
        return x

    x = torch.zeros(1 << 18)
    replay = tape_of(function, [x]).tape.replay_function()
    alive: list[int] = []
    seen = set()

    def count(op, args, kwargs):
        result = op(*args, **kwargs)
        seen.add(weakref.ref(result, lambda one: seen.discard(one)))
        alive.append(len(seen))
        return result

    with torch.no_grad(), dispatch_mode(count):
        replay([x])
    assert max(alive) <= 2


def test_a_listing_has_sizes_where_the_inputs_are_known() -> None:
    module, arguments = models()["attention"]
    recorded = tape_of(module, arguments, module_tensors(module))
    known = recorded.tape.listing([tensor_component(one) for one in recorded.inputs])
    assert "r0 = aten::embedding(i1, i0)  float32 [2, 5, 32]" in known
    assert known.splitlines()[-1].startswith("return r")
    plain = recorded.tape.listing()
    assert "r0 = aten::embedding(i1, i0)\n" in plain
    assert len(plain.splitlines()) == len(recorded.tape.calls) + 1


def test_a_function_of_a_tape_is_constant_and_has_the_tapes_digest() -> None:
    tape = tape_of(torch.add, [torch.randn(2), torch.randn(2)]).tape
    function = TapeFunction(tape)
    assert function.is_constant
    assert not function.is_refused
    assert function.refusal is None
    state, tensors = function.snapshot()
    assert (state, tensors) == (TapeFunction(tape).snapshot()[0], [])
    description, constants = function.describe()
    assert constants == []
    assert description.context() == (("function", tape.digest),)
    assert SCHEMA == "(Tensor[] inputs) -> Tensor[]"


def _document() -> dict:
    tape = tape_of(lambda a, b: torch.addmm(a, b, b) * 2.0, [torch.randn(2), torch.randn(2, 2)])
    return json.loads(json.dumps(tape.tape.document()))


def _put(*path):
    *outer, last, value = path

    def change(document):
        place = document["tape"]
        for one in outer:
            place = place[one]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_put("inputs", -1), "inputs"),
        (_put("inputs", True), "inputs"),
        (_put("inputs", 10**9), "inputs"),
        (_put("calls", {}), "lists"),
        (_put("calls", 0, "aten::addmm"), "not an op and its arguments"),
        (_put("calls", 0, 0, "aten::no_such_op"), "no_such_op"),
        (_put("calls", 0, 0, 7), "no name"),
        (_put("calls", 0, 1, 0, 0, "nothing"), "no such argument"),
        (_put("calls", 0, 1, []), "lacks its argument"),
        (_put("calls", 0, 1, 0, 1, {"input": 2}), "no source"),
        (_put("calls", 0, 1, 0, 1, {"input": -1}), "no source"),
        (_put("calls", 0, 1, 0, 1, {"result": [0, 0]}), "no source"),
        (_put("calls", 1, 1, 0, 1, {"result": [1, 0]}), "no source"),
        (_put("calls", 1, 1, 0, 1, {"result": [0, 1]}), "has no tensor as its result"),
        (_put("calls", 1, 1, 0, 1, {"result": [0, True]}), "no source"),
        (_put("calls", 1, 1, 1, 1, {"number": {"float": "two"}}), "no source"),
        (_put("calls", 1, 1, 1, 1, {"number": {"int": 1 << 70}}), "no source"),
        (_put("calls", 1, 1, 1, 1, {"data": {"dtype": "qint8", "sizes": [], "values": []}}), "no"),
        (_put("calls", 1, 1, 1, 1, None), "is missing"),
        (_put("calls", 1, 1, 1, 1, [{"input": 0}]), "no source"),
        (_put("outputs", 0, {"number": {"int": 1}}), "is a constant"),
        (_put("outputs", 0, {"result": [2, 0]}), "no source"),
        (lambda d: d["tape"]["calls"][0][1].reverse(), "schema's order"),
        (lambda d: d["tape"]["calls"][0][1].append(["beta", {"int": 1}]), "canonical"),
        (lambda d: d["tape"]["calls"][0][1].append(["beta", {"int": "1"}]), "is no"),
        (lambda d: d["tape"].update(more=1), "has not inputs"),
        (lambda d: d.clear(), "has not inputs"),
    ],
)
def test_a_document_that_is_no_tape_is_refused(change, says: str) -> None:
    document = _document()
    assert Tape.from_document(document).document() == document
    change(document)
    with pytest.raises(TapeError, match=says):
        Tape.from_document(document)


def test_a_source_after_its_use_is_refused() -> None:
    call = TapeCall("aten::relu", (("self", {"result": [0, 0]}),))
    with pytest.raises(TapeError, match="no source"):
        Tape.of(1, [call], [{"result": [0, 0]}])
