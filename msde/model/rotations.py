"""Positions averaged over rotations, weighted by how well they explain noised ones.

A network that turns with its input cannot learn how a molecule was turned before the noise. The
average over all rotations is what it can learn, without the variance of a single one (Cao et al.
2025, arXiv:2507.09785). Unlike an alignment it does not change the score.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from msde.model.sde import per_row
from msde.ops import segment_sum

NUM_NODES = 40  # of each half of an integral
SMALLEST = 1e-9  # node: integrands of large arguments are narrow peaks at the ends


class RotationMean(nn.Module):
    """Means of rotations with the density exp(tr(m^T R)): the matrix Fisher distribution.

    With the singular values s of m, the mean has those d log c / d s_k, where c is its
    normalisation (Lee 2018, arXiv:1710.03746, theorem 3.3). On a GPU the host waits for the
    decomposition.
    """

    nodes: Tensor

    def __init__(self) -> None:
        """Make the nodes of the integrals: Gauss and Legendre's, in the logarithm."""
        super().__init__()
        x, weight = np.polynomial.legendre.leggauss(NUM_NODES)
        half = -math.log(SMALLEST) / 2
        node = np.exp(half * (x - 1))  # in (SMALLEST, 1)
        nodes = torch.from_numpy(np.stack([node, half * weight * node]))  # (2, NUM_NODES)
        self.register_buffer("nodes", nodes, persistent=False)

    def forward(self, m: Tensor) -> Tensor:
        """Return the mean for each m, (num, 3, 3) like the result, which is float64."""
        # The decomposition of numbers that are not finite would be an error.
        u, s, vt = torch.linalg.svd(m.double().nan_to_num(0, 0, 0))
        signs = torch.ones_like(s)
        signs[:, 2] = torch.linalg.det(u) * torch.linalg.det(vt)
        s = s * signs  # (num, 3); the last may be negative
        near, weight = self.nodes.double()
        # The distance of u from 1 and from -1, in the half at 1 and in the other.
        w, rest = torch.cat([near, 2 - near]), torch.cat([2 - near, near])
        weight = torch.cat([weight, weight])
        means = []
        for k, i, j in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
            apart, together = (s[:, i] - s[:, j]).abs() / 2, (s[:, i] + s[:, j]).abs() / 2
            decay = (s[:, k] + together - apart).clamp(min=0)
            density = weight * (
                torch.special.i0e(apart.unsqueeze(1) * w)
                * torch.special.i0e(together.unsqueeze(1) * rest)
                * torch.exp(-decay.unsqueeze(1) * w)
            )  # (num, 2 * NUM_NODES)
            means.append(1 - (density * w).sum(1) / density.sum(1))
        return u @ torch.diag_embed(torch.stack(means, 1) * signs) @ vt

    def average(
        self, pos_t: Tensor, pos: Tensor, alpha: Tensor, std: Tensor, batch: Tensor
    ) -> Tensor:
        """Return the mean of R pos over rotations R, given pos_t = alpha R pos + std noise.

        Args:
            pos_t, pos: (num_atoms, 3) centred, like the result.
            alpha, std: (num_graphs,).
            batch: (num_atoms,) the molecule of each atom.
        """
        outer = pos_t.unsqueeze(2) * pos.unsqueeze(1)  # (num_atoms, 3, 3)
        m = segment_sum(outer, batch, len(std)) * per_row(alpha / std.square(), outer)
        mean = self(m).to(pos.dtype)  # (num_graphs, 3, 3)
        # Not a matrix product, which autocast and TF32 round: the result is divided by std.
        return (mean[batch] * pos.unsqueeze(1)).sum(2)
