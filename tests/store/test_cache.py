"""Inspecting and managing the store; the command line over it. No compiler is needed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache, cli
from aoti_eager._compile_service import cache_context
from aoti_eager._keys.kernel_key import KernelKey, kernel_key
from aoti_eager._keys.schema import op_schema
from aoti_eager._store.entry import Entry, Status
from aoti_eager._store.environment import Environment, current_environment
from aoti_eager._store.verdict import PathTime, Verdict

from ..support import forked_python

X = torch.ones(8, 8)


def publish(op: Any, *args: Any, status: Status = Status.READY, **fields: Any) -> Entry:
    """Store an entry of a call; its library is a few bytes that are never loaded here."""
    schema = op_schema(op)
    context = cache_context.current()
    entry = Entry(
        status,
        fields.pop("key", None) or kernel_key(schema, "CPU", schema.bind(args, {})),
        fields.pop("environment", context.environment),
        "cpu-test",
        fields.pop("requires", frozenset()),
        outputs=({"output": 0},),
        checked=True,
        **fields,
    )
    with context.store.workspace() as work:
        library = work / "bytes"
        library.write_bytes(b"\x7fELF of a test")
        published = library if status is not Status.DECLINED else None
        return context.store.publish(entry, work, published, fields.get("message") or "").entry


@pytest.fixture
def filled(settings: None) -> Iterator[dict[str, Entry]]:
    """One entry of each kind."""
    aten = torch.ops.aten
    foreign = Environment((("torch", "2.12.0"),))
    return {
        "ready": publish(aten.silu.default, X),
        "declined": publish(
            aten.mm.default, X, X, status=Status.DECLINED, reason="no_kernel_of_its_own"
        ),
        "quarantined": publish(
            aten.tanh.default, X, status=Status.QUARANTINED, reason="mismatch", message="result 0"
        ),
        "stale": publish(aten.gelu.default, X, environment=foreign),
        "other_cpu": publish(aten.relu.default, X, requires=frozenset({"no_such_feature"})),
    }


def test_list_names_every_entry_with_its_status(filled: dict[str, Entry]) -> None:
    """Foreign and unrunnable entries are listed as what they are."""
    found = {entry.status: entry for entry in cache.list()}
    assert set(found) == set(filled)
    for status, entry in filled.items():
        assert found[status].op == entry.key.op
        assert found[status].digest == entry.key.digest
    assert found["ready"].inputs == "f32[8,8]"
    assert "no_such_feature" in str(found["other_cpu"].reason)
    assert found["quarantined"].size_bytes > 0


def test_the_environment_is_found_out_once_for_all_entries(
    filled: dict[str, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Environment] = []

    def counted() -> Environment:
        asked.append(current_environment())
        return asked[-1]

    monkeypatch.setattr(cache, "current_environment", counted)
    for use in (cache.list, cache.verify, lambda: cache.inspect(filled["ready"].digest)):
        asked.clear()
        use()
        assert len(asked) == 1


def test_list_of_an_absent_store_is_empty_and_creates_nothing(tmp_path: Path) -> None:
    assert cache.list(cache_dir=tmp_path / "absent") == []
    assert not (tmp_path / "absent").exists()


def test_inspect_finds_by_the_beginning_of_a_digest(filled: dict[str, Entry]) -> None:
    entry = filled["stale"]
    (details,) = cache.inspect(entry.key.digest[:16])
    assert details.entry == entry
    assert details.differing["torch"] == (str(torch.__version__), "2.12.0")
    with pytest.raises(KeyError, match="no entry has a digest that begins with 'zz'"):
        cache.inspect("zz")


def test_verify_removes_what_is_broken_and_nothing_else(filled: dict[str, Entry]) -> None:
    """One bad entry must not spoil the others."""
    found = {entry.status: entry for entry in cache.list()}
    (found["ready"].path / "library.so").write_bytes(b"garbled")
    (found["declined"].path / "entry.json").write_bytes(b"{")
    report = cache.verify(repair=False)
    assert {path for path, _ in report.damaged} == {found["ready"].path, found["declined"].path}
    assert (report.intact, report.foreign) == (1, 2)
    assert found["ready"].path.exists()
    cache.verify()
    assert not found["ready"].path.exists()
    assert cache.verify().damaged == ()
    assert len(cache.list()) == 3


def test_clear_removes_everything_and_says_how_much(filled: dict[str, Entry]) -> None:
    assert cache.clear() == 5
    assert cache.list() == []
    assert cache.clear() == 0


# --- explain ---


def test_explain_names_the_fields_that_differ(filled: dict[str, Entry]) -> None:
    """A miss is explained."""
    found = aoti_eager.explain("aten::silu", torch.ones(8, 4))
    assert found.verdict == "miss"
    assert found.nearest is not None
    assert found.nearest.differing == {
        "self.sizes": ("[8, 4]", "[8, 8]"),
        "self.strides": ("[4, 1]", "[8, 1]"),
    }
    assert "self.sizes: [8, 4] here, [8, 8] there" in str(found)


def test_explain_names_what_of_the_environment_differs(filled: dict[str, Entry]) -> None:
    found = aoti_eager.explain("aten::gelu", X)
    assert found.nearest is not None
    assert found.nearest.differing["environment.torch"] == (str(torch.__version__), "2.12.0")
    missing = aoti_eager.explain("aten::relu", X).nearest
    assert missing is not None
    assert missing.differing == {"cpu_features": ("without no_such_feature", "needs them")}


@pytest.mark.parametrize(
    ("op", "args", "verdict", "reason"),
    [
        ("aten::silu", (X,), "stored", None),
        ("aten::mm", (X, X), "declined", "no_kernel_of_its_own"),
        ("aten::tanh", (X,), "declined", "mismatch"),
        ("aten::bernoulli", (X,), "declined", "random"),
        ("aten::mul.Tensor", (X, X), "miss", None),
        ("aten::remainder.Tensor", (X.long(), X.long()), "declined", "error_depends_on_data"),
    ],
)
def test_explain_gives_a_verdict_and_its_reason(
    op: str, args: Any, verdict: str, reason: str | None, filled: dict[str, Entry]
) -> None:
    found = aoti_eager.explain(op, *args)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert not found.registered
    assert "not registered" in str(found)


def test_explain_takes_arguments_as_the_op_does(settings: None) -> None:
    assert aoti_eager.explain("aten::sum.dim_IntList", X, 1).key is not None
    one = aoti_eager.explain("aten::add", X, X).key
    same = aoti_eager.explain("aten::add", X, X, alpha=1).key
    other = aoti_eager.explain("aten::add", X, X, alpha=2).key
    assert one == same != other


def test_explain_of_a_declined_call_in_this_process_says_so(no_compiles: None) -> None:
    with (
        aoti_eager.config.scope(mode="cache_only"),
        aoti_eager.register("aten::silu"),
    ):
        assert aoti_eager.explain("aten::silu", X).verdict == "miss"
        torch.ops.aten.silu(X)
        found = aoti_eager.explain("aten::silu", X)
    assert (found.verdict, found.reason, found.registered) == ("declined", "not_in_cache", True)


def test_explain_runs_counts_and_writes_nothing(cache_dir: Path) -> None:
    with aoti_eager.register("aten::silu"):
        before = aoti_eager.stats()["aten::silu"]
        files = sorted(cache_dir.rglob("*"))
        aoti_eager.explain("aten::silu", X)
        assert aoti_eager.stats()["aten::silu"] == before
        assert sorted(cache_dir.rglob("*")) == files


# --- the command line ---


def test_every_verb_on_the_command_line(
    filled: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> tuple[int, str]:
        status = cli.main(argv)
        return status, capsys.readouterr().out

    status, out = run("list")
    assert status == 0
    assert "aten::silu" in out
    assert "5 entries" in out
    status, out = run("list", "--json")
    assert {entry["status"] for entry in json.loads(out)} == set(filled)
    status, out = run("inspect", filled["quarantined"].key.digest[:12])
    assert status == 0
    assert "mismatch" in out
    assert "result 0" in out
    status, out = run("explain", "aten::silu", "f32[8,8]")
    assert (status, out.splitlines()[0]) == (0, "aten::silu: stored")
    status, out = run("explain", "aten::silu", "f32[8,8]{1,8}")
    assert "self.strides: [1, 8] here, [8, 1] there" in out
    status, out = run("explain", "aten::add", "f32[4]", "f32[4]", "alpha=2.5")
    assert 'alpha.float = "0x1.4000000000000p+1"' in out
    assert run("verify")[0] == 0
    path = next(e.path for e in cache.list() if e.status == "ready")
    (path / "library.so").unlink()
    assert run("verify", "--dry-run")[0] == 1
    assert run("verify")[0] == 1
    assert run("verify")[0] == 0
    status, out = run("clear")
    assert out.startswith("4 entries removed")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["explain", "aten::sillu", "f32[8]"], "did you mean aten::silu"),
        (["explain", "aten::silu"], "PyTorch takes no such call"),
        (["list", "--cache-dir", ""], "got an empty string"),
        (["inspect", "zz"], "no entry has a digest that begins with 'zz'"),
    ],
)
def test_wrong_uses_say_what_is_wanted_and_exit_with_two(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.full
def test_totals_of_all_processes_are_kept_for_the_command_line(cache_dir: Path) -> None:
    code = """
