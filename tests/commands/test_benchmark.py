"""``benchmark``, and calls as text, which ``explain`` takes, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aoti_eager import cli

NUMBERS = {"original_us", "served_us", "speed", "speed_low", "speed_high", "compile_s"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert cli.main(arguments) == status
    said = capsys.readouterr()
    return said.err if status == 2 else said.out


@pytest.mark.native
def test_a_kernel_is_compared_with_its_original(
    shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("benchmark", "aten::silu", "f32[8,8]", "--rounds", "3")
    run(capsys, *call)  # Compiles, if no other test has.

    found = json.loads(run(capsys, *call, "--json"))
    lines = run(capsys, *call).splitlines()

    assert (found["op"], found["served"], found["matches"]) == ("aten::silu", True, True)
    assert (found["compiles"], found["rounds"]) == (0, 3)
    assert all(found[name] > 0 for name in NUMBERS)
    assert found["speed_low"] <= found["speed_high"]
    assert [line.split()[0] for line in lines[1:6]] == [
        *("original", "kernel", "speed", "results", "compile")
    ]
    assert "none: the kernel was stored" in lines[5]
    assert max(map(len, lines)) <= 80


def test_a_call_that_no_kernel_serves_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "benchmark", "aten::nonzero", "f32[3]", status=1)
    assert said == "aten::nonzero: no kernel serves the call: data_dependent_output\n"


@pytest.mark.native
def test_a_call_that_writes_to_its_argument_is_compared_on_copies(
    shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("benchmark", "aten::mul_.Tensor", "f32[8,8]", "f32[8,8]", "--rounds", "3", "--json")
    found = json.loads(run(capsys, *call))
    assert (found["served"], found["matches"]) == (True, True)


def test_a_call_whose_original_raises_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "benchmark", "aten::gather", "f32[2]", "0", "i64[3,3,3]", status=2)
    assert said.startswith("aoti-eager: aten::gather: the original raises: ")


@pytest.mark.parametrize("verb", ["benchmark", "explain"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("f32[8,", "not a tensor: 'f32[8,'; write f32[8,8], or with strides f32[8,8]{8,1}"),
        ("f32[-8]", "not a tensor: 'f32[-8]'; write f32[8,8]"),
        ("f99[8]", "not a tensor: 'f99[8]'; there is no dtype 'f99', the dtypes are b"),
        ("f32[8,8]{1}", "not a tensor: 'f32[8,8]{1}'; "),
        ("torch.nothing", "torch.nothing: torch has no such name"),
        ("7.5j", "aten::tanh: PyTorch takes no such call; the overloads are\n  aten::tanh(Tensor"),
    ],
)
def test_a_call_that_is_none_is_one_message(
    verb: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, verb, "aten::tanh", text, status=2)
    assert found.startswith(f"aoti-eager: {said}")
    assert "Traceback" not in found


def test_a_call_without_its_arguments_names_the_overloads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = run(capsys, "explain", "aten::tanh", status=2).splitlines()
    assert lines[0] == "aoti-eager: aten::tanh: PyTorch takes no such call; the overloads are"
    assert lines[1] == "  aten::tanh(Tensor self) -> Tensor"
    assert "wants at least 3" in run(
        capsys, "benchmark", "aten::tanh", "f32[2]", "--rounds", "1", status=2
    )
