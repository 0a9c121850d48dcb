"""``python -m aoti_eager``: the same as the ``aoti-eager`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit status.

    The status is 1 where torch or this package cannot be imported, and where this torch lacks what
    the package needs.
    """
    startup = sys.modules.get("aoti_eager.startup")
    if startup is not None:  # Before torch is imported: the verb ``run`` serves its script itself.
        startup.stand_aside()
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a library of torch's may be missing, or broken
        _say(f"torch cannot be imported: {error!r}; install torch (https://pytorch.org), or repair")
        return 1
    try:
        # Only here, and below: these need torch.
        from ._base import checked_torch as checked

        missing = [] if checked.is_checked() else checked.missing_names()
    except Exception as error:  # noqa: BLE001 - whatever a half-installed package raises
        return _broken(error)
    if missing:
        _say(
            f"torch {torch.__version__} lacks {', '.join(missing)}: scripts run with originals; "
            f"install a torch that was checked ({', '.join(checked.CHECKED)}), or a newer "
            "aoti_eager"
        )
        return 1
    try:
        # Only here: the verbs need the names that were looked for.
        from .cli import main as run
    except Exception as error:  # noqa: BLE001 - as above
        return _broken(error)
    return run()


def _broken(error: Exception) -> int:
    _say(f"this package cannot be imported: {error!r}; install aoti_eager again")
    return 1


def _say(message: str) -> None:
    print(f"aoti-eager: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
