import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from fixtures.readers import ALL_HYDROGENS, embedded, numbers, positions
from msde.chem.vocabulary import MoleculeError
from msde.data_tools.parsing import perception


def test_perceived_radicals_are_rejected():
    reader = perception
    mol = embedded("CCO")
    with pytest.raises(MoleculeError, match="bonds cannot be perceived"):
        reader.parse_system(reader.System(numbers(mol), positions(mol)[0], charge=5), ALL_HYDROGENS)
    for bad in (np.array([0]), np.array([130]), np.array([], int)):
        with pytest.raises(MoleculeError):
            reader.parse_system(reader.System(bad, np.zeros((len(bad), 3))), ALL_HYDROGENS)
    radical = Chem.AddHs(Chem.MolFromSmiles("C[CH2]"))
    rdDistGeom.EmbedMolecule(radical, 1)
    with pytest.raises(MoleculeError):
        reader.parse_system(reader.System(numbers(radical), positions(radical)[0]), ALL_HYDROGENS)
