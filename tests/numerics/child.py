"""The process in which parts are run; see ``parts.py``, which starts it.

It reads one part a line from standard input and answers one JSON document a line. It may die of a
kernel: then the part is marked, and another process goes on.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from .families import family
from .kernels import DeclinedError, Kernels
from .laboratory import Laboratory, RefusedError
from .parts import Part


def main() -> None:
    """Answer until standard input ends; ``argv`` is the directory and the target."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What an op prints must not be taken for an answer.
    warnings.simplefilter("ignore")
    directory, target = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)  # One core a process; threads share the code and cut the elements.
    kernels = Kernels(directory, target)
    laboratory = Laboratory(directory, kernels)
    for line in sys.stdin:
        answers.write(json.dumps(answer(laboratory, Part(**json.loads(line)))) + "\n")
        answers.flush()
    kernels.close()


def answer(laboratory: Laboratory, part: Part) -> dict[str, Any]:
    """Return the result of one part; nothing is raised."""
    try:
        with torch.no_grad():
            return {"outcome": "done", **family(part.family).run(part, laboratory)}
    except DeclinedError as error:
        return {"outcome": "declined", "reason": error.reason, "message": str(error)[:300]}
    except RefusedError as error:
        return {"outcome": "refused", "reason": str(error)}
    except Exception:  # noqa: BLE001 - the answer is the reason; the process lives on
        return {"outcome": "failed", "reason": traceback.format_exc()[-1500:]}


if __name__ == "__main__":
    main()
