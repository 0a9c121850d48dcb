"""Ops whose kernels all lose: ``run`` does not register them, and looks again. Nothing compiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._base.store_format import MARKER_FILE
from aoti_eager._base.store_marker import MARKER
from aoti_eager._compile_service import cache_context
from aoti_eager._keys.kernel_key import ANY_THREADS
from aoti_eager._store.entry import Entry, Remembered, Status
from aoti_eager._store.environment import Environment
from aoti_eager._store.kept_queue import (
    update_wanted,
)
from aoti_eager._store.store import Store
from aoti_eager._store.verdict import processor
from aoti_eager._store.wanted_calls import (
    MOST_TRIES,
    WantedCall,
    wanted,
)
from aoti_eager._workloads import left_out as left_out_module
from aoti_eager._workloads.left_out import (
    LOOKS_AGAIN,
    losing,
    note_run,
    run_digest,
)

from ..store.test_cache import publish
from ..store.test_prune import LOSES, WINS, measured
from ..support import forked_python

X = torch.ones(8, 8)
Y = torch.ones(4, 8)
TANH, SILU = "aten::tanh.default", "aten::silu.default"
THREADS = torch.get_num_threads()

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _gated(settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The gate, as by default, here and in processes."""
    monkeypatch.setenv("AOTI_EAGER_GATE", "1")
    with aoti_eager.config.scope(gate=True):
        yield


def losers() -> list[str]:
    return losing([TANH, SILU], cache_context.current())


@pytest.fixture
def entry() -> Entry:
    """An entry of tanh, which loses here."""
    entry = publish(aten.tanh.default, X)
    measured(entry, python=LOSES)
    return entry


def wait_for(key_of: Entry, **fields: object) -> None:
    """Put a key into the kept queue."""
    schema = str(aten.tanh.default._schema)
    call = WantedCall(key_of.key, schema, is_rare=bool(fields.pop("is_rare", False)))
    one = replace(wanted(call, 1, 0, int(time.time())), **fields)  # type: ignore[arg-type]
    update_wanted(cache_context.current().store.root, lambda kept: {**kept, one.digest: one})


# --- which ops lose ------------------------------------------------------------------------------


def test_an_op_whose_kernels_all_lose_is_one(entry: Entry) -> None:
    assert losers() == [TANH]
    measured(publish(aten.tanh.default, Y), python=LOSES)
    assert losers() == [TANH]


def test_a_kernel_that_wins_keeps_its_op(entry: Entry) -> None:
    measured(publish(aten.tanh.default, Y), python=WINS)
    assert losers() == []


def test_a_kernel_that_was_not_measured_keeps_its_op(entry: Entry) -> None:
    publish(aten.tanh.default, Y)
    assert losers() == []


def test_an_op_without_a_kernel_is_kept() -> None:
    assert losers() == []
    publish(aten.tanh.default, X, status=Status.DECLINED, reason="no_kernel_of_its_own")
    assert losers() == []


@pytest.mark.parametrize("path", ["native", "python"])
def test_the_times_of_the_hit_path_that_will_serve_count(path: str) -> None:
    measured(publish(aten.tanh.default, X), **{path: LOSES})
    for setting in ("0", "auto"):
        with aoti_eager.config.scope(native=setting):
            assert losers() == [TANH] * ((path == "python") == (setting == "0"))


def test_the_times_of_this_thread_count_count() -> None:
    entry = publish(aten.tanh.default, X)
    measured(entry, THREADS + 1, python=LOSES)
    assert losers() == []
    measured(entry, python=LOSES)
    assert losers() == [TANH]
    measured(entry, THREADS + 1, python=WINS)  # A script may change the number.
    assert losers() == []


def test_kernels_for_other_thread_counts_are_passed_over_unless_they_win(entry: Entry) -> None:
    other = publish(aten.tanh.default, Y, key=entry.key.with_threads(THREADS + 1))
    assert losers() == [TANH]
    measured(other, THREADS + 1, python=WINS)
    assert losers() == []


def test_a_kernel_without_threads_is_one_of_all_counts() -> None:
    key = publish(aten.tanh.default, Y).key.with_threads(ANY_THREADS)
    aoti_eager.cache.clear()
    entry = publish(aten.tanh.default, Y, key=key)
    assert losers() == []
    measured(entry, python=LOSES)
    assert losers() == [TANH]


