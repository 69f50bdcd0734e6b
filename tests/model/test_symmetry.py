import dataclasses

import pytest
import torch

from fixtures.models import KINDS, make_small
from fixtures.molecules import batch_of
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.model.sde import perturb

# Relative to the largest value, through two dozen layers; the edge frames amplify rounding.
TOLERANCE = {torch.float32: (1e-4, 2e-3), torch.float64: (1e-11, 1e-8)}
ENCODERS_3D = ["paper", "paper, PaiNN", "base, PaiNN, frame"]


def assert_close(ours, expected, through_frames=False):
    scale = expected.abs().max().clamp(min=1e-6)
    error = ((ours - expected).abs().max() / scale).item()
    assert error <= TOLERANCE[expected.dtype][through_frames], f"relative error {error:.1e}"


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def molecules(batch, dtype):
    return dataclasses.replace(batch, pos=batch.pos.to(dtype))


@pytest.fixture(params=KINDS)
def model(request, dtype):
    return make_small(request.param).to(dtype)


@pytest.fixture
def corrected(dtype):
    return make_small("base").to(dtype)


@pytest.fixture
def rotation(dtype):
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=dtype, generator=generator))
    return q * q.det()  # a proper rotation


def with_pos(batch, pos):
    return dataclasses.replace(batch, pos=pos.contiguous())


def draw(model, batch, dtype):
    """Noise and times in the model's precision."""
    noise = model.draw_noise(batch)
    fields = dataclasses.fields(noise)
    values = {field.name: getattr(noise, field.name) for field in fields}
    return type(noise)(
        **{k: v.to(dtype) if v.is_floating_point() else v for k, v in values.items()}
    )


def noised(model, batch, noise):
    t = noise.t_2d_to_3d[batch.batch]
    return perturb(model.score_2d_to_3d.sde, batch.pos, t, noise.pos)


def predict_positions(model, pos_t, noise, h_2d, batch):
    return model.score_2d_to_3d(pos_t, noise.t_2d_to_3d, h_2d, batch)


def predict_topology(model, batch, noise, h_3d):
    types = torch.nn.functional.one_hot(batch.x[:, 0], 119) + 0.3 * noise.types
    return model.score_3d_to_2d(types, 0.5 * noise.adj, noise.t_3d_to_2d, h_3d, batch)


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


@pytest.mark.parametrize("kind", ENCODERS_3D)
def test_3d_encoders_are_invariant(kind, molecules, rotation, dtype):
    encoder = make_small(kind).to(dtype).encoder_3d
    h = encoder(molecules)
    moved = molecules.pos @ rotation.T + torch.tensor([3.0, -1.0, 2.0])
    assert_close(encoder(with_pos(molecules, moved)), h)
    assert_close(encoder(with_pos(molecules, -molecules.pos)), h)


def test_2d_encoder_does_not_see_positions(model, molecules, rotation):
    h = model.encoder_2d(molecules)
    moved = with_pos(molecules, molecules.pos @ rotation.T + 1)
    assert torch.equal(model.encoder_2d(moved), h)


def test_conformer_score_is_equivariant_under_rotation(model, molecules, rotation, dtype):
    noise, h = draw(model, molecules, dtype), model.encoder_2d(molecules)
    pos_t = noised(model, molecules, noise)
    predicted = predict_positions(model, pos_t, noise, h, molecules)
    turned = predict_positions(model, pos_t @ rotation.T, noise, h, molecules)
    assert predicted.abs().max() > 1e-3
    assert_close(turned, predicted @ rotation.T, through_frames=True)


def test_conformer_score_of_base_is_invariant_under_translation(corrected, molecules, dtype):
    noise, h = draw(corrected, molecules, dtype), corrected.encoder_2d(molecules)
    pos_t = noised(corrected, molecules, noise)
    # From a seed: rounding through the frame of two atoms is far from even between shifts.
    generator = torch.Generator().manual_seed(4)
    shift = torch.randn(molecules.num_graphs, 3, dtype=dtype, generator=generator)[molecules.batch]
    predicted = predict_positions(corrected, pos_t, noise, h, molecules)
    moved = predict_positions(corrected, pos_t + shift, noise, h, molecules)
    assert_close(moved, predicted, through_frames=True)
    totals = torch.zeros(molecules.num_graphs, 3, dtype=dtype).index_add(
        0, molecules.batch, predicted
    )
    assert totals.abs().max() < 1e-4 * predicted.abs().max()


