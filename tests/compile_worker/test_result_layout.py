"""What is taken apart has results laid out as eager's, whatever its tensors' strides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import inductor_prims
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode

from aoti_eager._compile_worker.decompositions import kernel_formulas, our_decompositions
from aoti_eager._compile_worker.result_layout import elementwise, laid_out_elsewhere

aten = torch.ops.aten
SIZES = (2, 5, 3)
LAYOUTS = {
    "contiguous": (15, 3, 1),
    "transposed": (1, 2, 10),
    "last channel": (15, 1, 5),
    "stepped": (30, 6, 2),
}
OVERLAPPING = {
    "expanded": (0, 3, 1),
    "one for all": (0, 0, 0),
    "windows": (1, 1, 1),
    "overlapping rows": (3, 1, 2),
}
DTYPES = (torch.float32, torch.bfloat16)
CALLS: dict[Any, Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]] = {
    aten.silu_backward.default: lambda a, b, c: ((a, b), {}),
    aten.softshrink.default: lambda a, b, c: ((a, 0.5), {}),
    aten.elu.default: lambda a, b, c: ((a, 1.5), {}),
    aten.elu_backward.default: lambda a, b, c: ((a, 1.5, 1.0, 1.0, False, b), {}),
    aten.sigmoid_backward.default: lambda a, b, c: ((a, b), {}),
    aten.hardtanh_backward.default: lambda a, b, c: ((a, b, -0.5, 0.5), {}),
    aten.hardswish_backward.default: lambda a, b, c: ((a, b), {}),
    aten.smooth_l1_loss_backward.default: lambda a, b, c: ((a, b, c, 0, 0.5), {}),
    aten.gelu.default: lambda a, b, c: ((a,), {"approximate": "tanh"}),
    aten.gelu_backward.default: lambda a, b, c: ((a, b), {}),
    aten.logit.default: lambda a, b, c: ((a, 0.1), {}),
    aten.clamp.default: lambda a, b, c: ((a, -0.5, 0.5), {}),
    aten.pow.Tensor_Scalar: lambda a, b, c: ((a, 10.0), {}),
    aten.special_xlog1py.default: lambda a, b, c: ((a, b), {}),
    aten.erfinv.default: lambda a, b, c: ((a,), {}),
    aten.copysign.Tensor: lambda a, b, c: ((a, b), {}),
    aten.xlogy.Tensor: lambda a, b, c: ((a, b), {}),
    aten.special_xlogy.default: lambda a, b, c: ((a, b), {}),
    aten.fmax.default: lambda a, b, c: ((a, b), {}),
    aten.fmin.default: lambda a, b, c: ((a, b), {}),
    aten.lerp.Tensor: lambda a, b, c: ((a, b, c), {}),
    aten.hardsigmoid_backward.default: lambda a, b, c: ((a, b), {}),
    aten.softplus_backward.default: lambda a, b, c: ((a, b, 1, 20), {}),
    aten.logit_backward.default: lambda a, b, c: ((a, b, None), {}),
    aten.addcdiv.default: lambda a, b, c: ((a, b, c), {"value": 0.3}),
    aten.lerp.Scalar: lambda a, b, c: ((a, b, 0.7), {}),
    aten.add.Tensor: lambda a, b, c: ((a, b), {"alpha": 0.5}),
    aten.sub.Tensor: lambda a, b, c: ((a, b), {"alpha": 0.5}),
    aten.rsub.Tensor: lambda a, b, c: ((a, b), {"alpha": 0.5}),
    aten.rsub.Scalar: lambda a, b, c: ((a, 2.0, 0.5), {}),
    aten.addcmul.default: lambda a, b, c: ((a, b, c), {"value": 0.3}),
    aten.tanh_backward.default: lambda a, b, c: ((a, b), {}),
    aten.fmod.Tensor: lambda a, b, c: ((a.double(), b), {}),
    aten.remainder.Tensor: lambda a, b, c: ((a.double(), b), {}),
    aten.remainder.Scalar_Tensor: lambda a, b, c: ((2.5, a), {}),
    aten.div.Tensor_mode: lambda a, b, c: ((a, b), {"rounding_mode": "floor"}),
    aten.floor_divide.default: lambda a, b, c: ((a, b.float()), {}),
}


def tensors(op: Any, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """Give three tensors in all layouts, of which the op takes as many as it does."""
    taken = sum(argument.type.kind() == "TensorType" for argument in op._schema.arguments)
    # With tensors that overlap themselves, eager's raises or crashes, in oneDNN.
    takes_all = op is not aten.gelu_backward.default
    layouts = [*LAYOUTS.values(), *(OVERLAPPING.values() if takes_all else ())]
    for strides in itertools.product(layouts, repeat=taken):
        strides += (LAYOUTS["contiguous"],) * (3 - taken)
        yield [torch.rand(70).to(dtype).as_strided(SIZES, one) for one in strides]
    if op in (aten.smooth_l1_loss_backward.default, aten.gelu_backward.default):
        return  # No gradient is larger than its input. Eager's second one crashes.
    for sizes in itertools.product([(5, 3), (2, 1, 3), (1, 5, 1)], repeat=taken - 1):
        others = [torch.rand(one).to(dtype) for one in sizes]
        for strides in layouts:
            first = torch.rand(70).to(dtype).as_strided(SIZES, strides)
            yield [first, *others, *[torch.rand(SIZES, dtype=dtype)] * (3 - taken)]


@pytest.mark.share(of=3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", CALLS)
def test_results_have_the_strides_of_eager_results(op: Any, dtype: torch.dtype) -> None:
    table = select_decomp_table()
    functions = {
        **kernel_formulas(inductor_prims.fma),
        **our_decompositions(inductor_prims.fma),
        **{one: elementwise(table[one]) for one in laid_out_elsewhere()},
    }
    others, compared = [], 0
    for three in tensors(op, dtype):
        args, kwargs = CALLS[op](*three)
        want = op(*args, **kwargs)
        with FakeTensorMode() as mode:
            faked = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
            got = functions[op](*faked, **kwargs)
        if got is NotImplemented:
            continue
        compared += 1
        if got.stride() != want.stride():
            given = [a.stride() for a in args if isinstance(a, Tensor)]
            others.append(f"{given}: {got.stride()} instead of {want.stride()}")
    assert others == []
    assert compared
