"""Pruning the store, and what list and inspect say of measured kernels. Nothing is compiled."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache, cli
from aoti_eager._compile_service import cache_context
from aoti_eager._registration import registry
from aoti_eager._store import verdict as verdict_module
from aoti_eager._store.entry import Entry, Remembered, Status
from aoti_eager._store.environment import Environment
from aoti_eager._store.verdict import (
    PathTime,
    Verdict,
    Verdicts,
    processor,
)
from aoti_eager.cache import PruneReport
from aoti_eager.errors import StoreError, StorePermissionError

from ..support.entries import files_below
from .test_cache import publish

X = torch.ones(8, 8)
Y = torch.ones(4, 8)
FOREIGN = Environment((("torch", "2.12.0"),))
WINS = PathTime(5.0, 10.0, 11.0, 0.0, True)
LOSES = PathTime(20.0, 10.0, 11.0, 0.0, True)

aten = torch.ops.aten


def measured(entry: Entry, threads: int | None = None, **times: PathTime) -> Verdict:
    """Write down times of an entry's library by hit path."""
    assert entry.library is not None
    verdicts = cache_context.current().verdicts
    verdict = verdicts.get(entry.key.digest, entry.library.sha256)
    verdict = verdict.with_times(times, threads or torch.get_num_threads())
    verdicts.put(entry.key.digest, verdict)
    return verdict


@pytest.fixture
def filled(settings: None) -> dict[str, Entry]:
    """One entry of each kind; a winner and a loser among those that are ready."""
    entries = {
        "ready": publish(aten.silu.default, X),
        "slower": publish(aten.silu.default, Y),
        "declined": publish(
            aten.mm.default, X, X, status=Status.DECLINED, reason="no_kernel_of_its_own"
        ),
        "quarantined": publish(
            aten.tanh.default, X, status=Status.QUARANTINED, reason="mismatch", message="result 0"
        ),
        "stale": publish(aten.gelu.default, X, environment=FOREIGN),
        "other_cpu": publish(aten.relu.default, X, requires=frozenset({"no_such_feature"})),
    }
    measured(entries["ready"], native=WINS)
    measured(entries["slower"], native=LOSES)
    return entries


def statuses() -> dict[str, str]:
    """Return the status of every entry by its digest."""
    return {entry.digest: entry.status for entry in cache.list()}


def left(filled: dict[str, Entry]) -> set[str]:
    """Return the names of the fixture's entries that the store still has."""
    digests = statuses()
    return {name for name, entry in filled.items() if entry.key.digest in digests}


# --- prune ---


def test_declined_removes_remembered_failures_and_lost_measurements(
    filled: dict[str, Entry],
) -> None:
    assert cache.prune(declined=True) == PruneReport(declined=2, slower=1, stale=0)
    assert left(filled) == {"ready", "slower", "stale", "other_cpu"}
    # The loser's library is there, and nothing is known of its times: it is measured again.
    found = statuses()
    assert found[filled["slower"].key.digest] == "ready"
    verdicts = cache_context.current().verdicts
    assert list(verdicts.digests()) == [filled["ready"].key.digest]
    assert cache.prune(declined=True) == PruneReport(0, 0, 0)


def test_stale_removes_entries_of_other_environments_and_nothing_else(
    filled: dict[str, Entry],
) -> None:
    assert cache.prune(stale=True) == PruneReport(declined=0, slower=0, stale=1)
    assert left(filled) == set(filled) - {"stale"}
    assert statuses()[filled["slower"].key.digest] == "slower"


def test_both_at_once(filled: dict[str, Entry]) -> None:
    assert cache.prune(declined=True, stale=True) == PruneReport(declined=2, slower=1, stale=1)
    assert left(filled) == {"ready", "slower", "other_cpu"}


def test_failures_of_other_environments_are_stale_and_not_declined(settings: None) -> None:
    for environment in (FOREIGN, cache_context.current().environment):
        publish(
            aten.mm.default,
            X,
            X,
            status=Status.DECLINED,
            reason="no_kernel_of_its_own",
            environment=environment,
        )
    assert cache.prune(declined=True) == PruneReport(declined=1, slower=0, stale=0)
    assert [entry.status for entry in cache.list()] == ["stale"]
    assert cache.prune(stale=True) == PruneReport(declined=0, slower=0, stale=1)
    assert cache.list() == []


