"""One store that several releases of torch use in turn.

``AE_TEST_PYTHONS`` names interpreters that have other releases, separated by colons. Without it,
the other release is this one under another version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..support import faked_torch
from ..support.kept_builds import make_cache_dir

pytestmark = [pytest.mark.full, pytest.mark.compiles]

SCRIPT = """
import torch, aoti_eager
x = torch.linspace(-3, 3, 64).reshape(8, 8)
with aoti_eager.register("aten::silu"):
    for _ in range(3):
        torch.testing.assert_close(torch.nn.functional.silu(x), x * torch.sigmoid(x))
counts = aoti_eager.stats()["aten::silu"]
print(torch.__version__, counts.compiles, counts.hits)
"""


class Release:
    """One interpreter with one release of torch, and the store."""

    def __init__(self, python: str, environment: dict[str, str]) -> None:
        self._python = python
        self._environment = environment

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._python, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def work(self) -> tuple[str, int, int]:
        """Return the version, how many kernels were compiled, and how many calls they served."""
        version, compiles, hits = self.run("-c", SCRIPT).split()
        return version, int(compiles), int(hits)


@pytest.fixture
def releases(tmp_path: Path, shared_cache_dir: Path) -> list[Release]:
    store = make_cache_dir(tmp_path / "store", shared_cache_dir)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AOTI_EAGER")}
    # Calls wait for their kernel, which serves whatever it was measured to be.
    settings = {
        "AOTI_EAGER_CACHE_DIR": str(store),
        "AOTI_EAGER_MODE": "sync",
        "AOTI_EAGER_GATE": "0",
        "AOTI_EAGER_NATIVE": "0",
        "AOTI_EAGER_UNTESTED_TORCH": "1",
    }
    found = [Release(sys.executable, {**kept, **settings})]
    for python in filter(None, os.environ.get("AE_TEST_PYTHONS", "").split(":")):
        found.append(Release(python, {**kept, **settings}))
    if len(found) == 1:
        faked = faked_torch.environment(tmp_path / "site", "2.99.0", store)
        found.append(Release(sys.executable, {**faked, **settings}))
    return found


def test_each_release_finds_its_own_entries_and_lists_the_others_as_stale(
    releases: list[Release],
) -> None:
    first = [one.work() for one in releases]
    assert len({version for version, _, _ in first}) == len(releases)
    assert all(compiles == 1 and hits > 0 for _, compiles, hits in first)
    for release, (version, _, _) in zip(releases, first, strict=True):
        # After all the others, nothing of its own is gone.
        found, compiles, hits = release.work()
        assert (found, compiles) == (version, 0)
        assert hits > 0
        listed = json.loads(release.run("-m", "aoti_eager", "list", "--json"))
        statuses = sorted(one["status"] for one in listed if one["op"] == "aten::silu")
        assert statuses == ["ready"] + ["stale"] * (len(releases) - 1)
        assert release.run("-m", "aoti_eager", "verify").startswith("1 intact, ")
