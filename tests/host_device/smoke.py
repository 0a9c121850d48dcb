"""Check that the device does what tests of aoti_eager need; run in a process of its own.

``python -m tests.host_device.smoke`` prints one line of JSON: the failures, by check.
"""

from __future__ import annotations

import copy
import gc
import json
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .. import host_device

CHECKS: dict[str, Callable[[Any], None]] = {}


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Have ``main`` call it with the extension."""
    CHECKS[function.__name__] = function
    return function


@contextmanager
def ran(device: Any, *kernels: str) -> Iterator[None]:
    """Expect these kernels of the device to run, and no other."""
    before = Counter(device.kernel_calls())
    yield
    assert Counter(device.kernel_calls()) - before == Counter(kernels)


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    """Expect a device tensor of ``want``'s values, dtype and layout."""
    assert got.device.type == host_device.NAME
    assert got.dtype == want.dtype
    assert got.stride() == want.stride()
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=0)


@check
def factories(device: Any) -> None:
    x = torch.empty(3, 5, device="hostaccel:0")
    assert x.device == torch.device("hostaccel", 0)
    assert x.is_hostaccel
    assert not x.is_cpu
    assert x.data_ptr() % 64 == 0
    assert torch.empty(0, device="hostaccel").data_ptr() == 0
    assert torch.randn(3, 5, device="hostaccel:1").cpu().abs().sum() > 0
    channels_last = torch.empty(1, 2, 3, 4, device="hostaccel", memory_format=torch.channels_last)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    same(torch.zeros(2, 3, device="hostaccel"), torch.zeros(2, 3))
    same(torch.full((2, 3), 7, device="hostaccel"), torch.full((2, 3), 7))
    same(torch.arange(7, device="hostaccel:1"), torch.arange(7))
    same(torch.tensor([[1.5], [2.5]], device="hostaccel:1"), torch.tensor([[1.5], [2.5]]))
    same(torch.empty_strided((2, 3), (1, 2), device="hostaccel").zero_(), torch.zeros(3, 2).t())
    assert torch.empty_like(x).device == x.device
    with pytest.raises(IndexError, match="no device 2"):
        torch.empty(2, device="hostaccel:2")


@check
def random_numbers(device: Any) -> None:
    torch.manual_seed(3)
    x = torch.randn(4, device="hostaccel:1")
    torch.hostaccel.manual_seed_all(3)
    assert torch.equal(x, torch.randn(4, device="hostaccel:1"))


@check
def current_device(device: Any) -> None:
    module = torch.get_device_module("hostaccel")
    assert module is torch.hostaccel
    assert module.is_available()
    assert module.is_initialized()
    assert not module.is_in_fork()
    assert not module._is_in_bad_fork()
    assert module.device_count() == 2
    assert torch.accelerator.current_accelerator() == torch.device("hostaccel")
    assert torch.accelerator.device_count() == 2
    with module.device("hostaccel:1"):
        assert torch.empty(2, device="hostaccel").device.index == 1
        with module.device(0), torch.device("hostaccel"):
            assert torch.empty(2).device.index == 0
        other = []
        thread = threading.Thread(target=lambda: other.append(module.current_device()))
        thread.start()
        thread.join()
        assert other == [0]  # each thread has its own
        assert torch.accelerator.current_device_index() == 1
    module.set_device(1)
    assert module.current_device() == 1
    torch.accelerator.set_device_index(0)
    assert module.current_device() == 0
    with pytest.raises(IndexError, match="no device 5"):
        module.set_device(5)
    with pytest.raises(ValueError, match="doesn't match the current accelerator"):
        module.set_device("cpu")
    module.synchronize()
    torch.accelerator.synchronize()


@check
def copies(device: Any) -> None:
    x = torch.randn(3, 4)
    on_0, on_1 = x.to("hostaccel"), x.hostaccel(1)
    assert (on_0.device.index, on_1.device.index) == (0, 1)
    for y in (on_0, on_1, on_0.to("hostaccel:1"), copy.deepcopy(on_1)):
        same(y, x)
    assert copy.deepcopy(on_1).device == on_1.device
    same(on_0.t().to(torch.float64), x.t().to(torch.float64))
    same(torch.zeros(4, device="hostaccel").copy_(x[0]), x[0])
    same(
        torch.randn(2, dtype=torch.complex64).conj().to("hostaccel").resolve_conj() * 0,
        torch.zeros(2, dtype=torch.complex64),
    )
    c = torch.randn(3, dtype=torch.complex64)
    same(c.to("hostaccel").conj().clone(), c.conj().clone())
    assert torch.equal(c.to("hostaccel").conj().cpu(), c.conj())
    assert torch.equal(torch.zeros(3, 4).copy_(on_1), x)
    assert on_0[1, 2].item() == x[1, 2].item()
    assert torch.hostaccel.current_device() == 0
    assert torch.nn.Linear(2, 2).to("hostaccel:1").weight.device.index == 1


