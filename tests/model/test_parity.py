"""Outputs and gradients equal those of the published implementation.

The arrays under tests/parity were produced by it; MSDE_PARITY_DIR names another folder of the
same layout, with other sizes and other molecules.
"""

import numpy as np
import pytest
import torch

from fixtures.parity import TOLERANCE, arrays
from msde.checkpoints import published
from msde.config import SDEConfig, make_config
from msde.data.batch import MoleculeBatch
from msde.data.ragged import complete_pairs
from msde.model import MoleculeSDE, Noise, adjacency
from msde.model.contrastive import ebm_nce, info_nce
from msde.model.sde import make_sde, per_row, perturb, score_from_noise

NORM_TOLERANCE = 3e-4  # gradients through the edge BatchNorm: the published code's own error
# Settings that leave no trace in the arrays.
SDES = {
    ("score_2d_to_3d", "VE"): SDEConfig("VE", sigma_min=0.2, sigma_max=1.0),
    ("score_2d_to_3d", "VP"): SDEConfig("VP", beta_min=0.2, beta_max=1.0),
    ("score_3d_to_2d", "VE"): SDEConfig("VE", sigma_min=0.1, sigma_max=1.0),
    ("score_3d_to_2d", "VP"): SDEConfig("VP", beta_min=0.2, beta_max=1.0),
}


def assert_close(ours, theirs, tolerance=TOLERANCE):
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error <= tolerance, f"relative error {error:.2e}"


def make_model(part, data, sde=None):
    """Build the whole model at the sizes of one part's arrays and load them into it."""
    config = make_config("paper")
    state = {k.removeprefix("param/"): v for k, v in data.items() if k.startswith("param/")}
    published.infer_sizes(part, state, config.model)
    if sde is not None:
        config.model.conformer.sde = config.model.topology.sde = sde
    model = MoleculeSDE.from_seed(config).eval()
    module = getattr(model, part)
    module.load_state_dict(published.from_published(part, state, module.state_dict()))
    return model


def assert_gradients(model, part, data, tolerance=TOLERANCE):
    """Compare every gradient in the file with the part of ours that it belongs to."""
    theirs = {key.removeprefix("grad/"): data[key] for key in data if key.startswith("grad/")}
    compared = set()
    for name, parameter in getattr(model, part).named_parameters():
        for piece in published.pieces(part, name, parameter):
            if piece.published in theirs:
                assert_close(piece.of(parameter.grad), theirs[piece.published], tolerance)
                compared.add(piece.published)
    assert theirs and compared == set(theirs)


