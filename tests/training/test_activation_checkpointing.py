import pytest
import torch

from fixtures.models import KINDS, SMALL, make_small
from msde.config import make_config
from msde.model import MoleculeSDE
from msde.training.activation_checkpointing import checkpoint_activations


def make(kind):
    """A small model of one of KINDS, or of a preset with a sampler's network alone."""
    if kind in KINDS:
        return make_small(kind)
    return MoleculeSDE.from_seed(make_config(kind, overrides=SMALL))


@pytest.mark.parametrize("way", ["reference", "fused"])
@pytest.mark.parametrize("kind", [*KINDS, "conformers", "bonds"])
def test_activation_checkpointing_changes_memory_and_nothing_else(kind, way, batch, monkeypatch):
    monkeypatch.setenv("MSDE_OPS", way)

    def train(checkpointing):
        model, kept = make(kind).train(), {}
        if checkpointing:
            checkpoint_activations(model)
        weights = {p.data_ptr() for p in model.parameters()}

        def note(tensor):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in weights:
                kept[memory.data_ptr()] = memory.nbytes()
            return tensor

        torch.manual_seed(0)  # of dropout
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss, _ = model(batch)
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [loss, *grads, *model.buffers()], sum(kept.values())

    (plain, plain_bytes), (checkpointed, fewer_bytes) = train(False), train(True)
    assert all(map(torch.equal, plain, checkpointed))
    assert fewer_bytes < 0.6 * plain_bytes
