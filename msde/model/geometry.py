"""Geometry as pure tensor functions: centring of positions, and distances of pairs.

`pos` is (num_atoms, 3) in A, `edge_index` (2, num_edges) with row 0 the source.
"""

from __future__ import annotations

from torch import Tensor

from msde import ops


def centre(rows: Tensor, batch: Tensor, counts: Tensor) -> Tensor:
    """Subtract each molecule's mean from its rows, (num_atoms, width).

    Args:
        batch: (num_atoms,) molecule of each row.
        counts: (num_graphs,) number of rows of each molecule.
    """
    means = ops.segment_mean(rows, batch, counts)  # (num_graphs, width)
    return rows - means.index_select(0, batch)


def distances(pos: Tensor, pair_index: Tensor) -> Tensor:
    """Return the distance of each pair of atoms, (num_pairs,), A; pair_index is (2, num_pairs)."""
    difference = pos[pair_index[0]] - pos[pair_index[1]]  # (num_pairs, 3)
    return difference.norm(dim=-1)
