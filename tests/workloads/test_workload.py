"""Recording calls and the file they are written to. Nothing is compiled here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.digest import json_digest
from aoti_eager._base.output_file import OutputFile
from aoti_eager._dispatch import recorder as recorder_module
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._workloads import workload as workload_module
from aoti_eager._workloads.workload import (
    Call,
    load_workload,
    read_workload,
    start_recording,
    write_workload,
)
from aoti_eager.errors import OutputFileError, WorkloadError

from ..support import forked_python
from ..support.entries import files_below
from ..support.function_ops import call, closing_over, op_of

X = torch.linspace(-2, 2, 64).reshape(8, 8)
CONTEXT = (
    ("default_dtype", "float32"),
    ("deterministic", False),
    ("float32_matmul_precision", "highest"),
    ("original", "torch"),
    ("threads", 2),
)
SCRIPT = """
import os, sys
import torch

x = torch.linspace(-2, 2, 64).reshape(8, 8)
os.chdir("/")
for _ in range(3):
    torch.nn.functional.silu(x)
    torch.nn.functional.silu(x[:4])
torch.tanh(x)
torch.tanh(x.double())
"""


def make_call(op: str = "aten::silu", **fields: Any) -> Call:
    """Return a call as ``read_workload`` gives it."""
    key = KernelKey(op, "CPU", (("self", {"dtype": "float32", "sizes": [8]}),), CONTEXT)
    return Call(**{"key": key, "function": None, "schema": f"{op}(Tensor self) -> Tensor"} | fields)


def with_function() -> Call:
    function = {"name": "f", "source": "def f(x):\n    return x + 'ä'\n"}
    plain = make_call("mine::f")
    context = (("constants", []), ("function", json_digest(function)), *CONTEXT)
    key = KernelKey("mine::f", "CPU", plain.key.arguments, context)
    return Call(key, function, plain.schema)


@pytest.fixture
def recorder() -> Iterator[workload_module.Recorder]:
    """A recorder that is told of the test's calls."""
    yield start_recording()
    workload_module.stop_recording()


# --- the file ------------------------------------------------------------------------------------


def test_what_is_written_is_read_each_call_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "workload"
    calls = [make_call("aten::silu"), with_function(), make_call("aten::gelu")]
    write_workload(OutputFile(path), [*calls, *reversed(calls)])
    assert list(read_workload(path)) == calls
    header, *lines = path.read_text().splitlines()
    assert json.loads(header)["format"] == 1
    assert [json.loads(line)["key"]["op"] for line in lines] == [c.key.op for c in calls]
    # Two files, one after the other without its header, and an empty line at the end.
    path.write_text("\n".join([header, *lines, *lines, "", ""]))
    assert list(read_workload(path)) == calls


def test_a_workload_without_calls_has_none(tmp_path: Path) -> None:
    write_workload(OutputFile(tmp_path / "workload"), [])
    assert read_workload(tmp_path / "workload") == ()


def changed(**fields: Any) -> dict[str, Any]:
    document = {"key": make_call().key.to_json(), "function": None, "schema": "s"}
    return {**document, **fields}


def changed_key(**fields: Any) -> dict[str, Any]:
    return changed(key={**make_call().key.to_json(), **fields})


