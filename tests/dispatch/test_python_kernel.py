"""The generated function that the dispatcher calls: its text, as docs and tracebacks show it."""

from __future__ import annotations

import inspect
import re
import traceback
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aoti_eager._dispatch import python_kernel as generated
from aoti_eager._dispatch.counters import OpCounters
from aoti_eager._keys.schema import op_schema


def fake_cache(**fields: Any) -> Any:
    """Return what the generated function needs of a cache, for ``mul.Tensor``."""
    schema = op_schema(torch.ops.aten.mul.Tensor)
    given = {"dispatch_key": "CPU", "counters": OpCounters(), "is_composite": False}
    given |= {"counts_writes": False, "function": None, "bypassed": False, "asks_native": False}
    return SimpleNamespace(schema=schema, **given, **fields)


def test_the_docstring_shows_what_is_generated() -> None:
    kernel, _ = generated.python_kernel(fake_cache(lookup=None))
    text = inspect.getsource(kernel)
    text = re.sub(r"\bae_(\d)", r"a\1", text)  # the arguments' own names
    text = re.sub(r"\bae_", "", text)
    text = re.sub(r"(\bkey = )\(.*\)", r"\1(<the key's expression>)", text)
    lines = [line for line in text.splitlines() if line.strip()]
    doc = inspect.cleandoc(generated.__doc__ or "").partition("::\n")[2]
    shown = inspect.cleandoc(doc).splitlines()
    assert shown == lines


def test_a_traceback_shows_the_generated_line() -> None:
    def lookup(key: object) -> object:
        raise ZeroDivisionError

    kernel, _ = generated.python_kernel(fake_cache(lookup=lookup))
    with pytest.raises(ZeroDivisionError) as raised:
        kernel(None, torch.ones(2), torch.ones(2))
    frames = traceback.extract_tb(raised.value.__traceback__)
    name = "<aoti_eager kernel of aten::mul.Tensor>"
    (ours,) = (frame for frame in frames if frame.filename == name)
    assert ours.line == "ae_kernel = ae_cache.lookup(ae_key)"
