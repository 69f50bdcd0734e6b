"""The model in a plain PyTorch loop, without DeepSpeed: python examples/plain_loop.py DIR"""

import sys
from pathlib import Path

import torch

from msde.config import make_config
from msde.model import MoleculeSDE
from msde.training.optimizer import parameter_groups
from msde.training.plan import make_plan

STEPS = 20

config = make_config("paper", overrides=["model.hidden_dim=64", "data.molecules_per_step=64"])
stream = make_plan(config, Path(sys.argv[1]), slots_per_step=1).stream
device = "cuda" if torch.cuda.is_available() else "cpu"
model = MoleculeSDE.from_seed(config).to(device).train()
optimizer = torch.optim.Adam(parameter_groups(model))

for step, (batch,) in zip(range(1, STEPS + 1), stream, strict=False):
    loss, terms = model(batch.to(device))  # noise and times follow from (seed, epoch, molecule)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    means = {name: f"{value.mean().item():.3f}" for name, value in terms.items()}
    print(step, means)
