"""Verdicts: what was measured of a library on one model of processor. No op is called here."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._store import verdict as verdict_module
from aoti_eager._store.verdict import (
    LEAST_GAIN,
    NOT_A_VERDICT,
    PathTime,
    Verdict,
    Verdicts,
    decode_verdict,
    encode_verdict,
    path_times,
    processor,
)

property_test = hypothesis_settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

DIGEST = "ab" * 32
LIBRARY = "cd" * 32


def time(kernel_us: float, **fields: Any) -> PathTime:
    """Return quiet times; the original takes 10 us, and a declined call 11."""
    return replace(PathTime(kernel_us, 10.0, 11.0, 0.0, True), **fields)


FULL = Verdict(LIBRARY, checked=True, compared=True).with_times(
    {"native": time(4.25), "python": time(12.5, spread=0.07)}, 2
)

# --- who wins ---


@pytest.mark.parametrize(
    ("kernel_us", "spread", "wins"),
    [
        (5.0, 0.0, True),
        (9.5, 0.0, True),  # exactly the least gain
        (9.51, 0.0, False),  # faster than the original, but not by more than noise
        (10.0, 0.0, False),
        (10.9, 0.0, False),
        (8.0, 0.2, True),  # noise of 20 %
        (8.01, 0.2, False),
        (0.0, 1.0, True),
        (0.1, 1.0, False),
    ],
)
def test_a_kernel_wins_where_it_beats_the_original_by_more_than_noise(
    kernel_us: float, spread: float, wins: bool
) -> None:
    assert time(kernel_us, spread=spread).wins is wins


@pytest.mark.parametrize(
    ("kernel_us", "spread", "doubtful"),
    [
        (5.6, 0.5, True),  # it won by far, but for the noise
        (4.9, 0.5, False),  # it wins
        (12.0, 1.0, False),  # it loses
        (9.4, 0.11, True),
        (9.4, 0.1, False),  # a calm moment: it loses
    ],
)
def test_who_loses_by_noise_alone_is_in_doubt_and_nothing_of_it_is_kept(
    kernel_us: float, spread: float, doubtful: bool
) -> None:
    taken = time(kernel_us, spread=spread)
    assert taken.is_doubtful is doubtful
    verdict = Verdict(LIBRARY).with_times({"native": taken}, 2)
    kept = decode_verdict(encode_verdict(verdict))
    assert kept.times == ({} if doubtful else verdict.times)


@pytest.mark.parametrize("passed_us", [9.7, 10.0, 12.0, 100.0])
def test_what_a_decline_costs_lets_no_kernel_through(passed_us: float) -> None:
    assert time(9.5, passed_us=passed_us).wins
    assert not time(9.51, passed_us=passed_us).wins
    assert LEAST_GAIN == 0.05


@property_test
@given(
    st.floats(0.01, 1e6),
    st.floats(0.01, 1e6),
    st.floats(0.0, 1e3),
    st.floats(0.0, 1.0),
    st.floats(1.0, 10.0),
)
def test_a_slower_kernel_never_wins_where_a_faster_one_loses(
    kernel_us: float, original_us: float, more_us: float, spread: float, factor: float
) -> None:
    one = PathTime(kernel_us, original_us, original_us + more_us, spread, True)
    slower = replace(one, kernel_us=factor * kernel_us)
    noisier = replace(one, spread=min(1.0, factor * spread))
    assert one.wins or not slower.wins
    assert one.wins or not noisier.wins
    if one.wins:  # Whatever the noise, a served call is faster than with nothing registered.
        assert kernel_us < original_us


def test_what_is_no_time_wins_nothing() -> None:
    assert not time(math.nan).wins
    assert not time(math.inf).wins


def test_times_are_said_in_words() -> None:
    assert str(time(4.256, spread=0.071)) == "4.26 us, the original 10.00 us (+- 7 %)"


# --- times of a verdict ---


def test_times_are_by_hit_path_and_thread_count() -> None:
    verdict = Verdict(LIBRARY).with_times({"native": time(1.0), "python": time(2.0)}, 2)
    verdict = verdict.with_times({"native": time(3.0)}, 4)
    assert verdict.time("native", 2) == time(1.0)
    assert verdict.time("python", 2) == time(2.0)
    assert verdict.time("native", 4) == time(3.0)
    assert verdict.time("python", 4) is None
    assert verdict.time("native", 1) is None
    # The last ones count.
    assert verdict.with_times({"native": time(5.0)}, 2).time("native", 2) == time(5.0)


# --- encode and decode ---

_TIMES = st.builds(
    PathTime,
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 1),
    st.booleans(),
)
_VERDICTS = st.builds(
    Verdict,
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.booleans(),
    st.booleans(),
    st.dictionaries(
        st.builds("{}/{}".format, st.sampled_from(["native", "python"]), st.integers(1, 512)),
        _TIMES,
        max_size=6,
    ),
    st.frozensets(st.integers(0, 31)),
)


@property_test
@given(_VERDICTS)
def test_what_is_written_is_read_but_for_times_of_busy_moments(verdict: Verdict) -> None:
    quiet = {
        name: time for name, time in verdict.times.items() if time.quiet and not time.is_doubtful
    }
    assert decode_verdict(encode_verdict(verdict)) == replace(verdict, times=quiet)
    assert decode_verdict(encode_verdict(verdict).encode()) == replace(verdict, times=quiet)


def test_the_document_can_be_read_by_people() -> None:
    assert json.loads(encode_verdict(FULL)) == {
        "format": 1,
        "library": LIBRARY,
        "checked": True,
        "checked_sizes": [],
        "compared": True,
        "times": {
            "native/2": {
                "kernel_us": 4.25,
                "original_us": 10.0,
                "passed_us": 11.0,
                "spread": 0.0,
                "quiet": True,
            },
            "python/2": {
                "kernel_us": 12.5,
                "original_us": 10.0,
                "passed_us": 11.0,
                "spread": 0.07,
                "quiet": True,
            },
        },
    }


def changed(**fields: Any) -> str:
    """Return the document of ``FULL`` with ``fields`` changed; ``None`` takes one out."""
    values = {**json.loads(encode_verdict(FULL)), **fields}
    return json.dumps({name: value for name, value in values.items() if value is not None})


GARBAGE = {
    "nothing": "",
    "words": "Segmentation fault",
    "half": encode_verdict(FULL)[:100],
    "bytes": b"\xff\xfe\x00",
    "zeros": b"\0" * 512,
    "a number": "7",
    "a list": "[]",
    "null": "null",
    "a string": '"format"',
    "an empty one": "{}",
    "a deep one": "[" * 200_000,
    "a newer format": changed(format=2),
    "no library": changed(library=None),
    "no check": changed(checked=None),
    "no times": changed(times=None),
    "times of another type": changed(times=[1, 2]),
    "a time of another type": changed(times={"native/2": 3.0}),
    "a time that lacks a field": changed(times={"native/2": {"kernel_us": 1.0}}),
    "a time of words": changed(
        times={"native/2": {**json.loads(changed())["times"]["native/2"], "kernel_us": "fast"}}
    ),
    "a time out of range": changed(times={"native/2": {"kernel_us": 10**400}}),
}


@pytest.mark.parametrize("document", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_verdict(document: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(NOT_A_VERDICT):
        decode_verdict(document)
    verdicts = Verdicts(tmp_path)
    verdicts.put(DIGEST, FULL)
    file = verdicts.directory / f"{DIGEST}.json"
    file.write_bytes(document if isinstance(document, bytes) else document.encode())
    assert verdicts.get(DIGEST, LIBRARY) == Verdict(LIBRARY)
    # The next one is written over it.
    verdicts.put(DIGEST, FULL)
    assert verdicts.get(DIGEST, LIBRARY) == FULL


@property_test
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_json_is_taken_for_a_verdict(document: Any) -> None:
    with pytest.raises(NOT_A_VERDICT):
        decode_verdict(json.dumps(document))


@property_test
@given(st.binary(max_size=64))
def test_no_bytes_are_taken_for_a_verdict(document: bytes) -> None:
    with pytest.raises(NOT_A_VERDICT):
        decode_verdict(document)


def test_answers_of_workers_are_read_alike() -> None:
    answer = json.loads(changed())["times"]
    assert path_times(answer) == FULL.times


# --- in a store ---


def test_a_verdict_is_kept_apart_from_its_entry_and_by_processor(tmp_path: Path) -> None:
    Verdicts(tmp_path).put(DIGEST, FULL)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")] == [
        f"verdicts/{processor()}/{DIGEST}.json"
    ]
    assert Verdicts(tmp_path).get(DIGEST, LIBRARY) == FULL
    assert list(Verdicts(tmp_path).digests()) == [DIGEST]


def test_another_processor_knows_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Verdicts(tmp_path).put(DIGEST, FULL)
    with monkeypatch.context() as patched:
        patched.setattr(verdict_module, "processor", lambda: "another-1234")
        assert Verdicts(tmp_path).get(DIGEST, LIBRARY) == Verdict(LIBRARY)
        assert list(Verdicts(tmp_path).digests()) == []
        Verdicts(tmp_path).put(DIGEST, Verdict(LIBRARY, compared=True))
    assert Verdicts(tmp_path).get(DIGEST, LIBRARY) == FULL


def test_a_verdict_on_another_library_says_nothing(tmp_path: Path) -> None:
    Verdicts(tmp_path).put(DIGEST, FULL)
    assert Verdicts(tmp_path).get(DIGEST, "ef" * 32) == Verdict("ef" * 32)


def test_a_verdict_that_is_not_there_is_an_empty_one_and_nothing_is_created(
    tmp_path: Path,
) -> None:
    verdicts = Verdicts(tmp_path / "absent")
    assert verdicts.get(DIGEST, LIBRARY) == Verdict(LIBRARY)
    assert list(verdicts.digests()) == []
    verdicts.remove(DIGEST)
    assert not (tmp_path / "absent").exists()


def test_a_directory_that_is_missing_is_made_for_us_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Verdicts(tmp_path / "store").put(DIGEST, FULL)
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "store").rglob("*") if path.is_dir()]
    assert len(made) == 2
    assert {path.stat().st_mode & 0o777 for path in [tmp_path / "store", *made]} == {0o700}


def test_times_of_a_busy_moment_are_not_written_and_the_rest_is(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    verdicts.put(DIGEST, FULL.with_times({"native": time(1.0, quiet=False)}, 2))
    found = verdicts.get(DIGEST, LIBRARY)
    assert found.time("native", 2) is None
    assert found.time("python", 2) == FULL.time("python", 2)
    assert (found.checked, found.compared) == (True, True)


def test_one_is_replaced_as_a_whole_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = Verdicts(tmp_path)
    verdicts.put(DIGEST, FULL)
    verdicts.put(DIGEST, Verdict(LIBRARY))
    assert verdicts.get(DIGEST, LIBRARY) == Verdict(LIBRARY)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            verdicts.put(DIGEST, FULL)
    assert [path.name for path in verdicts.directory.iterdir()] == [f"{DIGEST}.json"]
    assert verdicts.get(DIGEST, LIBRARY) == Verdict(LIBRARY)


def test_a_removed_one_is_forgotten(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    verdicts.put(DIGEST, FULL)
    verdicts.remove(DIGEST)
    verdicts.remove(DIGEST)
    assert verdicts.get(DIGEST, LIBRARY) == Verdict(LIBRARY)


def test_a_store_that_cannot_be_written_is_an_error_and_can_be_read(mount: Any) -> None:
    path = mount("readonly", "size=1m")
    Verdicts(path).put(DIGEST, FULL)
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        Verdicts(path).put(DIGEST, Verdict(LIBRARY))
    with pytest.raises(OSError, match="Read-only"):
        Verdicts(path).remove(DIGEST)
    assert Verdicts(path).get(DIGEST, LIBRARY) == FULL


# --- the processor ---


def cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Return the name of the processor on a machine that says ``text``."""
    file = SimpleNamespace(open=lambda **_: io.StringIO(text))
    monkeypatch.setattr(verdict_module, "CPUINFO", file)
    return processor.__wrapped__()


INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8

processor\t: 1
model name\t: never read
"""


def test_the_processor_is_named_by_its_model_fit_for_a_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = cpuinfo(monkeypatch, INTEL)
    assert name.startswith("intel-r-xeon-r-platinum-8481c-cpu-2-")
    assert all(c.isalnum() or c == "-" for c in name)
    assert name == cpuinfo(monkeypatch, INTEL.replace("processor\t: 0", "processor\t: 5"))
    assert name != cpuinfo(monkeypatch, INTEL.replace("stepping\t: 8", "stepping\t: 7"))
    assert name != cpuinfo(monkeypatch, INTEL.replace("model\t\t: 143", "model\t\t: 207"))


def test_a_machine_that_says_nothing_has_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpuinfo(monkeypatch, "")
    assert processor() == processor()


def test_why_there_are_no_times_is_kept_until_there_are() -> None:
    verdict = Verdict(LIBRARY).with_times({}, 2, unmeasured="crashed: no memory")
    kept = decode_verdict(encode_verdict(verdict))
    assert kept == verdict
    assert kept.unmeasured == "crashed: no memory"
    later = kept.with_times({"native": time(4.25)}, 2)
    assert later.unmeasured == ""
    assert "unmeasured" not in json.loads(encode_verdict(later))
