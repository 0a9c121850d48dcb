"""The variable ``AOTI_EAGER_ENABLE``: which preset serves a process that says nothing of us."""

from __future__ import annotations

import os

VARIABLE = "AOTI_EAGER_ENABLE"
_CHILDREN = "+children"
# What ``startup`` has taken, and gives to the verb ``run``, which serves its script itself.
_given_back: list[tuple[str, bool]] = []


def take_preset() -> tuple[str, bool] | None:
    """Return the preset that the variable names, and whether children get it; ``None`` if off.

    The preset is empty where the variable leaves it to us. The variable is taken out of the
    environment, unless children are to have it.
    """
    if _given_back:
        return _given_back.pop()
    value = os.environ.get(VARIABLE, "").strip()
    preset, children = value.removesuffix(_CHILDREN), value.endswith(_CHILDREN)
    if preset.lower() in ("", "0", "false", "no", "off"):
        return None
    if not children:
        del os.environ[VARIABLE]
    # The default preset is named in a module that has torch imported.
    return ("" if preset.lower() in ("1", "true", "yes", "on") else preset), children


def give_back(found: tuple[str, bool]) -> None:
    """Have the next ``take_preset`` return what was taken from the variable."""
    _given_back[:] = [found]
