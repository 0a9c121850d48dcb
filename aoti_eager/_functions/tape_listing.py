"""A tape as text, for people: a line for each input and each call, with sizes where they are known.

``r3 = aten::addmm(i5, r2, i6)  float32 [16, 256]``: the result of call 3. A call with several
results has ``r3.0``, ``r3.1`` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.digest import Component
from .._base.torch_compat.tracing import fake_mode
from .._keys.call_template import argument_value
from .._keys.schema import Kind
from .tape_call import TapeCall, schema_of
from .tape_replay import replay_function


def listing(
    inputs: int,
    calls: Sequence[TapeCall],
    outputs: Sequence[Component],
    metadata: Sequence[Component] | None = None,
) -> str:
    """Return a tape as text.

    Args:
        inputs: The number of inputs.
        calls: The calls.
        outputs: The sources of the results.
        metadata: The inputs' components, as keys spell them.
    """
    lines = []
    if metadata is not None:
        lines += [f"i{place}: {_described(one)}" for place, one in enumerate(metadata)]
    sizes = {} if metadata is None else _sizes(inputs, calls, metadata)
    for number, call in enumerate(calls):
        arguments = _arguments(call)
        line = f"r{number} = {call.op}({', '.join(arguments)})"
        found = [sizes[name] for name in sorted(sizes) if name[0] == number]
        lines.append(line + (f"  {', '.join(found)}" if found else ""))
    lines.append(f"return {', '.join(_source(one) for one in outputs)}")
    return "\n".join(lines)


def _arguments(call: TapeCall) -> list[str]:
    texts, by_name = [], False
    given = dict(call.arguments)
    for argument in schema_of(call.op).arguments:
        if argument.name not in given:
            by_name = True
            continue
        component = given[argument.name]
        if argument.is_tensor and component is not None:
            text = _tensors(component)
        else:
            text = str(argument_value(argument.kind, component))
        texts.append(f"{argument.name}={text}" if by_name or argument.kwarg_only else text)
    return texts


def _tensors(component: Component) -> str:
    if isinstance(component, list):
        return f"[{', '.join('None' if one is None else _source(one) for one in component)}]"
    return _source(component)


def _source(source: Component) -> str:
    ((kind, value),) = source.items()
    if kind == "input":
        return f"i{value}"
    if kind == "result":
        call, place = value
        return f"r{call}.{place}" if place else f"r{call}"
    if kind == "number":
        return str(argument_value(Kind.SCALAR, value))
    numbers = ", ".join(str(argument_value(Kind.SCALAR, one)) for one in value["values"])
    return f"{value['dtype']} {value['sizes']} {{{numbers}}}"


def _described(component: Component) -> str:
    return f"{component['dtype']} {component['sizes']}"


def _sizes(
    inputs: int, calls: Sequence[TapeCall], metadata: Sequence[Component]
) -> dict[tuple[int, int], str]:
    """Return dtype and sizes of each result that a later call or the tape's end names."""
    named = {
        tuple(source["result"])
        for number, call in enumerate(calls)
        for _, source in [*call.sources(), *_all_results(number, call)]
        if "result" in source
    }
    wanted = sorted(named)
    replay = replay_function(inputs, calls, [{"result": list(one)} for one in wanted])
    try:
        with fake_mode(), torch.no_grad():
            found = replay([_fake(one) for one in metadata])
    except Exception:  # noqa: BLE001 - a listing without sizes is a listing, too
        return {}
    described: dict[tuple[int, int], str] = {}
    for (call, place), tensor in zip(wanted, found, strict=True):
        if isinstance(tensor, Tensor):
            name = str(tensor.dtype).removeprefix("torch.")
            described[call, place] = f"{name} {[int(n) for n in tensor.shape]}"
    return described


def _all_results(number: int, call: TapeCall) -> list[tuple[str, Any]]:
    """Return the results of a call whose number of results the schema says."""
    returns = schema_of(call.op).returns
    if any(one.kind is not Kind.TENSOR for one in returns):
        return []
    return [("", {"result": [number, place]}) for place in range(len(returns))]


def _fake(component: Component) -> Tensor:
    return torch.empty_strided(
        component["sizes"], component["strides"], dtype=getattr(torch, component["dtype"])
    )
