import numpy as np
import pytest
from conftest import NCI, SMILES, make_record
from ogb.utils.features import (
    allowable_features,
    atom_to_feature_vector,
    bond_to_feature_vector,
    get_atom_feature_dims,
    get_bond_feature_dims,
)
from rdkit import Chem

from msde import molecule
from msde.molecule import MoleculeError


def test_vocabulary_sizes_are_those_of_ogb():
    assert get_atom_feature_dims() == molecule.ATOM_SIZES
    assert get_bond_feature_dims() == molecule.BOND_SIZES
    assert allowable_features["possible_chirality_list"] == molecule.ATOM_VOCABULARY["chirality"]


def test_features_are_those_of_ogb_on_real_molecules():
    molecule.silence_rdkit()
    lines = NCI.read_text().splitlines()[:1000:5]
    mols = [Chem.MolFromSmiles(line.split()[0]) for line in [*lines, *SMILES]]
    for mol in filter(None, mols):
        for atom in mol.GetAtoms():
            assert molecule.atom_features(atom) == atom_to_feature_vector(atom)
        for bond in mol.GetBonds():
            assert molecule.bond_features(bond) == bond_to_feature_vector(bond)


def test_extended_pairs_are_those_up_to_four_bonds_apart():
    for smiles in SMILES:
        mol = Chem.MolFromSmiles(smiles)
        bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]
        bond_index = np.array(bonds, np.int64).reshape(-1, 2)
        distance = Chem.GetDistanceMatrix(mol)
        i, j = np.triu_indices(mol.GetNumAtoms(), 1)
        near = distance[i, j] <= 4
        expected = np.stack([i[near], j[near]], axis=1)
        found = molecule.extended_pairs(bond_index, mol.GetNumAtoms())
        assert np.array_equal(found, expected)


def test_extended_pairs_are_the_published_edges():
    from test_parity import arrays

    data = arrays("batch")
    edges = data["edge_index"].T.numpy()
    pairs = molecule.extended_pairs(edges, len(data["batch"])).tolist()
    published = data["extended_edge_index"].T
    published = published[published[:, 0] < published[:, 1]].tolist()
    assert sorted(pairs) == sorted(published)


def test_features_of_a_published_batch():
    from test_parity import DIR, arrays

    data = arrays("batch")
    with np.load(DIR / "batch.npz", allow_pickle=False) as file:
        blocks = file["molblock"]
    mols = [molecule.mol_from_molblock(str(block)) for block in blocks]
    made = [molecule.record_from_mol(mol, uid) for uid, mol in enumerate(mols)]
    assert np.array_equal(np.concatenate([r.x for r in made]), data["x"])
    pos = np.concatenate([r.pos[0] for r in made])
    assert np.abs(pos - data["pos"].numpy()).max() < 1e-3


def test_positions_are_centred_and_conformers_seeded():
    one, again = make_record(SMILES[2], line=7), make_record(SMILES[2], line=7)
    other = make_record(SMILES[2], line=8)
    assert np.abs(one.pos.mean(axis=1)).max() < 1e-5
    assert np.array_equal(one.pos, again.pos)
    assert not np.allclose(one.pos, other.pos)


def test_hydrogens_are_removed_unless_kept():
    assert len(make_record("CO").z) == 2
    assert sorted(make_record("CO", keep_hydrogens=True).z) == [1, 1, 1, 1, 6, 8]


def test_cip_labels_do_not_depend_on_the_order_of_atoms():
    one, other = make_record("C[C@H](N)C(=O)O"), make_record("OC(=O)[C@@H](N)C")
    assert one.cip.max() > 0
    assert sorted(zip(one.z, one.cip, strict=True)) == sorted(zip(other.z, other.cip, strict=True))


@pytest.mark.parametrize(
    ("block_edit", "reason"),
    [
        (lambda m: m.GetConformer().Set3D(False), "no 3D conformer"),
        (lambda m: m.GetConformer().SetAtomPosition(0, [float("nan")] * 3), "not finite"),
        (
            lambda m: m.GetConformer().SetAtomPosition(0, m.GetConformer().GetAtomPosition(1)),
            "closer than",
        ),
    ],
)
def test_broken_geometries_are_refused(block_edit, reason):
    mol = molecule.embed_conformer(Chem.MolFromSmiles("CCO"), seed=1)
    block_edit(mol)
    with pytest.raises(MoleculeError, match=reason):
        molecule.record_from_mol(mol, uid=0)


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("C(C", "SMILES syntax"), ("CN(C)(C)(C)C", "valence"), ("c1cccc1C", "kekul")],
)
def test_unparsable_smiles_say_why(smiles, reason):
    molecule.silence_rdkit()
    with pytest.raises(MoleculeError, match=f"(?i){reason}"):
        molecule.mol_from_smiles(smiles)


def test_uid_is_stable():
    assert molecule.molecule_uid("a.smi", 1) == 0x0D52B1CAF095992D
    assert molecule.molecule_uid("a.smi", 1) != molecule.molecule_uid("a.smi", 11)
