"""The interface of all encoders."""

from __future__ import annotations

from torch import Tensor, nn

from msde.data.batch import MoleculeBatch
from msde.ops import segment_mean


class Encoder(nn.Module):
    """A network from a MoleculeBatch to representations of its atoms, and of its molecules.

    `forward(batch)` returns those of the atoms, (num_atoms, output_dim). That of a 3D encoder takes
    `pos`, (num_atoms, 3) in A, as a second argument, by default the batch's.
    """

    output_dim: int

    def readout(self, h: Tensor, batch: MoleculeBatch) -> Tensor:
        """Return the representation of each molecule, (num_graphs, output_dim): the atoms' mean."""
        return segment_mean(h, batch.batch, batch.atoms_per_graph)