def test_nothing_of_what_is_removed_is_left_behind(filled: dict[str, Entry]) -> None:
    cache.prune(declined=True, stale=True)
    store = cache_context.current().store
    assert files_below(store.root / "tmp") == []
    assert len(files_below(store.root / "v1")) == 3 * 2  # entry.json and library.so
    assert cache.verify().damaged == ()


@pytest.mark.parametrize("path", ["python", "native"])
def test_one_losing_time_is_enough_to_be_measured_again(path: str, settings: None) -> None:
    """A process without the other hit path, or with another thread count, declines by it."""
    measured(publish(aten.silu.default, X), **{"python": WINS, "native": WINS, path: LOSES})
    other = publish(aten.silu.default, Y)
    measured(other, native=WINS)
    measured(other, threads=77, native=LOSES)
    assert cache.prune(declined=True).slower == 2
    assert list(cache_context.current().verdicts.digests()) == []


def test_what_was_only_checked_and_not_timed_is_kept(settings: None) -> None:
    entry = publish(aten.silu.default, X)
    assert entry.library is not None
    verdicts = cache_context.current().verdicts
    verdict = Verdict(entry.library.sha256, checked=True, compared=True)
    verdicts.put(entry.key.digest, verdict)
    assert cache.prune(declined=True).slower == 0
    assert verdicts.get(entry.key.digest, entry.library.sha256) == verdict


