import json

import msgpack
import numpy as np
import pytest
from rdkit import Chem

from fixtures.pickled import geom_pickle
from fixtures.readers import TRUST, convert, embedded, numbers, positions, recognised, smiles_of
from msde.data_tools.readers import Options, get_reader
from msde.errors import MsdeError


def geom_entry(mol, **known):
    rows = [np.column_stack([numbers(mol), place]).tolist() for place in positions(mol)]
    conformers = [{"xyz": xyz, "totalenergy": -1.0, "boltzmannweight": 0.5} for xyz in rows]
    return {"conformers": conformers, "totalconfs": len(rows), "charge": 0, **known}


def test_msgpack(tmp_path):
    path = tmp_path / "drugs_crude.msgpack"
    alanine, other = embedded("C[C@H](N)C(=O)O", 4), embedded("C[C@@H](N)C(=O)O")
    entry = geom_entry(alanine, lowestenergy=-3.5, active=1)
    broken = json.loads(json.dumps(entry["conformers"][1]))
    broken["xyz"][-1][1] += 30  # a hydrogen that has left
    entry["conformers"] += [broken, *geom_entry(other)["conformers"]]
    acetate = geom_entry(embedded("CC(=O)[O-]"), charge=-1)
    with open(path, "wb") as file:
        file.write(msgpack.packb({"C[C@H](N)C(=O)O": entry, "CC(=O)[O-]": acetate}))
        file.write(msgpack.packb({"CCN": geom_entry(embedded("CCO")), "C": {"conformers": []}}))
    assert recognised(path) == "geom"
    facts, parsed, rejected = convert(path)
    units = {label.name: label.unit for label in facts.labels}
    assert units["lowestenergy"] == "Ha"
    assert smiles_of(parsed[1]) == Chem.CanonSmiles("C[C@H](N)C(=O)O")
    assert smiles_of(parsed[2]) == "CC(=O)[O-]"
    heavy = numbers(alanine) > 1
    assert np.allclose(positions(parsed[1].mol), positions(alanine)[:, heavy])
    assert [place for place, _ in parsed[1].dropped] == [5, 6]
    assert "stereochemistry" in parsed[1].dropped[1][1]
    assert parsed[1].y[list(units).index("lowestenergy")] == -3.5
    assert np.isnan(parsed[2].y[list(units).index("lowestenergy")])
    assert sum(rejected.values()) == 2
    assert convert(path, Options(label_columns=("active",)))[1][1].y == (1,)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(MsdeError, match="cut off"):
        list(get_reader("geom").read(path))


def test_pickles(tmp_path):
    path = geom_pickle(tmp_path)
    facts, parsed, _ = convert(path, TRUST)
    assert parsed[1].mol.GetNumConformers() == 3
    labels = dict(zip([label.name for label in facts.labels], parsed[1].y, strict=True))
    assert (labels["totalconfs"], labels["temperature"]) == (3, 298.15)
    path.write_bytes(b"no pickle")
    assert convert(path, TRUST)[2] == {"cannot be unpickled": 1}
