"""Finding displacements of atoms from the 3D encoder's view of them (Zaidi et al. 2023).

An objective of the 3D encoder (arXiv:2206.00133) that MoleculeSDE does not have: the atoms of a
geometry near equilibrium are displaced a little, and their displacements are to be found from
the displaced geometry. In the harmonic approximation that is to learn forces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msde.data.batch import MoleculeBatch
from msde.model import geometry
from msde.model.layers import Linear, gaussians, index_rows
from msde.ops.filters import filter_conv

WIDTH = 64  # of the layer between atoms and pairs
CUTOFF, NUM_GAUSSIANS = 8.0, 32  # A, of the Gaussians of distances


class Displacements(nn.Module):
    """Sums over an atom's pairs of their direction times a function of distance and both atoms.

    Rotations turn the result, mirror images mirror it, and its sum over a molecule is zero.
    """

    def __init__(self, input_dim: int) -> None:
        """Build the network for 3D representations of width `input_dim`."""
        super().__init__()
        self.atoms = Linear(input_dim, WIDTH)
        self.distance = Linear(NUM_GAUSSIANS, WIDTH, bias=False)
        self.out = Linear(WIDTH, 1)
        centres = torch.linspace(0, CUTOFF, NUM_GAUSSIANS)
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, h_3d: Tensor, pos: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return displacements in units of their standard deviation, (num_atoms, 3).

        Args:
            h_3d: (num_atoms, input_dim) representations of the displaced geometry.
            pos: (num_atoms, 3) displaced positions in A.
        """
        first, second = batch.pair_index
        distance = geometry.distances(pos, batch.pair_index)  # (num_pairs,)
        a = self.atoms(h_3d)  # (num_atoms, WIDTH)
        pairs = index_rows(a, first) + index_rows(a, second)
        pairs = pairs + self.distance(gaussians(distance, self.centres))
        strength = self.out(nn.functional.silu(pairs))  # (num_pairs, 1)
        weight = strength / distance.clamp(min=1e-3).unsqueeze(-1)
        # The sum of w (x_i - x_j) over j, from the sums of w x_j and of w.
        pos = geometry.centre(pos, batch.batch, batch.atoms_per_graph)
        rows = torch.cat([pos, torch.ones_like(pos[:, :1])], dim=1)  # (num_atoms, 4)
        summed = filter_conv(rows, weight.expand(-1, 4).contiguous(), batch.pair_index)
        return summed[:, 3:] * pos - summed[:, :3]
