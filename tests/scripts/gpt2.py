"""transformers' GPT-2 with random weights: forwards, and steps of training."""

import json
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

STEPS = int(sys.argv[1])
torch.manual_seed(0)
config = GPT2Config(vocab_size=1000, n_positions=128, n_embd=256, n_layer=4, n_head=4)
model = GPT2LMHeadModel(config)
tokens = torch.randint(1000, (8, 64))
model.eval()
with torch.no_grad():
    for _ in range(STEPS):
        logits = model(tokens).logits
found = {"mean": logits.abs().mean().item()}
model.train()
optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
for _ in range(STEPS // 4):
    loss = model(tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    found["loss"] = loss.item()
print(json.dumps(found))
