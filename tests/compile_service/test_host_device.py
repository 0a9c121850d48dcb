"""The device that tests use as an accelerator: it is a real one to PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support import processes

# By name and not as __main__: what it defines is imported once.
SCRIPT = "from tests.host_device import smoke; smoke.main()"
ROOT = str(Path(__file__).parents[2])


@pytest.mark.full
def test_device_in_two_processes(cache_dir: Path, run_dir: Path) -> None:
    """Both at once: they share one build. A child each, as the device stays in its process."""
    children = [
        processes.start(
            cache_dir, SCRIPT, PYTHONPATH=ROOT, TORCH_EXTENSIONS_DIR=str(run_dir / "extensions")
        )
        for _ in range(2)
    ]
    for result in [processes.finish(child) for child in children]:
        assert result["failures"] == {}
        assert result["checks"] > 0
        assert result["stderr"] == ""
