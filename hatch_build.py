"""A wheel that carries the C++ path ready-made, where ``AOTI_EAGER_CARRY`` names what it carries.

``python -m aoti_eager setup --into DIRECTORY`` makes such a directory for the torch at hand, and
adds to one that is there. Without the variable the wheel is what it always was: sources alone.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = ("native.so", "native.json")


class Carried(BuildHookInterface):
    """Puts each library and its record beside the modules."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of ``AOTI_EAGER_CARRY`` to the wheel, which then is for one platform.

        Raises:
            FileNotFoundError: There is no library in that directory.
        """
        directory = os.environ.get("AOTI_EAGER_CARRY")
        if not directory or version == "editable":
            return
        root = Path(directory).resolve()
        libraries = sorted(root.glob("native/*/*/native.so"))
        if not libraries:
            raise FileNotFoundError(
                f"AOTI_EAGER_CARRY: {root} has no library; `python -m aoti_eager setup --into "
                f"{root}` makes one"
            )
        for library in libraries:
            for name in FILES:
                path = library.with_name(name)
                place = f"aoti_eager/_carried/{path.relative_to(root)}"
                build_data["force_include"][str(path)] = place
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        # No Python header is in it: one build serves every Python.
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
