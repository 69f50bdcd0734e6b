"""SDF -> shards -> SDF -> shards: nothing changes but the last digit of positions."""

import gzip
import io
import json

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from fixtures.data_sets import molecules
from fixtures.molecules import NCI
from fixtures.readers import embedded, positions, real
from msde.chem.rebuild import mol_from_record
from msde.data.shards import read_manifest
from msde.data_tools.convert import convert
from msde.data_tools.readers import Options
from msde.data_tools.sets.exporting import export, skipped_path

FIELDS = ("z", "x", "cip", "bond_index", "bond_attr", "extended_source", "extended_degree")


TETRAHEDRAL = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW")


def is_not_stored(atom):
    """Whether an atom has what records do not hold: an isotope, a stereocentre of five bonds."""
    return atom.GetIsotope() or str(atom.GetChiralTag()) not in TETRAHEDRAL


def plain_smiles(mol):
    """The canonical SMILES without what records do not hold."""
    mol = Chem.Mol(mol)
    for atom in filter(is_not_stored, mol.GetAtoms()):
        atom.SetIsotope(0)
        if str(atom.GetChiralTag()) not in TETRAHEDRAL:
            atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    return Chem.CanonSmiles(Chem.MolToSmiles(mol))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_against_source(mol, record, labels, noted):
    """A record is its molecule in the SD file, as RDKit reads it."""
    assert plain_smiles(mol_from_record(record)) == plain_smiles(mol)
    # Isotopes of hydrogen, which RDKit keeps, have no charge.
    charges = [atom.GetFormalCharge() for atom in mol.GetAtoms() if atom.GetFormalCharge()]
    codes = record.x[:, 3].astype(int) - 5
    assert codes[codes != 0].tolist() == charges
    if any(map(is_not_stored, mol.GetAtoms())):
        assert record.name in noted
    if mol.GetConformer().Is3D():
        place = positions(mol)[0]
        assert np.abs(record.pos[0] - (place - place.mean(0))).max() < 1e-4
    values = [float(mol.GetProp(name)) if mol.HasProp(name) else np.nan for name in labels]
    assert np.array_equal(record.y, values, equal_nan=True)


def check_same(one, other):
    for field in FIELDS:
        assert np.array_equal(getattr(one, field), getattr(other, field)), (field, one.name)
    assert one.pos.shape == other.pos.shape and np.abs(one.pos - other.pos).max() < 1e-4
    assert np.array_equal(one.y, other.y, equal_nan=True)
    assert (one.name, one.origin) == (other.name, other.origin)


def check(path, folder, options):
    """Convert, export and convert again; return how many molecules were compared."""
    convert([path], folder / "a", options=options, processes=2)
    export(folder / "a", folder / "a.sdf")
    convert([folder / "a.sdf"], folder / "b", options=options, processes=2)
    assert not lines_of(folder / "b/rejects.jsonl")
    skipped = {line["number"] for line in lines_of(skipped_path(folder / "a.sdf"))}
    noted = {line["name"] for line in lines_of(folder / "a/notes.jsonl")}
    labels = [label["name"] for label in read_manifest(folder / "a")["labels"]]
    assert [label["name"] for label in read_manifest(folder / "b")["labels"]] == labels
    opened = gzip.open(path) if path.suffix == ".gz" else io.BytesIO(path.read_bytes())
    sources = Chem.ForwardSDMolSupplier(opened, removeHs=not options.keep_hydrogens)
    rejected = {line["name"] for line in lines_of(folder / "a/rejects.jsonl")}
    sources = (mol for mol in sources if mol is None or mol.GetProp("_Name") not in rejected)
    again, compared = molecules(folder / "b"), 0
    for number, record in enumerate(molecules(folder / "a"), start=1):
        mol = next(sources)
        if number not in skipped:
            assert mol.GetProp("_Name") == record.name
            check_against_source(mol, record, labels, noted)
            check_same(record, next(again))
            compared += 1
    assert next(again, None) is None
    return compared


def write_nci(path, lines, make):
    """Write molecules of NCI as an SD file, with a property that needs all digits."""
    with Chem.SDWriter(str(path)) as writer:
        for number, line in enumerate(lines, start=1):
            smiles, name = line.split()[:2]
            mol = Chem.MolFromSmiles(smiles)
            if mol is not None:
                mol = make(smiles, mol)
                mol.SetProp("_Name", f"{number} {name}")
                mol.SetProp("gap", repr(number / 7))
                writer.write(mol)
    return path


def drawn(smiles, mol):
    rdDepictor.Compute2DCoords(mol)
    return mol


FLAT = Options(conformers=0, keep_radicals=True, max_atoms=1000)
SOLID = Options(keep_hydrogens=True, keep_radicals=True)


def test_drawings_come_back_the_same(tmp_path):
    lines = NCI.read_text().splitlines()[:70]
    lines += ["[13CH3]C([2H])O isotopes", "C[C@H](N)C(=O)[O-] charged", "F/C=C/Cl double"]
    path = write_nci(tmp_path / "nci.sdf", lines, drawn)
    assert check(path, tmp_path, FLAT) == len(lines)


@pytest.mark.parametrize("keep_hydrogens", [True, False])
def test_geometries_come_back_the_same(tmp_path, keep_hydrogens):
    lines = [f"{smiles} m" for smiles in ("C[C@H](N)C(=O)O", "C[N+](C)(C)CC(=O)[O-]", "C/C=C/Cl")]
    lines += NCI.read_text().splitlines()[:40:2]
    path = write_nci(tmp_path / "nci.sdf", lines, lambda smiles, mol: embedded(smiles))
    options = Options(keep_hydrogens=keep_hydrogens, keep_radicals=True)
    assert check(path, tmp_path, options) == len(lines)


@pytest.mark.slow
def test_all_of_nci_comes_back_the_same(tmp_path):
    path = write_nci(tmp_path / "nci.sdf", NCI.read_text().splitlines(), drawn)
    assert check(path, tmp_path, FLAT) > 4950


@pytest.mark.slow
def test_dft_geometries_come_back_the_same(tmp_path):
    assert check(real("pretrain/dft8k.sdf.gz"), tmp_path, SOLID) > 7400
