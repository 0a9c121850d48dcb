"""The numbers that Python and C++ both spell: tags of words, codes of programs, states of ops."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import aoti_eager
from aoti_eager._keys import key_words, pattern_program
from aoti_eager._native import op_kernel, table

CSRC = Path(aoti_eager.__file__).parent / "_native" / "csrc"


def enum_of(header: str, name: str) -> dict[str, int]:
    """Return the members of a C++ enum by name, without the ``k`` that each begins with."""
    text = (CSRC / header).read_text(encoding="utf-8")
    (body,) = re.findall(rf"enum (?:class )?{name}\b[^{{]*\{{(.*?)\}}", text, flags=re.S)
    members: dict[str, int] = {}
    for line in body.splitlines():
        for member in line.partition("//")[0].split(","):
            name, _, value = (part.strip() for part in member.partition("="))
            if name:
                members[name.removeprefix("k")] = int(value) if value else len(members)
    return members


TAGS = "None Tensor Number List Int Float Bool Complex String Device Present Overlap Context"
CODES = dict(
    zip(
        [
            "Add",
            "Multiply",
            "Least",
            "Most",
            "Divide",
            "Modulo",
            "Equal",
            "NotEqual",
            "Less",
            "AtMost",
        ],
        ["+", "*", "min", "max", "//", "%", "==", "!=", "<", "<="],
        strict=True,
    )
)


@pytest.mark.parametrize(
    ("header", "enum", "in_python"),
    [
        (
            "key.h",
            "Tag",
            {name: getattr(key_words, f"_{name.upper()}") for name in TAGS.split()},
        ),
        (
            "key.h",
            "NumberKind",
            {f"{kind.title()}Number": n for kind, n in key_words._NUMBER_KINDS.items()},
        ),
        (
            "values.h",
            "ArgumentKind",
            {
                "Value": key_words.VALUE,
                "Tensor": key_words.ONE_TENSOR,
                "Tensors": key_words.TENSOR_LIST,
                "Opaque": key_words.OPAQUE,
            },
        ),
        (
            "pattern.h",
            "Kind",
            {
                "Fixed": pattern_program._FIXED,
                "Binds": pattern_program._BINDS,
                "Repeats": pattern_program._REPEATS,
                "Follows": pattern_program._FOLLOWS,
            },
        ),
        (
            "pattern.h",
            "Code",
            {
                "End": pattern_program._END,
                "Push": pattern_program._PUSH,
                "Symbol": pattern_program._SYMBOL,
                **{name: pattern_program._BINARY[sign] for name, sign in CODES.items()},
                "Not": pattern_program._NOT,
                "KeepIfZero": pattern_program._KEEP_IF_ZERO,
                "KeepIfNot": pattern_program._KEEP_IF_NOT,
                "Truth": pattern_program._TRUTH,
            },
        ),
        (
            "op.h",
            "State",
            {
                "Serve": op_kernel.SERVE,
                "Pass": op_kernel.PASS,
                "Decline": op_kernel.DECLINE,
                "Record": op_kernel.RECORD,
            },
        ),
        (
            "entry.h",
            "Kind",
            {
                "Output": table.OUTPUT,
                "Argument": table.ARGUMENT,
                "None": table.NONE,
                "Outputs": table.OUTPUTS,
            },
        ),
    ],
)
def test_python_and_cpp_spell_the_same_numbers(
    header: str, enum: str, in_python: dict[str, int]
) -> None:
    assert enum_of(header, enum) == in_python
