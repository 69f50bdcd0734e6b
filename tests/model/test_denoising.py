import pytest
import torch

from msde.model.denoising import adjacency_loss, atom_type_loss, position_loss

DENOISING = {
    position_loss: 3,
    atom_type_loss: 1,
    adjacency_loss: 1,
}


def noise_for(loss, batch):
    rows = batch.pair_index.shape[1] if loss is adjacency_loss else batch.num_atoms
    columns = {position_loss: (3,), atom_type_loss: (119,)}
    return torch.randn(rows, *columns.get(loss, ()), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss", DENOISING)
def test_zero_for_exact_predictions_and_quadratic_in_the_error(loss, batch):
    noise = noise_for(loss, batch)
    assert (loss(noise, noise, batch) == 0).all()
    error = torch.randn_like(noise)
    once, twice = loss(noise + error, noise, batch), loss(noise + 2 * error, noise, batch)
    assert torch.allclose(twice, 4 * once, rtol=1e-4)


@pytest.mark.parametrize("loss", DENOISING)
def test_predicting_zero_gives_the_variance_of_the_noise(loss, batch):
    noise = noise_for(loss, batch)
    per_molecule = loss(torch.zeros_like(noise), noise, batch)
    assert per_molecule.shape == (batch.num_graphs,)
    weights = batch.atoms_per_graph * (batch.atoms_per_graph - 1)
    weights = weights if loss is adjacency_loss else batch.atoms_per_graph
    mean = (per_molecule * weights).sum() / weights.sum()
    assert abs(mean / DENOISING[loss] - 1) < 0.2


def test_one_atom_has_no_adjacency_loss(batch):
    noise = noise_for(adjacency_loss, batch)
    assert adjacency_loss(noise + 1, noise, batch)[0] == 0
