"""The published training step (chao1224/MoleculeSDE), run from a checkout of its repository.

Networks and losses are imported from the checkout, none of it is copied. This module builds the
models of the README's pretraining command and repeats the step of its training loop.

The published side has less to do in a step: its features, extended graphs and centring are computed
beforehand, and so are the edges within SchNet's cutoff, at most 32 an atom. `index_add_` replaces
torch-scatter, which has to be compiled; it is as fast on a CPU.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rivals
import torch
from rdkit import Chem
from torch import Tensor
from torch_geometric.data import Batch, Data  # before the stand-ins, which it would use

# Its `torch.cross` names no dimension, and its docstrings hold invalid escapes.
warnings.filterwarnings("ignore", message="Using torch.cross without specifying the dim")
warnings.filterwarnings("ignore", category=SyntaxWarning)

HIDDEN, CUTOFF, MAX_NEIGHBOURS, ATOM_TYPES = 300, 10.0, 32, 119
LEARNING_RATE, SCALE_3D = 1e-4, 0.1
CONTRASTIVE = types.SimpleNamespace(CL_similarity_metric="EBM_node_dot_prod", T=0.1)


def scatter(
    src: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None, reduce: str = "add"
) -> Tensor:
    """Sum or average rows by their index, as torch-scatter does along the first dimension."""
    size = int(index.max()) + 1 if dim_size is None else dim_size
    out = src.new_zeros(size, *src.shape[1:]).index_add_(0, index, src)
    if reduce == "mean":
        counts = torch.bincount(index, minlength=size).clamp(min=1)
        return out / counts.view(-1, *[1] * (src.dim() - 1))
    return out


def _stand_in(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def import_published(root: Path) -> tuple[Any, Any, Any]:
    """Import the published encoders, score networks and contrastive loss."""
    _stand_in(
        "torch_scatter",
        scatter=scatter,
        scatter_add=scatter,
        scatter_mean=lambda src, index: scatter(src, index, reduce="mean"),
    )
    _stand_in("torch_sparse", SparseTensor=type("SparseTensor", (), {}))  # asked for types only
    sys.path[:0] = [str(root), str(root / "examples")]
    names = ("Geom3D.models", "Geom3D.models.MoleculeSDE", "util")
    encoders, scores, util = map(importlib.import_module, names)
    return encoders, scores, util


def edges_within_cutoff(items: Sequence[Data]) -> Tensor:
    """Return the edges of SchNet for a batch of molecules, (2, num_edges), sorted by target."""
    found, first = [], 0
    for item in items:
        pos = item.positions
        near = torch.cdist(pos, pos) <= CUTOFF
        near.fill_diagonal_(False)
        near &= near.cumsum(1) <= MAX_NEIGHBOURS  # the first ones, by number
        found.append(near.nonzero().t().flip(0) + first)
        first += len(pos)
    return torch.cat(found, dim=1)


class Published:
    """Training steps of the published code on batches of molecules, in turn."""

    def __init__(
        self, root: Path, mols: Iterable[Chem.Mol], batch_size: int, device: torch.device
    ) -> None:
        """Build the published models from a checkout at `root`, and the items of the data set."""
        encoders, scores, util = import_published(root)
        items = [rivals.published_get(rivals.published_featuriser(mol)) for mol in mols]
        last = len(items) - batch_size + 1
        self.batches = [items[i : i + batch_size] for i in range(0, last, batch_size)]
        self.edges = [edges_within_cutoff(batch).to(device) for batch in self.batches]
        self.device, self.contrastive = device, util.dual_CL
        torch.manual_seed(0)
        gin = encoders.GNN(5, HIDDEN, JK="last", drop_ratio=0, gnn_type="GIN")
        schnet = encoders.SchNet(
            hidden_channels=HIDDEN, num_filters=128, num_interactions=6, num_gaussians=51,
            cutoff=CUTOFF, readout="mean", node_class=ATOM_TYPES,
        )  # fmt: skip
        to_3d = scores.SDEModel2Dto3D_02(
            emb_dim=HIDDEN, hidden_dim=32, beta_schedule=None, beta_min=0.2, beta_max=1.0,
            num_diffusion_timesteps=1000, SDE_type="VE", use_extend_graph=True,
        )  # fmt: skip
        to_2d = scores.SDEModel3Dto2D_node_adj_dense(
            dim3D=HIDDEN, c_init=2, c_hid=8, c_final=4, num_heads=4, adim=16, nhid=16,
            num_layers=4, emb_dim=HIDDEN, num_linears=3, beta_min=0.1, beta_max=1.0,
            num_diffusion_timesteps=1000, SDE_type="VE", num_class_X=ATOM_TYPES,
            noise_on_one_hot=True,
        )  # fmt: skip
        models = [model.to(device).train() for model in (gin, schnet, to_3d, to_2d)]
        self.gin, self.schnet, self.to_3d, self.to_2d = models
        scales = (1, SCALE_3D, 1, SCALE_3D)
        groups = [
            {"params": model.parameters(), "lr": LEARNING_RATE * scale}
            for model, scale in zip(models, scales, strict=True)
        ]
        self.optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)

    def step(self, number: int, watch: Any) -> None:
        """Do one training step and time its parts."""
        place = number % len(self.batches)
        module = sys.modules[type(self.schnet).__module__]
        module.radius_graph = lambda pos, r, batch: self.edges[place]
        batch = Batch.from_data_list(self.batches[place]).to(self.device)
        watch.lap("batch")
        h_2d = self.gin(batch.x, batch.edge_index, batch.edge_attr)
        _, h_3d = self.schnet(batch.x[:, 0], batch.positions, batch.batch, return_latent=True)
        contrastive, _ = self.contrastive(h_2d, h_3d, CONTRASTIVE)
        to_3d = self.to_3d(h_2d, batch, anneal_power=0)["position"]
        of_types, of_adj = self.to_2d(
            h_3d, batch, reduce_mean=True, continuous=True, train=True, anneal_power=0
        )
        to_2d = (of_types + of_adj) * 0.5
        loss = contrastive + to_3d + to_2d
        self.losses = [term.detach().cpu().item() for term in (contrastive, to_3d, to_2d)]
        watch.lap("forward")
        self.optimizer.zero_grad()
        loss.backward()
        watch.lap("backward")
        self.optimizer.step()
        watch.lap("optimizer")
