"""MoleculeSDE: two encoders, two score networks, and the loss that ties them together.

Knows nothing of DeepSpeed: a plain PyTorch loop can train it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msde import losses, philox
from msde.batch import MoleculeBatch
from msde.config import Config
from msde.encoders import GIN, SchNet
from msde.molecule import ATOM_SIZES
from msde.philox import Stream
from msde.score import ConformerScore, TopologyScore
from msde.sde import make_sde, per_row

TIME_EPSILON = 1e-6  # training times stay this far from zero, where the scores diverge


@dataclass(frozen=True)
class Noise:
    """All randomness of one forward pass except dropout."""

    t_2d_to_3d: Tensor  # (num_graphs,) times in (0, 1)
    t_3d_to_2d: Tensor  # (num_graphs,)
    pos: Tensor  # (num_atoms, 3) standard normal, as are the next two
    types: Tensor  # (num_atoms, 119)
    adj: Tensor  # (num_pairs,)
    negatives_of_2d: Tensor  # (num_atoms,) permutation: the negative of each atom's h_2d
    negatives_of_3d: Tensor  # (num_atoms,)


class MoleculeSDE(nn.Module):
    """The joint model of Liu et al. (ICML 2023).

    loss = c_cl L_contrastive + c_23 L_2d_to_3d + c_32 (L_node + L_adj) / 2
    """

    def __init__(self, config: Config) -> None:
        """Build the networks that `config.model` describes, initialised from torch's generator."""
        super().__init__()
        model = config.model
        self.config = config
        self.encoder_2d = GIN(model.hidden_dim, model.gin)
        self.encoder_3d = SchNet(model.hidden_dim, model.schnet)
        self.score_2d_to_3d = ConformerScore(model.hidden_dim, model.conformer)
        self.score_3d_to_2d = TopologyScore(model.hidden_dim, model.topology)
        self.sde_pos = make_sde(model.conformer.sde)
        self.sde_topology = make_sde(model.topology.sde)

    @classmethod
    def from_seed(cls, config: Config) -> MoleculeSDE:
        """Build the model with weights that depend on `config.run.seed` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed % 2**63)
            return cls(config)

    def draw_noise(self, batch: MoleculeBatch) -> Noise:
        """Draw the noise and times that belong to the batch's molecules under its key."""
        key = batch.key
        steps = self.config.loss.num_timesteps
        atom = torch.arange(batch.num_atoms, device=batch.ptr.device) - batch.ptr[batch.batch]
        pair = torch.arange(batch.pair_index.shape[1], device=batch.ptr.device)
        pair = pair - batch.pair_ptr[batch.pair_batch]  # (num_pairs,) number within the molecule
        atom_uid, pair_uid = batch.uid[batch.batch], batch.uid[batch.pair_batch]

        def permutation(stream: Stream) -> Tensor:
            drawn = philox.words(key, stream, atom_uid, atom, 2)
            return torch.argsort(drawn[:, 0] * 2**31 + (drawn[:, 1] >> 1))

        return Noise(
            t_2d_to_3d=antithetic_times(batch, Stream.TIME_2D_TO_3D, steps),
            t_3d_to_2d=antithetic_times(batch, Stream.TIME_3D_TO_2D, steps),
            pos=philox.normal(key, Stream.POSITION_NOISE, atom_uid, atom, 3),
            types=philox.normal(key, Stream.ATOM_TYPE_NOISE, atom_uid, atom, ATOM_SIZES[0]),
            adj=philox.normal(key, Stream.BOND_NOISE, pair_uid, pair, 1).squeeze(-1),
            negatives_of_2d=permutation(Stream.NEGATIVES_OF_2D),
            negatives_of_3d=permutation(Stream.NEGATIVES_OF_3D),
        )

    def contrastive(
        self, h_2d: Tensor, h_3d: Tensor, batch: MoleculeBatch, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return the node-level EBM-NCE loss and accuracy, both directions averaged.

        Args:
            h_2d, h_3d: (num_atoms, hidden_dim) representations of the two views.

        Returns:
            Two tensors (num_graphs,).
        """
        temperature = self.config.loss.temperature
        forward = losses.ebm_nce(h_2d, h_3d, noise.negatives_of_2d, temperature, batch)
        backward = losses.ebm_nce(h_3d, h_2d, noise.negatives_of_3d, temperature, batch)
        return (forward[0] + backward[0]) / 2, (forward[1] + backward[1]) / 2

    def loss_2d_to_3d(self, h_2d: Tensor, batch: MoleculeBatch, noise: Noise) -> Tensor:
        """Return the denoising loss of positions given `h_2d`, (num_graphs,)."""
        mean, std = self.sde_pos.marginal_prob(batch.pos, noise.t_2d_to_3d[batch.batch])
        pos_t = mean + per_row(std, mean) * noise.pos  # (num_atoms, 3)
        noise_pred = self.score_2d_to_3d(pos_t, h_2d, batch)
        return losses.denoising_positions(noise_pred, noise.pos, batch)

    def loss_3d_to_2d(
        self, h_3d: Tensor, batch: MoleculeBatch, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return the denoising losses of atom types and of adjacency given `h_3d`.

        Returns:
            Two tensors (num_graphs,).
        """
        t = noise.t_3d_to_2d
        types = nn.functional.one_hot(batch.x[:, 0], ATOM_SIZES[0]).to(noise.types.dtype)
        mean_types, std_atom = self.sde_topology.marginal_prob(types, t[batch.batch])
        mean_adj, std_pair = self.sde_topology.marginal_prob(adjacency(batch), t[batch.pair_batch])
        types_t = mean_types + per_row(std_atom, mean_types) * noise.types  # (num_atoms, 119)
        adj_t = mean_adj + std_pair * noise.adj  # (num_pairs,)
        std = self.sde_topology.marginal_prob(t, t)[1]  # (num_graphs,)
        types_pred, adj_pred = self.score_3d_to_2d(types_t, adj_t, std, h_3d, batch)
        return (
            losses.denoising_atom_types(types_pred, noise.types, batch),
            losses.denoising_adjacency(adj_pred, noise.adj, batch),
        )

    def forward(
        self, batch: MoleculeBatch, noise: Noise | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the slot's weighted mean loss and the named terms, one value a molecule.

        Args:
            noise: by default what `draw_noise` draws.

        Returns:
            The scalar to differentiate, and detached terms (num_graphs,) in float32: `total`,
            `contrastive`, `2d_to_3d`, `3d_to_2d` and the pair accuracy `contrastive_accuracy`.
        """
        noise = self.draw_noise(batch) if noise is None else noise
        weights = self.config.loss
        h_2d = self.encoder_2d(batch)  # (num_atoms, hidden_dim)
        h_3d = self.encoder_3d(batch)  # (num_atoms, hidden_dim)
        contrastive, accuracy = self.contrastive(h_2d, h_3d, batch, noise)
        to_3d = self.loss_2d_to_3d(h_2d, batch, noise)
        of_types, of_adj = self.loss_3d_to_2d(h_3d, batch, noise)
        to_2d = (of_types + of_adj) / 2
        total = (
            weights.contrastive * contrastive
            + weights.coefficient_2d_to_3d * to_3d
            + weights.coefficient_3d_to_2d * to_2d
        )  # (num_graphs,)
        terms = {
            "total": total,
            "contrastive": contrastive,
            "2d_to_3d": to_3d,
            "3d_to_2d": to_2d,
            "contrastive_accuracy": accuracy,
        }
        detached = {name: term.detach().float() for name, term in terms.items()}
        return total.mean() * batch.weight, detached


def adjacency(batch: MoleculeBatch) -> Tensor:
    """Return bond types as numbers, (num_pairs,): 0 no bond, 1 single, 2, 3, 4 aromatic, 5 other.

    The published network diffuses these as if they were continuous.
    """
    adj = torch.zeros(batch.pair_index.shape[1], device=batch.pos.device)
    return adj.index_copy_(0, batch.bond_pair, batch.edge_attr[::2, 0].float() + 1)


def antithetic_times(batch: MoleculeBatch, stream: Stream, num_timesteps: int) -> Tensor:
    """Draw the published antithetic times, (num_graphs,).

    The first half of the slot draws steps k of the grid, the second half takes
    num_timesteps - 1 - k; then t = k / num_timesteps, kept TIME_EPSILON away from zero.
    """
    half = batch.num_graphs // 2 + 1
    drawn = philox.words(batch.key, stream, batch.uid[:half])[:, 0]
    step = drawn * num_timesteps >> 32  # (half,) uniform in [0, num_timesteps)
    step = torch.cat([step, num_timesteps - 1 - step])[: batch.num_graphs]
    return step / num_timesteps * (1 - TIME_EPSILON) + TIME_EPSILON


def parameter_groups(model: MoleculeSDE) -> list[dict]:
    """Return the four optimizer groups, each with its `name` and learning rate `lr`."""
    optim = model.config.optim
    parts = {
        "encoder_2d": (model.encoder_2d, optim.scale_encoder_2d),
        "encoder_3d": (model.encoder_3d, optim.scale_encoder_3d),
        "score_2d_to_3d": (model.score_2d_to_3d, optim.scale_2d_to_3d),
        "score_3d_to_2d": (model.score_3d_to_2d, optim.scale_3d_to_2d),
    }
    return [
        {
            "name": name,
            "params": [p for p in part.parameters() if p.requires_grad],
            "lr": optim.lr * scale,
        }
        for name, (part, scale) in parts.items()
    ]
