"""``python -m aoti_eager``: the same as the ``aoti-eager`` command."""

from __future__ import annotations

import sys

import torch

from ._base import checked_torch as checked


def main() -> int:
    """Run the command line and return its exit status; 1 where this torch lacks what it needs."""
    if not checked.is_checked() and checked.missing_names():
        print(
            f"aoti-eager: torch {torch.__version__} lacks "
            f"{', '.join(checked.missing_names())}: scripts run with originals; install a torch "
            f"that was checked ({', '.join(checked.CHECKED)}), or a newer aoti_eager",
            file=sys.stderr,
        )
        return 1
    # Only here: the verbs need the names that were looked for.
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
