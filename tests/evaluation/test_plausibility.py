"""PoseBusters' checks of conformers."""

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from msde.evaluation.plausibility import plausible


def test_a_stretched_bond_is_not_plausible():
    pytest.importorskip("posebusters", reason="the extra `evaluate` is not installed")
    mol = Chem.AddHs(Chem.MolFromSmiles("CCCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    stretched = Chem.Mol(mol)
    pos = stretched.GetConformer().GetPositions()
    pos[0] += [0.0, 0.0, 2.0]
    stretched.GetConformer().SetPositions(pos)
    assert plausible([mol, stretched]) == [True, False]
