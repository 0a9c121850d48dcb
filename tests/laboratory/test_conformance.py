"""The conformance runs: a fixed share of them, and whether they would see what differs.

All of them is a command: ``python -m tests.conformance``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ..conformance import kept, processes, runner
from ..conformance.calls import Call, function, in_place
from ..conformance.child import versions
from ..conformance.outcome import Outcome, differences, outcome
from ..conformance.records import (
    DTYPES,
    Records,
    Run,
    Runs,
    Unit,
    read_lines,
)
from ..conformance.samples import (
    GRAIN,
    LAYOUTS,
    Arguments,
    copies,
    in_layout,
)
from ..conformance.table import kind, table

# Each with few kernels: a compile takes seconds.
SHARE = [
    Unit("signbit", "float32", "layouts"),
    Unit("exp", "float32", "gradients"),
    Unit("bitwise_not", "uint8", "samples"),
]
VERSIONS = {
    "code": 9,
    "torch": "2.13.0",
    "torch_git": "0123456789abcdef",
    "python": "3.11.7",
    "target": "cpu-x86-64-v3",
    "threads": 2,
}


@pytest.mark.native
@pytest.mark.full
def test_a_share_of_the_databases_does_what_the_originals_do(shared_cache: Path) -> None:
    runs = runner.run(SHARE, shared_cache, bounds=runner.Bounds(samples=1))

    for unit, phases in runs.items():
        for phase, one in phases.items():
            print(runner.line(unit, phase, one))
    assert runner.problems(runs) == []
    assert all(phases["cold"].calls["hit"] for phases in runs.values())
    assert all(phases["warm"].calls["hit"] for phases in runs.values())


def test_a_smaller_draw_is_the_beginning_of_a_larger() -> None:
    names = [str(i) for i in range(100)]

    assert runner.draw(names, 60)[:10] == runner.draw(reversed(names), 10)
    assert runner.draw(names, 10, seed=1) != runner.draw(names, 10)


def test_shards_are_all_entries_once() -> None:
    entries = {str(i): ["float32", "int64"] if i % 2 else ["float32"] for i in range(10)}

    shards = [runner.units_of(entries, dtypes=DTYPES, shard=(k, 3)) for k in (1, 2, 3)]

    every = [unit for shard in shards for unit in shard]
    assert sorted(every) == sorted(runner.units_of(entries, dtypes=DTYPES))
    assert len(every) == len(set(every)) == 45
    with pytest.raises(ValueError, match="no such shard: 4/3"):
        runner.units_of(entries, dtypes=DTYPES, shard=(4, 3))
    with pytest.raises(ValueError, match="no such entry: x"):
        runner.units_of(entries, dtypes=DTYPES, only=["x"])


def test_a_run_that_is_ended_records_nothing_of_what_it_kills(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, killed = threading.Event(), threading.Event()

    class Waits(_Ends):
        def ask(self, request: dict[str, Any], timeout_s: float) -> Any:
            asked.set()
            assert killed.wait(60.0)
            return processes.Ended("crash: SIGKILL", "registered", "a")

        def kill(self) -> None:
            killed.set()

    class Interrupted(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            if not killed.is_set():
                assert asked.wait(60.0)
                raise KeyboardInterrupt
            super().join(timeout)

    monkeypatch.setattr(runner, "Child", lambda *arguments: Waits({}))
    monkeypatch.setattr(runner.threading, "Thread", Interrupted)
    records = Records(tmp_path / "work", VERSIONS)
    units = [Unit(name, "float32", "samples") for name in ("add", "mul")]

    with pytest.raises(KeyboardInterrupt):
        runner.run(units, cache_dir, records=records)

    assert records.read() == {}


@pytest.mark.full
def test_a_child_that_ends_is_a_problem_of_its_unit(cache_dir: Path) -> None:
    unit = Unit("no such entry", "float32", "samples")

    runs = runner.run([unit], cache_dir, bounds=runner.Bounds(timeout_s=60.0))

    cold, warm = runner.problems(runs)
    assert cold.startswith(f"{unit} (cold): start: crash: the child ended with status 1:")
    assert cold.endswith("KeyError: 'no such entry'")
    assert warm.startswith(f"{unit} (warm): start: crash")
    assert kind(cold) == "crashed"


def test_a_child_that_hangs_is_a_problem_of_its_unit(cache_dir: Path) -> None:
    unit = Unit("empty", "float32", "samples")

    runs = runner.run([unit], cache_dir, bounds=runner.Bounds(timeout_s=0.2))

    assert runner.problems(runs) == [
        f"{unit} (cold): start: hang: no end after 0.2 s",
        f"{unit} (warm): start: hang: no end after 0.2 s",
    ]


class _Ends:
    """A child that ends in the calls whose labels it is given, by the stage."""

    def __init__(self, ends: dict[str, str]) -> None:
        self.units = 0
        self._ends = ends

    def ask(self, request: dict[str, Any], timeout_s: float) -> Any:
        for label, stage in self._ends.items():
            if label not in request["skip"]:
                return processes.Ended("crash: SIGSEGV", stage, label)
        return {"calls": {"compared": 7}}

    def close(self) -> None:
        pass


def test_a_call_that_ends_a_process_costs_itself_and_no_other(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"a": "original", "b": "registered"}
    monkeypatch.setattr(runner, "Child", lambda *arguments: _Ends(ends))
    unit = Unit("add", "float32", "samples")

    cold = runner.run([unit], cache_dir)[unit]["cold"]

    assert cold.calls == {"compared": 7}
    assert cold.left_out == {"the original itself ends in a crash": 1}
    assert cold.problems == ["b: crash: SIGSEGV"]


def test_what_is_recorded_is_not_run_again(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path / "work", VERSIONS)
    add, mul = (Unit(name, "float32", "samples") for name in ("add", "mul"))
    for phase in ("cold", "warm"):
        records.write(add, phase, Run(problems=[f"{phase} problem"]))
    records.write(mul, "cold", Run())
    asked = []

    def child(phase: str, *arguments: Any) -> Any:
        asked.append(phase)
        return _Ends({})

    monkeypatch.setattr(runner, "Child", child)
    with records._path.open("a") as file:
        file.write('{"unit": {"entry": "cut o')

    runs = runner.run([add, mul], cache_dir, records=records)

    assert asked == ["warm"]
    assert runner.problems(runs) == [f"{add} ({phase}): {phase} problem" for phase in runs[add]]
    records._path.write_text(records._path.read_text().replace('{"unit": {"entry": "cut o', ""))
    assert records.read() == runs

    again = runner.run([add, mul], cache_dir, records=records, again=True)

    assert asked == ["warm", "cold", "warm"]
    assert runner.problems(again) == []


# --- what a call does ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        (lambda x: x + 2, "result 0: values"),
        (lambda x: (x + 1).double(), "result 0: (torch.float64"),
        (lambda x: (x + 1).t().contiguous().t(), "result 0: (torch.float32"),
        (lambda x: [x + 1], "structure"),
        (lambda x: x.add_(1), "aliasing"),
        (lambda x: x.add_(1) + 0, "input 0: version"),
        (lambda x: (x.data.add_(1), x + 0)[1], "input 0: values"),
        (lambda x: (torch.rand(1), x + 1)[1], "the random stream"),
        (lambda x: x + torch.ones(7), "exception"),
        (lambda x: (torch.tensor(x), x + 1)[1], "warnings"),
    ],
)
def test_the_comparison_sees_what_differs(other: Callable[[Tensor], Any], seen: str) -> None:
    def run(op: Callable[[Tensor], Any]) -> Outcome:
        arguments = Arguments(torch.arange(6.0).reshape(2, 3), (), {})
        return outcome(lambda a: op(a.input), arguments)

    want = run(lambda x: x + 1)

    assert differences(want, run(lambda x: x + 1)).problems == []
    assert any(line.startswith(seen) for line in differences(want, run(other)).problems)


def outcome_of(call: Callable[[], Any]) -> Outcome:
    return outcome(lambda a: call(), Arguments(None, (), {}))


def test_what_is_allowed_is_counted() -> None:
    x = torch.tensor([1.0, -0.0])
    want = outcome_of(lambda: x.clone())

    found = differences(want, outcome_of(lambda: (x + 0).mul_(1)))
    assert found.problems == []
    assert set(found.notes) == {
        "the sign of a zero differs",
        "the version counter of a new result starts elsewhere",
    }

    warns = outcome_of(lambda: (torch.tensor(torch.ones(1)), x.clone())[1])
    assert differences(warns, want, hit=False).problems
    found = differences(warns, want, hit=True)
    assert (found.problems, list(found.notes)) == (
        [],
        ["a hit gives none of the original's warnings"],
    )


def test_values_beyond_the_tolerance_pass_if_they_are_nearer_to_the_truth() -> None:
    exact, eager, kernel = (torch.tensor([x], dtype=torch.float64) for x in (1.0, 1.02, 1.01))
    want, have = (outcome_of(lambda t=t: t.float()) for t in (eager, kernel))

    assert differences(want, have).problems
    assert differences(want, have, reference=lambda: outcome_of(lambda: exact)).problems == []
    assert differences(have, want, reference=lambda: outcome_of(lambda: exact)).problems
    elsewhere = outcome_of(lambda: exact + 1)
    assert differences(want, have, reference=lambda: elsewhere).problems


def test_rolled_copies_have_the_same_metadata_and_other_data() -> None:
    x = torch.arange(6.0).reshape(2, 3).t()
    call = Call("x", lambda a: a.input, Arguments([x, x[1:]], (x,), {"y": x}), rolled=True)

    first, second = call.copied(), call.copied()

    assert [t.stride() for t in first.tensors] == [t.stride() for t in [x, x[1:], x, x]]
    assert first.input[0].tolist() == second.input[0].tolist() != x.tolist()
    storages = {t.untyped_storage().data_ptr() for t in first.tensors}
    assert len(storages) == 1, "what shared a storage shares one"
    assert storages.isdisjoint(t.untyped_storage().data_ptr() for t in second.tensors)


class _Entry:
    """An entry of a database, as far as calls need one."""

    def __init__(self, op: Callable[..., Any]) -> None:
        self.op = self.inplace_variant = op

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.op(*args, **kwargs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_what_they_are_called(layout: str) -> None:
    sample = Arguments(torch.arange(1.0, 13.0).reshape(3, 4), (torch.ones(4),), {})
    entry = _Entry(torch.add)

    changed, why = in_layout([sample], layout, lambda a: function(entry, a))

    assert changed is not None, why
    x = changed.input
    holds = {
        "non-contiguous": x.stride() == (8, 2),
        "transposed": x.stride() == (1, 3),
        "expanded": x.stride() == (0, 1),
        "offset": x.storage_offset() == 3 and x.is_contiguous(),
        "empty": x.shape == (0, 4),
        "size 1": x.shape == (1, 1),
        "large": x.numel() > GRAIN and x.shape[1] == 4,
    }
    assert holds[layout]
    assert in_place(entry, copies(changed)).shape == torch.broadcast_shapes(
        *(t.shape for t in changed.tensors)
    )


def test_a_layout_that_the_original_refuses_is_called_all_the_same() -> None:
    def refuses_empty(x: Tensor) -> Tensor:
        return x.amax()

    sample = Arguments(torch.ones(3), (), {})

    changed, _ = in_layout([sample], "empty", lambda a: refuses_empty(a.input))

    assert changed is not None
    assert changed.input.shape == (0,)


def test_a_result_that_grows_faster_than_its_input_is_not_made_large() -> None:
    sample = Arguments(torch.ones(5), (torch.ones(5),), {})

    changed, _ = in_layout([sample], "large", lambda a: torch.outer(a.input, *a.args))

    assert changed is not None, "one of the two can be large"
    assert sorted(t.numel() for t in changed.tensors)[0] == 5
    sample = Arguments(torch.ones(5), (), {})
    assert in_layout([sample], "large", lambda a: torch.outer(a.input, a.input)) == (
        None,
        "large: the result grows faster than the input",
    )


# --- the table -----------------------------------------------------------------------------------

RECORDED = """
{"unit": {"entry": "add", "dtype": "float32", "part": "samples"}, "phase": "cold", "date": "2026-01-02", "served": ["aten::add.Tensor 1", "aten::add_.Tensor 2"], "declined": {"aten::add.out 3": "out_resized"}, "calls": {"compared": 9, "hit": 5}, "notes": {"the sign of a zero differs": 1}}
{"unit": {"entry": "add", "dtype": "float32", "part": "samples"}, "phase": "warm", "date": "2026-01-03", "served": ["aten::add.Tensor 1"], "calls": {"compared": 9, "hit": 8}}
{"unit": {"entry": "add", "dtype": "bool", "part": "layouts"}, "phase": "cold", "date": "2026-01-02", "problems": ["large miss: crash: the child ended with SIGSEGV"], "left_out": {"samples beyond the bound": 4}}
{"unit": {"entry": "add", "dtype": "bool", "part": "layouts"}, "phase": "warm", "date": "2026-01-02"}
{"unit": {"entry": "view", "dtype": "float32", "part": "samples"}, "phase": "cold", "date": "2026-01-02", "declined": {"aten::view": "returns_view"}}
{"unit": {"entry": "view", "dtype": "float32", "part": "samples"}, "phase": "warm", "date": "2026-01-02", "declined": {"aten::view": "returns_view", "aten::t": "not_in_cache"}}
{"unit": {"entry": "view", "dtype": "bool", "part": "samples"}, "phase": "cold", "date": "2026-01-02", "problems": ["sample 0 hit: result 0: values: a | b"]}
{"unit": {"entry": "view", "dtype": "bool", "part": "samples"}, "phase": "warm", "date": "2026-01-02"}
{"unit": {"entry": "view", "dtype": "int64", "part": "samples"}, "phase": "cold", "date": "2026-01-02", "served": ["aten::view 1"]}
{"unit": {"entry": "cut
"""  # noqa: E501 - a line a record
ENTRIES = {"add": ["float32", "bool"], "view": ["float32", "int64", "bool"]}


def recorded() -> Runs:
    return read_lines(RECORDED.strip().splitlines())


def test_the_table_is_what_was_recorded() -> None:
    text = table(kept.in_short(recorded(), code=9), ENTRIES, VERSIONS)

    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert rows["date"] == "| date | 2026-01-02 to 2026-01-03 |"
    assert rows["torch"] == "| torch | 2.13.0 (0123456789ab) |"
    assert rows["code version"] == "| code version | 9 |"
    assert rows["entry"] == "| entry | " + " | ".join(DTYPES) + " | declined |"
    assert rows["add"] == "| add | 2 | - | - | - | - | - | - | CRASH | - | out_resized 1 |"
    assert rows["view"] == "| view | d | - | - | - | ? | - | - | WRONG | - | returns_view 1 |"
    # entries, wrong, crashed, hung, served, declined, no op, not run, keys, calls, hit
    assert rows["float32"] == "| float32 | 2 | 0 | 0 | 0 | 1 | 1 | 0 | 0 | 2 | 18 | 13 |"
    assert rows["bool"] == "| bool | 2 | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |"
    assert rows["int64"] == "| int64 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 0 |"
    assert "Entries with a compiled key in any dtype: **1** of 2." in text
    assert "Keys declined: out_resized 1; returns_view 1." in text
    assert "Allowed differences (of calls): the sign of a zero differs 1." in text
    assert "Left out: samples beyond the bound 4." in text
    assert "- `view bool samples` (cold) sample 0 hit: result 0: values: a \\| b" in text


def test_what_is_kept_of_a_unit_is_what_its_last_run_gave(tmp_path: Path) -> None:
    file = tmp_path / "recorded.jsonl"
    first = kept.in_short(recorded(), code=9)
    long = Run(date="2026-01-04", problems=["x: " + "values " * 100])
    runs: Runs = {Unit("add", "float32", "samples"): {"cold": long, "warm": Run()}}

    assert kept.read(file) == {}
    kept.write(first, file)
    assert kept.read(file) == first
    kept.write({**first, **kept.in_short(runs, code=10)}, file)

    again = kept.read(file)
    assert Unit("view", "int64", "samples") not in first, "its warm run is missing"
    changed = {unit for unit in again if again[unit] != first[unit]}
    assert changed == set(runs)
    (problem,) = again[Unit("add", "float32", "samples")].problems
    assert problem.startswith("(cold) x: values values")
    assert len(problem) < 320
    assert {one.code for one in again.values()} == {9, 10}


def test_the_table_in_the_docs_is_that_of_what_is_kept() -> None:
    text = (processes.ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    done = re.search(r"^Units that ran.*: (.*)\.$", text, re.MULTILINE)
    assert done is not None

    counts = re.findall(r"(?:samples|layouts|gradients) (\d+)", done[1])

    assert sum(map(int, counts)) == len(kept.read())


def test_the_table_in_the_docs_says_when_and_with_which_versions_it_was_made() -> None:
    text = (processes.ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")

    assert text.startswith("# Coverage\n\nGenerated by `python -m tests.conformance table`")
    assert re.search(r"^\| date \| \d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d \|$", text, re.MULTILINE)
    assert f"| torch | {torch.__version__.partition('+')[0]}" in text
    assert re.search(r"^\| code version \| \d+ \|$", text, re.MULTILINE)
    assert set(versions()) == set(VERSIONS)
    for dtype in DTYPES:
        assert re.search(rf"^\| {dtype} \| \d+ \|", text, re.MULTILINE)
