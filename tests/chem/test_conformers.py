import numpy as np

from fixtures.molecules import SMILES, make_record


def test_positions_are_centred_and_those_of_the_molecule_wherever_it_stands():
    one, elsewhere = make_record(SMILES[2], line=7), make_record(SMILES[2], line=8)
    assert np.abs(one.pos.mean(axis=1)).max() < 1e-5
    assert np.array_equal(one.pos, elsewhere.pos)
