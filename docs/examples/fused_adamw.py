"""AdamW as one operator over all parameters: every step is one kernel.

The update is an ordinary function of lists of tensors that it writes to. ``custom_op`` makes an
operator of it, ``mylib::adamw_``, and all its loops over elements become one compiled kernel.
The learning rate and the number of the step are tensors, so that no value of theirs is in a key.

    python fused_adamw.py --steps 200

trains a small network twice, with this and with ``torch.optim.AdamW``, and prints by how much their
parameters differ and what a step of either takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import aoti_eager


@aoti_eager.custom_op("mylib::adamw_", mutates_args=("parameters", "averages", "squares"))
def adamw_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Update parameters and moments in place.

    Args:
        parameters: To be updated.
        gradients: Theirs.
        averages: Running averages of the gradients.
        squares: Running averages of their squares.
        step: Number of this step, from 1: (), float32.
        lr: Learning rate: (), float32.
        beta1: Decay of ``averages``.
        beta2: Decay of ``squares``.
        eps: Added to the root.
        weight_decay: Decoupled decay of the parameters.
    """
    size = lr / (1 - torch.pow(beta1, step))
    correction = torch.sqrt(1 - torch.pow(beta2, step))
    for index in range(len(parameters)):
        gradient = gradients[index]
        average = averages[index].lerp_(gradient, 1 - beta1)
        square = squares[index].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = torch.sqrt(square) / correction + eps
        parameters[index].mul_(1 - lr * weight_decay).sub_(size * average / root)


class FusedAdamW(torch.optim.Optimizer):
    """``torch.optim.AdamW`` in one operator.

    Args:
        parameters: Tensors, or groups of them, as for any optimizer.
        lr: Learning rate; a scheduler may change it.
        betas: Decays of the moments.
        eps: Added to the root.
        weight_decay: Decoupled decay.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            for one in parameters:
                if not self.state[one]:
                    self.state[one]["average"] = torch.zeros_like(one)
                    self.state[one]["square"] = torch.zeros_like(one)
            group["step"] = group.get("step", 0) + 1
            adamw_(
                parameters,
                [one.grad for one in parameters],
                [self.state[one]["average"] for one in parameters],
                [self.state[one]["square"] for one in parameters],
                torch.tensor(float(group["step"])),
                torch.tensor(group["lr"]),
                *group["betas"],
                group["eps"],
                group["weight_decay"],
            )
        return loss


def train(make: Any, steps: int) -> tuple[list[Tensor], float]:
    """Return the trained parameters, and the median of the microseconds of an update."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)])
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x, target = torch.randn(256, 64), torch.randn(256, 64)
    times = []
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).pow(2).mean().backward()
        start = time.perf_counter()
        optimizer.step()
        times.append((time.perf_counter() - start) * 1e6)
        scheduler.step()
    return [one.detach() for one in model.parameters()], statistics.median(times[steps // 2 :])


def main() -> None:
    """Train with both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    for _ in range(2):  # The first time round, the kernel is made.
        mine, mine_us = train(FusedAdamW, steps)
        aoti_eager.wait()
    theirs, theirs_us = train(torch.optim.AdamW, steps)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    largest = max((a - b).abs().max().item() for a, b in zip(mine, theirs, strict=True))
    counts = aoti_eager.stats()["mylib::adamw_"]
    print(
        json.dumps(
            {
                "steps": steps,
                "largest_difference": largest,
                "step_us": round(mine_us, 1),
                "torch_adamw_step_us": round(theirs_us, 1),
                "hits": counts.hits,
                "compiles": counts.compiles,
            }
        )
    )


if __name__ == "__main__":
    main()
