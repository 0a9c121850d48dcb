"""One finding of ``doctor``."""

from __future__ import annotations

from .._base.data_class import dataclass

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What was looked at: ``compiler``.
        state: ``ok``; ``note``: it works, and could be better; ``problem``.
        message: What was found.
        advice: What to do about it; empty if nothing is to be done.
    """

    name: str
    state: str
    message: str
    advice: str = ""
