"""A convolutional network with batch norms, served by one library; new weights need no compile.

    python docs/examples/fused_convolutions.py [--size 32]

prints the time of one image, plain and served, and the report; then the network gets other weights,
which the next call uses.
"""

import argparse
import statistics
import time

import torch
from torch import nn

import aoti_eager


def block(before: int, after: int) -> nn.Sequential:
    """Return a convolution, its norm and an activation."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.SiLU(),
    )


def make_network() -> nn.Sequential:
    """Return a network from images (batch, 3, size, size) to ten classes."""
    return nn.Sequential(
        block(3, 16),
        block(16, 32),
        block(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()  # In training mode, batch norms write their statistics, and no library serves them.


def median_ms(network: nn.Module, image: torch.Tensor) -> float:
    """Return the median time of fifty calls."""
    times = []
    for _ in range(50):
        start = time.perf_counter()
        network(image)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Run the network plain and served, and give it other weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(0)
    network, other = make_network(), make_network()
    image = torch.randn(1, 3, options.size, options.size)
    with torch.inference_mode():
        plain_ms = median_ms(network, image)
        with aoti_eager.fuse(network) as report:
            for _ in range(3):
                network(image)
                aoti_eager.wait()  # For this example; a program goes on with the plain forward.
            print(f"plain {plain_ms:.3f} ms, served {median_ms(network, image):.3f} ms")
            network.load_state_dict(other.state_dict())
            torch.testing.assert_close(network(image), other(image), rtol=1e-4, atol=1e-5)
            print(report)
    assert "forward" not in vars(network)  # Undone, at the end of the block.


if __name__ == "__main__":
    main()
