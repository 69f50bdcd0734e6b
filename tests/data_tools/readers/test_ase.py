import base64
import json
import sqlite3

import numpy as np
import pytest

from fixtures.readers import (
    convert,
    embedded,
    numbers,
    positions,
    recognised,
    smiles_of,
)
from msde.data_tools.readers import Label, Options, ase, get_reader
from msde.errors import MsdeError


def test_databases_of_every_version(tmp_path):
    ase_db = pytest.importorskip("ase.db")
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    path = tmp_path / "new.db"
    with ase_db.connect(path) as database:
        for number, smiles in enumerate(("CCO", "CC")):
            mol = embedded(smiles)
            atoms = Atoms(numbers(mol), positions(mol)[0])
            forces = np.full((len(atoms), 3), number + 0.5)
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - number, forces=forces)
            database.write(atoms, gap=0.25, data={"U0": np.array([2.5]), "mu": np.zeros(3)})
        database.write(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], cell=[9, 9, 9], pbc=True))
        database.metadata = {"_property_unit_dict": {"U0": "Hartree"}}
    assert recognised(path) == "ase"
    options = Options(label_columns=("energy", "gap", "U0"))
    facts, parsed, rejected = convert(path, options)
    assert facts.labels == (Label("energy", "eV"), Label("gap"), Label("U0", "Hartree"))
    assert facts.forces_unit == "eV/A"
    assert [one.y for one in parsed.values()] == [(-1, 0.25, 2.5), (-2, 0.25, 2.5)]
    assert (parsed[2].forces == 1.5).all()
    assert rejected == {"periodic": 1}
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (a INTEGER)")
    assert recognised(tmp_path / "other.db") is None
    with pytest.raises(MsdeError, match="cannot be read as a database of ASE"):
        get_reader("ase").facts([tmp_path / "other.db"])


def test_base64_of_schnetpack_is_decoded():
    stored = {
        "energy": base64.b64encode(np.array([1.5]).tobytes()).decode(),
        "_shape_energy": [1],
        "_dtype_energy": "float64",
        "other": 3,
    }
    values = ase._decode(json.dumps(stored))
    assert set(values) == {"energy", "other"}
    assert values["energy"].tolist() == [1.5]


def ase_db(path, metadata=None, rows=(), smiles="CCO", scale=1.0):
    """Write a database of ASE; each row is (keywords of `write`, results of a calculator)."""
    ase_db = pytest.importorskip("ase.db")
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    mol = embedded(smiles)
    with ase_db.connect(path) as database:
        for written, results in rows:
            atoms = Atoms(numbers(mol), positions(mol)[0] * scale)
            if results:
                atoms.calc = SinglePointCalculator(atoms, **results)
            database.write(atoms, **written)
        if metadata:
            database.metadata = metadata
    return path


BOHR = 0.529177210903
FORCES = np.arange(27.0).reshape(9, 3)


def schnetpack(units, distance="Bohr"):
    return {"_distance_unit": distance, "_property_unit_dict": units}


def test_units_of_the_metadata_are_used(tmp_path):
    data = {"data": {"energy": np.array([-2.0]), "dft_gradient": FORCES}}
    units = schnetpack({"energy": "Hartree", "dft_gradient": "Hartree/Bohr"})
    path = ase_db(tmp_path / "a.db", units, [(data, None)], scale=1 / BOHR)
    facts, parsed, _ = convert(path)
    assert facts.labels == (Label("energy", "Hartree"),) and facts.forces_unit == "Hartree/Bohr"
    assert np.allclose(positions(parsed[1].mol), positions(embedded("CCO")), atol=1e-6)
    assert np.array_equal(parsed[1].forces[0], -FORCES)
    assert facts.notes[0] == "positions are converted from Bohr to A" and len(facts.notes) == 2
    in_ev, converted, _ = convert(path, Options(label_columns=("energy=eV",)))
    assert in_ev.labels == (Label("energy", "eV"),) and in_ev.forces_unit == "Hartree/Bohr"
    assert converted[1].y[0] == pytest.approx(-54.422772)
    with pytest.raises(MsdeError, match="energy in Hartree, which cannot be converted to 'D'"):
        convert(path, Options(label_columns=("energy=D",)))


def test_units_that_are_not_known_are_an_error(tmp_path):
    rows = [({"data": {"energy": np.array([-2.0]), "mu": np.array([1.0])}}, None)]
    path = ase_db(tmp_path / "a.db", schnetpack({}, "furlong"), rows)
    with pytest.raises(MsdeError, match="positions are in 'furlong', expected Angstrom or Bohr"):
        convert(path)
    path = ase_db(tmp_path / "b.db", schnetpack({"energy": "eV", "mu": "foo"}, "Ang"), rows)
    with pytest.raises(MsdeError, match="the unit of mu, 'foo', is not known.*--label-columns"):
        convert(path)
    assert convert(path, Options(label_columns=("energy",)))[0].labels == (Label("energy", "eV"),)
    said = Options(label_columns=("energy", "mu=D"))  # the user knows better
    assert convert(path, said)[1][1].y == (-2.0, 1.0)


