"""``python -m aoti_eager doctor``: what it finds on machines with and without faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aoti_eager._base.settings import SETTINGS

from ..support import faked_torch
from ..support.kept_builds import make_cache_dir

OTHER_USER = 65534


def doctor(
    cache: Path, *arguments: str, environment: dict[str, str] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the verb with settings as they ship; Python serves, so that no C++ path is built."""
    shipped = {k: v for k, v in os.environ.items() if not k.startswith(("AOTI_EAGER", "CXX"))}
    variables = {"AOTI_EAGER_CACHE_DIR": str(cache), "AOTI_EAGER_NATIVE": "0", **variables}
    return subprocess.run(
        [sys.executable, "-m", "aoti_eager", "doctor", *arguments],
        env={**(environment or shipped), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return the findings by name; of several with one name, the worst."""
    found: dict[str, dict[str, Any]] = {}
    assert done.stderr == ""
    for one in json.loads(done.stdout):
        if one["name"] not in found or one["state"] == "problem":
            found[one["name"]] = one
    return found


@pytest.fixture
def store(tmp_path: Path, shared_cache_dir: Path) -> Path:
    """A store with the toolchain that all tests share."""
    return make_cache_dir(tmp_path / "store", shared_cache_dir)


def test_a_healthy_machine_serves_an_op_as_proof(store: Path) -> None:
    done = doctor(store, "--json")
    found = findings(done)
    assert done.returncode == 0
    assert {one["state"] for name, one in found.items() if name != "C++ path"} == {"ok"}
    assert "served (compiled now)" in found["proof"]["message"]
    # The second time, the kernel is in the store.
    done = doctor(store)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "served (from the store)" in done.stdout
    assert f"cache_dir = {store}, from environment variable AOTI_EAGER_CACHE_DIR" in done.stdout


def test_without_a_compiler(store: Path) -> None:
    done = doctor(store, "--json", PATH="/nowhere")
    found = findings(done)
    assert done.returncode == 1
    assert found["compiler"]["state"] == "problem"
    assert "no C++ compiler" in found["compiler"]["message"]
    assert found["compiler"]["advice"].startswith("install g++ or clang++")
    assert found["proof"]["message"] == "no op was served: see compiler"


def test_a_compiler_that_does_not_run(store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no licence >&2; exit 3\n")
    broken.chmod(0o755)
    done = doctor(store, "--json", CXX=str(broken))
    compiler = findings(done)["compiler"]
    assert done.returncode == 1
    assert "--version fails with status 3: no licence" in compiler["message"]
    assert compiler["advice"] == "repair it, or set CXX to another"


def test_a_read_only_store(mount: Any) -> None:
    path = mount("readonly", "size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    done = doctor(path, "--json")
    store = findings(done)["store"]
    assert done.returncode == 1
    assert store["state"] == "problem"
    assert "Read-only file system" in store["message"]
    assert store["advice"].startswith("hits are served, and nothing new is compiled; set AOTI")


def test_a_full_disk(mount: Any) -> None:
    path = mount("full", "size=64k")
    done = doctor(path, "--json")
    store = findings(done)["store"]
    assert done.returncode == 1
    assert store["state"] == "problem"
    assert "No space left on device" in store["message"]
    assert store["advice"].startswith("free room there (python -m aoti_eager prune --stale")
    assert not list((path / "tmp").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, OTHER_USER, OTHER_USER)
    done = doctor(path, "--json")
    store = findings(done)["store"]
    assert done.returncode == 1
    assert store["state"] == "problem"
    assert f"belongs to user {OTHER_USER}" in store["message"]
    assert "set AOTI_EAGER_CACHE_DIR to a new directory" in store["message"] + store["advice"]


def test_a_wrong_setting_is_named_with_its_source(store: Path) -> None:
    done = doctor(store, "--json", AOTI_EAGER_MODE="fast")
    setting = findings(done)["settings"]
    assert done.returncode == 1
    assert "environment variable AOTI_EAGER_MODE: got 'fast'" in setting["message"]
    assert setting["advice"].startswith("set AOTI_EAGER_MODE to a value")


def test_an_untested_torch(store: Path, tmp_path: Path) -> None:
    environment = faked_torch.environment(tmp_path / "site", "2.99.0", store)
    done = doctor(store, "--json", environment=environment, AOTI_EAGER_UNTESTED_TORCH="0")
    found = findings(done)
    assert done.returncode == 0
    assert found["torch"]["state"] == "note"
    assert "torch 2.99.0; this package was checked with 2.12" in found["torch"]["message"]
    assert found["torch"]["advice"].startswith("install a torch that was checked")
    assert found["proof"]["message"] == "no op was served: AOTI_EAGER_UNTESTED_TORCH is 0"


def test_settings_that_differ_are_listed_with_where_they_came_from(store: Path) -> None:
    done = doctor(store, PATH="/nowhere", AOTI_EAGER_GATE="0")
    assert "gate = False, from environment variable AOTI_EAGER_GATE" in done.stdout
    listed = [line.split()[2] for line in done.stdout.splitlines() if " settings " in line]
    assert set(listed) <= set(SETTINGS)
