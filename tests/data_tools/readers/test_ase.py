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
