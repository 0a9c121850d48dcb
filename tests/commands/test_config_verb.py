"""``config``: every setting, its value, and where the value came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aoti_eager import cli
from aoti_eager._base.settings import SETTINGS


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert cli.main(["config", *arguments]) == status
    said = capsys.readouterr()
    return said.err if status == 2 else said.out


def test_every_setting_is_shown_with_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOTI_EAGER_MAX_SIZE", "500M")
    lines = run(capsys).splitlines()
    assert lines[0].split() == ["setting", "value", "from"]
    assert [line.split()[0] for line in lines[1:]] == sorted(SETTINGS)
    (size,) = (line for line in lines if line.startswith("max_size"))
    assert size.split(maxsplit=3)[1:] == [
        "500.0",
        "MiB",
        "environment variable AOTI_EAGER_MAX_SIZE",
    ]
    found = json.loads(run(capsys, "--json"))
    assert {one["name"] for one in found} == set(SETTINGS)
    assert all(one["purpose"] and one["variable"].startswith("AOTI_EAGER_") for one in found)


def test_one_setting_is_shown_with_its_purpose(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("cache_dir", "AOTI_EAGER_CACHE_DIR"):
        lines = run(capsys, name, "--cache-dir", str(tmp_path)).splitlines()
        assert lines[0] == f"cache_dir = {tmp_path}"
        assert lines[-1] == "  " + SETTINGS["cache_dir"].doc
    assert json.loads(run(capsys, "linger_s", "--json"))["default"] == 30.0
    assert "no such setting; the settings are mode" in run(capsys, "moode", status=2)


def test_a_value_that_is_refused_is_shown_and_is_a_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOTI_EAGER_REGION_CAP", "many")
    said = run(capsys, "region_cap", status=1)
    assert "got 'many'; wants a whole number of at least 1" in said
    assert json.loads(run(capsys, "region_cap", "--json", status=1))["source"] == "refused"
