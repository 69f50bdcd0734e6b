import numpy as np
from rdkit import Chem

from fixtures.pickled import unimol
from fixtures.readers import SMILES, TRUST, convert, embedded, positions, recognised, smiles_of
from msde.data_tools.readers import Options


def test_conformers_of_the_smiles(tmp_path):
    path = unimol(tmp_path)
    assert recognised(path) == "unimol"
    facts, parsed, rejected = convert(path, TRUST)
    assert [label.name for label in facts.labels] == ["target_0", "target_1"]
    assert rejected == {"its SMILES has other atoms than its geometry": 1}
    assert list(parsed) == [1, 2, 4, 5]
    for line, one in parsed.items():
        assert one.mol.GetNumConformers() == 2 and one.y == (line - 0.5, 1)
        assert smiles_of(one) == Chem.CanonSmiles(SMILES[line - 1])
    full = convert(path, Options(trust_pickle=True, keep_hydrogens=True))[1][1]
    assert np.allclose(positions(full.mol), positions(embedded("CCO", 2)), atol=1e-5)
