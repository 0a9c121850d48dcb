"""What is recorded: the calls that a TorchDispatchMode sees, with all that they take and give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aoti_eager
from aoti_eager._native import recorder
from aoti_eager._native.recorder import RecordedTensor, Recording, UnreadValue, record

from ..support.seen_calls import ops, replay, seen_by_mode, spelled_calls

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def _nothing_left(settings: None) -> Iterator[None]:
    """No recording outlives a test."""
    yield
    assert recorder.alive() == 0
    assert not recorder.is_recording()


def recorded(function: Callable[[], object]) -> Recording:
    with record() as recording:
        function()
    assert recording.stopped is None
    return recording


class Block(nn.Module):
    """A transformer block, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(4.0)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        attended = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(attended)
        return x + self.down(F.silu(self.up(self.norm_after(x))))


torch.manual_seed(0)
x = torch.randn(4, 6)
image = torch.randn(2, 3, 8, 8)
tokens = torch.randn(2, 5, 16)
heads = torch.randn(2, 4, 5, 8)
indices = torch.tensor([[0, 2], [1, 1]])
table = torch.randn(5, 6)
linear, block = nn.Linear(6, 3), Block()
convolution = nn.Conv2d(3, 4, 3, padding=1)
norms = nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(3, 3)).eval()

PROGRAMS: dict[str, Callable[[], object]] = {
    "elementwise": lambda: (x * 2.0 + x).sub(1, alpha=3).exp().clamp(min=0.5) / x,
    "numbers": lambda: (x * 2, x + 1j, x**2, torch.pow(2, x), x > 0.5),
    "in place": lambda: x.clone().add_(x).mul_(0.5).relu_().zero_(),
    "views": lambda: x.t()[1:, ::2].reshape(-1).view(2, 5).unsqueeze(0).expand(4, 2, 5),
    "linear": lambda: linear(x),
    "addmm": lambda: torch.addmm(x[0, :4], x, x.t(), beta=0.5, alpha=2),
    "attention": lambda: F.scaled_dot_product_attention(heads, heads, heads, is_causal=True),
    "convolution": lambda: convolution(image),
    "norms": lambda: norms(image),
    "layer norm": lambda: F.layer_norm(x, (6,)),
    "embedding": lambda: F.embedding(indices, table, padding_idx=0),
    "indexing": lambda: (table[indices], table[:, indices], table[table > 0], x[0, 1]),
    "lists": lambda: torch.cat([torch.stack([x, x]), *torch.chunk(torch.stack([x, x]), 2)]),
    "split": lambda: [one + 1 for one in torch.split(x, [1, 3])],
    "out": lambda: torch.mul(x, x, out=torch.empty(4, 6)),
    "constants": lambda: (torch.tensor([1.0, -0.0]), torch.tensor(3), torch.arange(5)),
    "factories": lambda: (torch.zeros(2, dtype=torch.int32), torch.full((2,), 3.5), x.new_ones(2)),
    "dtypes": lambda: x.to(torch.float64).to(torch.bfloat16, memory_format=torch.preserve_format),
    "layouts": lambda: image.contiguous(memory_format=torch.channels_last),
    "reductions": lambda: (x.sum(), x.mean(-1, keepdim=True), x.max(0), x.var(), x.argmax()),
    "where": lambda: torch.where(x > 0, x, -1.0),
    "foreach": lambda: torch._foreach_add([x, x[0]], [x, x[1]], alpha=2),
    "scatter": lambda: x.index_add(0, indices[0], x[:2]).scatter(1, indices, 2.0),
    "linear algebra": lambda: torch.linalg.svd(x),
    "complex": lambda: torch.view_as_real(torch.fft.fft(x) * 1j),
    "strings": lambda: (F.gelu(x, approximate="tanh"), torch.einsum("ij,kj->ik", x, x)),
    "block": lambda: block(tokens),
    "no tensors": lambda: (torch.can_cast(torch.int, torch.float), torch.eye(2)),
}
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": nullcontext,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_recording_has_the_calls_that_a_mode_sees(program: str, state: str) -> None:
    # In inference mode, a mode sees composite ops; a recording has their steps, as anywhere.
    with STATES["no_grad" if state == "inference_mode" else state]():
        expected = seen_by_mode(PROGRAMS[program])
    with STATES[state]():
        recording = recorded(PROGRAMS[program])
    assert spelled_calls(recording) == expected
    assert expected


@pytest.mark.parametrize("program", ["linear", "block", "attention", "convolution", "lists"])
def test_under_autocast_the_casts_are_calls_of_their_own(program: str) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = seen_by_mode(PROGRAMS[program])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # which keeps cast weights
        recording = recorded(PROGRAMS[program])
    assert spelled_calls(recording) == expected
    assert ("aten::_to_copy" in ops(recording)) == (program != "lists")


