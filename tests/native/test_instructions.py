"""Instructions of a call, as the benchmark of a call's cost counts them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.toolchains import share_native

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


DECLINED = """
import json, sys
from pathlib import Path
import torch
import aoti_eager
from tests.benchmarks import instructions

torch.set_num_threads(1)
torch.set_grad_enabled(False)
x, y = torch.rand(8, 8), torch.rand(8, 8)

def call():
    return torch.mul(x, y)

def least():
    for _ in range(1000):  # What Python specialises.
        call()
    return min(count(call) for _ in range(10))

count = instructions.counter(instructions.build(Path(sys.argv[1])))
original = least()
aoti_eager.config.mode, aoti_eager.config.native = "cache_only", "1"
with aoti_eager.register("aten::mul.Tensor"):
    declined = least()
    stats = aoti_eager.stats()["aten::mul.Tensor"]
print(json.dumps([original, declined, stats.declines > 1000, stats.misses]))
"""


@pytest.mark.native
def test_a_declined_call_compares_its_key_in_a_few_hundred_instructions(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    """Two tensors of two dimensions; words in memory, written one by one, took 530."""
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    (store / "toolchain").mkdir(mode=0o700)
    share_native(store, shared_cache_dir)
    done = subprocess.run(
        [sys.executable, "-c", DECLINED, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "AOTI_EAGER_CACHE_DIR": str(store)},
        capture_output=True,
        text=True,
        check=True,
    )
    original, declined, was_declined, misses = json.loads(done.stdout)
    assert (was_declined, misses) == (True, 0), done.stderr
    assert 0 < declined - original < 470
