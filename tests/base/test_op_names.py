"""Names of ops: every registered one is found, every other one is refused with suggestions."""

from __future__ import annotations

import pytest
import torch

from aoti_eager._base.op_names import find_overload, find_packet, suggestions
from aoti_eager._base.torch_compat.dispatcher import all_op_names
from aoti_eager._keys.schema import qualified_name
from aoti_eager.errors import UnknownOpError


def test_every_registered_name_is_found() -> None:
    for name in all_op_names():
        assert qualified_name(find_overload(name)) == name
        assert find_packet(name.partition(".")[0]) is not None


def test_an_overload_is_the_one_that_torch_ops_gives() -> None:
    assert find_overload("aten::add.Tensor") is torch.ops.aten.add.Tensor
    assert find_overload("aten::silu") is torch.ops.aten.silu.default
    assert find_packet("aten::add") is torch.ops.aten.add


def test_an_op_registered_later_is_found() -> None:
    with pytest.raises(UnknownOpError):
        find_overload("aoti_eager_test_ops::later")
    with torch.library._scoped_library("aoti_eager_test_ops", "FRAGMENT") as library:
        library.define("later(Tensor x) -> Tensor")
        found = find_overload("aoti_eager_test_ops::later")
        assert found is torch.ops.aoti_eager_test_ops.later.default


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("aten::sillu", "aten::silu"),
        ("silu", "aten::silu"),
        ("aten.silu", "aten::silu"),
        ("torch.silu", "aten::silu"),
        ("aten.add.Tensor", "aten::add.Tensor"),
        ("aten::add.Tensors", "aten::add.Tensor"),
        ("atem::silu", "aten::silu"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, best: str) -> None:
    """An unknown name raises. Ignored in silence, it makes tests compare torch with itself."""
    with pytest.raises(
        UnknownOpError, match=r"no such op is registered .*; did you mean"
    ) as caught:
        find_overload(name)
    assert caught.value.name == name
    assert caught.value.suggestions[0] == best
    assert len(caught.value.suggestions) <= 3
    assert best in str(caught.value)
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "::",
        "aten::",
        "::silu",
        "aten::add",  # Its only default overload is TorchScript's, which no kernel serves.
        "aten::add.str",
        "aten::silu.nothing",
        "aten::__class__",
        "aten::__name__",
        "aten::name",
        "aten::_dir",
        "aten::si lu",
        "aten::silu;",
        "aten::add.__class__",
        "aten::add.overloads",
        "aten::add.op",
        "nothing::nowhere",
        "load_library::silu",
        "__class__::silu",
        "aten::silu.default.default",
        "aten/silu",
        "aten::größe",
    ],
)
def test_what_is_no_op_is_refused(name: str) -> None:
    with pytest.raises(UnknownOpError):
        find_overload(name)


@pytest.mark.parametrize("name", ["aten::silu.out", "aten::nothing", "aten", "aten::__doc__", ""])
def test_what_is_no_packet_is_refused(name: str) -> None:
    with pytest.raises(UnknownOpError):
        find_packet(name)


def test_a_name_like_no_other_has_no_suggestions() -> None:
    assert suggestions("qqqqqqqqqqqq") == ()
    with pytest.raises(UnknownOpError) as caught:
        find_overload("qqqqqqqqqqqq")
    assert str(caught.value) == "qqqqqqqqqqqq: no such op is registered with PyTorch"


def test_looking_for_a_name_leaves_no_trace_in_torch_ops() -> None:
    before = set(all_op_names())
    with pytest.raises(UnknownOpError):
        find_overload("aten::sillu")
    assert set(all_op_names()) == before
