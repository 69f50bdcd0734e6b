import dataclasses
import math

import pytest
import torch
from rdkit import Chem

from fixtures.models import NO_DROPOUT, make_small, train
from fixtures.molecules import make_record
from msde.chem.record import record_from_mol
from msde.config import make_config
from msde.data.batch import NO_KEY, MoleculeBatch
from msde.data.codec import columns_from_records
from msde.model import MoleculeSDE, Noise, adjacency
from msde.philox import Key
from msde.training.optimizer import parameter_groups
from msde.training.plan import make_plan


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


@pytest.mark.parametrize("kind", ["VE", "VP", "subVP"])
def test_every_parameter_but_the_unused_branch_gets_a_gradient(kind, batch):
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


def test_adjacency_holds_the_number_of_the_bond_type(records):
    batch = MoleculeBatch.from_columns(columns_from_records([records[6], records[5]]))
    adj = adjacency(batch)
    assert adj[0] == 3  # the triple bond of acetylene
    assert sorted(adj[1:].tolist()) == [0, 0, 0, 1, 1, 2]


# Molecules of one and two atoms, also alone in a batch; linear ones, whose frames degenerate;
# salts; elements and charges outside the vocabularies.
EDGE_CASES = [
    ["C"],
    ["[Na+]", "C"],
    ["C", "CC"],
    ["CO"],
    ["O=C=O"],
    ["C#C", "N#N"],
    ["[U].C[Si-7]", "CO"],
    ["c1ccccc1C(=O)[O-].[K+].O"],
]


def from_smiles(smiles, key=NO_KEY):
    records = [
        make_record(s, line) if "U" not in s else exotic(line) for line, s in enumerate(smiles)
    ]
    return MoleculeBatch.from_columns(columns_from_records(records), key)


def exotic(line):
    """A dummy atom and a charge of -7: values outside the vocabularies."""
    mol = Chem.AddHs(Chem.MolFromSmiles("*C"))
    mol.GetAtomWithIdx(0).SetFormalCharge(-7)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    for atom in range(mol.GetNumAtoms()):
        conformer.SetAtomPosition(atom, (float(atom), 0.3 * atom, -0.2 * atom * atom))
    mol.AddConformer(conformer)
    return record_from_mol(mol, line)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("smiles", EDGE_CASES, ids=",".join)
@pytest.mark.parametrize("kind", ["paper", "base", "base, PaiNN, frame"])
def test_edge_cases_are_finite(kind, smiles, training):
    batch = from_smiles(smiles)
    model = make_small(kind).train(training)
    pos = batch.pos.clone().requires_grad_()  # forces and guidance need its gradient
    loss, terms = model(dataclasses.replace(batch, pos=pos))
    loss.backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert pos.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    # Nothing noised: exactly linear, two atoms at opposite places.
    h = model.encoder_2d(batch).detach()
    t = torch.full((batch.num_graphs,), 0.1)
    predicted = model.score_2d_to_3d(pos, t, h, batch)
    predicted.square().sum().backward()
    assert predicted.isfinite().all() and pos.grad.isfinite().all()


def test_a_molecule_of_200_atoms_has_finite_gradients():
    long = "C" * 150 + "O" * 50
    mol = Chem.MolFromSmiles(long)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    for atom in range(mol.GetNumAtoms()):
        angle = 0.6 * atom
        conformer.SetAtomPosition(atom, (2 * math.cos(angle), 2 * math.sin(angle), 0.3 * atom))
    mol.AddConformer(conformer)
    batch = MoleculeBatch.from_columns(columns_from_records([record_from_mol(mol, 1)]))
    for kind in ("paper", "base", "base, PaiNN, frame"):
        model = make_small(kind).train()
        loss, _ = model(batch)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["paper", "paper, frame", "base"])
