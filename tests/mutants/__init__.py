"""Kernels with one fault each, for the trial to find: ``python -m tests.mutants``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import aoti_eager

_TRIAL = (
    *(
        "_compile_worker/trial.py",
        "_compile_worker/trial_runs.py",
        "_compile_worker/original_runs.py",
        "_compile_worker/made_up_data.py",
    ),
    *("_compile_worker/slot_filler.py", "_compile_worker/crossed_values.py"),
    *("_compile_worker/made_up_numbers.py", "_compile_worker/made_up_values.py"),
    *("_dispatch/compare.py", "_dispatch/closeness.py", "_dispatch/reference.py"),
)


def trial_digest() -> str:
    """Return a digest of the code of the trial: what it said of a mutant holds for that code."""
    package = Path(aoti_eager.__file__).parent
    parts = [package.joinpath(name).read_bytes() for name in _TRIAL]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]
