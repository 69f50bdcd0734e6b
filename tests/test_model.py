import dataclasses

import pytest
import torch
from conftest import make_record

from msde.batch import MoleculeBatch
from msde.codec import columns_from_records
from msde.config import make_config
from msde.model import MoleculeSDE, adjacency, antithetic_times, parameter_groups
from msde.philox import Key, Stream


@pytest.fixture
def model():
    return MoleculeSDE.from_seed(make_config("paper", overrides=["model.hidden_dim=32"])).train()


def test_loss_is_the_weighted_mean_of_the_named_terms(small_model, batch):
    batch = dataclasses.replace(batch, weight=0.7)
    loss, terms = small_model(batch)
    parts = terms["contrastive"] + terms["2d_to_3d"] + terms["3d_to_2d"]
    assert torch.allclose(terms["total"], parts)
    assert torch.isclose(loss, 0.7 * terms["total"].mean())
    assert all(term.shape == (batch.num_graphs,) for term in terms.values())


@pytest.mark.parametrize("kind", ["VE", "VP"])
def test_every_parameter_gets_a_gradient_but_the_unused_branch(kind, batch):
    overrides = ["model.hidden_dim=32"]
    overrides += [f"model.{score}.sde.kind={kind}" for score in ("conformer", "topology")]
    model = MoleculeSDE.from_seed(make_config("paper", overrides=overrides)).train()
    loss, _ = model(batch)
    assert loss.isfinite()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(name.startswith("score_3d_to_2d.edge_score.layers.3.") for name in without)
    unused = sum(model.get_parameter(name).numel() for name in without)
    paper = MoleculeSDE.from_seed(make_config("paper"))
    assert sum(paper.get_parameter(name).numel() for name in without) == 4512
    assert unused == 4512  # the width of the last layer does not depend on hidden_dim
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_four_groups_with_the_published_scales(small_model):
    groups = parameter_groups(small_model)
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1e-5, 1e-4, 1e-5])
    grouped = [p for group in groups for p in group["params"]]
    assert len(set(map(id, grouped))) == len(grouped)
    assert len(grouped) == sum(p.requires_grad for p in small_model.parameters())


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    one, again, other = (
        MoleculeSDE.from_seed(
            make_config("paper", overrides=["model.hidden_dim=8", f"run.seed={seed}"])
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    name = "encoder_2d.layers.0.mlp.0.weight"
    assert torch.equal(one.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_times_are_antithetic_and_inside_the_unit_interval(batch):
    t = antithetic_times(batch, Stream.TIME_2D_TO_3D, 1000)
    half = batch.num_graphs // 2 + 1
    rest = batch.num_graphs - half
    assert ((t > 0) & (t < 1)).all()
    assert torch.allclose(t[half:] + t[:rest], torch.full((rest,), 0.999), atol=1e-5)
    assert not torch.equal(t, antithetic_times(batch, Stream.TIME_3D_TO_2D, 1000))


def test_negatives_are_permutations(small_model, batch):
    noise = small_model.draw_noise(batch)
    for negatives in (noise.negatives_of_2d, noise.negatives_of_3d):
        assert torch.equal(negatives.sort().values, torch.arange(batch.num_atoms))
    assert not torch.equal(noise.negatives_of_2d, noise.negatives_of_3d)


def test_noise_belongs_to_the_molecule_not_to_the_slot(small_model, records):
    def draw(chosen, epoch):
        columns = columns_from_records([records[k] for k in chosen])
        return small_model.draw_noise(MoleculeBatch.from_columns(columns, Key(4, epoch)))

    first, second = draw([7, 8], 0), draw([9, 8, 2], 0)
    atoms = [len(records[k].z) for k in (7, 8, 9, 2)]
    for name in ("pos", "types"):
        one = getattr(first, name)[atoms[0] :]
        other = getattr(second, name)[atoms[2] : atoms[2] + atoms[1]]
        assert torch.equal(one, other)
    pairs = [n * (n - 1) // 2 for n in atoms]
    assert torch.equal(first.adj[pairs[0] :], second.adj[pairs[2] : pairs[2] + pairs[1]])
    assert not torch.equal(first.pos, draw([7, 8], 1).pos)


def test_adjacency_counts_bond_types(records):
    batch = MoleculeBatch.from_columns(columns_from_records([records[6], records[5]]))
    adj = adjacency(batch)
    assert adj[0] == 3  # the triple bond of acetylene
    assert sorted(adj[1:].tolist()) == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("smiles", [["C"], ["C", "CC"], ["O=C=O"], ["[NH4+].CO", "CO"]])
def test_tiny_and_linear_molecules_are_finite_in_evaluation(small_model, smiles):
    batch = MoleculeBatch.from_columns(
        columns_from_records([make_record(s, line) for line, s in enumerate(smiles)])
    )
    loss, terms = small_model(batch)
    loss.backward()
    assert all(term.isfinite().all() for term in terms.values())
    gradients = [p.grad for p in small_model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_training_under_autocast_is_close_to_float32(model, batch):
    torch.manual_seed(0)
    exact, _ = model(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = model(batch)
    rough.backward()
    assert abs(rough / exact - 1) < 0.03
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_small_batch_can_be_learnt_by_heart(batch):
    overrides = ["model.hidden_dim=32", "optim.lr=3e-3", "optim.scale_encoder_3d=1"]
    model = MoleculeSDE.from_seed(make_config("paper", overrides=overrides)).train()
    optimizer = torch.optim.Adam(parameter_groups(model))
    noise = model.draw_noise(batch)
    losses = []
    for _ in range(150):
        loss, terms = model(batch, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append({name: term.mean().item() for name, term in terms.items()})
    assert losses[-1]["contrastive"] < 0.2 * losses[0]["contrastive"]
    assert losses[-1]["2d_to_3d"] < 0.9 * losses[0]["2d_to_3d"]
    assert losses[-1]["3d_to_2d"] < 0.8 * losses[0]["3d_to_2d"]