@pytest.mark.parametrize("smiles", ["C", "CO", "CCC(=O)O", "Cc1ccccc1C=O"])
def test_gradients_of_both_losses_agree_with_finite_differences(kind, smiles):
    """In float64, against finite differences, for the condition, positions and all weights."""
    batch = from_smiles([smiles], Key(3, 0))
    batch = dataclasses.replace(batch, pos=batch.pos.double())
    small = ["model.hidden_dim=8", "model.conformer.hidden_dim=8", "model.conformer.num_heads=2"]
    model = make_small(kind, *small, "model.conformer.basis_dim=8").double()
    drawn = model.draw_noise(batch)
    noise = Noise(
        *(v.double() if v.is_floating_point() else v for v in vars(drawn).values()),
    )
    torch.manual_seed(0)
    h = torch.randn(batch.num_atoms, 8, dtype=torch.double, requires_grad=True)

    def check(part, loss, *inputs):
        names = [n for n, p in part.named_parameters() if p.requires_grad]
        weights = [part.get_parameter(n).detach() for n in names]
        flat = torch.cat([w.flatten() for w in weights]).requires_grad_()

        def function(*values):
            *given, own = values
            parts = own.split([w.numel() for w in weights])
            own = {n: p.view_as(w) for n, p, w in zip(names, parts, weights, strict=True)}
            with torch.nn.utils.stateless._reparametrize_module(part, own):
                return loss(*given)

        assert torch.autograd.gradcheck(function, (*inputs, flat), fast_mode=True)

    def to_3d(h, pos):
        return model.loss_2d_to_3d(h, dataclasses.replace(batch, pos=pos), noise)

    pos = batch.pos.clone().requires_grad_(batch.num_atoms > 2)  # two atoms: no frame to follow
    check(model.score_2d_to_3d, to_3d, h, pos)
    check(model.score_3d_to_2d, lambda h: sum(model.loss_3d_to_2d(h, batch, noise)), h)


@pytest.mark.parametrize("kind", ["paper", "base"])
def test_anneal_power_weighs_each_molecule_by_its_std(kind, batch):
    plain, annealed = make_small(kind), make_small(kind, "loss.anneal_power=2")
    noise = plain.draw_noise(batch)
    before, after = (model(batch, noise)[1] for model in (plain, annealed))
    for name, score, t in [
        ("2d_to_3d", plain.score_2d_to_3d, noise.t_2d_to_3d),
        ("3d_to_2d", plain.score_3d_to_2d, noise.t_3d_to_2d),
    ]:
        std = score.sde.marginal_prob(t, t)[1]
        assert torch.allclose(after[name], before[name] * std**2, rtol=1e-5)
    assert torch.equal(before["contrastive"], after["contrastive"])


@pytest.mark.parametrize("kind", ["paper", "base"])
def test_losses_are_zero_for_exact_predictions_and_quadratic_in_the_error(kind, batch):
    model = make_small(kind)
    noise = model.draw_noise(batch)
    h = torch.zeros(batch.num_atoms, 32)
    error = [torch.randn_like(v) for v in (noise.pos, noise.types, noise.adj)]

    def losses_with(times):
        pos, types, adj = (
            v + times * e for v, e in zip((noise.pos, noise.types, noise.adj), error, strict=True)
        )
        model.score_2d_to_3d.forward = lambda *_: pos
        model.score_3d_to_2d.forward = lambda *_: (types, adj)
        to_2d = model.loss_3d_to_2d(h, batch, noise)
        return torch.stack([model.loss_2d_to_3d(h, batch, noise), *to_2d])

    perfect, once, twice = (losses_with(times) for times in (0, 1, 2))
    assert (perfect == 0).all()
    assert torch.allclose(twice, 4 * once, rtol=1e-4)


def test_training_under_autocast_is_close_to_float32(model, batch):
    torch.manual_seed(0)
    exact, _ = model(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = model(batch)
    rough.backward()
    assert abs(rough / exact - 1) < 0.03
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("preset", ["paper", "base"])
def test_autocast_moves_the_gradient_by_less_than_two_percent(shard_dir, preset):
    overrides = ["data.validation_fraction=0", "data.molecules_per_step=128"]
    overrides += ["model.hidden_dim=64", *NO_DROPOUT]
    config = make_config(preset, overrides=overrides)
    batch = next(iter(make_plan(config, [shard_dir], 1).stream))[0]

    def gradient(autocast):
        model = MoleculeSDE.from_seed(config).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, _ = model(batch)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, rough = gradient(False), gradient(True)
    assert 0 < (rough - exact).norm() / exact.norm() < 0.02


def test_training_overfits_a_small_batch(batch):
    overrides = ["model.hidden_dim=32", "optim.lr=6e-3", "optim.scale_encoder_3d=1"]
    model = MoleculeSDE.from_seed(make_config("paper", overrides=overrides)).train()
    optimizer = torch.optim.Adam(parameter_groups(model))
    losses = train(model, batch, model.draw_noise(batch), optimizer, steps=50)
    assert losses[-1]["contrastive"] < 0.2 * losses[0]["contrastive"]
    assert losses[-1]["2d_to_3d"] < 0.5 * losses[0]["2d_to_3d"]
    assert losses[-1]["3d_to_2d"] < 0.5 * losses[0]["3d_to_2d"]


def test_under_autocast_layers_are_added_up_in_float32(batch):
    model = make_small("base, all pairs").train()
    seen = []
    for block in model.score_2d_to_3d.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
    assert len(seen) > 1 and set(seen) == {torch.float32}
