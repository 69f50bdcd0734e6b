"""Whole real files through convert, verify and export, with what becomes of their molecules.

The files lie in `shared/data` beside the project; MSDE_DATA_DIR names another folder.
"""

import json
import os

import numpy as np
import pytest

from fixtures.paths import DATA
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.export import export
from msde.data_tools.readers import Options
from msde.data_tools.verify import verify

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}"),
]
PROCESSES = len(os.sched_getaffinity(0))

RADICAL = "radical"
UNPARSABLE = "cannot be parsed"
LARGE = "more than 256 atoms"
NO_CONFORMER = "no conformer found"

# file -> molecules, rejects by reason
WITH_GEOMETRY = {
    "pretrain/pcqm4mv2-2k.csv": (
        1999,
        {"the geometry lacks hydrogens that the SMILES implies": 207},
    ),
    "pretrain/dft8k.sdf.gz": (7454, {RADICAL: 21}),
    "pretrain/dft8k_mmff.sdf.gz": (7462, {RADICAL: 27}),
    "pretrain/gdb7.sdf.gz": (
        7169,
        {UNPARSABLE: 195, RADICAL: 714, "the geometry lacks hydrogens that its bonds imply": 3},
    ),
    "qm9/qm9_500.db": (500, {"bonds cannot be perceived": 6}),
    "md17/aspirin.npz": (1000, {}),
    "md17/ethanol.npz": (1000, {}),
    "md17/malonaldehyde.npz": (1000, {}),
    "md17/naphthalene.npz": (1000, {}),
    "md17/salicylic_acid.npz": (1000, {}),
    "md17/toluene.npz": (1000, {}),
    "md17/ethanol_raw_2000.xyz.gz": (2000, {}),
}
# The first 300, without geometry.
FIRST_300 = {
    "smiles/pubchem_100k.tsv.gz": {},
    "smiles/qm9_133885.csv.gz": {},
    "qm9/micro_qm9.csv": {},
    "moleculenet/bbbp.csv": {UNPARSABLE: 2},
    "moleculenet/tox21.csv": {},
    "moleculenet/toxcast.csv.gz": {},
    "moleculenet/sider.csv": {LARGE: 8},
    "moleculenet/clintox.csv": {},
    "moleculenet/muv.csv.gz": {},
    "moleculenet/hiv.csv.gz": {UNPARSABLE: 1},
    "moleculenet/esol.csv": {},
    "moleculenet/freesolv.csv": {},
    "moleculenet/malaria.csv": {},
    "moleculenet/cep.csv.gz": {},
}
# file -> molecules, rejects by reason, without geometry
SMILES_IN_FULL = {
    "smiles/pubchem_100k.tsv.gz": (99_991, {UNPARSABLE: 12}),
    "smiles/qm9_133885.csv.gz": (133_885, {}),
    "qm9/micro_qm9.csv": (1006, {}),
    "moleculenet/bbbp.csv": (2050, {UNPARSABLE: 11}),
    "moleculenet/tox21.csv": (7831, {UNPARSABLE: 8}),
    "moleculenet/toxcast.csv.gz": (8576, {}),
    "moleculenet/sider.csv": (1427, {LARGE: 20}),
    "moleculenet/clintox.csv": (1478, {}),
    "moleculenet/muv.csv.gz": (93_087, {}),
    "moleculenet/hiv.csv.gz": (41_127, {UNPARSABLE: 7}),
    "moleculenet/esol.csv": (1128, {}),
    "moleculenet/freesolv.csv": (642, {}),
    "moleculenet/malaria.csv": (9999, {}),
    "moleculenet/cep.csv.gz": (29_978, {}),
}
# file -> rejects by reason of the first 500, each with a conformer of RDKit's.
FIRST_500_EMBEDDED = {
    "smiles/pubchem_100k.tsv.gz": {NO_CONFORMER: 1},
    "smiles/qm9_133885.csv.gz": {},
    "qm9/micro_qm9.csv": {NO_CONFORMER: 9},
    "moleculenet/bbbp.csv": {UNPARSABLE: 3},
    "moleculenet/tox21.csv": {NO_CONFORMER: 1},
    "moleculenet/toxcast.csv.gz": {},
    "moleculenet/sider.csv": {LARGE: 12},
    "moleculenet/clintox.csv": {NO_CONFORMER: 2},
    "moleculenet/muv.csv.gz": {},
    "moleculenet/hiv.csv.gz": {UNPARSABLE: 1},
    "moleculenet/esol.csv": {},
    "moleculenet/freesolv.csv": {},
    "moleculenet/malaria.csv": {},
    "moleculenet/cep.csv.gz": {},
}


def check(output, name, expected, read, options=None, limit=None):
    """Convert a file, and check what the manifest says of it, the shards and the export."""
    counts = convert([DATA / name], output, options=options, processes=PROCESSES, limit=limit)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["rejects_by_reason"] == expected
    assert counts["read"] == read
    assert counts["rejected"] == sum(expected.values())
    assert counts["converted"] == manifest["molecules"] == read - counts["rejected"]
    with open(output / "rejects.jsonl") as file:
        assert sum(1 for _ in file) == counts["rejected"]
    assert list(verify(output)) == []
    written = export(output, output.parent / "back.sdf")
    assert written.total() == counts["converted"]
    # One molecule in each of two files has a dative bond.
    assert written["written"] >= counts["converted"] - 1
    return manifest


@pytest.mark.parametrize("name", FIRST_300)
def test_the_first_smiles_without_geometry(tmp_path, name):
    options = Options(conformers=0)
    manifest = check(tmp_path / "data", name, FIRST_300[name], 300, options, limit=300)
    assert manifest["no_geometry"] == manifest["molecules"]


def test_exported_dft_geometries_come_back_the_same(tmp_path):
    options = Options(keep_hydrogens=True)
    convert([DATA / "pretrain/pcqm4mv2-2k.csv"], tmp_path / "a", options=options)
    export(tmp_path / "a", tmp_path / "back.sdf")
    convert([tmp_path / "back.sdf"], tmp_path / "b", options=options)
    blocks = zip(
        ShardDataset(tmp_path / "a").blocks(), ShardDataset(tmp_path / "b").blocks(), strict=True
    )
    for one, other in blocks:
        for field in ("z", "x", "cip", "bond_index", "bond_attr", "extended_source", "y"):
            assert np.array_equal(getattr(one, field), getattr(other, field)), field
        assert np.abs(one.pos - other.pos).max() < 2e-4


@pytest.mark.parametrize("name", WITH_GEOMETRY)
def test_files_with_geometry_in_full(tmp_path, name):
    read, expected = WITH_GEOMETRY[name]
    manifest = check(tmp_path / "data", name, expected, read)
    assert manifest["no_geometry"] == 0


@pytest.mark.parametrize("name", SMILES_IN_FULL)
def test_smiles_in_full_without_geometry(tmp_path, name):
    read, expected = SMILES_IN_FULL[name]
    check(tmp_path / "data", name, expected, read, Options(conformers=0))


@pytest.mark.parametrize("name", FIRST_500_EMBEDDED)
def test_the_first_500_smiles_with_a_conformer(tmp_path, name):
    manifest = check(tmp_path / "data", name, FIRST_500_EMBEDDED[name], 500, limit=500)
    assert manifest["origin"]["conformers_made"] == manifest["molecules"]
