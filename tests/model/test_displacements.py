"""The objective of finding displacements: symmetry, and what it adds to the model."""

import dataclasses

import pytest
import torch

from fixtures.models import make_small, train
from msde.model import names_of_terms
from msde.training.optimizer import parameter_groups

ASKED = "loss.coefficient_displacements=0.5"


@pytest.fixture(params=["base", "base, PaiNN, frame"])
def model(request):
    return make_small(request.param, ASKED)


def find(model, batch, pos):
    return model.displacements(model.encoder_3d(batch, pos), pos, batch)


def test_displacements_turn_and_mirror_with_the_geometry_and_sum_to_zero(model, batch):
    model, pos = model.double(), batch.pos.double()
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())
    found = find(model, batch, pos)
    scale = found.abs().max()
    for turn in (q, -q):  # one of them is a mirror image
        moved = find(model, batch, pos @ turn.T + torch.tensor([5.0, -3.0, 1.0]))
        assert (moved - found @ turn.T).abs().max() < 1e-9 * scale
    sums = torch.zeros(batch.num_graphs, 3).double().index_add_(0, batch.batch, found)
    assert sums.abs().max() < 1e-9 * scale


def test_the_loss_is_added_with_its_coefficient(model, batch):
    assert names_of_terms(model.config.loss)[4] == "displacements"
    noise = model.draw_noise(batch)
    centre = torch.zeros(batch.num_graphs, 3).index_add_(0, batch.batch, noise.displacements)
    assert centre.abs().max() < 1e-4
    _, terms = model(batch, noise)
    parts = terms["contrastive"] + terms["2d_to_3d"] + terms["3d_to_2d"]
    assert torch.allclose(terms["total"], parts + 0.5 * terms["displacements"])
    again = dataclasses.replace(noise, displacements=noise.displacements.flip(0))
    assert not torch.equal(model(batch, again)[1]["displacements"], terms["displacements"])


def test_its_parameters_learn_with_those_of_the_3d_encoder(model):
    (group,) = (g for g in parameter_groups(model) if g["name"] == "encoder_3d")
    members = set(map(id, group["params"]))
    assert members >= {id(p) for p in model.displacements.parameters()}


def test_without_it_a_model_has_the_weights_that_it_had():
    plain = make_small("base")
    assert plain.displacements is None
    asked = make_small("base", ASKED)
    weights = {n for n in asked.state_dict() if not n.startswith("displacements.")}
    assert weights == set(plain.state_dict())
    assert all(torch.equal(asked.state_dict()[n], plain.state_dict()[n]) for n in weights)


def test_displacements_are_learned(batch):
    alone = [f"loss.coefficient_{name}=0" for name in ("contrastive", "2d_to_3d", "3d_to_2d")]
    model = make_small("base", ASKED, *alone).train()
    noise = model.draw_noise(batch)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = [terms["displacements"] for terms in train(model, batch, noise, adam, steps=150)]
    zero = noise.displacements.square().sum(1).mean().item()
    assert losses[0] > 0.5 * zero and losses[-1] < 0.5 * losses[0]
