import pytest
from rdkit import Chem

from msde.chem.parsing import MISSING, mol_from_smiles, silence_rdkit, stereo_note
from msde.chem.vocabulary import MoleculeError


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("C(C", "SMILES syntax"), ("CN(C)(C)(C)C", "valence"), ("c1cccc1C", "kekul")],
)
def test_unparsable_smiles_say_why(smiles, reason):
    silence_rdkit()
    with pytest.raises(MoleculeError, match=f"(?i){reason}"):
        mol_from_smiles(smiles)


@pytest.mark.parametrize(
    "smiles", ["CC C", "CC\tC", "CC\nC", "CC\u00a0C", "CC(=O)Oc1ccccc1 C(=O)O", "c1ccc ccc1",
               "CC name", "CC |$a;b$| name", "CC |$a;b$", "CC |", "CC | |^1:0|"],
)  # fmt: skip
def test_text_after_white_space_is_never_dropped(smiles):
    with pytest.raises(MoleculeError, match="white space inside the SMILES"):
        mol_from_smiles(smiles)


@pytest.mark.parametrize("smiles", [" CCO", "CCO ", "\tCCO\r\n", "\u00a0CCO\u00a0"])
def test_blanks_around_a_smiles_are_trimmed(smiles):
    assert Chem.MolToSmiles(mol_from_smiles(smiles)) == "CCO"


def test_no_missing_value_is_a_smiles():
    silence_rdkit()
    for value in MISSING - {""}:
        assert Chem.MolFromSmiles(value, sanitize=False) is None, value
        with pytest.raises(MoleculeError, match="^no SMILES$"):
            mol_from_smiles(f" {value.upper()} ")


def test_extensions_are_read_without_their_coordinates_and_are_no_names():
    mol = mol_from_smiles("C[C@H](F)Cl  |&1:1| ")
    assert Chem.MolToCXSmiles(mol) == "C[C@H](F)Cl |&1:1|" and not mol.HasProp("_Name")
    assert mol_from_smiles("CC |^1:0|").GetAtomWithIdx(0).GetNumRadicalElectrons() == 1
    with_coordinates = "CC |(0,0,0;0,0,1.5)|"
    assert mol_from_smiles(with_coordinates).GetNumConformers() == 0
    assert mol_from_smiles(with_coordinates, coordinates=True).GetConformer().Is3D()


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("CC |junk|", r"extension \|junk\|"), ("C(C |^1:0|", "SMILES syntax"),
     ("CN(C)(C)C |^1:0|", "valence")],
)  # fmt: skip
def test_extensions_that_cannot_be_read_say_why(smiles, reason):
    silence_rdkit()
    with pytest.raises(MoleculeError, match=reason):
        mol_from_smiles(smiles)


@pytest.mark.parametrize(
    ("smiles", "note"),
    [("C[C@H](F)Cl |&1:1|", "racemic"), ("C[C@H](F)Cl |o1:1|", "relative"),
     ("C[C@H](F)Cl |a:1|", ""), ("C[C@H](F)Cl", ""), ("CCO |$a;b;c$|", "")],
)  # fmt: skip
def test_mixtures_and_relative_stereo_have_a_note(smiles, note):
    found = stereo_note(mol_from_smiles(smiles))
    assert note in found and bool(found) == bool(note)
