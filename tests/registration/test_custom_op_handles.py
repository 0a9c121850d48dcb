"""What an operator's handle is to the rest of Python: copied, pickled, passed on, replaced."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager import custom_op
from aoti_eager.errors import CustomOpError

from ..conftest import MakeOp


def doubled(x: Tensor) -> Tensor:
    return x * 2


class Model(torch.nn.Module):
    """A module that keeps an operator, as one keeps an activation."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self.linear(x))


# -- copies and pickles --


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_an_operator_is_itself(copied: Any, make_op: MakeOp) -> None:
    op = make_op(doubled)
    assert copied(op) is op
    assert copied(Model(op)).op is op


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_has_the_operators_name(protocol: int, make_op: MakeOp) -> None:
    op = make_op(doubled)
    pickled = pickle.dumps(op, protocol)
    assert pickle.loads(pickled) is op  # noqa: S301 - our own
    # Files of the package move; what a pickle calls does not.
    assert b"aoti_eager" in pickled
    assert b"aoti_eager._" not in pickled


def test_a_saved_module_finds_its_operator_again(make_op: MakeOp) -> None:
    model, file = Model(make_op(doubled)), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.op is model.op
    x = torch.ones(2, 3)
    with aoti_eager.config.scope(mode="off"):
        assert torch.equal(loaded(x), model(x))


def test_a_pickle_of_a_newer_version_of_the_function_is_that_one(make_op: MakeOp) -> None:
    op = make_op(doubled)
    pickled = pickle.dumps(op)
    again = make_op(doubled)
    assert pickle.loads(pickled) is again  # noqa: S301 - our own
    with pytest.raises(CustomOpError, match="cannot be pickled, by its name: was defined anew"):
        pickle.dumps(op)


def test_an_operator_that_is_not_made_here_says_where_it_would_be(make_op: MakeOp) -> None:
    op = make_op(doubled)
    pickled = pickle.dumps(op)
    op.unregister()
    with pytest.raises(CustomOpError, match="cannot be pickled, by its name: was taken out"):
        pickle.dumps(op)
    with pytest.raises(CustomOpError, match=r"aetest::doubled: is not in this process, and import"):
        pickle.loads(pickled)  # noqa: S301 - our own
    elsewhere = pickled.replace(
        b"tests.registration.test_custom_op_handles", b"tests.registration.test_custom_op_nowhere"
    )
    with pytest.raises(CustomOpError, match=r"nowhere', which defines it, cannot be imported"):
        pickle.loads(elsewhere)  # noqa: S301 - our own


SPAWNED = """
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
import aoti_eager

@aoti_eager.custom_op("mine::doubled")
def doubled(x: Tensor) -> Tensor:
    return x * 2

class Numbers(Dataset):
    def __init__(self):
        self.op = doubled
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return self.op(torch.tensor([float(index)]))

if __name__ == "__main__":
    loader = DataLoader(Numbers(), num_workers=1, multiprocessing_context="spawn")
    print(torch.cat([one.flatten() for one in loader]).tolist())
"""


@pytest.mark.full
def test_a_spawned_worker_of_a_data_loader_has_the_operator(tmp_path: Path) -> None:
    script = tmp_path / "loads.py"
    script.write_text(SPAWNED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[0.0, 2.0, 4.0, 6.0]", done.stderr


# -- torch's functions that want an overload --


def test_torch_says_that_the_overload_is_what_it_wants(make_op: MakeOp) -> None:
    op = make_op(doubled)
    with pytest.raises(
        ValueError, match=r"aoti_eager\._registration\.custom_op\.CustomOp'; pass its .* op\.op"
    ):
        torch.library.opcheck(op, (torch.ones(3),))  # type: ignore[arg-type]
    assert set(torch.library.opcheck(op.op, (torch.ones(3),)).values()) == {"SUCCESS"}


# -- a second definition --


def define(scale: int) -> Any:
    """Return an operator of a function that has another body for each scale, as in a notebook."""
    code = compile(f"def again(x: Tensor) -> Tensor:\n    return x * {scale}\n", "cell.py", "exec")
    names: dict[str, Any] = {"Tensor": Tensor, "__name__": "__main__"}
    exec(code, names)  # noqa: S102 - a cell of a notebook
    return custom_op("aetest::again", names["again"])


def test_the_handle_of_an_older_definition_says_what_to_call() -> None:
    x = torch.ones(2)
    with aoti_eager.config.scope(mode="off"):
        older = define(2)
        kept = Model(older)
        newer = define(3)
        try:
            assert torch.equal(newer(x), x * 3)
            assert torch.equal(torch.ops.aetest.again(x), x * 3)
            for call in (lambda: older(x), lambda: kept(torch.ones(1, 3))):
                with pytest.raises(CustomOpError) as caught:
                    call()
                message = str(caught.value)
                assert message.startswith("aetest::again: was defined anew since (cell.py, line 1)")
                assert message.endswith("it is also torch.ops.aetest.again")
        finally:
            newer.unregister()
        with pytest.raises(CustomOpError, match=r"again: was taken out by unregister\(\); make it"):
            newer(x)
