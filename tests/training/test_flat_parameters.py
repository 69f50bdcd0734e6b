"""The engine sees one parameter a group; the model is the same model."""

import copy

import torch

from fixtures.models import NO_DROPOUT, make_small
from fixtures.molecules import both
from msde.training.flat_parameters import FlatParameters, in_order, model_of
from msde.training.optimizer import parameter_groups


def flat_and_plain():
    """A model with flat parameters and one of the same weights without, in training mode."""
    plain = make_small("paper", *NO_DROPOUT).train()
    return FlatParameters(copy.deepcopy(plain)).train(), plain


def test_gradients_are_those_of_the_plain_model_one_after_another(records):
    flat, plain = flat_and_plain()
    batch, _ = both(records)
    for module in (flat, plain):
        loss, terms = module(batch)
        (3 * loss).backward()
        assert list(terms) == list(plain(batch)[1])
    assert len(list(flat.parameters())) == 4
    for parameter, group in zip(flat.parameters(), parameter_groups(plain), strict=True):
        members = in_order(group["params"])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in members]
        assert torch.equal(parameter.grad, torch.cat([g.flatten() for g in grads]))
    assert all(p.grad is None for p in model_of(flat).parameters())


def test_steps_are_those_of_the_plain_model(records):
    flat, plain = flat_and_plain()
    batch, _ = both(records)
    steps = []
    for module, groups in ((flat, flat.groups), (plain, parameter_groups(plain))):
        optimizer = torch.optim.Adam(groups, lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            module(batch)[0].backward()
            optimizer.step()
        steps.append(module.state_dict())
    one, other = steps
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-7) for name in other)
    assert not torch.equal(other["encoder_2d.layers.0.eps"], torch.zeros(1))


def test_loaded_weights_are_those_of_the_flat_parameters(records):
    flat, plain = flat_and_plain()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 1
    flat.load_state_dict(plain.state_dict())
    for parameter, group in zip(flat.parameters(), parameter_groups(plain), strict=True):
        assert torch.equal(parameter, torch.cat([p.flatten() for p in in_order(group["params"])]))
    flat.encoder_2d.data = flat.encoder_2d.data.clone()  # as an engine does
    flat.refresh_views()
    with torch.no_grad():
        flat.encoder_2d.zero_()
    assert not any(p.any() for p in model_of(flat).encoder_2d.parameters() if p.requires_grad)


def test_each_weight_of_the_state_is_a_copy_of_its_own():
    state = flat_and_plain()[0].state_dict()
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())


def test_matrices_begin_where_tensor_cores_read_fast():
    flat, _ = flat_and_plain()
    found = [p for p in model_of(flat).parameters() if p.requires_grad and p.numel() % 4 == 0]
    assert len(found) > 50 and all(p.storage_offset() % 4 == 0 for p in found)