def test_values_without_a_stated_unit_have_that_of_the_user(tmp_path):
    rows = [({"data": {"energy": np.array([-2.0]), "F": FORCES}}, None)]
    path = ase_db(tmp_path / "a.db", None, rows)
    facts, _, _ = convert(path)
    assert (facts.labels, facts.forces_unit) == ((Label("energy"),), "")
    facts, parsed, _ = convert(path, Options(label_columns=("energy=kcal/mol",)))
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "kcal/mol"),), "kcal/mol/A")
    assert parsed[1].y == (-2.0,)


def test_what_is_read_and_what_is_not_is_told(tmp_path):
    data = {"dipole": np.zeros(3), "partial": np.zeros((9, 3)), "quad": np.zeros((3, 3))}
    written = {"gap": 0.5, "tag": "train", "charge": 0, "data": data}
    path = ase_db(tmp_path / "a.db", None, [(written, {"energy": 1.0, "forces": FORCES})])
    facts, _, _ = convert(path)
    assert set(facts.taken) == {
        ("label", "gap"), ("energy", "energy"), ("forces", "forces"), ("charge", "charge")
    }  # fmt: skip
    assert dict(facts.left_out) == {
        "tag": "text, such as 'train'",
        "dipole": "an array of shape (3,)",
        "partial": "three numbers for each atom",
        "quad": "an array of shape (3, 3)",
    }


def test_of_several_forces_the_user_chooses(tmp_path):
    data = {"dft_forces": -FORCES, "dft_energy": np.array([3.0])}
    rows = [({"data": data}, {"energy": 1.0, "forces": FORCES})]
    path = ase_db(tmp_path / "a.db", None, rows)
    with pytest.raises(MsdeError, match="dft_forces, forces; choose one with --forces-key"):
        convert(path)
    facts, parsed, _ = convert(path, Options(forces_key="dft_forces"))
    assert np.array_equal(parsed[1].forces[0], -FORCES) and facts.forces_unit == ""
    assert ("energy", "dft_energy") in facts.taken and ("label", "energy") in facts.taken


def test_rows_that_lack_something_are_kept(tmp_path):
    results = {"energy": 1.0, "forces": FORCES}
    rows = [({"gap": 0.5}, results), ({}, {"energy": 2.0}), ({"gap": np.nan}, results)]
    facts, parsed, _ = convert_with_notes(ase_db(tmp_path / "a.db", None, rows))
    assert [one.forces is None for one in parsed] == [False, True, False]
    assert parsed[1].notes == ("no forces: other molecules of the file have them",)
    assert np.isnan([parsed[1].y[0], parsed[2].y[0]]).all() and parsed[0].y[0] == 0.5


def convert_with_notes(path):
    reader = get_reader("ase")
    return reader.facts([path]), [reader.parse(raw) for raw in reader.read(path)], None


def test_the_charge_is_that_of_the_row_or_the_users(tmp_path):
    path = ase_db(tmp_path / "a.db", None, [({"charge": -1}, None), ({}, None)], "CC(=O)[O-]")
    _, parsed, rejected = convert(path)
    assert list(parsed) == [1] and rejected == {"bonds cannot be perceived": 1}
    assert len(convert(path, Options(charge=-1))[1]) == 2


def test_one_broken_row_is_one_reject(tmp_path):
    path = ase_db(tmp_path / "a.db", None, [({}, None), ({}, None)])
    with sqlite3.connect(path) as database:
        database.execute("UPDATE systems SET positions = ? WHERE id = 1", (b"123",))
    _, parsed, rejected = convert(path)
    assert list(parsed) == [2] and rejected == {"cannot be parsed": 1}


@pytest.mark.parametrize(("total", "rejected"), [(-1 + 5e-17, 0), (-0.995, 0), (5e-17, 1)])
def test_the_sum_of_initial_charges_is_a_charge_if_it_is_nearly_whole(tmp_path, total, rejected):
    path = ase_db(tmp_path / "a.db", None, [({}, None)], "CC(=O)[O-]")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE systems SET charge = ?", (total,))
    assert sum(convert(path)[2].values()) == rejected
    parsed = convert(path, Options(charge=-1))[1]
    assert smiles_of(parsed[1]) == "CC(=O)[O-]" and parsed[1].notes == ()


def test_a_sum_of_partial_charges_is_ignored_with_a_note(tmp_path):
    path = ase_db(tmp_path / "a.db", None, [({}, None), ({"charge": -1}, None)], "CC(=O)[O-]")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE systems SET charge = -0.6")
    parsed = convert(path, Options(charge=-1))[1]
    note = "initial charges, whose sum is no whole number, are ignored: -0.6"
    assert [one.notes for one in parsed.values()] == [(note,), ()]
