import numpy as np

from fixtures.molecules import SMILES, make_record


def test_positions_are_centred_and_conformers_seeded():
    one, again = make_record(SMILES[2], line=7), make_record(SMILES[2], line=7)
    other = make_record(SMILES[2], line=8)
    assert np.abs(one.pos.mean(axis=1)).max() < 1e-5
    assert np.array_equal(one.pos, again.pos)
    assert not np.allclose(one.pos, other.pos)
