import pytest

from msde.chem.parsing import mol_from_smiles, silence_rdkit
from msde.chem.vocabulary import MoleculeError


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("C(C", "SMILES syntax"), ("CN(C)(C)(C)C", "valence"), ("c1cccc1C", "kekul")],
)
def test_unparsable_smiles_say_why(smiles, reason):
    silence_rdkit()
    with pytest.raises(MoleculeError, match=f"(?i){reason}"):
        mol_from_smiles(smiles)