import torch, aoti_eager
with aoti_eager.register("aten::silu"):
    torch.ops.aten.silu(torch.ones(3))
"""
    environment = {
        **os.environ,
        "AOTI_EAGER_CACHE_DIR": str(cache_dir),
        "AOTI_EAGER_MODE": "cache_only",
    }
    for _ in range(2):
        forked_python.run([sys.executable, "-c", code], check=True, env=environment, cwd=cache_dir)
    out = forked_python.run(
        [sys.executable, "-m", "aoti_eager", "stats", "--json"],
        check=True,
        env=environment,
        cwd=cache_dir,
        capture_output=True,
        text=True,
    ).stdout
    assert json.loads(out)["aten::silu"] == {
        "hits": 0,
        "misses": 0,
        "declines": 2,
        "compiles": 0,
        "failures": 0,
        "declined": {"not_in_cache": 2},
        "rechecks": 0,
        "rare": 0,
        "unfinished": {},
        "saved_s": 0.0,
        "steps": [],
    }


HOSTILE = "\x1b[2J\x07\u202e"
SHOWN = r"\x1b[2J\x07\u202e"


def hostile_key() -> KernelKey:
    schema = op_schema(torch.ops.aten.silu.default)
    key = kernel_key(schema, "CPU", schema.bind((X,), {}))
    return replace(key, arguments=((f"self{HOSTILE}", {"number": HOSTILE}), *key.arguments))


def test_escape_sequences_of_the_store_are_not_printed_raw(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An entry, its log, its verdict, the totals and a path name."""
    entry = publish(
        torch.ops.aten.silu.default,
        X,
        status=Status.QUARANTINED,
        key=hostile_key(),
        environment=Environment((("torch", f"2{HOSTILE}"),)),
        reason=f"reason{HOSTILE}",
        message=f"first{HOSTILE}\nsecond\tline",
        provenance=((f"by{HOSTILE}", f"gcc{HOSTILE}"),),
    )
    context = cache_context.current()
    assert entry.library is not None
    taken = PathTime(1.0, 2.0, 2.0, 0.01, True)
    verdict = Verdict(entry.library.sha256, times={f"native/2{HOSTILE}": taken})
    context.verdicts.put(entry.digest, verdict)
    # A directory whose name the format does not know is nobody's entry, and is passed over.
    other = cache_dir / "v1" / "0" / f"aten.x{HOSTILE}" / "static" / ("0" * 64) / "cpu"
    other.mkdir(parents=True)
    (other / "entry.json").write_text("{")
    counts = {"hits": 1, "misses": 0, "declines": 0, "compiles": 0, "failures": 0}
    totals = {f"op{HOSTILE}": {**counts, "declined": {f"why{HOSTILE}": 1}}}
    (cache_dir / "totals.json").write_text(json.dumps(totals))

    for argv, number in (
        (["list"], 1),
        (["inspect", entry.digest], 8),
        (["verify", "--dry-run"], 0),
        (["stats"], 2),
        (["explain", "aten::silu", "f32[8,8]"], 1),
    ):
        cli.main(argv)
        out, err = capsys.readouterr()
        assert out.count(SHOWN) >= number, (argv, out)
        for text in (out, err):
            assert all(c.isprintable() or c in "\n\t" for c in text), (argv, text)
    cli.main(["inspect", entry.digest])
    assert f"first{SHOWN}\nsecond\tline" in capsys.readouterr().out


def test_escape_sequences_in_an_error_are_not_printed_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"dir{HOSTILE}"
    path.write_text("")
    for argv in (["list", "--cache-dir", str(path)], ["warm", f"{path}/none"]):
        assert cli.main(argv) == 2
        err = capsys.readouterr().err
        assert SHOWN in err
        assert "\x1b" not in err


# --- logging ---


def test_declines_are_logged(no_compiles: None, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="aoti_eager"),
        aoti_eager.config.scope(mode="cache_only"),
        aoti_eager.register("aten::silu"),
    ):
        torch.ops.aten.silu(X)
    assert "aten::silu: declined (not_in_cache)" in caplog.text


def test_torch_logs_shows_our_log(cache_dir: Path) -> None:
    code = """
import torch, aoti_eager
with aoti_eager.register("aten::silu"):
    torch.ops.aten.silu(torch.ones(3))
"""
    environment = {
        **os.environ,
        "AOTI_EAGER_CACHE_DIR": str(cache_dir),
        "AOTI_EAGER_MODE": "cache_only",
        "TORCH_LOGS": "+aoti_eager",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=cache_dir,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "declined (not_in_cache)" in done.stderr
