"""How long a remembered failure holds; clocks are given, and nothing is stored."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from aoti_eager._keys.declines import REASONS, REMEMBERED
from aoti_eager._store.entry import Entry, Remembered, Status
from aoti_eager._store.remembered import PERIOD_S, holds

from ..support.entries import make_entry

NOW = 1_800_000_000.0
DAY_S = 24 * 3600.0
HERE = "g++-" + "ab" * 32


def failed(reason: str | None = "no_kernel_of_its_own", message: str = "", **fields: Any) -> Entry:
    """Return a failure that was met now, with the compiler that is here."""
    given = {"status": Status.DECLINED, "remembered": Remembered(int(NOW), HERE), "provenance": ()}
    return make_entry(reason=reason, message=message, **{**given, **fields})


def old(reason: str, message: str, **fields: Any) -> Entry:
    """Return a failure as older versions wrote it."""
    return failed(reason, message, remembered=None, **fields)


def held(entry: Entry, **changed: Any) -> bool:
    """Return whether ``entry`` holds, written now and met by the compiler that is here."""
    given: dict[str, Any] = {"written_at": NOW, "now": NOW, "compiler": HERE, **changed}
    return holds(entry, **given)


# --- time ---


def test_a_failure_holds_for_30_days_from_its_own_time() -> None:
    assert PERIOD_S == 30 * DAY_S
    entry = failed()
    for age_s, is_held in ((0.0, True), (PERIOD_S, True), (PERIOD_S + 1, False)):
        # The file may have been copied since, or have the time of an archive.
        for written_at in (NOW + age_s, 0.0, NOW - PERIOD_S):
            assert held(entry, now=NOW + age_s, written_at=written_at) is is_held


def test_an_older_version_s_failure_holds_for_30_days_from_its_file_s_time() -> None:
    entry = old("no_kernel_of_its_own", "no C++ kernel came out")
    for age_s, is_held in ((0.0, True), (PERIOD_S, True), (PERIOD_S + 1, False)):
        assert held(entry, now=NOW + age_s) is is_held


def test_a_time_ahead_by_more_than_a_day_does_not_hold() -> None:
    """A clock that was wrong would make it hold for years."""
    for entry in (failed(), old("no_kernel_of_its_own", "")):
        assert held(entry, now=NOW - DAY_S)
        assert not held(entry, now=NOW - DAY_S - 1)


# --- the compiler ---


def test_a_failure_holds_for_the_compiler_that_it_was_met_with() -> None:
    assert held(failed())
    assert not held(failed(), compiler="clang++-" + "ab" * 32)
    assert not held(failed(), compiler="g++-" + "ef" * 32)


def test_without_a_compiler_nothing_could_be_compiled_and_it_holds() -> None:
    assert held(failed(), compiler=None)
    assert held(failed(remembered=Remembered(int(NOW), None)))
    assert held(old("no_kernel_of_its_own", ""))


def test_a_quarantined_library_s_compiler_is_in_its_provenance() -> None:
    entry = failed(
        "mismatch",
        status=Status.QUARANTINED,
        remembered=None,
        provenance=(("compiler", "g++ 12"), ("compiler_identity", HERE)),
    )
    assert held(entry)
    assert not held(entry, compiler="clang++-" + "ab" * 32)


# --- the reason ---


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_only_the_reasons_on_the_list_hold(reason: str) -> None:
    assert held(failed(reason)) is (reason in REMEMBERED)


def test_a_quarantined_entry_without_a_reason_is_a_mismatch() -> None:
    assert held(make_entry(status=Status.QUARANTINED, remembered=Remembered(int(NOW), HERE)))
    assert not held(make_entry(status=Status.QUARANTINED), now=NOW + PERIOD_S + 1)


def test_an_entry_that_is_ready_holds_for_ever() -> None:
    assert held(make_entry(), now=NOW + 1000 * PERIOD_S, compiler="another")


# --- what older versions wrote ---

PASSING = [os.strerror(getattr(errno, name)) for name in ("EAGAIN", "EMFILE", "ENOMEM", "EDQUOT")]


@pytest.mark.parametrize("reason", ["compile_failed", "does_not_trace", "raised"])
@pytest.mark.parametrize("text", PASSING)
def test_what_an_error_of_the_system_wrote_is_tried_again(reason: str, text: str) -> None:
    """What the system refuses for a while must not keep a key declined for good."""
    assert not held(old(reason, f"aten::silu: InductorError: OSError: [Errno 1] {text}"))
    assert not held(old(reason, f"it failed: {text}"))
    assert not held(old(reason, "InductorError"), log=f"Traceback\nBlockingIOError: {text}\n")


@pytest.mark.parametrize("reason", ["compile_failed", "does_not_trace", "raised"])
def test_what_the_code_itself_brought_about_holds(reason: str) -> None:
    assert held(old(reason, "LoweringException: AssertionError: no"), log="Traceback\nassert no\n")


@pytest.mark.parametrize("reason", ["library_unloadable", "compile_timeout", "store_unwritable"])
def test_what_never_should_have_been_remembered_is_tried_again(reason: str) -> None:
    """On a mount that forbids execution no library can be loaded; the next mount may allow it."""
    assert not held(old(reason, "failed to map segment from shared object"))


@pytest.mark.parametrize(
    "name", ["SIGUSR1", "SIGHUP", "SIGINT", "SIGXCPU", "SIGQUIT", "SIGALRM", "SIGTERM", "SIGBUS"]
)
def test_a_signal_from_outside_that_was_remembered_is_tried_again(name: str) -> None:
    """Schedulers of clusters send such signals; they say nothing about the kernel."""
    assert not held(old("crashed", f"the process ended with {name}"))
    assert not held(old("crashed", f"aten::silu: the process ended with {name}"))


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"])
def test_a_signal_of_wrong_code_holds(name: str) -> None:
    assert held(old("crashed", f"aten::silu: the process ended with {name}"))


def test_a_crash_of_unknown_cause_is_tried_again() -> None:
    assert not held(old("crashed", "no end after 60 s"))
    assert not held(old("crashed", ""))


def test_the_words_of_a_failure_of_today_were_judged_when_it_was_met() -> None:
    assert held(failed("crashed", "the process ended with SIGBUS: Bus error"))
    assert held(failed("does_not_trace", "an argument is called 'Permission denied'"))