@check
def comparing_and_printing(device: Any) -> None:
    x = torch.tensor([1.0, 2.5], device="hostaccel:1")
    assert (x == x).all()
    assert (x == 2.5).cpu().tolist() == [False, True]
    assert repr(x) == "tensor([1.0000, 2.5000], device='hostaccel:1')"
    assert repr(x[:0]) == "tensor([], device='hostaccel:1')"


@check
def views_and_metadata(device: Any) -> None:
    x = torch.arange(12.0).view(3, 4)
    y = x.to("hostaccel:1")
    for view in (
        lambda t: t.view(4, 3),
        lambda t: t.t().reshape(12),
        lambda t: t[1:, ::2],
        lambda t: t.as_strided((2, 2), (4, 1), 5),
        lambda t: t.unflatten(1, (2, 2)).permute(2, 0, 1),
    ):
        same(view(y), view(x))
    assert y[1:].data_ptr() == y.data_ptr() + 16
    with pytest.raises(RuntimeError, match="view operator"):
        y.unfold(0, 2, 1)
    z = torch.empty(0, device="hostaccel:1").resize_(5, 5).fill_(2)
    same(z, torch.full((5, 5), 2.0))
    assert z.untyped_storage().device == z.device
    same(torch.empty(0, device="hostaccel:1").set_(y.untyped_storage()), torch.arange(12.0))
    same(torch.empty(0, device="hostaccel:1").set_(y.untyped_storage(), 2, (3,)), x.view(-1)[2:5])
    same(torch.empty(0, device="hostaccel:1").set_(y), x)
    with pytest.raises(RuntimeError, match="The storage is on"):
        torch.empty(0, device="hostaccel:0").set_(y.untyped_storage())


@check
def kernels(device: Any) -> None:
    x, y = torch.randn(3, 4), torch.randn(4, 3).t()
    a, b = x.to("hostaccel:1"), y.to("hostaccel:1")
    out = torch.empty(0, device="hostaccel:1")
    with ran(device, "mul.Tensor"):
        same(a * b, x * y)
    with ran(device, "mul.Tensor", "mul.Tensor"):
        same(b * 2.5, y * 2.5)
        same(torch.mul(torch.tensor(3.0), a.half()), torch.mul(torch.tensor(3.0), x.half()))
    with ran(device, "add.Tensor"):
        same(torch.add(a, b[:1], alpha=2), torch.add(x, y[:1], alpha=2))
    with ran(device, "silu"):
        same(torch.nn.functional.silu(b), torch.nn.functional.silu(y))
    with ran(device, "mul.out", "add.out", "silu.out"):
        same(torch.mul(a, b[0], out=out), x * y[0])
        same(torch.add(a, b, out=out), x + y)
        same(torch.ops.aten.silu.out(a, out=out), torch.nn.functional.silu(x))
    with ran(device, "mul_.Tensor"):
        same(a.clone().mul_(b), x.clone().mul_(y))
    with ran(device):  # what is not the device's own runs on the CPU
        same((a / b).softmax(1) @ b.t(), (x / y).softmax(1) @ y.t())
    assert (a * b).device.index == 1


@check
def wrong_arguments(device: Any) -> None:
    x = torch.ones(3)
    a, b = x.to("hostaccel:0"), x.to("hostaccel:1")
    out = torch.empty(3)
    with ran(device):
        for left, right in ((a, x), (x, a), (a, b)):
            for op in (torch.mul, torch.add, torch.div, torch.Tensor.mul_, torch.Tensor.add_):
                with pytest.raises(RuntimeError, match="xpected"):
                    op(left, right)
        with pytest.raises(RuntimeError, match="xpected"):
            torch.mul(a, a, out=out)
        with pytest.raises(RuntimeError, match="one device"):
            torch.mul(a, a, out=b)
        with pytest.raises(RuntimeError, match="xpected"):
            torch.ops.aten.silu.out(a, out=out)
    with pytest.raises(RuntimeError, match="can't be cast"):
        torch.mul(a, a, out=a.to(torch.int32))
    with pytest.raises(RuntimeError, match="must match"):
        torch.mul(a, torch.ones(2, device="hostaccel"))
    with pytest.raises(RuntimeError, match="broadcast"):
        a.mul_(torch.ones(3, 3, device="hostaccel"))
    with pytest.raises(RuntimeError, match="memory location"):
        torch.mul(a[1:], 2, out=a[:-1])
    with pytest.raises(RuntimeError, match="memory at PrivateUse1"):
        device.as_cpu(x)
    with pytest.raises(RuntimeError, match="memory at CPU"):
        device.from_cpu(a, 0)
    with pytest.raises(IndexError, match="no device -1"):
        device.from_cpu(x, -1)
    with FakeTensorMode():
        fake = torch.empty(3, device="hostaccel:1")
        with pytest.raises(RuntimeError, match="memory at PrivateUse1"):
            device.as_cpu(fake)
    with pytest.raises(RuntimeError, match="memory at PrivateUse1"):
        torch.library.get_kernel("aten::silu", "PrivateUse1").call_boxed(
            torch.DispatchKeySet(torch.DispatchKey.PrivateUse1), x
        )


