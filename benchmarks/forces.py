"""Learn forces with msde's SchNet and with PyTorch Geometric's, in one run and the same way.

python benchmarks/forces.py --data ethanol_raw_2000.xyz.gz --output DIR [--seeds N] [key=value ...]

The arms are msde's SchNet from pretrained weights, from random ones, and the SchNet of PyTorch
Geometric, which has the same width, filters, interactions, Gaussians and cutoff, and keeps its own
readout and initialisation. All are trained by `launch/finetune.py`'s own loop: the same split,
batches, loss, rates, epochs and choice of the best epoch. Settings are those of a task md17-NAME.
Each seed of an arm is one folder below DIR; those that are done are not repeated. DIR/forces.json
has the errors, curves and seconds of the processor.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import SchNet

from msde import shipped_checkpoint
from msde.cli import report_errors
from msde.cluster import process
from msde.config import Config
from msde.data.batch import MoleculeBatch
from msde.data_tools.models.finetuning import task_shards
from msde.downstream.finetune import RESULTS, Job, prepare, record_seed
from msde.downstream.heads import make_model
from msde.downstream.settings import make_settings
from msde.downstream.tasks import get_task
from msde.downstream.training import STATE, Trainer

ARMS = ("msde pretrained", "msde random", "pyg random")
SECONDS, SUMMARY = "seconds.json", "forces.json"


class PygSchNet(nn.Module):
    """PyTorch Geometric's SchNet with the interface of `msde.downstream.heads.TaskModel`.

    The head is its last layer. The pairs are those of msde's encoder: all of a molecule. Beyond the
    cutoff, which no pair of a small molecule reaches, the two networks differ.
    """

    def __init__(self, config: Config, readout: str) -> None:
        """Build the network in the sizes of `config`."""
        super().__init__()
        sizes = config.model.schnet
        self.net = SchNet(
            config.model.hidden_dim, sizes.num_filters, sizes.num_interactions, sizes.num_gaussians,
            sizes.cutoff, interaction_graph=self._pairs, readout=readout,
        )  # fmt: skip
        self.head = self.net.lin2
        self.encoders = nn.ModuleList([self.net.embedding, self.net.interactions, self.net.lin1])

    def _pairs(self, pos: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        """Return all pairs, both ways, and their distances."""
        source, target = self.edge_index
        return self.edge_index, (pos[source] - pos[target]).norm(dim=-1)

    def energy_and_forces(
        self, batch: MoleculeBatch, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return scaled energies, (num_graphs, 1), and scaled forces, (num_atoms, 3)."""
        self.edge_index = torch.cat([batch.pair_index, batch.pair_index.flip(0)], dim=1)
        with torch.enable_grad():
            pos = batch.pos.detach().requires_grad_()
            energy = self.net(batch.z, pos, batch.batch)
            (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=create_graph)
        return energy, -gradient


def make_arm(arm: str, job: Job, seed: int, readout: str) -> nn.Module:
    """Return the network of an arm; its weights depend on the seed."""
    if arm.startswith("msde"):
        return make_model(job.network, job.facts, job.weights, seed)
    torch.manual_seed(seed)
    return PygSchNet(job.network, readout)


def train(arm: str, job: Job, folder: Path, seed: int, readout: str) -> None:
    """Train a seed of an arm and write its results, unless they are there."""
    if (folder / RESULTS).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = make_arm(arm, job, seed, readout)
    trainer = Trainer(job.task, job.data, job.split, job.scaling, model, job.settings, seed)
    start = time.process_time()
    trainer.run(folder)
    seconds = time.process_time() - start
    outcomes = {part: trainer.predict(places) for part, places in job.split.parts().items()
                if part != "train"}  # fmt: skip
    weights = sum(p.numel() for p in model.parameters())
    (folder / SECONDS).write_text(json.dumps({"seconds": seconds, "weights": weights}))
    record_seed(job, folder, seed, outcomes, trainer.epoch, trainer.best_epoch)
    (folder / STATE).unlink(missing_ok=True)


def summary_of(folder: Path) -> dict[str, Any]:
    """Return errors of the test part, seconds and the curve of a seed that is done."""
    results = json.loads((folder / RESULTS).read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = {row["step"]: row["force_mae/valid"] for row in rows if "force_mae/valid" in row}
    facts = json.loads((folder / SECONDS).read_text())
    return {**results["test"], **facts, "best_epoch": results["best"], "curve": curve}


def main() -> None:
    """Train all arms, print a line for each seed and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="frames, or shards of them")
    parser.add_argument("--task", default="md17-ethanol")
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint())
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--readout", choices=("add", "mean"), default="add", help="of pyg")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    process.prepare()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    task, found = get_task(given.task), {}
    for seed in range(given.seeds):
        for arm in given.arms:
            init = "pretrained" if arm == "msde pretrained" else "random"
            settings = make_settings(task, [*given.overrides, f"init={init}"])
            folder = given.output / arm.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            shards = task_shards(task, given.data, given.output / "data", settings)
            job = prepare(task, shards.root, folder, given.checkpoint, settings, shards.lines)
            train(arm, job, folder / f"seed-{seed}", seed, given.readout)
            row = summary_of(folder / f"seed-{seed}")
            found[f"{arm}, seed {seed}"] = row
            print(f"{arm}, seed {seed}, {row['weights']:,} weights: forces {row['force_mae']:.4g}, "
                  f"energies {row['energy_mae']:.4g}, {row['seconds']:.0f} s")  # fmt: skip
    (given.output / SUMMARY).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    report_errors(main)