def test_under_autograd_what_autograd_differentiates_is_recorded() -> None:
    weight = torch.randn(6, 6, requires_grad=True)

    def step() -> None:
        (F.gelu(x @ weight) * 2).sum().backward()  # type: ignore[no-untyped-call]

    forward = seen_by_mode(lambda: (F.gelu(x @ weight) * 2).sum())
    recording = recorded(step)
    assert spelled_calls(recording)[: len(forward)] == forward
    assert "aten::gelu_backward" in ops(recording)
    matmul = next(call for call in recording.calls if call.op == "aten::mm")
    assert matmul.results[0].requires_grad


@pytest.mark.parametrize("program", ["block", "convolution", "attention", "numbers", "foreach"])
def test_a_replay_of_the_calls_gives_the_same_values(program: str) -> None:
    captured = [x, image, tokens, heads, *block.parameters(), *convolution.parameters()]
    results: list[Any] = []
    with torch.no_grad():
        recording = recorded(lambda: results.append(PROGRAMS[program]()))
        replayed = replay(recording, captured)
    (result,) = results
    leaves = result if isinstance(result, (list, tuple)) else [result]
    assert leaves
    for leaf in leaves:
        assert torch.equal(replayed[leaf._cdata], leaf)


def test_a_composite_op_that_computes_by_itself_is_recorded_as_itself() -> None:
    """With a mode there, torch takes another way; without one, a step would be left out."""
    results: list[torch.Tensor] = []
    for state in STATES.values():
        with state():
            recording = recorded(lambda: results.append(F.max_pool1d(x, 2)))
            assert ops(recording) == ["aten::max_pool1d"]
            assert torch.equal(replay(recording, [x])[results[-1]._cdata], results[-1])


# --- values ---------------------------------------------------------------------------------------


def test_arguments_come_back_as_what_they_were() -> None:
    calls = recorded(
        lambda: (
            torch.full((2,), float("nan")),
            torch.clamp(x, -0.0, float("inf")),
            torch.full((), 2 - 0.5j),
            torch.add(x, True, alpha=2**62),
            x.to(torch.float16, memory_format=torch.contiguous_format),
            torch.empty_like(x, layout=torch.strided, device="cpu", dtype=torch.bfloat16),
        )
    ).calls
    full, clamp, imaginary, add, cast, empty = [call.arguments for call in calls]
    assert full[0] == [2]
    assert math.isnan(full[1])
    assert math.copysign(1, clamp[1]) == -1
    assert clamp[2] == math.inf
    assert imaginary[1] == 2 - 0.5j
    assert add[1].number is True
    assert add[2] == 2**62
    assert cast[1] is torch.float16
    assert cast[-1] is torch.contiguous_format
    assert empty[1:4] == [torch.bfloat16, torch.strided, torch.device("cpu")]


def test_what_has_no_text_is_named_by_its_type() -> None:
    generator = torch.Generator().manual_seed(1)
    (call,) = recorded(lambda: torch.bernoulli(x.abs().clamp(0, 1), generator=generator)).calls[2:]
    assert call.arguments[1] == UnreadValue("Generator")
    text = 'a "quoted" line\n\\ of ünïcode'
    library = torch.library.Library("aoti_eager_recorded", "FRAGMENT")
    library.define("named(Tensor x, str name) -> Tensor")
    library.impl("named", lambda x, name: x + 1, "CompositeExplicitAutograd")
    with torch.no_grad():
        (call,) = recorded(lambda: torch.ops.aoti_eager_recorded.named(x, text)).calls
    assert call.arguments[1] == text


def test_tensors_are_those_of_the_script() -> None:
    made: list[torch.Tensor] = []
    with torch.no_grad():
        recording = recorded(lambda: made.append(x.t()[1:].add_(1).mul(linear.weight[0, 0])))
    transposed, part, added, _, _, multiplied = recording.calls
    first = transposed.arguments[0]
    assert (first.impl, first.storage) == (x._cdata, x.untyped_storage()._cdata)
    assert (first.sizes, first.strides, first.offset) == ((4, 6), (6, 1), 0)
    assert first.version_after == x._version == first.version + 1
    view = part.results[0]
    assert (view.sizes, view.strides, view.offset) == ((5, 4), (1, 6), 1)
    assert view.storage == first.storage
    assert view.impl != first.impl
    assert added.results == [view]
    assert added.arguments[0] is view
    assert multiplied.results[0].impl == made[0]._cdata
    assert [one.index for one in recording.tensors] == list(range(len(recording.tensors)))
    assert not any(one.changed for one in recording.tensors)