def test_verdicts_of_other_processors_are_left_alone(
    filled: dict[str, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict_module, "processor", lambda: "another-1234")
    assert cache.prune(declined=True) == PruneReport(declined=2, slower=0, stale=0)
    monkeypatch.undo()
    root = cache_context.current().store.root
    assert len(list((root / "verdicts" / processor()).iterdir())) == 2


def test_a_verdict_that_cannot_be_read_is_left_for_the_next_measurement(
    filled: dict[str, Entry],
) -> None:
    verdicts = cache_context.current().verdicts
    file = verdicts.directory / f"{filled['ready'].key.digest}.json"
    file.write_bytes(b"garbage")
    assert cache.prune(declined=True).slower == 1
    assert file.exists()


def test_damaged_and_newer_entries_are_not_pruned(filled: dict[str, Entry]) -> None:
    paths = {entry.digest: entry.path for entry in cache.list()}
    damaged = paths[filled["declined"].key.digest]
    (damaged / "entry.json").write_bytes(b"{")
    newer = paths[filled["quarantined"].key.digest]
    document = json.loads((newer / "entry.json").read_bytes())
    (newer / "entry.json").write_text(json.dumps({**document, "format": 99}))
    assert cache.prune(declined=True, stale=True) == PruneReport(declined=0, slower=1, stale=1)
    assert damaged.exists()
    assert newer.exists()


def test_a_process_decides_anew_on_what_was_pruned_and_keeps_what_it_has_decided(
    settings: None, no_compiles: None
) -> None:
    publish(aten.mm.default, X, X, status=Status.DECLINED, reason="no_kernel_of_its_own")
    with aoti_eager.config.scope(mode="cache_only"):
        with aoti_eager.register("aten::mm.default"):
            aten.mm(X, X)
            assert cache.prune(declined=True).declined == 1
            aten.mm(X, X)
            assert aoti_eager.stats()["aten::mm"].declined == {"no_kernel_of_its_own": 2}
        with aoti_eager.register("aten::mm.default"):
            aten.mm(X, X)
            assert aoti_eager.stats()["aten::mm"].declined["not_in_cache"] == 1


# --- by compiler ---

GCC = (("compiler", "g++ (Debian 12.2.0-14) 12.2.0"), ("compiler_identity", "g++-12ab"))
CLANG = (("compiler", "Debian clang version 14.0.6"), ("compiler_identity", "clang++-14cd"))


@pytest.fixture
def made(settings: None) -> dict[str, Entry]:
    """Entries of two compilers, and those that do not say of which they are."""
    failed: dict[str, Any] = {"status": Status.DECLINED, "reason": "no_kernel_of_its_own"}
    by_gcc = {**failed, "remembered": Remembered(1, "g++-12ab")}
    return {
        "gcc": publish(aten.silu.default, X, provenance=GCC),
        "clang": publish(aten.silu.default, Y, provenance=CLANG),
        "old gcc": publish(aten.tanh.default, X, provenance=GCC[:1]),
        "gcc failed": publish(aten.mm.default, X, X, **by_gcc),
        "unknown failed": publish(aten.mm.default, Y, X, **failed),
        "foreign gcc": publish(aten.gelu.default, X, environment=FOREIGN, provenance=GCC),
    }


@pytest.mark.parametrize(
    ("text", "removed"),
    [
        ("g++ (Debian 12", {"gcc", "old gcc"}),
        ("12.2.0", {"gcc", "old gcc"}),
        ("g++-12", {"gcc", "gcc failed"}),
        ("g++", {"gcc", "old gcc", "gcc failed"}),
        ("clang++-14cd", {"clang"}),
        ("Debian", {"gcc", "old gcc", "clang"}),
        ("14cd", set()),  # An identity is known by its beginning.
        ("icpx", set()),
    ],
)
def test_what_one_compiler_has_made_or_failed_to_make_is_removed(
    text: str, removed: set[str], made: dict[str, Entry]
) -> None:
    """Another compiler was first on PATH once."""
    report = cache.prune(compiler=text)
    assert report == PruneReport(declined=0, slower=0, stale=0, compiler=len(removed))
    assert left(made) == set(made) - removed


def test_each_entry_is_counted_once(made: dict[str, Entry]) -> None:
    report = cache.prune(declined=True, stale=True, compiler="g++")
    assert report == PruneReport(declined=1, slower=0, stale=1, compiler=3)
    assert left(made) == {"clang"}


def test_the_verb_takes_a_compiler(
    made: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "prune", "--compiler", "g++-12ab")
    assert (status, err) == (0, "")
    assert out.startswith("2 entries of that compiler, 0 remembered failures, 0 losing verdicts")
    assert left(made) == set(made) - {"gcc", "gcc failed"}
    assert run(capsys, "prune", "--compiler", "")[0] == 2


# --- what goes wrong ---


def test_neither_asked_for_is_a_wrong_use(filled: dict[str, Entry]) -> None:
    with pytest.raises(ValueError, match="choose declined, stale or both"):
        cache.prune()
    assert left(filled) == set(filled)


def test_a_store_that_is_absent_has_nothing_to_prune_and_is_not_made(tmp_path: Path) -> None:
    report = cache.prune(declined=True, stale=True, cache_dir=tmp_path / "absent")
    assert report == PruneReport(0, 0, 0)
    assert not (tmp_path / "absent").exists()


def test_a_store_that_is_not_ours_is_refused(filled: dict[str, Entry]) -> None:
    root = cache_context.current().store.root
    root.chmod(0o777)
    try:
        with pytest.raises(
            StorePermissionError, match="set AOTI_EAGER_CACHE_DIR to a new directory"
        ):
            cache.prune(declined=True, stale=True)
    finally:
        root.chmod(0o700)
    assert left(filled) == set(filled)


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is no directory"):
        cache.prune(stale=True, cache_dir=tmp_path / "file")


@pytest.fixture
def read_only(mount: Any) -> Any:
    """A function that makes an empty store, and makes it read-only once it was filled."""
    path = mount("readonly", "size=4m")

    def remount() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)

    with aoti_eager.config.scope(cache_dir=path):
        yield remount


@pytest.mark.parametrize("what", ["declined", "stale"])
def test_a_store_that_cannot_be_written_is_an_error(what: str, read_only: Any) -> None:
    if what == "stale":
        publish(aten.gelu.default, X, environment=FOREIGN)
    else:
        publish(aten.mm.default, X, X, status=Status.DECLINED, reason="no_kernel_of_its_own")
    read_only()
    with pytest.raises(StoreError, match="Read-only"):
        cache.prune(**{what: True})
    assert len(cache.list()) == 1