@check
def shared_memory(device: Any) -> None:
    x = torch.randn(4, 6, device="hostaccel:1")
    for view in (x, x.t(), x[1:, ::2], x[:0], x.to(torch.bfloat16)):
        y = device.as_cpu(view)
        assert y.is_cpu
        assert (y.shape, y.stride(), y.dtype) == (view.shape, view.stride(), view.dtype)
        assert (y.data_ptr(), y.storage_offset()) == (view.data_ptr(), view.storage_offset())
        z = device.from_cpu(y, 0)
        assert z.device == torch.device("hostaccel:0")
        assert (z.shape, z.stride(), z.data_ptr()) == (y.shape, y.stride(), y.data_ptr())
    device.as_cpu(x).fill_(3)
    assert (x == 3).all()
    host = torch.zeros(3, requires_grad=True)
    shared = device.from_cpu(host, 1)
    assert not shared.requires_grad
    shared.add_(1)
    assert host.tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="not resizable"):
        shared.resize_(100)


@check
def lifetimes(device: Any) -> None:
    gc.collect()
    before = device.live_blocks()
    x = torch.ones(1000, device="hostaccel")
    assert device.live_blocks() == before + 1
    y = device.from_cpu(device.as_cpu(x)[10:], 1)
    del x
    assert device.live_blocks() == before + 1
    assert (y == 1).all()
    del y
    assert device.live_blocks() == before
    y = device.from_cpu(torch.ones(1000), 1)
    assert device.live_blocks() == before
    assert (y.cpu() == 1).all()


@check
def autograd(device: Any) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    w = torch.randn(4, requires_grad=True)
    torch.nn.functional.silu(x * w + 1).sum().backward()
    for index in (0, 1):
        a = x.detach().to(f"hostaccel:{index}").requires_grad_()
        b = w.detach().to(f"hostaccel:{index}").requires_grad_()
        torch.nn.functional.silu(a * b + 1).sum().backward()
        torch.testing.assert_close(a.grad.cpu(), x.grad)
        torch.testing.assert_close(b.grad.cpu(), w.grad)
        assert a.grad.device == a.device
    c = w.detach().clone().requires_grad_()  # the graph goes over three devices
    (c.to("hostaccel:1").mul(2).to("hostaccel:0") * 3).cpu().sum().backward()
    assert c.grad.tolist() == [6.0] * 4


@check
def override(device: Any) -> None:
    original = torch.library.get_kernel("aten::mul.Tensor", "PrivateUse1")
    calls = []

    def mul(keys: torch.DispatchKeySet, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(keys)
        if a.shape[0] == 1:
            return original.call_boxed(keys, a, b)
        return device.from_cpu(device.as_cpu(a) * device.as_cpu(b), a.device.index)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is overridden, which is what is wanted
        library.impl("mul.Tensor", mul, "PrivateUse1", with_keyset=True)
    try:
        x = torch.randn(3, 4)
        a = x.to("hostaccel:1").requires_grad_()
        with ran(device):
            y = a * a
        same(y.detach(), x * x)
        assert y.device == a.device
        assert y.requires_grad
        assert calls[0].has(torch.DispatchKey.PrivateUse1)
        with ran(device, "mul.Tensor"):
            same((a[:1] * a[:1]).detach(), x[:1] * x[:1])
        assert len(calls) == 2
        y.sum().backward()
        torch.testing.assert_close(a.grad.cpu(), 2 * x)
    finally:
        library._destroy()
    with ran(device, "mul.Tensor"):
        same(a.detach() * a.detach(), x * x)


@check
def fake_tensors(device: Any) -> None:
    real = torch.randn(3, 4, device="hostaccel:1")
    with ran(device), FakeTensorMode() as mode:
        x = torch.empty(3, 4, device="hostaccel:1")
        out = torch.empty(0, device="hostaccel:1")
        with mode:
            results = [
                x,
                x * x,
                x + 1,
                torch.nn.functional.silu(x),
                x.clone().mul_(x),
                x.t().view(4, 3),
                torch.mul(x, x, out=out),
                torch.randn(2, device="hostaccel:1"),
                x @ x.t(),
                mode.from_tensor(real) * x,
                torch.zeros(3, device="cpu").to("hostaccel:1"),
            ]
        for result in results:
            assert isinstance(result, FakeTensor)
            assert result.device == torch.device("hostaccel:1")
        assert torch.empty(2, device="hostaccel").device == torch.device("hostaccel:0")
        assert x.cpu().device == torch.device("cpu")
        with pytest.raises(RuntimeError, match="device"):
            x * torch.empty(3, 4)


def main() -> None:
    """Run the checks and print which ones failed, and how."""
    warnings.simplefilter("error")
    device = host_device.load()
    assert host_device.load() is device
    failures = {}
    for name, function in CHECKS.items():
        try:
            function(device)
        except Exception:  # noqa: BLE001 - is printed
            failures[name] = traceback.format_exc()
    print(json.dumps({"checks": len(CHECKS), "failures": failures}))


if __name__ == "__main__":
    main()
