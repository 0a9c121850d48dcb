"""The aten overloads that the compiler has code of its own for: what the laboratory must cover.

It imports Inductor, so it is for the laboratory's own process, not for the package's.
"""

from __future__ import annotations

import contextlib
import functools

import torch

from aoti_eager._base.op_names import find_overload
from aoti_eager._keys.declines import op_decline
from aoti_eager._keys.schema import op_schema
from aoti_eager.errors import UnknownOpError


@functools.cache
def compiled_overloads() -> tuple[str, ...]:
    """Return the qualified names of all aten overloads that may serve, sorted.

    An overload is taken if Inductor lowers it by itself or takes it apart, and if the package does
    not decline each of its calls.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.lowering import fallbacks, lowerings

    table = select_decomp_table()
    found = set()
    for op in {*lowerings, *table}:
        if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
            continue
        schema = op_schema(op)
        if (op in fallbacks and op not in table) or op_decline(op, schema) is not None:
            continue
        with contextlib.suppress(UnknownOpError):  # TorchScript's alone: no dispatcher knows it.
            find_overload(schema.op)
            found.add(schema.op)
    return tuple(sorted(found))