def test_losses_of_base_are_invariant_under_translation_of_the_data(corrected, molecules, dtype):
    noise = draw(corrected, molecules, dtype)
    _, terms = corrected(molecules, noise)
    _, moved = corrected(with_pos(molecules, molecules.pos + 2.5), noise)
    for name, term in terms.items():
        assert torch.allclose(moved[name], term, rtol=2e-3), name


def test_the_published_conformer_score_is_not_invariant_under_translation(molecules, dtype):
    model = make_small("paper").to(dtype)
    noise, h = draw(model, molecules, dtype), model.encoder_2d(molecules)
    pos_t = noised(model, molecules, noise)
    predicted = predict_positions(model, pos_t, noise, h, molecules)
    moved = predict_positions(model, pos_t + 2.5, noise, h, molecules)
    assert (moved - predicted).abs().max() > 0.05 * predicted.abs().max()


MIRROR = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))


def flipped_labels(batch):
    """The same molecules with mirrored stereocentres."""
    flipped = torch.tensor([0, 2, 1, 3, 4])  # of the tags CW and CCW, and of the labels R and S
    x = batch.x.clone()
    x[:, 1] = flipped[x[:, 1]]
    return dataclasses.replace(batch, x=x, cip=flipped[batch.cip])


def test_mirrored_labels_mirror_the_prediction_of_all_pairs(molecules, dtype):
    model = make_small("base, all pairs").to(dtype)
    for name, p in model.named_parameters():  # so that stereocentres move atoms, too
        if name.endswith("coefficients.layers.1.weight"):
            torch.nn.init.normal_(p, std=0.3)
    mirror, flipped = MIRROR.to(dtype), flipped_labels(molecules)
    assert (flipped.x != molecules.x).any()
    noise, h = draw(model, molecules, dtype), model.encoder_2d(molecules)
    assert torch.equal(model.encoder_2d(flipped), h)
    pos_t = noised(model, molecules, noise)
    predicted = predict_positions(model, pos_t, noise, h, molecules)
    assert_close(predict_positions(model, pos_t @ mirror, noise, h, flipped), predicted @ mirror)
    without = predict_positions(model, pos_t @ mirror, noise, h, molecules) @ mirror
    labelled = molecules.batch[flipped.x[:, 1] != molecules.x[:, 1]].unique()
    for graph in range(molecules.num_graphs):
        of_graph = molecules.batch == graph
        difference = (without - predicted)[of_graph].abs().max()
        scale = predicted[of_graph].abs().max()
        assert (difference > 1e-3 * scale) == (graph in labelled), graph


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "pairs" not in kind])
def test_reflection_flips_exactly_the_pseudo_vector_part(kind, molecules, dtype):
    """f = v + p, with p the part along e2 = x_i x x_j: then f(Mx) = M (v(x) - p(x))."""
    model = make_small(kind).to(dtype)
    mirror = MIRROR.to(dtype)
    noise, h = draw(model, molecules, dtype), model.encoder_2d(molecules)
    pos_t = noised(model, molecules, noise)
    whole = predict_positions(model, pos_t, noise, h, molecules)
    mirrored = predict_positions(model, pos_t @ mirror, noise, h, molecules)
    for readout in model.score_2d_to_3d.readouts:
        with torch.no_grad():
            readout.output_weight[1] = 0
            readout.output_bias[1] = 0
    vector = predict_positions(model, pos_t, noise, h, molecules)
    pseudo = whole - vector
    assert pseudo.abs().max() > 1e-2 * whole.abs().max()
    assert_close(mirrored, (vector - pseudo) @ mirror, through_frames=True)


def test_losses_are_invariant_under_rotation(model, molecules, rotation, dtype):
    noise = draw(model, molecules, dtype)
    _, terms = model(molecules, noise)
    turned_noise = dataclasses.replace(noise, pos=noise.pos @ rotation.T)
    _, turned = model(with_pos(molecules, molecules.pos @ rotation.T), turned_noise)
    for name, term in terms.items():  # reported in float32
        assert torch.allclose(turned[name], term, rtol=2e-3), name


def test_encoders_follow_renumbered_atoms(model, molecules, order):
    renumbered = reorder_atoms(molecules, order)
    for encoder in (model.encoder_2d, model.encoder_3d):
        assert_close(encoder(renumbered), encoder(molecules)[order])


