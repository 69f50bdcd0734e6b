import numpy as np
import pytest

from fixtures.readers import (
    TRUST,
    convert,
    embedded,
    numbers,
    positions,
    real,
    recognised,
    smiles_of,
)
from msde.chem.record import Origin
from msde.data_tools.readers import Label, get_reader
from msde.errors import MsdeError


def test_molecules_agree_with_the_arrays():
    path = real("md17/toluene.npz")
    facts, parsed, _ = convert(path, limit=20)
    assert facts.labels == (Label("energy", "kcal/mol"),)
    assert facts.forces_unit == "kcal/mol/A"
    arrays = np.load(path)
    for frame, one in parsed.items():
        assert smiles_of(one) == "Cc1ccccc1"
        assert one.origin == Origin.BONDS_PERCEIVED
        assert one.y[0] == arrays["E"][frame - 1]
        assert np.array_equal(one.forces[0], arrays["F"][frame - 1])
        assert np.array_equal(positions(one.mol)[0], arrays["R"][frame - 1])


def test_other_layouts(tmp_path):
    mol = embedded("CCO", 3)
    fields = {
        "nuclear_charges": numbers(mol),
        "coords": positions(mol) / 0.529177210903,
        "energies": np.arange(3.0),
        "forces": -positions(mol),
        "r_unit": np.array("bohr"),
        "e_unit": np.array(b"eV"),
    }
    np.savez(tmp_path / "rmd17.npz", **fields)
    facts, parsed, _ = convert(tmp_path / "rmd17.npz")
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/a0")
    assert np.allclose(positions(parsed[2].mol)[0], positions(mol)[1])
    assert np.array_equal(parsed[3].forces[0], -positions(mol)[2])
    np.savez(tmp_path / "bare.npz", z=numbers(mol), R=positions(mol))
    facts, parsed, _ = convert(tmp_path / "bare.npz")
    assert (facts.labels, facts.forces_unit, len(parsed)) == ((), None, 3)


def test_bonds_come_from_the_first_frame_that_has_them(tmp_path):
    mol = embedded("CCO", 2)
    place = positions(mol)
    place[0, 0] += 50  # an atom far away
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=place, E=np.zeros(2))
    _, parsed, _ = convert(tmp_path / "a.npz")
    assert [smiles_of(one) for one in parsed.values()] == ["CCO", "CCO"]
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=place[:1], E=np.zeros(1))
    with pytest.raises(MsdeError, match="several fragments"):
        list(get_reader("md17").read(tmp_path / "a.npz"))


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.array([1, None], object), R=np.zeros((1, 2, 3)))
    assert recognised(tmp_path / "a.npz") == "md17"
    with pytest.raises(MsdeError, match="cannot be read"):
        get_reader("md17", TRUST).facts([tmp_path / "a.npz"])
