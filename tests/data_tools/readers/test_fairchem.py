import zlib

import numpy as np
import pytest

from fixtures.formats import ase_array, ase_row
from fixtures.pickled import fairchem_graphs
from fixtures.readers import (
    TRUST,
    convert,
    embedded,
    recognised,
    smiles_of,
    write_lmdb,
)
from msde.chem.record import Origin
from msde.data_tools.readers import Label, Options, get_reader
from msde.errors import MsdeError


def test_pickled_graphs(tmp_path):
    path = fairchem_graphs(tmp_path)
    assert recognised(path) == "fairchem"
    facts, parsed, rejected = convert(path, TRUST)
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/A")
    assert rejected == {"periodic": 1}
    assert smiles_of(parsed[1]) == "CCO" and parsed[1].y == (-1.5,)
    assert np.array_equal(parsed[1].forces[0], np.arange(27.0).reshape(9, 3))
    assert parsed[1].origin == Origin.BONDS_PERCEIVED
    assert facts.taken == (("energy", "energy"), ("forces", "force"))
    assert facts.notes == ("y is the label energy",)


def test_rows_of_ase_need_no_trust(tmp_path):
    path = tmp_path / "omol.aselmdb"
    records = {
        1: ase_row(embedded("CCO")),
        2: ase_row(embedded("CC(=O)[O-]"), data={"charge": -1, "spin": 1}),
        3: ase_row(embedded("C"), pbc=[True, True, False]),
        4: ase_row(embedded("CC")),
        5: zlib.compress(b"{"),
        "nextid": zlib.compress(b"6"),
        "deleted_ids": zlib.compress(b"[4]"),
    }
    write_lmdb(path, records)
    assert recognised(path) == "fairchem"
    facts, parsed, rejected = convert(path)
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/A")
    assert {line: smiles_of(one) for line, one in parsed.items()} == {1: "CCO", 2: "CC(=O)[O-]"}
    assert rejected == {"periodic": 1, "cannot be parsed": 1}


def aselmdb(folder, *rows):
    path = folder / "a.aselmdb"
    write_lmdb(path, dict(enumerate(rows, start=1)))
    return path


def test_energies_and_forces_are_found_under_any_name(tmp_path):
    gradient = ase_array(np.arange(27.0).reshape(9, 3))
    data = {"REF_energy": -2.5, "REF_gradient": gradient, "gap": 1.0, "tag": "x"}
    row = ase_row(embedded("CCO"), data=data, energy=None, forces=None)
    facts, parsed, _ = convert(aselmdb(tmp_path, row))
    assert (facts.labels, facts.forces_unit) == ((Label("REF_energy"),), "")
    assert parsed[1].y == (-2.5,)
    assert np.array_equal(parsed[1].forces[0], -np.arange(27.0).reshape(9, 3))
    left = dict(facts.left_out)
    assert left["gap"] == "a number, read if it is chosen" and left["tag"] == "text, such as 'x'"
    assert facts.taken == (("energy", "REF_energy"), ("forces", "REF_gradient"))


def test_of_several_forces_the_user_chooses(tmp_path):
    data = {"REF_energy": -2.5, "REF_forces": ase_array(np.zeros((9, 3)))}
    path = aselmdb(tmp_path, ase_row(embedded("CCO"), data=data))
    with pytest.raises(MsdeError, match="REF_forces.*choose one with --forces-key"):
        convert(path)
    facts, parsed, _ = convert(path, Options(forces_key="forces"))
    assert facts.forces_unit == "eV/A" and (parsed[1].forces == 1).all()
    assert ("energy", "energy") in facts.taken


def test_rows_that_lack_something_are_kept_or_named(tmp_path):
    mol = embedded("CCO")
    rows = [ase_row(mol), ase_row(mol, forces=None, energy=None), ase_row(mol, positions=None)]
    path = aselmdb(tmp_path, *rows)
    reader = get_reader("fairchem")
    raws = list(reader.read(path))
    parsed = reader.parse(raws[1])
    assert np.isnan(parsed.y[0]) and parsed.forces is None
    assert parsed.notes == ("no forces: other molecules of the file have them",)
    with pytest.raises(ValueError, match=r"no positions \(positions or pos\)"):
        reader.parse(raws[2])


def test_energies_are_converted_to_the_unit_of_the_user(tmp_path):
    path = aselmdb(tmp_path, ase_row(embedded("CCO")))
    facts, parsed, _ = convert(path, Options(label_columns=("energy=kcal/mol",)))
    assert facts.labels == (Label("energy", "kcal/mol"),) and facts.forces_unit == "eV/A"
    assert parsed[1].y[0] == pytest.approx(-1.5 * 23.060548)
