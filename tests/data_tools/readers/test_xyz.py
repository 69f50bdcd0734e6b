import numpy as np
import pytest

from fixtures.readers import convert, embedded, numbers, positions, real, recognised, smiles_of
from msde.data_tools.readers import Label, Options, get_reader
from msde.errors import MsdeError


def test_a_missing_unit_can_be_given():
    path = real("md17/ethanol_raw_2000.xyz.gz")
    facts, parsed, _ = convert(path, Options(label_columns=("energy=kcal/mol",)), 1)
    assert facts.labels == (Label("energy", "kcal/mol"),)
    assert facts.forces_unit == "kcal/mol/A"
    assert parsed[1].y[0] == -97195.01189948035
    assert get_reader("xyz").facts([path]).forces_unit == ""


def xyz_frame(mol, comment):
    rows = zip(mol.GetAtoms(), positions(mol)[0], strict=True)
    atoms = (f"{atom.GetSymbol()} {p[0]:.6f} {p[1]:.6f} {p[2]:.6f}\n" for atom, p in rows)
    return f"{mol.GetNumAtoms()}\n{comment}\n{''.join(atoms)}"


def test_plain_xyz(tmp_path):
    frames = [
        xyz_frame(embedded("CCO"), "ethanol"),
        xyz_frame(embedded("CC(=O)[O-]"), "charge=-1"),
        xyz_frame(embedded("O.O"), ""),
        xyz_frame(embedded("CO"), 'Lattice="9 0 0 0 9 0 0 0 9"'),
        "1\n\nXx 0 0 0\n",
    ]
    path = tmp_path / "a.xyz"
    path.write_text("\n".join(frames))
    assert recognised(path) == "xyz"
    facts, parsed, rejected = convert(path)
    assert (facts.labels, facts.forces_unit) == ((), None)
    assert [smiles_of(one) for one in parsed.values()] == ["CCO", "CC(=O)[O-]"]
    assert rejected == {
        "perceived bonds leave several fragments": 1,
        "periodic": 1,
        "cannot be parsed": 1,
    }
    path.write_text("3\n\nH 0 0 0\n")
    with pytest.raises(MsdeError, match="line 1 is cut off"):
        get_reader("xyz").facts([path])


def test_xyz_that_ase_writes(tmp_path):
    ase = pytest.importorskip("ase")
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    mol = embedded("CCO")
    atoms = ase.Atoms(numbers(mol), positions(mol)[0])
    atoms.info["dipole_norm"] = 1.5
    forces = np.arange(27.0).reshape(9, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=-2.5, forces=forces)
    write(tmp_path / "a.extxyz", [atoms, atoms])
    facts, parsed, _ = convert(tmp_path / "a.extxyz")
    assert {label.name for label in facts.labels} == {"dipole_norm", "energy"}
    assert facts.forces_unit == ""
    assert np.array_equal(parsed[12].forces[0], forces)
    assert set(parsed[12].y) == {1.5, -2.5}
