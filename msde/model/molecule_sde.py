"""MoleculeSDE: two encoders, two score networks and their joint loss (Liu et al. 2023).

The model does not depend on DeepSpeed: a plain PyTorch loop can train it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from msde.chem.vocabulary import ATOM_SIZES
from msde.config import Config, LossConfig
from msde.data.batch import MoleculeBatch
from msde.model import geometry
from msde.model.contrastive import OBJECTIVES
from msde.model.denoising import (
    adjacency_loss,
    atom_type_loss,
    bond_loss,
    hidden_type_loss,
    position_loss,
)
from msde.model.encoders import ENCODERS_3D, GIN
from msde.model.layers import Linear
from msde.model.noise import TIMES, Noise
from msde.model.score import BondScore, make_conformer_score, make_topology_score
from msde.model.score.bonds import NearPairs, hide_types
from msde.model.score.displacements import Displacements
from msde.model.sde import SDE, perturb
from msde.ops import normals, words
from msde.philox import Stream


class MoleculeSDE(nn.Module):
    """The joint model of Liu et al. (ICML 2023).

    loss = c_cl L_contrastive + c_23 L_2d_to_3d + c_32 (L_node + L_adj) / 2

    and, where it is asked for, c_displacements L_displacements, which is not theirs.
    """

    def __init__(self, config: Config) -> None:
        """Build the networks of `config.model`, with weights from torch's global generator."""
        super().__init__()
        model = config.model
        self.config = config
        dim = model.hidden_dim
        self.encoder_2d = GIN(dim, model.gin)
        self.encoder_3d = ENCODERS_3D[model.encoder_3d](dim, getattr(model, model.encoder_3d))
        self.score_2d_to_3d = make_conformer_score(self.encoder_2d.output_dim, model.conformer)
        self.score_3d_to_2d = make_topology_score(dim, model.topology)
        # The contrastive objective compares the two views, so they need one width.
        self.projection_2d: nn.Linear | None = None
        if self.encoder_2d.output_dim != dim:
            self.projection_2d = Linear(self.encoder_2d.output_dim, dim)
        self.objective = OBJECTIVES[config.loss.contrastive](config.loss)
        self.displacements: Displacements | None = None
        if config.loss.coefficient_displacements:
            self.displacements = Displacements(dim)

    @classmethod
    def from_seed(cls, config: Config) -> MoleculeSDE:
        """Build the model with weights that depend on `config.run.seed` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed % 2**63)
            return cls(config)

    def draw_noise(self, batch: MoleculeBatch) -> Noise:
        """Draw noise and times for a batch: functions of its key and of the molecules' uids."""
        key, loss = batch.key, self.config.loss
        times = TIMES[loss.times]
        atom = batch.atom_in_graph  # (num_atoms,)
        pair = torch.arange(batch.pair_index.shape[1], device=batch.ptr.device)
        pair = pair - batch.pair_ptr[batch.pair_batch]  # (num_pairs,) number within the molecule
        atom_uid, pair_uid = batch.uid[batch.batch], batch.uid[batch.pair_batch]
        pos = normals(key, Stream.POSITION_NOISE, atom_uid, atom, 3)  # (num_atoms, 3)
        topology = self.score_3d_to_2d
        adj = normals(key, Stream.BOND_NOISE, pair_uid, pair, topology.bond_channels)
        shifts = pos.new_zeros(0, 3)
        if topology.position_noise:
            share = words(key, Stream.SHIFT_STD, batch.uid) * 2.0**-32  # (num_graphs, 1)
            std = (topology.position_noise * share).to(pos)[batch.batch]  # (num_atoms, 1) A
            shifts = std * normals(key, Stream.SHIFTS, atom_uid, atom, 3)
        hidden = batch.uid.new_zeros(0, dtype=torch.bool)
        if topology.hidden_types:
            drawn = words(key, Stream.HIDDEN_TYPES, batch.uid)[:, 0]  # (num_graphs,) 32-bit words
            hidden = drawn < topology.hidden_types * 2**32
        displacements = pos.new_zeros(0, 3)
        if self.displacements is not None:
            drawn = normals(key, Stream.DISPLACEMENTS, atom_uid, atom, 3)
            displacements = geometry.centre(drawn, batch.batch, batch.atoms_per_graph)
        return Noise(
            t_2d_to_3d=times(batch, Stream.TIME_2D_TO_3D, loss.num_timesteps),
            t_3d_to_2d=times(batch, Stream.TIME_3D_TO_2D, loss.num_timesteps),
            pos=self.score_2d_to_3d.to_subspace(pos, batch),
            types=normals(key, Stream.ATOM_TYPE_NOISE, atom_uid, atom, topology.type_channels),
            adj=adj.squeeze(-1),
            negatives_of_2d=self.objective.draw(batch, Stream.NEGATIVES_OF_2D),
            negatives_of_3d=self.objective.draw(batch, Stream.NEGATIVES_OF_3D),
            shifts=shifts,
            displacements=displacements,
            hidden=hidden,
        )

    def contrastive(
        self, h_2d: Tensor, h_3d: Tensor, batch: MoleculeBatch, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return the contrastive loss and accuracy, averaged over both directions.

        Args:
            h_2d: (num_atoms, encoder_2d.output_dim) representations of the topology.
            h_3d: (num_atoms, hidden_dim) representations of the geometry.

        Returns:
            Two tensors (num_valid,), one value for each molecule that is no padding.
        """
        if self.objective.level == "graph":
            h_2d = batch.valid(self.encoder_2d.readout(h_2d, batch))
            h_3d = batch.valid(self.encoder_3d.readout(h_3d, batch))
        if self.projection_2d is not None:
            h_2d = self.projection_2d(h_2d)
        forward = self.objective(h_2d, h_3d, noise.negatives_of_2d, batch)
        backward = self.objective(h_3d, h_2d, noise.negatives_of_3d, batch)
        loss, accuracy = ((one + other) / 2 for one, other in zip(forward, backward, strict=True))
        return batch.valid(loss), batch.valid(accuracy)

    def loss_2d_to_3d(self, h_2d: Tensor, batch: MoleculeBatch, noise: Noise) -> Tensor:
        """Return the denoising loss of positions given `h_2d`, (num_valid,).

        Args:
            h_2d: (num_atoms, encoder_2d.output_dim) representations of the topology.
        """
        score, t = self.score_2d_to_3d, noise.t_2d_to_3d
        pos_t = perturb(score.sde, batch.pos, t[batch.batch], noise.pos)  # (num_atoms, 3)
        noise_pred = score(pos_t, t, h_2d, batch)  # (num_atoms, 3)
        target = score.target(pos_t, t, noise.pos, batch)  # (num_atoms, 3)
        loss = score.weigh(position_loss(noise_pred, target, batch), t)  # (num_graphs,)
        return batch.valid(loss * self._anneal(score.sde, t))

    def loss_3d_to_2d(
        self, h_3d: Tensor, batch: MoleculeBatch, noise: Noise, types_of: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the denoising losses of atom types and of adjacency given `h_3d`.

        Args:
            h_3d: (num_atoms, hidden_dim) representations of the geometry.
            types_of: (num_atoms,) codes of the atom types, by default those of the batch, which
                may hide them.

        Returns:
            Two tensors (num_valid,).
        """
        score, t = self.score_3d_to_2d, noise.t_3d_to_2d
        types_of = batch.x[:, 0] if types_of is None else types_of
        if isinstance(score, BondScore):
            return self._losses_of_bonds(score, h_3d, batch, noise, types_of)
        types = nn.functional.one_hot(types_of, ATOM_SIZES[0])  # (num_atoms, 119)
        types = types.to(noise.types.dtype)
        types_t = perturb(score.sde, types, t[batch.batch], noise.types)  # (num_atoms, 119)
        adj = adjacency(batch).to(noise.adj.dtype)  # (num_pairs,)
        adj_t = perturb(score.sde, adj, t[batch.pair_batch], noise.adj)  # (num_pairs,)
        types_pred, adj_pred = score(types_t, adj_t, t, h_3d, batch)
        weight = self._anneal(score.sde, t)  # (num_graphs,)
        return (
            batch.valid(atom_type_loss(types_pred, noise.types, batch) * weight),
            batch.valid(adjacency_loss(adj_pred, noise.adj, batch) * weight),
        )

    def _losses_of_bonds(
        self,
        score: BondScore,
        h_3d: Tensor,
        batch: MoleculeBatch,
        noise: Noise,
        types_of: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies of hidden atom types and of bonds, (num_valid,) each."""
        near, t = NearPairs.of(batch), noise.t_3d_to_2d
        classes = adjacency(batch).long()[near.pair]  # (num_near,)
        graph = batch.pair_batch[near.pair]
        one_hot = nn.functional.one_hot(classes, score.bond_channels + 1)[:, :-1]
        noise_of_bonds = noise.adj[near.pair]
        bonds_t = perturb(score.sde, one_hot.to(noise.adj.dtype), t[graph], noise_of_bonds)
        logits, of_types = score(bonds_t, t, h_3d, batch, near)
        loss = bond_loss(logits, classes, graph, batch) * self._anneal(score.sde, t)
        loss_of_types = torch.zeros_like(t)
        if of_types is not None:
            loss_of_types = hidden_type_loss(of_types, types_of, noise.hidden, batch)
        return batch.valid(loss_of_types), batch.valid(loss)

    def loss_displacements(
        self, network: Displacements, batch: MoleculeBatch, noise: Noise
    ) -> Tensor:
        """Return the loss of finding displacements from the displaced geometry, (num_valid,)."""
        std = self.config.loss.displacement_std
        pos = batch.pos + std * noise.displacements.to(batch.pos)
        found = network(self.encoder_3d(batch, pos), pos, batch)
        return batch.valid(position_loss(found, noise.displacements, batch))

    def _anneal(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the weights std^anneal_power of the score losses at times t, (num_graphs,)."""
        return sde.marginal_prob(t, t)[1] ** self.config.loss.anneal_power

    def forward(
        self, batch: MoleculeBatch, noise: Noise | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the slot's weighted mean loss and the named terms, one value a molecule.

        Args:
            noise: by default what `draw_noise` draws.

        Returns:
            The scalar to differentiate, and detached terms in float32, one value for each molecule
            that counts, named by `names_of_terms`; behind them those of NAMES_OF_TIMES.
        """
        noise = self.draw_noise(batch) if noise is None else noise
        terms = self.terms(batch, noise)
        detached = {name: term.detach().float() for name, term in terms.items()}
        detached |= {name: batch.valid(getattr(noise, name)) for name in NAMES_OF_TIMES}
        return terms["total"].mean() * batch.weight, detached

    def terms(self, batch: MoleculeBatch, noise: Noise) -> dict[str, Tensor]:
        """Return the terms that `forward` names, to be differentiated, in their order.

        A term whose coefficient is zero is not computed: it is zero.
        """
        weights = self.config.loss
        zero = torch.zeros(batch.num_graphs - batch.num_padding, device=batch.pos.device)
        contrastive = accuracy = to_3d = of_types = of_adj = zero
        seen = batch  # what bonds are found from
        if len(noise.shifts):
            seen = dataclasses.replace(batch, pos=batch.pos + noise.shifts)
        if len(noise.hidden):
            seen = hide_types(seen, noise.hidden)
        is_shared = seen is batch
        # Autocast is for the score networks: bfloat16 in the encoders and in the contrastive logits
        # moves the gradient by 15 %, in the score networks alone by less than 0.1 %.
        with torch.autocast(batch.pos.device.type, enabled=False):
            if weights.coefficient_contrastive or weights.coefficient_2d_to_3d:
                h_2d = self.encoder_2d(batch)  # (num_atoms, encoder_2d.output_dim)
            if weights.coefficient_contrastive or (weights.coefficient_3d_to_2d and is_shared):
                h_3d = self.encoder_3d(batch)  # (num_atoms, hidden_dim)
            if weights.coefficient_contrastive:
                contrastive, accuracy = self.contrastive(h_2d, h_3d, batch, noise)
            if weights.coefficient_3d_to_2d:
                h_seen = h_3d if is_shared else self.encoder_3d(seen)
            if self.displacements is not None:
                displacements = self.loss_displacements(self.displacements, batch, noise)
        if weights.coefficient_2d_to_3d:
            to_3d = self.loss_2d_to_3d(h_2d, batch, noise)
        if weights.coefficient_3d_to_2d:
            of_types, of_adj = self.loss_3d_to_2d(h_seen, seen, noise, batch.x[:, 0])
        to_2d = (of_types + of_adj) / 2
        total = (
            weights.coefficient_contrastive * contrastive
            + weights.coefficient_2d_to_3d * to_3d
            + weights.coefficient_3d_to_2d * to_2d
        )  # (molecules that count,)
        losses = {"contrastive": contrastive, "2d_to_3d": to_3d, "3d_to_2d": to_2d}
        if self.displacements is not None:
            losses["displacements"] = displacements
            total = total + weights.coefficient_displacements * displacements
        return {"total": total, **losses, "contrastive_accuracy": accuracy}


# Fields of `Noise`.
NAMES_OF_TIMES = ("t_2d_to_3d", "t_3d_to_2d")


def names_of_terms(loss: LossConfig) -> tuple[str, ...]:
    """Return the names of the model's terms: the total loss, the losses in it, the accuracy."""
    displacements = ("displacements",) if loss.coefficient_displacements else ()
    losses = ("contrastive", "2d_to_3d", "3d_to_2d", *displacements)
    return ("total", *losses, "contrastive_accuracy")


def adjacency(batch: MoleculeBatch) -> Tensor:
    """Return the type of each pair's bond, (num_pairs,) float32, which diffuses as a real number.

    0 is no bond, 1 single, 2 double, 3 triple, 4 aromatic and 5 any other.
    """
    adj = torch.zeros(batch.pair_index.shape[1], device=batch.pos.device)  # (num_pairs,)
    return adj.index_copy_(0, batch.bond_pair, batch.edge_attr[::2, 0].float() + 1)
