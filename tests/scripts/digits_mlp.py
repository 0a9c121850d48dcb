"""scikit-learn's digits, classified by a small network with layer norm."""

import json
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

STEPS = int(sys.argv[1])
torch.manual_seed(0)
data = load_digits()
x = torch.tensor(data.data, dtype=torch.float32) / 16
y = torch.tensor(data.target)
model = nn.Sequential(
    nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 10)
)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
losses = []
for _ in range(STEPS):
    rows = torch.randint(len(x), (256,))
    loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
model.eval()
right = (model(x).argmax(1) == y).float().mean().item()
print(json.dumps({"first": losses[0], "last": losses[-1], "right": right}))
