"""A Python whose torch says that it is another release, in all of its child processes, too."""

from __future__ import annotations

import os
from pathlib import Path

# Python imports a module of this name at its start, from PYTHONPATH.
SITE = """
import importlib.abc, importlib.machinery, os, sys

class Faking(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.version":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        real = spec.loader.exec_module
        def exec_module(module):
            real(module)
            module.__version__ = os.environ["AE_TEST_TORCH"]
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Faking())
"""


def environment(directory: Path, version: str, cache: Path) -> dict[str, str]:
    """Return the variables of a Python whose torch is of that version, with settings as they ship.

    Args:
        directory: A directory for the file that Python reads at its start.
        version: What ``torch.__version__`` is.
        cache: The cache's directory.
    """
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(SITE)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AOTI_EAGER")}
    return {
        **kept,
        "PYTHONPATH": str(directory),
        "AE_TEST_TORCH": version,
        "AOTI_EAGER_CACHE_DIR": str(cache),
        # Python serves: to build the C++ path for a version that does not exist takes half a
        # minute, and is not what is looked at.
        "AOTI_EAGER_NATIVE": "0",
    }
