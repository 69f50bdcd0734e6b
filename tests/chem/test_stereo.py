"""Labels of conformers, against molecules whose answer is known."""

import pytest
from rdkit import Chem

from fixtures.conformers import atropisomer, embedded, mirrored
from msde.chem.stereo import assign_cip, count_stereo, stereo_of


@pytest.mark.parametrize(
    ("smiles", "centres"),
    [
        ("C[C@H](F)Cl", 1), ("C[C@@H](F)[C@H](O)N", 2), ("C[S@](=O)CC", 1),
        ("C[P@](c1ccccc1)CC", 1), ("C[As@](c1ccccc1)CC", 1), ("C[N@]1C[C@@H]1C", 2),
    ],
)  # fmt: skip
def test_mirrored_positions_have_wrong_centres(smiles, centres):
    mol = embedded(smiles)
    right, wrong = count_stereo(mol, 0), count_stereo(mirrored(mol), 0)
    assert (right.centres_right, right.centres) == (centres, centres) and right.is_right
    assert (wrong.centres_right, wrong.centres) == (0, centres) and not wrong.is_right
    assert wrong.differences.count("atom") == centres
    assert "right" not in (right + wrong).differences and (right + wrong).centres == 2 * centres


def test_double_bonds_are_counted_apart_and_survive_mirrors():
    trans, cis = embedded("C/C=C/C"), embedded("C/C=C\\C")
    swapped = Chem.Mol(trans)
    swapped.GetConformer().SetPositions(cis.GetConformer().GetPositions())
    assert count_stereo(mirrored(trans), 0).bonds_right == 1
    wrong = count_stereo(swapped, 0)
    assert (wrong.bonds_right, wrong.bonds, wrong.centres) == (0, 1, 0)
    assert wrong.differences == "bond 1-2 is Z, not E"


def test_a_centre_whose_hydrogen_has_no_position_is_not_counted():
    full = embedded("C[P@@H]CC", hydrogens=True)
    assert count_stereo(full, 0).centres_right == 1
    assert count_stereo(Chem.RemoveHs(full), 0).centres == 0


def test_hindered_bonds_count_among_the_centres():
    mol = embedded(atropisomer())
    right, wrong = count_stereo(mol, 0), count_stereo(mirrored(mol), 0)
    assert (right.centres_right, right.centres, right.bonds) == (1, 1, 0)
    assert wrong.differences == "bond 7-8 is P, not M"


def test_the_search_for_labels_is_bounded(monkeypatch):
    monkeypatch.setattr("msde.chem.stereo.CIP_ITERATIONS", 1)
    mol = Chem.MolFromSmiles("C[C@H](CC(C)(C)C(F)C)CC(C)(C)C(Cl)C")
    assert not assign_cip(Chem.Mol(mol)) and stereo_of(mol) == {}
    assert assign_cip(Chem.MolFromSmiles("CCO"))
