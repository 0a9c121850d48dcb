"""scikit-learn's digits, classified by a small convolutional network with group norm."""

import json
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

STEPS = int(sys.argv[1])
torch.manual_seed(0)
data = load_digits()
x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(data.target)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.GroupNorm(4, 16),
    nn.SiLU(),
    nn.Conv2d(16, 32, 3, padding=1, stride=2),
    nn.GroupNorm(4, 32),
    nn.SiLU(),
    nn.Flatten(),
    nn.Linear(512, 10),
)
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
losses = []
for _ in range(STEPS):
    rows = torch.randint(len(x), (128,))
    loss = nn.functional.cross_entropy(model(x[rows]), y[rows], label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(json.dumps({"first": losses[0], "last": losses[-1]}))
