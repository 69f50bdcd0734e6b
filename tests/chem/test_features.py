import numpy as np
import pytest
from ogb.utils.features import atom_to_feature_vector, bond_to_feature_vector
from rdkit import Chem

from fixtures.molecules import real_molecules, topology
from msde.chem.conformers import embed_conformers
from msde.chem.features import check_geometry, extended_edges, features_from_mol
from msde.chem.parsing import mol_from_molblock
from msde.chem.record import record_from_mol
from msde.chem.vocabulary import BOND_SIZES, MoleculeError

# Each of them has something that few others have: isotopes, dummies and labels, kinds of stereo,
# dative and quadruple bonds, unusual charges, more than 256 atoms.
SPECIAL = [
    *("[13CH4]", "[2H]O[2H]", "[CH3]", "C[O]", "[O-][n+]1ccccc1", "[Na+].[Cl-].O", "[2H]C(F)Cl"),
    *("*", "*C*", "[*:1]CC[*:300]", "[CH3:7]O", "[1*]C[2*]", "[nH]1cccc1", "c1ccc2ccccc2c1"),
    *("F/C=C/F", r"F/C=C\F", "CC=NO", "C[C@H](N)[C@@H](C)O", "F[P@SP1](Cl)(Br)I", "C=[Si]=C"),
    *("F[As@TB1](Cl)(Br)(N)O", "C[Co@OH1](F)(Cl)(Br)(I)N", "OC(Cl)=[C@AL1]=C(C)F", "[Fe]", "[U+6]"),
    *("[NH3]->[Pt](Cl)(Cl)<-[NH3]", "[Fe+2].[CH-]1C=CC=C1", "C1CC1~C", "F[S](F)(F)(F)(F)F"),
    *("CC=CC |w:1.0|", "C" * 255, "C" * 256, "C" * 300 + "/C=C/[C@H](N)O"),
    *("C1" + "C" * 260 + "1", "[C-]#[O+]", "[Cu+5]", "[C-4]", "C[N+](C)(C)C.[I-]", "C$C", "[H][H]"),
    *("CC[C@H](C)O |&1:2|", "CCCC |Sg:n:1,2:2:ht|"),
]


def assert_ogb(mol):
    record = topology(Chem.Mol(mol))  # labels are written into it
    assert record.z.tolist() == [a.GetAtomicNum() for a in mol.GetAtoms()]
    assert record.x.tolist() == [atom_to_feature_vector(a) for a in mol.GetAtoms()]
    assert record.bond_attr.tolist() == [bond_to_feature_vector(b) for b in mol.GetBonds()]
    ends = [sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds()]
    assert record.bond_index.tolist() == ends


def test_features_are_those_of_ogb_on_real_molecules():
    for mol in real_molecules():
        assert_ogb(mol)
        assert_ogb(Chem.AddHs(mol))


@pytest.mark.parametrize("smiles", SPECIAL)
def test_features_are_those_of_ogb_on_special_molecules(smiles):
    assert_ogb(Chem.MolFromSmiles(smiles))


@pytest.mark.parametrize("stereo", ["STEREOATROPCW", "STEREOATROPCCW"])
def test_axes_of_atropisomers_have_the_last_code(stereo):  # OGB fails on them
    mol = Chem.MolFromSmiles("Cc1cccc(F)c1-c1c(Cl)cccc1Br")
    axis = mol.GetBondBetweenAtoms(7, 8)
    axis.SetStereo(Chem.BondStereo.names[stereo])
    codes = topology(mol).bond_attr[:, 1]
    assert codes[axis.GetIdx()] == BOND_SIZES[1] - 1
    assert np.count_nonzero(codes) == 1


def test_an_atom_with_too_many_neighbours_is_refused():
    with pytest.raises(MoleculeError, match="degree above 255"):
        topology(Chem.MolFromSmiles("*" + "(C)" * 300))


def test_extended_edges_are_those_up_to_four_bonds_apart():
    for mol in real_molecules(every=50):
        record = topology(mol)
        distance = Chem.GetDistanceMatrix(mol)
        near = (distance > 0) & (distance <= 4)
        assert np.array_equal(record.extended_source, np.nonzero(near)[1])
        assert np.array_equal(record.extended_degree, near.sum(axis=1))


def test_extended_edges_are_the_published_ones():
    from fixtures.parity import arrays

    data = arrays("batch")
    num_atoms = len(data["batch"])
    source, degree = extended_edges(data["edge_index"].T.numpy(), num_atoms)
    edges = zip(source.tolist(), np.repeat(np.arange(num_atoms), degree).tolist(), strict=True)
    assert sorted(edges) == sorted(map(tuple, data["extended_edge_index"].T.tolist()))


def test_features_of_a_published_batch():
    from fixtures.parity import DIR, arrays

    data = arrays("batch")
    with np.load(DIR / "batch.npz", allow_pickle=False) as file:
        blocks = file["molblock"]
    mols = [mol_from_molblock(str(block)) for block in blocks]
    made = [record_from_mol(mol, uid) for uid, mol in enumerate(mols)]
    assert np.array_equal(np.concatenate([r.x for r in made]), data["x"])
    pos = np.concatenate([r.pos[0] for r in made])
    assert np.abs(pos - data["pos"].numpy()).max() < 1e-3


def test_positions_are_those_of_all_conformers_in_space():
    mol = embed_conformers(Chem.MolFromSmiles("CC(O)CC"), 3, 5)
    expected = np.array([conformer.GetPositions() for conformer in mol.GetConformers()])
    drawn = Chem.Conformer(mol.GetNumAtoms())
    drawn.Set3D(False)
    mol.AddConformer(drawn, assignId=True)
    pos = features_from_mol(mol).pos
    assert len(pos) > 1 and pos.dtype == np.float32
    assert np.allclose(pos, expected - expected.mean(1, keepdims=True), atol=1e-5)
    assert not features_from_mol(mol, topology_only=True).pos.any()


@pytest.mark.parametrize("num_atoms", [12, 1200])  # all pairs at once, and sorted
@pytest.mark.parametrize(("gap", "broken"), [(0.009, True), (0.011, False), (0.2, False)])
def test_close_atoms_are_found_in_any_conformer(num_atoms, gap, broken):
    pos = np.random.default_rng(0).permuted(np.arange(3.0 * num_atoms)).reshape(-1, 3)
    pos = np.stack([pos, pos])
    pos[1, 5] = pos[1, num_atoms - 2] + [0, 0, gap]
    for shifted in (pos, pos + 1e4, pos.astype(np.float32)):
        if broken:
            with pytest.raises(MoleculeError, match="closer than"):
                check_geometry(shifted)
        else:
            check_geometry(shifted)
