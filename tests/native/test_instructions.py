"""Instructions of a call, as the benchmark of a call's cost counts them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="steps are counted by a flag of x86-64"
)

# In a process of its own, where no other thread takes turns with the one that is counted.
SCRIPT = """
import json, sys
from pathlib import Path
from tests.benchmarks import instructions

count = instructions.counter(instructions.build(Path(sys.argv[1])))
numbers = (1.5, 2.5, 3.5)

def short():
    return numbers[0] * numbers[1]

def long():
    return numbers[0] * numbers[1] * numbers[2]

for _ in range(100):  # What Python specialises.
    short(), long()
found = {f.__name__: [count(f) for _ in range(10)] for f in (short, long)}
try:
    count(lambda: 1 / 0)
except ZeroDivisionError:
    found["raised"] = True
print(json.dumps(found))
"""


def test_the_same_call_takes_the_same_number_and_a_longer_one_more(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    short, again, long = min(found["short"][:5]), min(found["short"][5:]), min(found["long"])
    assert 0 < short < long < 2 * short
    # To a few.
    assert abs(short - again) <= short / 50
    assert found["raised"]