@pytest.fixture(scope="module")
def batch():
    data = arrays("batch")
    ptr = np.concatenate([[0], np.bincount(data["batch"]).cumsum()])
    counts = torch.from_numpy(np.diff(ptr))
    num_pairs = int((counts * (counts - 1) // 2).sum())
    pair_index = complete_pairs(counts, int(ptr[-1]), num_pairs)
    number = {tuple(p): k for k, p in enumerate(pair_index.T.tolist())}
    edges, attributes = data["edge_index"], data["edge_attr"]
    forward = edges[0] < edges[1]
    bonds, kinds = edges[:, forward], attributes[forward]
    extended = data["extended_edge_index"]
    extended = extended[:, torch.argsort(extended[1], stable=True)]
    in_degree = torch.bincount(extended[1], minlength=int(ptr[-1]))
    atoms = np.diff(ptr)
    made = MoleculeBatch(
        uid=torch.arange(len(atoms)),
        z=data["x"][:, 0] + 1,
        x=data["x"],
        cip=torch.zeros_like(data["batch"]),
        pos=data["pos"],
        batch=data["batch"],
        ptr=torch.from_numpy(ptr),
        edge_index=torch.stack([bonds, bonds.flip(0)], dim=-1).flatten(1),
        edge_attr=kinds.repeat_interleave(2, dim=0),
        bond_pair=torch.tensor([number[tuple(b)] for b in bonds.T.tolist()]),
        extended_edge_index=extended,
        extended_ptr=torch.cat([torch.zeros(1, dtype=torch.int64), in_degree.cumsum(0)]),
        pair_index=pair_index,
        pair_ptr=torch.from_numpy(np.concatenate([[0], (atoms * (atoms - 1) // 2).cumsum()])),
        max_num_atoms=int(atoms.max()),
    )
    made.validate()
    return made


def make_noise(batch, **given):
    """Noise with zeros in the fields that are not given."""
    atoms = torch.zeros(batch.num_atoms, dtype=torch.int64)
    fields = {
        "t_2d_to_3d": torch.full((batch.num_graphs,), 0.5),
        "t_3d_to_2d": torch.full((batch.num_graphs,), 0.5),
        "pos": torch.zeros(batch.num_atoms, 3),
        "types": torch.zeros(batch.num_atoms, 119),
        "adj": torch.zeros(batch.pair_index.shape[1]),
        "negatives_of_2d": atoms,
        "negatives_of_3d": atoms,
    }
    return Noise(**(fields | given))


def test_gin(batch):
    data = arrays("gin")
    model = make_model("encoder_2d", data)
    h = model.encoder_2d(batch)
    assert_close(h, data["h_eval"])
    h.square().mean().backward()
    assert_gradients(model, "encoder_2d", data)


def test_gin_with_batch_statistics(batch):
    data = arrays("gin")
    model = make_model("encoder_2d", data).train()
    assert_close(model.encoder_2d(batch), data["h_batchstats"])


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_3d_encoder(batch, name):
    data = arrays(name)
    model = make_model("encoder_3d", data)
    assert model.config.model.encoder_3d == name
    pos = batch.pos.clone().requires_grad_()
    h = model.encoder_3d(batch, pos)
    assert_close(h, data["h"])
    assert_close(model.encoder_3d.readout(h, batch), data["graph_repr"])
    (gradient,) = torch.autograd.grad(h.square().mean(), pos)
    assert_close(gradient, data["grad_pos"])
    assert_close(model.encoder_3d(batch), data["h"])  # SchNet: interpolated filters


@pytest.mark.parametrize("kind", ["VE", "VP"])
@pytest.mark.parametrize("edges", ["frame", "frame_distance"])
def test_score_2d_to_3d(batch, edges, kind):
    data = arrays(f"score_2d_to_3d_{edges}_{kind}")
    sde = SDES["score_2d_to_3d", kind]
    model = make_model("score_2d_to_3d", data, sde)
    assert model.config.model.conformer.edges == edges
    t = data["t"][batch.batch]
    std = make_sde(sde).marginal_prob(batch.pos, t)[1]
    pos_t = perturb(make_sde(sde), batch.pos, t, data["noise"])
    assert_close(std, data["std"])
    assert_close(pos_t, data["pos_t"])
    noise_pred = model.score_2d_to_3d(pos_t, data["t"], data["h_2d"], batch)
    assert_close(noise_pred, data["noise_pred"])
    assert_close(score_from_noise(noise_pred, std), data["score"])

    noise = make_noise(batch, pos=data["noise"], t_2d_to_3d=data["t"])
    loss = model.loss_2d_to_3d(data["h_2d"], batch, noise).mean()
    assert_close(loss, data["loss"])
    loss.backward()
    assert_gradients(model, "score_2d_to_3d", data, NORM_TOLERANCE)


@pytest.mark.parametrize("kind", ["VE", "VP"])
def test_score_3d_to_2d(batch, kind):
    data = arrays(f"score_3d_to_2d_{kind}")
    sde = SDES["score_3d_to_2d", kind]
    model = make_model("score_3d_to_2d", data, sde)
    i, j = batch.pair_index
    row = torch.arange(batch.num_atoms) - batch.ptr[batch.batch]
    atom_at = (batch.batch, row)
    pair_at = (batch.pair_batch, row[i], row[j])
    padding = data["node_mask"].shape[1]

    noise = make_noise(
        batch,
        types=data["noise_x"][atom_at],
        adj=data["noise_adj"][pair_at],
        t_3d_to_2d=data["t"],
    )
    mean, std = make_sde(sde).marginal_prob(adjacency(batch), data["t"][batch.pair_batch])
    assert_close(mean + std * noise.adj, data["adj_t"][pair_at])

    of_types, of_adj = model.loss_3d_to_2d(data["h_3d"], batch, noise)
    # Published: means over the padded tensors, where padding and diagonals count as zero loss.
    atoms = batch.atoms_per_graph
    loss_x = (of_types * atoms / padding).mean()
    loss_adj = (of_adj * atoms * (atoms - 1) / padding**2).mean()
    assert_close(loss_x, data["loss_x"])
    assert_close(loss_adj, data["loss_adj"])
    (loss_x + loss_adj).backward()
    assert_gradients(model, "score_3d_to_2d", data)


@pytest.mark.parametrize("kind", ["VE", "VP"])
def test_network_3d_to_2d(batch, kind):
    data = arrays(f"score_3d_to_2d_{kind}")
    sde = SDES["score_3d_to_2d", kind]
    score = make_model("score_3d_to_2d", data, sde).score_3d_to_2d
    row = torch.arange(batch.num_atoms) - batch.ptr[batch.batch]
    atom_at = (batch.batch, row)
    i, j = batch.pair_index
    pair_at = (batch.pair_batch, row[i], row[j])
    types = torch.nn.functional.one_hot(batch.x[:, 0], 119).float()
    mean, std = make_sde(sde).marginal_prob(types, data["t"][batch.batch])
    types_t = mean + per_row(std, mean) * data["noise_x"][atom_at]
    node_input = score.geometry_embedding(data["h_3d"]) + score.atom_type_embedding(types_t)
    assert_close(node_input, data["node_input"][atom_at])

    score.divide_by_std = False
    adj_t = data["adj_t"][pair_at]
    types_out, adj_out = score(types_t, adj_t, data["t"], data["h_3d"], batch)
    assert_close(types_out, data["net_out_x"][atom_at])
    assert_close(adj_out, data["net_out_adj"][pair_at])


def scaled_products(data, other):
    return (data["X"] * other).sum(-1) / data["T"]


@pytest.mark.parametrize(
    ("name", "negatives"),
    [
        ("EBM_node_dot_prod", lambda data: data["EBM_node_dot_prod/perm"]),
        ("EBM_dot_prod", lambda data: torch.arange(len(data["Y"])).roll(-1)),
    ],
)
def test_ebm_nce(name, negatives):
    data = arrays("contrastive")
    positive = scaled_products(data, data["Y"])
    negative = scaled_products(data, data["Y"][negatives(data)]).unsqueeze(-1)
    loss, accuracy = ebm_nce(positive, negative)
    assert_close(loss.mean(), data[f"{name}/loss"])
    assert_close(accuracy.mean(), data[f"{name}/acc"])


def test_info_nce():
    data = arrays("contrastive")
    logits = data["X"] @ data["Y"].T / data["T"]
    loss, accuracy = info_nce(logits, torch.arange(len(logits)))
    assert_close(loss.mean(), data["InfoNCE_dot_prod/loss"])
    assert_close(accuracy.mean(), data["InfoNCE_dot_prod/acc"])


def test_contrastive_of_the_model(batch):
    data = arrays("contrastive")
    overrides = [f"loss.temperature={float(data['T'])}"]
    model = MoleculeSDE.from_seed(make_config("paper", overrides=overrides))
    negative = data["EBM_node_dot_prod/perm"]
    noise = make_noise(batch, negatives_of_2d=negative, negatives_of_3d=negative)
    share = batch.atoms_per_graph / batch.num_atoms  # published: one mean over all atoms
    one_way = model.objective(data["X"], data["Y"], negative, batch)
    assert_close((one_way[0] * share).sum(), data["EBM_node_dot_prod/loss"])
    other_way = model.objective(data["Y"], data["X"], negative, batch)
    both = model.contrastive(data["X"], data["Y"], batch, noise)
    assert_close(both[0], (one_way[0] + other_way[0]) / 2)


def test_paper_preset_has_the_published_number_of_parameters():
    model = MoleculeSDE.from_seed(make_config("paper"))
    assert sum(p.numel() for p in model.parameters()) == 4_668_591
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == 64
