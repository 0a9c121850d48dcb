"""A policy in a control loop, served by one kernel library: a call costs little more than its run.

    python docs/examples/fused_policy.py [--steps 2000]

prints the time of a step of the loop, plain and served, and the report. What is fused is a function
that the loop calls: the network, and the choice of an action from what the network says.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

import aoti_eager


def make_policy() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from what is seen (batch, 17) to actions (batch, 6) within -1 and 1."""
    network = nn.Sequential(
        nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6)
    )

    def act(seen: torch.Tensor) -> torch.Tensor:
        return torch.tanh(network(seen)).clamp(-0.9, 0.9)

    return act


def run(act: Callable[[torch.Tensor], torch.Tensor], steps: int) -> tuple[float, torch.Tensor]:
    """Return the microseconds of a step, and what is seen at the end."""
    seen = torch.zeros(1, 17)
    seen[0, 0] = 1.0
    turn = torch.linspace(-0.3, 0.3, 6 * 17).view(6, 17)
    start = time.perf_counter()
    for _ in range(steps):
        seen = 0.9 * seen + act(seen) @ turn  # Stands for the world.
    return 1e6 * (time.perf_counter() - start) / steps, seen


def main() -> None:
    """Run the loop plain, fuse the policy, and run the loop again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    torch.manual_seed(0)
    act = make_policy()
    with torch.inference_mode():
        plain_us, want = run(act, options.steps)
        fast = aoti_eager.fuse(act)
        for _ in range(3):
            run(fast, 10)
            aoti_eager.wait()  # For this example; a program goes on with the plain function.
        served_us, seen = run(fast, options.steps)
    torch.testing.assert_close(seen, want, rtol=1e-3, atol=1e-4)
    print(f"plain {plain_us:.1f} us, served {served_us:.1f} us")
    print(fast.report)


if __name__ == "__main__":
    main()
