"""transformers' BERT with random weights: forwards, and steps of masked training."""

import json
import sys

import torch
from transformers import BertConfig, BertForMaskedLM

STEPS = int(sys.argv[1])
torch.manual_seed(0)
config = BertConfig(
    vocab_size=1000,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    max_position_embeddings=128,
)
model = BertForMaskedLM(config)
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
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    found["loss"] = loss.item()
print(json.dumps(found))
