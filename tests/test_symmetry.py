"""Symmetry of every network, and independence of a molecule from its batch-mates."""

import dataclasses

import pytest
import torch

from msde.batch import MoleculeBatch
from msde.codec import columns_from_records

TOLERANCE = 1e-4  # float32 through two dozen layers, relative to the largest value


def assert_close(ours, expected, tolerance=TOLERANCE):
    scale = expected.abs().max().clamp(min=1e-6)
    error = ((ours - expected).abs().max() / scale).item()
    assert error <= tolerance, f"relative error {error:.1e}"


@pytest.fixture
def rotation():
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    return q * q.det()  # a proper rotation


@pytest.fixture
def h(batch):
    return torch.randn(batch.num_atoms, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise(small_model, batch):
    return small_model.draw_noise(batch)


def with_pos(batch, pos):
    return dataclasses.replace(batch, pos=pos.contiguous())


def noised(model, batch, noise):
    mean, std = model.sde_pos.marginal_prob(batch.pos, noise.t_2d_to_3d[batch.batch])
    return mean + std.unsqueeze(-1) * noise.pos


def predict_topology(model, batch, noise, h):
    types = torch.nn.functional.one_hot(batch.x[:, 0], 119) + 0.3 * noise.types
    adj = 0.5 * noise.adj
    std = torch.full((batch.num_graphs,), 0.5)
    return model.score_3d_to_2d(types, adj, std, h, batch)


def reorder_atoms(batch, order):
    """Renumber atoms within molecules: atom k of the result is atom order[k]."""
    place = torch.argsort(order)

    def edges(index):
        return place[index]

    extended = edges(batch.extended_edge_index)
    extended = extended[:, torch.argsort(extended[1], stable=True)]
    in_degree = torch.bincount(extended[1], minlength=batch.num_atoms)
    bonds = edges(batch.edge_index)[:, ::2].sort(dim=0).values
    pair_number = {tuple(p): k for k, p in enumerate(batch.pair_index.T.tolist())}
    return dataclasses.replace(
        batch,
        z=batch.z[order],
        x=batch.x[order],
        cip=batch.cip[order],
        pos=batch.pos[order],
        edge_index=torch.stack([bonds, bonds.flip(0)], dim=-1).flatten(1),
        bond_pair=torch.tensor([pair_number[tuple(b)] for b in bonds.T.tolist()]).long(),
        extended_edge_index=extended,
        extended_ptr=torch.cat([torch.zeros(1, dtype=torch.int64), in_degree.cumsum(0)]),
    )


@pytest.fixture
def order(batch):
    generator = torch.Generator().manual_seed(2)
    parts = [
        first + torch.randperm(last - first, generator=generator)
        for first, last in zip(batch.ptr[:-1].tolist(), batch.ptr[1:].tolist(), strict=True)
    ]
    return torch.cat(parts)


def pairs_after(batch, order):
    """For each pair of the renumbered batch, the pair it was before."""
    number = {frozenset(p): k for k, p in enumerate(batch.pair_index.T.tolist())}
    renamed = order[batch.pair_index].T.tolist()
    return torch.tensor([number[frozenset(p)] for p in renamed])


def test_schnet_is_invariant(small_model, batch, rotation):
    h = small_model.encoder_3d(batch)
    moved = batch.pos @ rotation.T + torch.tensor([3.0, -1.0, 2.0])
    assert_close(small_model.encoder_3d(with_pos(batch, moved)), h)
    assert_close(small_model.encoder_3d(with_pos(batch, -batch.pos)), h)


def test_gin_does_not_see_positions(small_model, batch, rotation):
    h = small_model.encoder_2d(batch)
    moved = with_pos(batch, batch.pos @ rotation.T + 1)
    assert torch.equal(small_model.encoder_2d(moved), h)


def test_conformer_score_is_equivariant(small_model, batch, noise, h, rotation):
    pos_t = noised(small_model, batch, noise)
    predicted = small_model.score_2d_to_3d(pos_t, h, batch)
    turned = small_model.score_2d_to_3d(pos_t @ rotation.T, h, batch)
    assert predicted.abs().max() > 1e-3
    assert_close(turned, predicted @ rotation.T, 1e-3)


def test_conformer_score_is_reflection_antisymmetric(small_model, batch, noise, h):
    """Mirrored input gives a mirrored output but for the part along e2, which changes sign."""
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    pos_t = noised(small_model, batch, noise)
    predicted = small_model.score_2d_to_3d(pos_t, h, batch)
    mirrored = small_model.score_2d_to_3d(pos_t @ mirror, h, batch) @ mirror
    assert (mirrored - predicted).abs().max() > 1e-2 * predicted.abs().max()
    for readout in small_model.score_2d_to_3d.readouts:
        with torch.no_grad():  # leave out e2
            readout.output_weight[1] = 0
            readout.output_bias[1] = 0
    predicted = small_model.score_2d_to_3d(pos_t, h, batch)
    mirrored = small_model.score_2d_to_3d(pos_t @ mirror, h, batch) @ mirror
    # e3 = e1 x e2 is a true vector, so without e2 the network cannot tell mirror images apart.
    assert_close(mirrored, predicted, 1e-3)


def test_losses_are_invariant_under_rotation(small_model, batch, noise, rotation):
    _, terms = small_model(batch, noise)
    turned_noise = dataclasses.replace(noise, pos=noise.pos @ rotation.T)
    _, turned = small_model(with_pos(batch, batch.pos @ rotation.T), turned_noise)
    for name, term in terms.items():
        assert_close(turned[name], term, 1e-3)


def test_encoders_follow_renumbered_atoms(small_model, batch, order):
    renumbered = reorder_atoms(batch, order)
    renumbered.validate()
    for encoder in (small_model.encoder_2d, small_model.encoder_3d):
        assert_close(encoder(renumbered), encoder(batch)[order])


def test_scores_follow_renumbered_atoms(small_model, batch, noise, h, order):
    renumbered = reorder_atoms(batch, order)
    pos_t = noised(small_model, batch, noise)
    predicted = small_model.score_2d_to_3d(pos_t, h, batch)
    again = small_model.score_2d_to_3d(pos_t[order], h[order], renumbered)
    assert_close(again, predicted[order], 1e-3)

    types, adj = predict_topology(small_model, batch, noise, h)
    pairs = pairs_after(batch, order)
    moved = dataclasses.replace(noise, types=noise.types[order], adj=noise.adj[pairs])
    types_again, adj_again = predict_topology(small_model, renumbered, moved, h[order])
    assert_close(types_again, types[order])
    assert_close(adj_again, adj[pairs])


def test_a_molecule_does_not_depend_on_its_batch_mates(small_model, records, batch):
    """In evaluation mode, where BatchNorm uses its running statistics; order changes nothing."""
    _, together = small_model(batch)
    shuffled = [7, 2, 9, 0, 4]
    part = MoleculeBatch.from_columns(
        columns_from_records([records[k] for k in shuffled]), batch.key, batch.slot
    )
    same_times = small_model.draw_noise(part)
    whole = small_model.draw_noise(batch)
    assert torch.equal(same_times.pos[: len(records[7].z)], whole.pos[batch.batch == 7])
    # Antithetic times and negatives belong to the slot, so they are given.
    same_times = dataclasses.replace(
        same_times,
        t_2d_to_3d=whole.t_2d_to_3d[shuffled],
        t_3d_to_2d=whole.t_3d_to_2d[shuffled],
    )
    _, alone = small_model(part, same_times)
    for name in ("2d_to_3d", "3d_to_2d"):
        assert_close(alone[name], together[name][shuffled])


def test_pieces_of_a_salt_do_not_share_bonds_but_share_pairs(batch):
    salt = 3  # acetate and sodium
    atoms = torch.arange(batch.num_atoms)[batch.batch == salt]
    sodium = atoms[batch.z[atoms] == 11]
    assert not (batch.edge_index == sodium).any()
    assert not (batch.extended_edge_index == sodium).any()
    assert (batch.pair_index == sodium).any(0).sum() == len(atoms) - 1
