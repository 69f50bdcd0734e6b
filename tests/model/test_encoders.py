import copy
import dataclasses
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from msde.config import ModelConfig, SchNetConfig
from msde.model.encoders import ENCODERS_3D
from msde.model.encoders.schnet import Filters, Interaction


def test_every_3d_encoder_is_in_the_table_and_has_its_section():
    assert set(ENCODERS_3D) == set(get_args(get_type_hints(ModelConfig)["encoder_3d"]))
    assert all(dataclasses.is_dataclass(getattr(ModelConfig(), name)) for name in ENCODERS_3D)


@pytest.mark.parametrize("name", ENCODERS_3D)
def test_3d_encoders_represent_atoms_and_molecules(name, batch):
    encoder = ENCODERS_3D[name](16, getattr(ModelConfig(), name))
    h = encoder(batch)
    assert h.shape == (batch.num_atoms, encoder.output_dim)
    assert encoder.readout(h, batch).shape == (batch.num_graphs, encoder.output_dim)
    assert torch.equal(encoder(batch, batch.pos), h)


@pytest.mark.parametrize("scale", [1, 4])
def test_interpolated_filters_are_as_exact_as_float32(scale):
    torch.manual_seed(0)
    network = Interaction(8, SchNetConfig()).filter
    for layer in network:
        nn.init.uniform_(layer.bias, -0.5, 0.5)
        layer.weight.data *= scale
    distance = torch.rand(5000) * 11 + 0.5  # A, some beyond the cutoff
    centres = torch.linspace(0, 10, 51)

    def filters(network, distance, gradient):
        found = Filters(distance, centres.to(distance.dtype))(network)
        network.zero_grad()
        found.backward(gradient.to(found.dtype))
        return found.detach(), network[0].weight.grad.clone()

    gradient = torch.randn(5000, 128)
    exact_network = copy.deepcopy(network).double()
    exact = filters(exact_network, distance.double().requires_grad_(), gradient)
    interpolated = filters(network, distance, gradient)
    assert (interpolated[0][distance > 10] == 0).all()
    for ours, truth in zip(interpolated, exact, strict=True):
        assert (ours - truth).norm() / truth.norm() < 1e-6


def test_few_pairs_are_evaluated_exactly():
    network = Interaction(8, SchNetConfig()).filter
    distance = torch.tensor([1.0, 9.999, 10.001])
    found = Filters(distance, torch.linspace(0, 10, 51))(network)
    assert found[0].abs().max() > 0 and (found[2] == 0).all()