def test_a_tensor_that_gets_other_metadata_is_marked() -> None:
    recording = recorded(lambda: torch.mul(x, x, out=torch.empty(0)))
    (changed,) = (one for one in recording.tensors if one.changed)
    assert changed.sizes == (0,)
    inference = []
    with torch.inference_mode():
        recording = recorded(lambda: inference.append(x + 1))
    result = recording.calls[0].results[0]
    assert result.inference
    assert result.version is None
    assert not x.is_inference()


def test_constants_have_their_data_and_others_have_none() -> None:
    def constants() -> None:
        torch.tensor([[1.5, -0.0], [float("inf"), 3]])
        torch.tensor([True, False])
        torch.tensor([2**62, -1])
        torch.tensor(1 - 2j)
        torch.tensor([0.1], dtype=torch.bfloat16)
        torch.tensor(range(64))
        torch.tensor(range(65))
        torch.ones(2)

    data = [call.arguments[0].data for call in recorded(constants).calls[:-1]]
    assert data[0] == [1.5, 0.0, math.inf, 3.0]
    assert math.copysign(1, data[0][1]) == -1
    assert data[1:4] == [[True, False], [2**62, -1], [1 - 2j]]
    assert torch.tensor(data[4], dtype=torch.bfloat16) == torch.tensor(0.1, dtype=torch.bfloat16)
    assert data[5] == list(range(64))
    assert data[6] is None
    assert recorded(lambda: torch.ones(2)).tensors[0].data is None


def test_undefined_tensors_are_none() -> None:
    weight = torch.randn(6, requires_grad=True)

    def backward() -> None:
        F.layer_norm(x, (6,), weight).sum().backward()  # type: ignore[no-untyped-call]

    (call,) = (c for c in recorded(backward).calls if c.op == "aten::native_layer_norm_backward")
    assert [isinstance(one, RecordedTensor) for one in call.results] == [False, True, False]


# --- kernels that others have registered ----------------------------------------------------------


def test_a_call_that_our_kernel_serves_is_recorded_once(shared_cache: None) -> None:
    y = torch.linspace(-2, 2, 12).reshape(3, 4)
    with aoti_eager.register("aten::mul.Tensor"):
        missed = recorded(lambda: y * y)
        y * y
        hits = aoti_eager.stats()["aten::mul.Tensor"].hits
        served = recorded(lambda: (y * y, torch.ops.aten.mul.Tensor(y, y)))
        assert aoti_eager.stats()["aten::mul.Tensor"].hits == hits + 2
    assert ops(missed) == ["aten::mul.Tensor"]
    assert ops(served) == ["aten::mul.Tensor"] * 2


def test_python_kernels_are_one_call_unless_they_are_composite() -> None:
    library = torch.library.Library("aoti_eager_recorded", "FRAGMENT")
    for kind in ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CPU"):
        library.define(f"{kind.lower()}(Tensor x) -> Tensor")
        library.impl(kind.lower(), lambda x: x.sin().cos(), kind)
    opaque = torch.library.custom_op("aoti_eager_recorded::opaque", mutates_args=())(_sin)

    def calls() -> None:
        for kind in ("compositeimplicitautograd", "compositeexplicitautograd", "cpu"):
            getattr(torch.ops.aoti_eager_recorded, kind)(x)
        opaque(x)

    for state in STATES.values():
        with state():
            expected = seen_by_mode(calls)
            assert spelled_calls(recorded(calls)) == expected
    assert [call[0] for call in expected] == [
        *("aten::sin", "aten::cos"),
        *("aoti_eager_recorded::compositeexplicitautograd", "aoti_eager_recorded::cpu"),
        "aoti_eager_recorded::opaque",
    ]


def test_a_kernel_under_autocast_that_hides_the_op_is_a_reason_to_stop() -> None:
    """Kernels of torch's call the op again, with what they have cast; the call is seen then."""
    library = torch.library.Library("aoti_eager_recorded", "FRAGMENT")
    library.define("hidden(Tensor x) -> Tensor")
    library.impl("hidden", lambda x: x.sin(), "CPU")
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.AutocastCPU)

    def kernel(keys: Any, y: torch.Tensor) -> Any:
        return torch.ops.aoti_eager_recorded.hidden.default.redispatch(keys & below, y)

    library.impl("hidden", kernel, "AutocastCPU", with_keyset=True)
    with record() as recording, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.ops.aoti_eager_recorded.hidden(x)
    assert recording.stopped is not None
    assert "aoti_eager_recorded::hidden" in recording.stopped
    assert recording.calls == []


def _sin(x: torch.Tensor) -> torch.Tensor:
    return x.sin()
