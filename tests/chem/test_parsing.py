import pytest
from rdkit import Chem, rdBase

from msde.chem.parsing import (
    MISSING,
    forget_isotopes,
    mol_from_molblock,
    mol_from_smiles,
    silence_rdkit,
    stereo_note,
)
from msde.chem.vocabulary import MoleculeError


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("C(C", r"SMILES syntax, extra open parentheses at position 2 of 'C\(C'"),
        ("C1CC", "SMILES syntax, unclosed ring"),
        ("CC[Xx]C", r"SMILES syntax, syntax error at position 4 of 'CC\[Xx\]C'"),
        ("CCÄ", "SMILES syntax, 'Ä' at position 3"),
        ("CC\ufeff", r"SMILES syntax, '\\ufeff' at position 3"),
        ("CN(C)(C)(C)C", "valence for atom # 1 N, 5"),
        ("c1cccc1C", "kekul"),
    ],
)
def test_unparsable_smiles_say_why(smiles, reason, capfd):
    """In the error alone: RDKit writes nothing of it to the terminal."""
    rdBase.EnableLog("rdApp.error")
    try:
        with pytest.raises(MoleculeError, match=f"(?i){reason}"):
            mol_from_smiles(smiles)
    finally:
        silence_rdkit()
    assert not capfd.readouterr().err


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


def notes_of(smiles, keep_hydrogens=False):
    mol = mol_from_smiles(smiles, keep_hydrogens)
    notes = forget_isotopes(mol)
    return Chem.MolToSmiles(Chem.RemoveHs(mol)), notes


@pytest.mark.parametrize(
    ("smiles", "plain", "removed", "kept"),
    [
        ("[2H]C([2H])([2H])O[3H]", "CO", "3 D, 1 T", ""),
        ("[13CH3]C[15NH2]", "CCN", "", "1 13C, 1 15N"),
        ("[2H][2H]", "[H][H]", "", "2 D"),
        ("[2H]/N=C/C", "[H]/N=C/C", "", "1 D"),
        ("O[C@]([2H])(C)CC", "CC[C@@H](C)O", "1 D", ""),
        ("CCO", "CCO", "", ""),
    ],
)
def test_isotopes_of_hydrogen_are_hydrogens_and_what_is_lost_is_noted(smiles, plain, removed, kept):
    expected = [f"hydrogen isotopes are removed like hydrogens: {removed}"] * bool(removed)
    expected += [f"isotopes are not stored: {kept}"] * bool(kept)
    assert notes_of(smiles) == (plain, tuple(expected))


def test_isotopes_that_are_kept_are_noted_and_make_no_stereocentre():
    assert notes_of("[2H]C([2H])([2H])O", True) == ("CO", ("isotopes are not stored: 3 D",))
    assert notes_of("C[C@]([2H])([H])O", True)[0] == "CCO"
    assert notes_of("[13CH3][C@H](C)O")[0] == "CC(C)O"
    assert notes_of("[13CH3]/C(C)=C/C")[0] == "CC=C(C)C"


BLOCK = Chem.MolToMolBlock(Chem.MolFromSmiles("CO"))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("M  END", "\nM  END", "line 8 of the record is blank, expected a property"),
        ("  2  1", "2 1", r"line 4 has '2 1.*', expected numbers of atoms and bonds"),
        ("  1  2  1", "  1  x  1", "line 7 of the record is .*, expected a bond"),
        (" C  ", " 7  ", "line 5 of the record is .*, expected an atom"),
        ("  2  1", "  9  1", "expected an atom"),
        (BLOCK[BLOCK.index("  1  2  1") :], "", "ends before its 2 atoms and 1 bonds"),
    ],
)
def test_a_broken_mol_block_names_the_line(old, new, reason):
    silence_rdkit()
    with pytest.raises(MoleculeError, match=f"cannot be parsed: mol block syntax, .*{reason}"):
        mol_from_molblock(BLOCK.replace(old, new, 1))


def test_an_impossible_atom_of_a_mol_block_names_its_line():
    silence_rdkit()
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CN(C)(C)(C)C", sanitize=False))
    with pytest.raises(MoleculeError, match="atom # 1 N, 5, .*, line 6 of the record"):
        mol_from_molblock(block)
