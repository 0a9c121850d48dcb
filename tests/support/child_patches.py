"""Changes to modules in processes that a test starts: what a machine does by chance, done for sure.

Python imports ``sitecustomize`` from ``PYTHONPATH`` when it starts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_SITECUSTOMIZE = """
import importlib.machinery
import sys

PATCHES = {patches}


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in PATCHES else None
        if spec is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                exec(PATCHES[name], vars(module))

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder)
"""


def patch_children(
    monkeypatch: pytest.MonkeyPatch, directory: Path, patches: dict[str, str]
) -> None:
    """Run more code at the end of modules, by their names, in each Python started from now on."""
    text = _SITECUSTOMIZE.format(patches=json.dumps(patches))
    (directory / "sitecustomize.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
