"""The inputs of an entry in short, also of an entry whose record somebody has edited."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aoti_eager._store.entry_inputs import inputs_in_short

from ..support.entries import make_entry, make_key

TENSOR = {"dtype": "float32", "sizes": ["s0", 8]}


@pytest.mark.parametrize(
    ("component", "short"),
    [
        (TENSOR, "f32[s0,8]"),
        ([TENSOR, TENSOR], "f32[s0,8] f32[s0,8]"),
        ({"number": "float"}, "float"),
        ({"int": 2}, ""),
        ({"dtype": "float32"}, "?"),
        ({"dtype": 7, "sizes": [8]}, "?"),
        ({"dtype": "float32", "sizes": 8}, "?"),
        ({"dtype": "float32", "sizes": [[]]}, "?"),
        ({"dtype": "float32", "sizes": [["not"]]}, "?"),
        ({"number": 7}, "?"),
    ],
    ids=str,
)
def test_inputs_in_short(component: Any, short: str) -> None:
    key = replace(make_key(), arguments=(("self", component),))
    assert inputs_in_short(make_entry(key=key)) == short