def pairs(**values: Any) -> list[list[Any]]:
    return [list(pair) for pair in {**dict(CONTEXT), **values}.items()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{no", "is {no; wanted one JSON object"),
        ("[1]", "is [1]; wanted one JSON object"),
        ("[" * 100_000, "[[[...; wanted one JSON object"),
        ('{"key": {}}', "wanted a call, which has 'function'"),
        (changed(function=3), "function is 3; wanted a function as an object, or null"),
        (changed(schema=None), "schema is null; wanted an op's schema in words"),
        (changed(key=[]), "key is []; wanted an object"),
        (changed_key(op="aten::../../x"), "key.op is aten::../../x; wanted an op's name"),
        (changed_key(op=7), "key.op is 7; wanted an op's name"),
        (changed_key(dispatch_key=None), "key.dispatch_key is null; wanted"),
        (changed_key(arguments={"self": 1}), 'key.arguments is {"self": 1}; wanted a list of'),
        (changed_key(arguments=[["self"]]), "wanted a list of [name, value]"),
        (changed_key(context=[["threads", 2]]), "wanted it to have default_dtype, deterministic"),
        (changed_key(context=pairs(threads="any")), "key.context.threads is any; wanted a number"),
        (changed_key(context=pairs(threads=True)), "key.context.threads is true; wanted"),
        (changed_key(context=pairs(more=float("nan"))), "wanted JSON without NaN"),
        (changed_key(context=pairs(threads=10**9)), "key.context.threads is 1000000000; wanted"),
        (changed_key(op=f"mine::{'n' * 300}"), "wanted a name of up to 200 characters, not 306"),
        (changed_key(op="mine::f\n"), "wanted an op's name"),
        (f'{{"key": "{"x" * (1 << 20)}"}}', "is longer than 1048576 bytes; wanted one JSON object"),
        (f'{{"key": {"7" * 5000}}}', "wanted one JSON object"),
        (f'{{"key": {"[" * 800}{"]" * 800}, "function": 1, "schema": ""}}', "wanted"),
        ('{"key": 1, "function": NaN, "schema": ""}', "function is NaN; wanted a function as"),
        # Else the kernel of one function would be stored as that of another.
        (changed(function={"name": "f"}), "the function's digest is"),
        (changed_key(context=pairs(function="0" * 64)), "wanted the digest that the key names, 00"),
        (changed(function={"name": float("nan")}), "wanted a function as JSON without NaN"),
    ],
)
def test_a_damaged_line_costs_that_line_and_is_named_with_what_is_wanted(
    tmp_path: Path, line: str | dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "workload"
    write_workload(OutputFile(path), [make_call(), make_call("aten::gelu")])
    header, first, last = path.read_text().splitlines()
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text("\n".join([header, first, text, last]))
    assert read_workload(path) == (make_call(), make_call("aten::gelu"))
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}, line 3: ")
    assert warning.endswith("; it is passed over")
    assert message in warning
    assert len(warning) < 400


def test_damaged_lines_of_a_file_are_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "workload"
    write_workload(OutputFile(path), [make_call()])
    path.write_bytes(path.read_bytes() + b"{\n\n\x1b[2J\n\xff\n" + b"x" * (3 << 20))
    assert read_workload(path) == (make_call(),)
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}, line 3: is {{; wanted one JSON object; ")
    assert warning.endswith("; it and 3 more damaged lines are passed over")
    workload = load_workload(path)
    assert [one.place.rpartition(" ")[2] for one in workload.damaged] == ["3", "5", "6", "7"]


def test_a_line_of_the_longest_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "workload"
    write_workload(OutputFile(path), [make_call()])
    header, line = path.read_text().splitlines()
    for length, count in (((1 << 20), 1), ((1 << 20) + 1, 0)):
        for end in ("", "\n", "\n\n"):
            path.write_text(f"{header}\n{line.ljust(length)}{end}")
            workload = load_workload(path)
            assert (len(workload.calls), len(workload.damaged)) == (count, 1 - count)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """What a shell makes of ``<(cat workload)``."""
    path = tmp_path / "workload"
    write_workload(OutputFile(path), [make_call()])
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert read_workload(f"/dev/fd/{cat.stdout.fileno()}") == (make_call(),)


def test_a_file_without_an_end_is_refused_before_it_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WorkloadError, match="/dev/zero, line 1: is longer than 1048576 bytes"):
        read_workload("/dev/zero")
    monkeypatch.setattr(workload_module, "_LARGEST_FILE", 4 << 20)
    path = tmp_path / "workload"
    write_workload(OutputFile(path), [make_call()])
    for more in (b"x" * (5 << 20), b"\n" * (5 << 20)):
        path.write_bytes(path.read_bytes() + more)
        with pytest.raises(WorkloadError, match="the file has more than 4194304 bytes until here"):
            read_workload(path)


def test_a_file_of_damaged_lines_is_no_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload_module, "_MOST_DAMAGED", 3)
    path = tmp_path / "workload"
    write_workload(OutputFile(path), [make_call()])
    path.write_bytes(path.read_bytes() + b"x\n" * 3)
    assert len(load_workload(path).damaged) == 3
    path.write_bytes(path.read_bytes() + b"x\n")
    with pytest.raises(WorkloadError, match="line 6: is x; .* more than 3 lines are damaged"):
        read_workload(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: is empty; wanted one JSON object"),
        (b"\x7fELF\xff\x00", "line 1: is \x7fELF"),
        (b'{"a": 1}\n', 'line 1: is {"a": 1}; wanted the header of a workload'),
        (
            b'{"kind": "aoti_eager workload", "format": 2}\n',
            "has format 2; this version reads up to 1, so record it again",
        ),
        (b'{"kind": "aoti_eager workload", "format": true}\n', "wanted the header of a workload"),
    ],
)
def test_what_is_no_workload_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "workload"
    path.write_bytes(content)
    with pytest.raises(WorkloadError, match="line 1") as caught:
        read_workload(path)
    assert message in str(caught.value)