def test_scores_follow_renumbered_atoms(model, molecules, order, dtype):
    renumbered = reorder_atoms(molecules, order)
    noise, h_2d = draw(model, molecules, dtype), model.encoder_2d(molecules)
    pos_t = noised(model, molecules, noise)
    predicted = predict_positions(model, pos_t, noise, h_2d, molecules)
    again = predict_positions(model, pos_t[order], noise, h_2d[order], renumbered)
    assert_close(again, predicted[order], through_frames=True)

    h_3d = model.encoder_3d(molecules)
    types, adj = predict_topology(model, molecules, noise, h_3d)
    pairs = pairs_after(molecules, order)
    moved = dataclasses.replace(noise, types=noise.types[order], adj=noise.adj[pairs])
    types_again, adj_again = predict_topology(model, renumbered, moved, h_3d[order])
    assert_close(types_again, types[order])
    assert_close(adj_again, adj[pairs])


def test_a_molecule_does_not_depend_on_its_batch_mates(model, molecules, records, dtype):
    """In evaluation mode, where BatchNorm uses its running statistics; order changes nothing."""
    shuffled = [7, 2, 9, 0, 4]
    columns = columns_from_records([records[k] for k in shuffled])
    part = MoleculeBatch.from_columns(columns, molecules.key, molecules.slot)
    part = with_pos(part, part.pos.to(dtype))
    whole, noise = draw(model, molecules, dtype), draw(model, part, dtype)
    atoms = torch.cat([torch.nonzero(molecules.batch == k).flatten() for k in shuffled])
    assert torch.allclose(noise.pos, whole.pos[atoms], atol=1e-6)
    for encoder in (model.encoder_2d, model.encoder_3d):
        assert_close(encoder(part), encoder(molecules)[atoms])
    # Times may be paired within the slot, and negatives are its atoms: those are given.
    noise = dataclasses.replace(
        noise,
        t_2d_to_3d=whole.t_2d_to_3d[shuffled],
        t_3d_to_2d=whole.t_3d_to_2d[shuffled],
    )
    _, together = model(molecules, whole)
    _, alone = model(part, noise)
    for name in ("2d_to_3d", "3d_to_2d"):
        assert torch.allclose(alone[name], together[name][shuffled], rtol=2e-3), name


def test_no_gradient_leaks_between_molecules(model, molecules, dtype):
    noise = draw(model, molecules, dtype)
    chosen = 7
    outside = molecules.batch != chosen
    h_2d = model.encoder_2d(molecules).detach().requires_grad_()
    pos = molecules.pos.clone().requires_grad_()
    moved = with_pos(molecules, pos)
    h_3d = model.encoder_3d(molecules, pos)
    model.score_2d_to_3d.requires_grad_(False)
    of_chosen = [
        model.loss_2d_to_3d(h_2d, moved, noise)[chosen],
        sum(model.loss_3d_to_2d(h_3d, moved, noise))[chosen],
        h_3d[molecules.batch == chosen].sum(),
    ]
    gradients = torch.autograd.grad(sum(of_chosen), [h_2d, pos])
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient[outside] == 0).all() and (gradient[~outside] != 0).any()


@pytest.mark.parametrize("smiles", ["O=C=O", "C#C", "CO"])
def test_collinear_molecules_keep_the_symmetry_in_base(smiles, rotation, dtype, corrected):
    """Their second and third frame vectors are undetermined, and so must not show."""
    molecule = batch_of(smiles)
    axis = torch.linspace(-1, 1, molecule.num_atoms).to(dtype).unsqueeze(-1)
    pos_t = axis * torch.tensor([0.3, -0.7, 0.5], dtype=dtype)
    h = corrected.encoder_2d(molecule)
    t = torch.full((1,), 0.3, dtype=dtype)
    predicted = corrected.score_2d_to_3d(pos_t, t, h, molecule)
    turned = corrected.score_2d_to_3d(pos_t @ rotation.T, t, h, molecule)
    assert (turned - predicted @ rotation.T).abs().max() < 1e-2 * predicted.abs().max()


def test_pieces_of_a_salt_do_not_share_bonds_but_share_pairs(batch):
    salt = 3  # acetate and sodium
    atoms = torch.arange(batch.num_atoms)[batch.batch == salt]
    sodium = atoms[batch.z[atoms] == 11]
    assert not (batch.edge_index == sodium).any()
    assert not (batch.extended_edge_index == sodium).any()
    assert (batch.pair_index == sodium).any(0).sum() == len(atoms) - 1
