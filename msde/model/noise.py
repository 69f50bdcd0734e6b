"""The noise and the times of a training step, drawn from the counters of each molecule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msde.data.batch import MoleculeBatch
from msde.ops import words
from msde.philox import Key, Stream

TIME_EPSILON = 1e-6  # training times stay this far from zero, where the scores diverge


@dataclass(frozen=True)
class Noise:
    """All randomness of one forward pass except dropout."""

    t_2d_to_3d: Tensor  # (num_graphs,) times in (0, 1)
    t_3d_to_2d: Tensor  # (num_graphs,)
    pos: Tensor  # (num_atoms, 3) standard normal, as are the next two
    types: Tensor  # (num_atoms, 119)
    adj: Tensor  # (num_pairs,)
    negatives_of_2d: Tensor  # (num_atoms,) or none: what the contrastive objective drew for h_2d
    negatives_of_3d: Tensor


def _time(step: Tensor, num_timesteps: int) -> Tensor:
    """Return the time of a step of the grid, kept TIME_EPSILON away from zero."""
    return step / num_timesteps * (1 - TIME_EPSILON) + TIME_EPSILON


def antithetic_times(batch: MoleculeBatch, stream: Stream, num_timesteps: int) -> Tensor:
    """Draw the published antithetic times, (num_graphs,).

    The first half of the slot draws steps k of the grid, the second half takes
    num_timesteps - 1 - k.
    """
    uid = batch.valid(batch.uid)
    half = len(uid) // 2 + 1
    drawn = words(batch.key, stream, uid[:half])[:, 0]
    step = drawn * num_timesteps >> 32  # (half,) uniform in [0, num_timesteps)
    step = torch.cat([step, num_timesteps - 1 - step])[: len(uid)]
    step = torch.cat([step, step.new_zeros(batch.num_padding)])
    return _time(step, num_timesteps)


def antithetic_times_over_epochs(
    batch: MoleculeBatch, stream: Stream, num_timesteps: int
) -> Tensor:
    """Draw times whose antithetic partner is the same molecule's in the next epoch, (num_graphs,).

    A function of the molecule alone: neither its slot nor its neighbours matter.
    """
    key = Key(batch.key.seed, batch.key.epoch // 2)
    step = words(key, stream, batch.uid)[:, 0] * num_timesteps >> 32  # (num_graphs,)
    if batch.key.epoch % 2:
        step = num_timesteps - 1 - step
    return _time(step, num_timesteps)


TIMES = {
    "antithetic_in_slot": antithetic_times,
    "antithetic_over_epochs": antithetic_times_over_epochs,
}
