"""Rosenbrock's function and a regression, by the optimizers of torch.optim."""

import json
import sys

import torch
from torch import nn

STEPS = int(sys.argv[1])
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adamax", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adadelta")
generator = torch.Generator().manual_seed(0)
x = torch.randn(512, 64, generator=generator)
y = torch.sin(x.sum(1, keepdim=True))
found = {}
for name in OPTIMIZERS:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 1))
    point = torch.tensor([-1.0, 1.5], requires_grad=True)
    optimizer = getattr(torch.optim, name)([*model.parameters(), point], lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        rosenbrock = (1 - point[0]) ** 2 + 10 * (point[1] - point[0] ** 2) ** 2
        loss = nn.functional.huber_loss(model(x), y) + rosenbrock
        loss.backward()
        optimizer.step()
    found[name] = loss.item()
print(json.dumps(found))
