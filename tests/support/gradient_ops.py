"""Functions of which tests and benchmarks make operators."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def layer_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x + residual, weight.shape, weight, bias)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate * torch.sigmoid(gate) * up


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    chosen = torch.arange(logits.size(-1), device=logits.device) == target.unsqueeze(-1)
    return (torch.logsumexp(logits, -1) - torch.where(chosen, logits, 0.0).sum(-1)).mean()


def masked_softmax(scores: Tensor, mask: Tensor, scale: float) -> Tensor:
    return torch.softmax(torch.where(mask, scores * scale, -1e9), -1)


def affine(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return torch.nn.functional.softplus(x * row + column)


def variance(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean((0, 2))
    return mean, (x - mean[:, None]).pow(2).mean((0, 2))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / torch.sqrt(a.pow(2).sum(-1) * b.pow(2).sum(-1) + 1e-9)


def huber(x: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    error = (x - target).abs()
    small = torch.minimum(error, torch.full_like(error, delta))
    return (0.5 * small * small + delta * (error - small)).mean()


def bilinear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = (x.unsqueeze(-1) * weight).sum(-2)
    return torch.tanh(product if bias is None else product + bias)


def adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    correction1: float,
    correction2: float,
) -> None:
    for parameter, gradient, average, square in zip(
        parameters, gradients, averages, squares, strict=True
    ):
        parameter.mul_(1 - lr * decay)
        average.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / correction2).sqrt() + eps
        parameter.addcdiv_(average, root, value=-lr / correction1)