def test_a_workload_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "no", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(WorkloadError, match=f"{path}: the workload cannot be read: {problem}"):
            read_workload(path)


# --- the file that is written at the end ---------------------------------------------------------


def test_what_was_there_stays_until_the_new_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    monkeypatch.chdir(tmp_path)
    file = OutputFile("link")
    monkeypatch.chdir("/")
    assert target.read_text() == "old"

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OutputFileError, match="target: cannot be written: No space left"):
            file.write(b"new")
    assert target.read_text() == "old"
    file.write(b"new")
    assert target.read_text() == "new"
    assert files_below(tmp_path) == ["link", "target"]


def test_a_file_that_cannot_be_written_is_found_at_the_start(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "no" / "file", "No such file"),
        (tmp_path, "is no regular file"),
        (Path(os.devnull), "is no regular file"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        with pytest.raises(OutputFileError, match=f"cannot be written: {problem}"):
            OutputFile(path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("name", [".target.{pid}", "target.{pid}", ".target", ".target.tmp"])
def test_links_that_others_made_beforehand_are_not_written_through(
    tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    link = tmp_path / name.format(pid=os.getpid())
    link.symlink_to(victim)
    OutputFile(tmp_path / "target").write(b"new")
    assert (victim.read_text(), link.is_symlink()) == ("keep", True)
    assert (tmp_path / "target").read_text() == "new"


def test_no_name_that_is_used_meanwhile_can_be_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    open_ = os.open

    def open_and_tell(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if Path(path).parent == tmp_path and Path(path).name != "target":
            made.append((Path(path).name, flags))
        return open_(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_and_tell)
    for _ in range(2):
        OutputFile(tmp_path / "target").write(b"new")
    assert len({name for name, _ in made}) == len(made) == 4
    assert all(flags & os.O_EXCL for _, flags in made)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_that_open_gives_and_one_that_is_replaced_keeps_its_own(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "opened").write_text("")
        OutputFile(tmp_path / "written").write(b"")
        (tmp_path / "private").write_text("old")
        (tmp_path / "private").chmod(0o600)
        OutputFile(tmp_path / "private").write(b"new")
    finally:
        os.umask(before)
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()
    }
    assert modes == {
        "opened": 0o666 & ~umask,
        "written": 0o666 & ~umask,
        "private": 0o600,
    }


def test_a_long_name_that_a_file_may_have_can_be_written(tmp_path: Path) -> None:
    OutputFile(tmp_path / ("n" * 255)).write(b"new")
    assert (tmp_path / ("n" * 255)).read_text() == "new"


# --- recording -----------------------------------------------------------------------------------


def test_distinct_calls_are_recorded_that_the_store_may_serve(
    recorder: workload_module.Recorder, no_compiles: None
) -> None:
    """Not what declines for good, and no call twice."""
    with (
        aoti_eager.config.scope(mode="cache_only"),
        aoti_eager.register(
            ["aten::silu.default", "aten::tanh.default", "aten::rand_like", "aten::remainder"]
        ),
    ):
        for _ in range(3):
            torch.nn.functional.silu(X)
            torch.tanh(X)
            torch.nn.functional.silu(X[:4])
        torch.rand_like(X)
        torch.remainder(X.to(torch.int64), 3 + X.to(torch.int64))
    calls = recorder.calls()
    assert [c.key.op for c in calls] == ["aten::silu", "aten::tanh", "aten::silu"]
    assert [dict(c.key.arguments)["self"]["sizes"] for c in calls] == [[8, 8], [8, 8], [4, 8]]
    assert calls[0].schema == "aten::silu(Tensor self) -> Tensor"
    assert all(c.function is None for c in calls)


def test_a_function_is_recorded_by_its_source(
    recorder: workload_module.Recorder, no_compiles: None, tmp_path: Path
) -> None:
    with op_of(closing_over(torch.ones(8))) as name:
        with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register(name):
            call(name)(X)
        (recorded,) = recorder.calls()
    assert recorded.function is not None
    assert "torch.tanh(x * weight)" in recorded.function["source"]
    write_workload(OutputFile(tmp_path / "workload"), [recorded])
    assert read_workload(tmp_path / "workload") == (recorded,)


def test_nothing_is_recorded_unless_it_is_asked_for(no_compiles: None) -> None:
    assert recorder_module._recorder is None
    recorder = start_recording()
    workload_module.stop_recording()
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::silu.default"):
        torch.nn.functional.silu(X)
    assert recorder.calls() == ()


# --- run --record --------------------------------------------------------------------------------

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script's text, recording into ``calls.jsonl`` of the test's directory."""

    def run_(text: str, *options: str, record: str = "calls.jsonl") -> Result:
        script = tmp_path / "script.py"
        script.write_text(text)
        given = ("--ops", "aten::silu.default,aten::tanh.default", "--record", record, *options)
        if "--mode" not in options:
            given += ("--mode", "cache_only")
        command = [sys.executable, "-m", "aoti_eager", "run", *given, str(script)]
        return forked_python.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run_


@pytest.mark.both_paths(costly=True)
def test_run_records_the_calls_of_a_script(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    got = run(SCRIPT)
    assert got.returncode == 0, got.stderr
    assert got.stderr.splitlines()[-1] == (
        f"4 calls were recorded; to compile them: aoti-eager warm {path}"
    )
    tensors = [
        (c.key.op, argument["dtype"], argument["sizes"])
        for c in read_workload(path)
        for _, argument in c.key.arguments
    ]
    assert tensors == [
        ("aten::silu", "float32", [8, 8]),
        ("aten::silu", "float32", [4, 8]),
        ("aten::tanh", "float32", [8, 8]),
        ("aten::tanh", "float64", [8, 8]),
    ]


@pytest.mark.full
@pytest.mark.parametrize(
    ("ending", "returncode"),
    [
        ("raise ValueError('no')", 1),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), 2); import time; time.sleep(60)", -2),
    ],
)
def test_the_workload_is_written_however_the_script_ends(
    run: Run, tmp_path: Path, ending: str, returncode: int
) -> None:
    got = run(SCRIPT + ending)
    assert got.returncode == returncode
    assert len(read_workload(tmp_path / "calls.jsonl")) == 4
    assert "4 calls were recorded" in got.stderr


def test_a_forked_child_writes_no_workload(run: Run, tmp_path: Path) -> None:
    got = run(
        "import os, torch\n"
        "torch.tanh(torch.ones(3))\n"
        "if os.fork() == 0:\n"
        "    torch.tanh(torch.ones(4))\n"
        "else:\n"
        "    os.wait()\n"
        f"    print(os.path.exists({str(tmp_path / 'calls.jsonl')!r}))\n"
    )
    assert (got.returncode, got.stdout) == (0, "False\n")
    assert len(read_workload(tmp_path / "calls.jsonl")) == 1
    assert got.stderr.count("were recorded") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record": "no/calls"}, "no/calls: cannot be written: No such file"),
        ({"record": "."}, "cannot be written: is no regular file"),
        ({"mode": "off"}, "--record is of no use in mode 'off'"),
    ],
)
def test_what_cannot_be_recorded_is_an_error_before_the_script_starts(
    run: Run, options: dict[str, str], message: str
) -> None:
    mode = ("--mode", options["mode"]) if "mode" in options else ()
    got = run("print('started')", *mode, record=options.get("record", "calls.jsonl"))
    assert (got.returncode, got.stdout) == (2, "")
    assert message in got.stderr
    assert "Traceback" not in got.stderr


def test_a_file_that_cannot_be_written_any_more_is_said_at_the_end(
    run: Run, tmp_path: Path
) -> None:
    path = str(tmp_path / "calls.jsonl")
    got = run(f"import torch, os\ntorch.tanh(torch.ones(3))\nos.mkdir({path!r})\n")
    assert got.returncode == 0
    assert "calls.jsonl: cannot be written: Is a directory" in got.stderr
    assert "Traceback" not in got.stderr
    assert "1 of them never called" in got.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a link to another user")
def test_a_link_that_another_user_has_made_is_not_followed(tmp_path: Path) -> None:
    """In a directory that others can write to, it may lead to any file of this user's."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link = tmp_path / "workload"
    link.symlink_to(victim)
    os.lchown(link, 65534, 65534)
    with pytest.raises(OutputFileError, match="is a link that user 65534 has made"):
        OutputFile(link)
    assert victim.read_bytes() == b"precious"
