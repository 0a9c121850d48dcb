"""Kernels with one fault each, for the trial to find: ``python -m tests.mutants``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import aoti_eager

_TRIAL = (
    "_trial _trial_runs _check _closeness _reference _made_up_data _made_up_numbers _made_up_values"
)


def trial_digest() -> str:
    """Return a digest of the code of the trial: what it said of a mutant holds for that code."""
    package = Path(aoti_eager.__file__).parent
    parts = [package.joinpath(f"{name}.py").read_bytes() for name in _TRIAL.split()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]
