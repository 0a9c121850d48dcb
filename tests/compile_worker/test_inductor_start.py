"""What the worker leaves out of Inductor's start, because no small kernel needs it."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.processes import printed

PROGRAM = """
import json
import re
import sys

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from aoti_eager._compile_worker import inductor_compat
from torch._inductor.fx_passes import joint_graph, post_grad

passes = [joint_graph.patterns, *joint_graph.pass_patterns, *post_grad.pass_patterns]


def entries():
    return {id(e): e for p in passes for listed in p.patterns.values() for e in listed}


find = joint_graph.lazy_init
before = entries()
inductor_compat.prepare_worker(256)
prepared = entries()
find(torch.device("cpu"))
added = [one for name, one in entries().items() if name not in before]
words = inductor_compat._PATTERN_WORDS
foreign = []
for one in added:
    ops = re.findall(r"(?:aten|prims)\\.\\w+", repr(one.pattern))
    if not any(word in op for op in ops for word in words):
        foreign.append(repr(one.pattern)[:500])

x = torch.ones(4, 4)
graphs = {
    "silu": lambda: torch.nn.functional.silu(x),
    "cast": lambda: x.to(torch.float64),
    "pair": lambda: torch.var_mean(x),
    "mm": lambda: x @ x,
    "attention": lambda: torch.softmax(x[None] @ x[None], -1) @ x[None],
    "randperm": lambda: x[torch.randperm(4)[:2]],
    "custom": lambda: torch.ops.quantized.relu6(x),
}
may = {}
for name, function in graphs.items():
    graph = torch.fx.Graph()
    if name == "custom":
        given = graph.placeholder("x")
        graph.output(graph.call_function(torch.ops.quantized.relu6.default, (given,)))
        traced = torch.fx.GraphModule({}, graph)
    else:
        traced = make_fx(function)()
    may[name] = inductor_compat.may_have_traced_pattern(traced)
from torch._inductor.codegen import common
common.init_backend_registration()
print(json.dumps({
    "early": len(prepared) - len(before),
    "added": len(added),
    "foreign": foreign,
    "may": may,
    "cpu": common.device_codegens["cpu"].cpp_wrapper_codegen.__name__,
    "gpu code is imported": "torch._inductor.codegen.cuda_combined_scheduling" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Figures of one process that has prepared Inductor as a worker does."""
    return printed(PROGRAM)


def test_each_pattern_that_is_found_late_has_an_op_that_the_worker_looks_for(
    found: dict[str, Any],
) -> None:
    """Else a graph that has the pattern would be compiled in another way than Inductor's."""
    assert found["early"] == 0
    assert found["added"] > 20
    assert found["foreign"] == []


def test_graphs_of_small_kernels_have_no_such_pattern_and_products_of_matrices_may(
    found: dict[str, Any],
) -> None:
    may = {name for name, answer in found["may"].items() if answer}
    assert may == {"mm", "attention", "randperm", "custom"}


def test_a_torch_for_the_cpu_registers_the_cpu_alone(found: dict[str, Any]) -> None:
    import torch

    gpu = any((torch.version.cuda, torch.version.hip, torch.version.xpu))
    assert found["cpu"] == "CppWrapperCpu"
    assert found["gpu code is imported"] == gpu