def test_what_another_machine_or_environment_has_is_passed_over(entry: Entry) -> None:
    publish(aten.tanh.default, Y, requires=frozenset({"no_such_feature"}))
    publish(aten.tanh.default, Y, environment=Environment((("torch", "2.12.0"),)))
    assert losers() == [TANH]


def test_a_remembered_failure_is_no_hope_and_a_lapsed_one_is(entry: Entry) -> None:
    options = {"status": Status.DECLINED, "reason": "compile_failed"}
    failure = publish(aten.tanh.default, Y, **options)
    assert losers() == [TANH]
    context = cache_context.current()
    context.store.discard(context.store._entry_path(failure))
    publish(aten.tanh.default, Y, remembered=Remembered(0.0, None), **options)
    assert losers() == []


def test_a_damaged_entry_is_made_anew(entry: Entry) -> None:
    other = publish(aten.tanh.default, Y)
    (cache_context.current().store._entry_path(other) / "entry.json").write_bytes(b"{")
    assert losers() == []


@pytest.mark.parametrize("is_rare", [False, True])
def test_a_key_that_waits_keeps_its_op(entry: Entry, is_rare: bool) -> None:
    wait_for(entry, is_rare=is_rare)
    assert losers() == []


def test_a_key_that_waits_for_nothing_does_not(entry: Entry) -> None:
    wait_for(entry, tries=MOST_TRIES)
    assert losers() == [TANH]
    other = replace(entry, key=entry.key.with_threads(THREADS + 1))
    wait_for(entry, document=b"{}")
    assert losers() == [TANH]
    wait_for(other)
    assert losers() == [], "the script may set its thread count itself"


def test_without_the_gate_every_op_is_kept(entry: Entry) -> None:
    with aoti_eager.config.scope(gate=False):
        assert losers() == []


def test_pruning_what_lost_brings_the_op_back(entry: Entry) -> None:
    cache.prune(declined=True)
    assert losers() == []


# --- which runs are looked at --------------------------------------------------------------------


def left_out(script: bytes = b"1", *arguments: str) -> tuple[str, ...]:
    context = cache_context.current()
    left_out_module.leave_out([TANH, SILU], run_digest(script, arguments, context), context)
    found, left_out_module.left_out = left_out_module.left_out, ()
    return found


def note(script: bytes = b"1", *arguments: str, looked: bool) -> None:
    context = cache_context.current()
    note_run(run_digest(script, arguments, context), context.store.root, looked=looked)


def test_a_script_is_looked_at_first_and_each_eighth_time(entry: Entry) -> None:
    looked = []
    for _ in range(2 * LOOKS_AGAIN + 1):
        looked.append(not left_out())
        note(looked=looked[-1])
    assert [number for number, one in enumerate(looked) if one] == [0, LOOKS_AGAIN, 2 * LOOKS_AGAIN]


