import json
import zlib

import numpy as np

from fixtures.pickled import fairchem_graphs
from fixtures.readers import (
    TRUST,
    convert,
    embedded,
    numbers,
    positions,
    recognised,
    smiles_of,
    write_lmdb,
)
from msde.chem.record import Origin
from msde.data_tools.readers import Label


def test_pickled_graphs(tmp_path):
    path = fairchem_graphs(tmp_path)
    assert recognised(path) == "fairchem"
    facts, parsed, rejected = convert(path, TRUST)
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/A")
    assert rejected == {"periodic": 1}
    assert smiles_of(parsed[1]) == "CCO" and parsed[1].y == (-1.5,)
    assert np.array_equal(parsed[1].forces[0], np.arange(27.0).reshape(9, 3))
    assert parsed[1].origin == Origin.BONDS_PERCEIVED


def ase_row(mol, **known):
    def array(values):
        values = np.asarray(values)
        return {"__ndarray__": [values.shape, str(values.dtype), values.ravel().tolist()]}

    row = {
        "numbers": array(numbers(mol)),
        "positions": array(positions(mol)[0]),
        "cell": array(np.zeros((3, 3))),
        "pbc": array([False] * 3),
        "energy": -1.5,
        "forces": array(np.ones((mol.GetNumAtoms(), 3))),
        "data": {},
        **known,
    }
    return zlib.compress(json.dumps(row).encode())


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
