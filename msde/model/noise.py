"""The noise and the diffusion times of a training step, keyed by the molecule and the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from msde.data.batch import MoleculeBatch
from msde.ops import words
from msde.philox import Key, Stream

TIME_EPSILON = 1e-6  # the smallest training time: scores diverge at zero


@dataclass(frozen=True)
class Noise:
    """All random numbers of one forward pass except those of dropout."""

    t_2d_to_3d: Tensor  # (num_graphs,) times in (0, 1) of the 2D -> 3D direction
    t_3d_to_2d: Tensor  # (num_graphs,) times in (0, 1) of the 3D -> 2D direction
    pos: Tensor  # (num_atoms, 3) standard normals for positions
    types: Tensor  # (num_atoms, 119) standard normals for atom types, or (num_atoms, 0)
    adj: Tensor  # (num_pairs,) or (num_pairs, classes) standard normals for the adjacency
    negatives_of_2d: Tensor  # (num_atoms,) or (0,): see `contrastive.Objective.draw`
    negatives_of_3d: Tensor  # (num_atoms,) or (0,)
    # (num_atoms, 3) A, added to the positions that bonds are found from, or (0, 3)
    shifts: Tensor = field(default_factory=lambda: torch.zeros(0, 3))
    # (num_atoms, 3) standard normals, the displacements that the 3D encoder is to find, or (0, 3)
    displacements: Tensor = field(default_factory=lambda: torch.zeros(0, 3))
    # (num_graphs,) bool, molecules whose atom types the 3D -> 2D networks do not see, or (0,)
    hidden: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


def _time(step: Tensor, num_timesteps: int) -> Tensor:
    """Map steps of the grid, 0 to num_timesteps - 1, to times in [TIME_EPSILON, 1)."""
    return step / num_timesteps * (1 - TIME_EPSILON) + TIME_EPSILON


def antithetic_times(batch: MoleculeBatch, stream: Stream, num_timesteps: int) -> Tensor:
    """Draw the published antithetic times, (num_graphs,).

    The first half of the slot draws steps k of the grid, and the second half has the steps
    num_timesteps - 1 - k.
    """
    uid = batch.valid(batch.uid)
    half = len(uid) // 2 + 1
    drawn = words(batch.key, stream, uid[:half])[:, 0]  # (half,) 32-bit words
    step = drawn * num_timesteps >> 32  # (half,) uniform in [0, num_timesteps)
    step = torch.cat([step, num_timesteps - 1 - step])[: len(uid)]
    step = torch.cat([step, step.new_zeros(batch.num_padding)])  # (num_graphs,)
    return _time(step, num_timesteps)


def antithetic_times_over_epochs(
    batch: MoleculeBatch, stream: Stream, num_timesteps: int
) -> Tensor:
    """Draw times in antithetic pairs over two epochs of a molecule, (num_graphs,).

    They depend on the molecule and the epoch alone, not on the slot.
    """
    key = Key(batch.key.seed, batch.key.epoch // 2)
    step = words(key, stream, batch.uid)[:, 0] * num_timesteps >> 32  # (num_graphs,)
    odd = batch.key.epoch % 2
    return _time(odd * (num_timesteps - 1) + (1 - 2 * odd) * step, num_timesteps)


# loss.times -> how the times of a slot are drawn
TIMES = {
    "antithetic_in_slot": antithetic_times,
    "antithetic_over_epochs": antithetic_times_over_epochs,
}