def test_another_script_or_other_arguments_are_looked_at(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(b"1", "--batch", "4", looked=True)
    assert left_out(b"1", "--batch", "4") == (TANH,)
    assert left_out(b"2", "--batch", "4") == ()
    assert left_out(b"1", "--batch", "8") == ()
    assert left_out(b"1", "--batch 4") == ()
    with monkeypatch.context() as patched:
        patched.setattr(left_out_module, "processor", lambda: f"not {processor()}")
        assert left_out(b"1", "--batch", "4") == ()
    with monkeypatch.context() as patched:
        patched.setenv("TORCHINDUCTOR_ANY", "1")
        assert left_out(b"1", "--batch", "4") == ()


def test_in_the_mode_off_no_op_is_left_out(entry: Entry) -> None:
    note(looked=True)
    with aoti_eager.config.scope(mode="off"):
        assert left_out() == ()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": [1, 2, 3]}', b"[" * 5000])
def test_a_file_that_is_damaged_says_nothing(entry: Entry, content: bytes) -> None:
    note(looked=True)
    (cache_context.current().store.root / "runs").write_bytes(content)
    assert left_out() == ()
    note(looked=True)
    assert left_out() == (TANH,)


def test_a_file_that_others_can_write_says_nothing(entry: Entry) -> None:
    note(looked=True)
    (cache_context.current().store.root / "runs").chmod(0o666)
    assert left_out() == ()


def test_the_scripts_that_were_run_last_are_kept(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_out_module, "_MOST_RUNS", 2)
    root = cache_context.current().store.root
    for number in range(4):
        monkeypatch.setattr(time, "time", lambda number=number: number)
        note_run(str(number), root, looked=True)
    assert sorted(json.loads((root / "runs").read_bytes())) == ["2", "3"]


def test_a_directory_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    note_run("a", tmp_path, looked=True)
    assert not (tmp_path / "runs").exists()
    (tmp_path / MARKER_FILE).write_bytes(MARKER)
    note_run("a", tmp_path, looked=True)
    assert (tmp_path / "runs").exists()


def test_clear_forgets_the_runs_and_verify_knows_the_file(entry: Entry) -> None:
    note(looked=True)
    assert cache.verify().damaged == ()
    assert (cache_context.current().store.root / "runs").exists()
    cache.clear()
    assert not (cache_context.current().store.root / "runs").exists()


# --- run and explain -----------------------------------------------------------------------------

SCRIPT = """
import sys, torch
x = torch.ones(8, 8)
for _ in range(3):
    x.tanh()
print("registered", *__import__("aoti_eager").registered_ops())
sys.exit(int(sys.argv[1]) if sys.argv[1:] else 0)
"""
SAID = "1 op was left out, as all its kernels lose here (--all-ops registers all): aten::tanh"

Run = Callable[..., tuple[bool, str]]


@pytest.fixture
def run(entry: Entry, tmp_path: Path) -> Run:
    """Run the script; return whether tanh was registered in it, and what was said at its end."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run_(*options: str, arguments: tuple[str, ...] = ()) -> tuple[bool, str]:
        command = [sys.executable, "-m", "aoti_eager", "run", *options, str(script), *arguments]
        threads = {"OMP_NUM_THREADS": str(THREADS)}
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **threads}
        )
        assert done.returncode == int(arguments[0] if arguments else 0), done.stderr
        (line,) = [one for one in done.stdout.splitlines() if one.startswith("registered")]
        return "aten::tanh" in line.split(), done.stderr

    return run_


@pytest.mark.full
def test_a_script_that_was_run_is_run_without_what_loses(run: Run, entry: Entry) -> None:
    is_registered, said = run()
    assert is_registered
    assert "slower x3" in said
    assert "left out" not in said
    is_registered, said = run()
    assert not is_registered
    assert SAID in said.splitlines()
    for options in (("--all-ops",), ("--ops", "aten::tanh")):
        is_registered, said = run(*options)
        assert is_registered
        assert "left out" not in said
    wait_for(entry)  # Of another script, say.
    is_registered, said = run()
    assert is_registered


@pytest.mark.full
def test_a_run_that_did_not_come_to_its_end_was_no_look(run: Run) -> None:
    failed = ("3",)
    for _ in range(2):
        is_registered, _ = run(arguments=failed)
        assert is_registered


def test_all_ops_goes_with_no_other_choice(run: Run) -> None:
    command = [sys.executable, "-m", "aoti_eager", "run", "--all-ops", "--ops", "aten::tanh", "x"]
    done = forked_python.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "not allowed with argument" in done.stderr


def test_explain_says_what_run_leaves_out(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = aoti_eager.explain("aten::tanh", X)
    assert explained.left_out is not None
    assert "run leaves it out of scripts that it has looked at" in str(explained)
    assert aoti_eager.explain("aten::silu", X).left_out is None
    with aoti_eager.register("aten::tanh"):
        assert aoti_eager.explain("aten::tanh", X).left_out is None
    monkeypatch.setattr(left_out_module, "left_out", (TANH,))
    assert "run has left it out" in str(aoti_eager.explain("aten::tanh", X))


def test_a_user_without_a_home_has_no_runs() -> None:
    with aoti_eager.config.scope(cache_dir=Path("/nowhere/to/be/found")):
        assert left_out() == ()
    context = replace(cache_context.current(), store=Store(None, lock_timeout_s=1.0))
    assert not left_out_module._was_looked_at("a", None)
    assert losing([TANH], context) == []