def test_a_verdict_that_cannot_be_removed_is_an_error_that_names_it(read_only: Any) -> None:
    entry = publish(aten.silu.default, X)
    measured(entry, native=LOSES)
    read_only()
    with pytest.raises(StoreError, match=f"{entry.key.digest}.json: cannot be removed"):
        cache.prune(declined=True)


def test_a_store_that_cannot_be_written_and_has_nothing_to_prune_is_fine(read_only: Any) -> None:
    measured(publish(aten.silu.default, X), native=WINS)
    read_only()
    assert cache.prune(declined=True, stale=True) == PruneReport(0, 0, 0)


# --- the verb ---


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Return the exit status of a command, and what it printed."""
    capsys.readouterr()
    status = cli.main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_verb_says_what_it_removed(
    filled: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "prune", "--declined")
    assert (status, err) == (0, "")
    assert out.startswith(
        "2 remembered failures, 1 losing verdicts, 0 entries of other environments and 0 verdicts "
        "without an entry removed from "
    )
    status, out, _ = run(capsys, "prune", "--declined", "--stale")
    assert out.startswith("0 remembered failures, 0 losing verdicts, 1 entries of other")
    assert left(filled) == {"ready", "slower", "other_cpu"}


def test_the_verb_takes_another_directory(
    filled: dict[str, Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    with aoti_eager.config.scope(
        cache_dir=cache_context.current().store.root
    ):  # the verb assigns it
        assert run(capsys, "prune", "--stale", "--cache-dir", elsewhere)[0] == 0
        assert str(aoti_eager.config.cache_dir) == elsewhere
    assert left(filled) == set(filled)


def test_the_verb_wants_to_know_what_to_remove(
    filled: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "prune")
    assert (status, out) == (2, "")
    assert "--declined, --stale or both" in err
    assert left(filled) == set(filled)


def test_the_verb_on_a_store_of_others_says_so(
    filled: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    root = cache_context.current().store.root
    root.chmod(0o777)
    try:
        status, _, err = run(capsys, "prune", "--declined")
    finally:
        root.chmod(0o700)
    assert status == 2
    assert "set AOTI_EAGER_CACHE_DIR to a new directory" in err


# --- list and inspect ---


def test_list_names_what_was_measured_not_to_win(filled: dict[str, Entry]) -> None:
    found = {entry.digest: entry for entry in cache.list()}
    slower = found[filled["slower"].key.digest]
    assert slower.status == "slower"
    assert slower.reason == "20.00 us, the original 10.00 us (+- 0 %)"
    ready = found[filled["ready"].key.digest]
    assert (ready.status, ready.reason) == ("ready", None)
    assert {name: found[entry.key.digest].status for name, entry in filled.items()} == {
        name: name for name in filled
    }


def test_times_in_cpp_count_before_those_in_python(settings: None) -> None:
    wins, loses = publish(aten.silu.default, X), publish(aten.silu.default, Y)
    python = publish(aten.tanh.default, X)
    measured(wins, native=WINS, python=LOSES)
    measured(loses, native=LOSES, python=WINS)
    measured(python, python=LOSES)
    found = statuses()
    assert found[wins.key.digest] == "ready"
    assert found[loses.key.digest] == "slower"
    assert found[python.key.digest] == "slower"


def test_times_with_another_thread_count_do_not_count_here(settings: None) -> None:
    entry = publish(aten.silu.default, X)
    measured(entry, threads=77, native=LOSES)
    assert statuses()[entry.key.digest] == "ready"


def test_times_of_another_processor_or_library_do_not_count_here(
    filled: dict[str, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = filled["slower"].key.digest
    Verdicts(cache_context.current().store.root).put(
        digest, Verdict("ef" * 32).with_times({"native": LOSES}, torch.get_num_threads())
    )
    assert statuses()[digest] == "ready"
    measured(filled["slower"], native=LOSES)
    assert statuses()[digest] == "slower"
    monkeypatch.setattr(verdict_module, "processor", lambda: "another-1234")
    assert statuses()[digest] == "ready"


def test_a_verdict_that_is_garbage_hides_no_entry(filled: dict[str, Entry]) -> None:
    digest = filled["slower"].key.digest
    (cache_context.current().verdicts.directory / f"{digest}.json").write_bytes(b"\xff")
    assert statuses()[digest] == "ready"
    (details,) = cache.inspect(digest)
    assert details.verdict is None


def test_verify_takes_a_slower_entry_for_an_intact_one(filled: dict[str, Entry]) -> None:
    report = cache.verify()
    assert (report.intact, report.foreign, report.damaged) == (4, 2, ())


def test_inspect_shows_times_and_what_was_compared(
    filled: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    digest = filled["slower"].key.digest
    (details,) = cache.inspect(digest)
    assert details.summary.status == "slower"
    assert details.verdict is not None
    threads = torch.get_num_threads()
    assert details.verdict.time("native", threads) == LOSES
    status, out, _ = run(capsys, "inspect", digest)
    assert status == 0
    assert f"on {processor()}: not checked on a call's own arguments, not compared" in out
    assert f"native/{threads} threads: 20.00 us, the original 10.00 us (+- 0 %), loses" in out
    status, out, _ = run(capsys, "inspect", filled["ready"].key.digest)
    assert f"native/{threads} threads: 5.00 us, the original 10.00 us (+- 0 %), wins" in out
    assert cache.inspect(filled["declined"].key.digest)[0].verdict is None
    status, out, _ = run(capsys, "inspect", filled["declined"].key.digest)
    assert "verdict" not in out


def test_the_verb_list_shows_the_times(
    filled: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "list")
    (line,) = [line for line in out.splitlines() if "slower" in line]
    assert "20.00 us, the original 10.00 us" in line


def test_explain_knows_what_was_measured_not_to_win(filled: dict[str, Entry]) -> None:
    with aoti_eager.config.scope(gate=True):
        found = aoti_eager.explain("aten::silu", Y)
        assert (found.verdict, found.reason) == ("declined", "slower")
        assert "20.00 us, the original 10.00 us" in found.message
        assert aoti_eager.explain("aten::silu", X).verdict == "stored"
        with aoti_eager.register("aten::silu.default"):
            # Python's hit path serves in this test, and has not been timed.
            assert aoti_eager.explain("aten::silu", Y).verdict == "stored"
            measured(filled["slower"], python=LOSES)
            assert aoti_eager.explain("aten::silu", Y).reason == "slower"
    assert aoti_eager.explain("aten::silu", Y).verdict == "stored"


def test_kernels_that_lost_count_towards_the_cap(
    filled: dict[str, Entry], no_compiles: None
) -> None:
    """An op that always loses would have one more compiled for each new size, without end."""
    measured(filled["slower"], python=LOSES)
    measured(filled["ready"], python=LOSES)
    with (
        aoti_eager.config.scope(gate=True, static_cap=2, mode="background"),
        aoti_eager.register("aten::silu.default"),
    ):
        aten.silu(X), aten.silu(Y), aten.silu(torch.ones(3, 8))
        assert aoti_eager.stats()["aten::silu"].declined == {"slower": 2, "specialisation_cap": 1}
        (kernels,) = registry.caches()
        assert kernels.table.static_count == 2
        with aoti_eager.config.scope(gate=False):  # They are forgotten, and may be used.
            assert kernels.table.static_count == 0
        kernels.table.clear()


def test_clear_removes_what_was_measured_too(filled: dict[str, Entry]) -> None:
    """Verdicts would grow without limit; the next process measures again."""
    assert cache.clear() == 6
    assert list(cache_context.current().verdicts.digests()) == []
    assert publish(aten.silu.default, Y) == filled["slower"]
    assert statuses() == {filled["slower"].key.digest: "ready"}


def test_a_verdict_decides_for_calls(filled: dict[str, Entry], no_compiles: None) -> None:
    """In a table of its own, as the next process has: the loser declines without being loaded."""
    with (
        aoti_eager.config.scope(mode="cache_only", gate=True),
        aoti_eager.register("aten::silu.default"),
    ):
        measured(filled["slower"], python=LOSES)  # Python's hit path serves in this test.
        aten.silu(Y)
        assert aoti_eager.stats()["aten::silu"].declined == {"slower": 1}
