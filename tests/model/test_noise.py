import torch

from fixtures.models import make_small
from fixtures.molecules import batch_of
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.model.noise import antithetic_times
from msde.philox import Key, Stream


def test_times_are_antithetic_within_a_slot_and_inside_the_unit_interval(batch):
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


def test_times_of_base_are_antithetic_over_two_epochs_of_a_molecule():
    molecules = ["CCO", "CCN", "C", "CO", "c1ccccc1"]

    def times(kind, epoch, chosen=molecules):
        return make_small(kind).draw_noise(batch_of(*chosen, key=Key(5, epoch))).t_2d_to_3d

    for epoch in (0, 2, 10):
        assert torch.allclose(times("base", epoch) + times("base", epoch + 1), torch.tensor(0.999))
    assert not torch.allclose(times("base", 1) + times("base", 2), torch.tensor(0.999))
    # A function of the molecule alone: `batch_of` numbers molecules, so the first stays the first.
    assert times("base", 4)[0] == times("base", 4, molecules[:2])[0]
