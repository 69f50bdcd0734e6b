"""Relations of atoms, against RDKit's."""

import dataclasses

import numpy as np
import pytest
import torch
from rdkit import Chem

from msde.chem.record import record_from
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.model.relations import MAX_HOPS, relations
from msde.model.score.all_pairs import signed_volumes

SMILES = [
    "C[C@H](F)Cl",
    "F[C@](C)(Cl)Br",
    "N[C@@H](C)C(=O)O",
    "C1CC[C@H]2CCCC[C@@H]2C1",
    "CC[S@](=O)C",
    "C/C(F)=C(Cl)/C",
    "C/C=C\\C",
    "CCCCCCCCCCCCCC",
    "C",
    "CC(=O)Oc1ccccc1C(=O)O",
    "[Na+].[Cl-]",
]


def batch_of_smiles(smiles):
    return MoleculeBatch.from_columns(columns_from_records([record_from(s, False) for s in smiles]))


@pytest.fixture(scope="module")
def related():
    batch = batch_of_smiles(SMILES)
    return batch, relations(batch)


def test_edges_join_all_atoms_of_a_molecule_in_both_directions(related):
    batch, found = related
    source, target = found.edges.index
    same = batch.batch.unsqueeze(0) == batch.batch.unsqueeze(1)
    expected = (same & ~torch.eye(batch.num_atoms, dtype=torch.bool)).nonzero().T.flip(0)
    assert torch.equal(found.edges.index, expected)
    assert torch.equal(found.edges.row_ptr, torch.searchsorted(target, torch.arange(len(same) + 1)))


def test_hops_and_bonds_are_rdkit_s(related):
    batch, found = related
    for graph, smiles in enumerate(SMILES):
        mol = Chem.MolFromSmiles(smiles)
        apart = np.minimum(Chem.GetDistanceMatrix(mol), MAX_HOPS + 1)
        first = int(batch.ptr[graph])
        edges = batch.batch[found.edges.index[0]] == graph
        for (i, j), code in zip(
            (found.edges.index[:, edges] - first).T.tolist(),
            found.codes[edges].tolist(),
            strict=True,
        ):
            assert code[0] == apart[i, j]
            assert (code[1] > 0) == (mol.GetBondBetweenAtoms(i, j) is not None)


def test_the_sign_of_a_label_is_that_of_the_volume_in_rdkit_s_conformer(related):
    batch, found = related
    volume, _ = signed_volumes(batch.pos, found)
    is_centre = found.sign != 0
    tagged = (batch.x[:, 1] == 1) | (batch.x[:, 1] == 2)
    assert torch.equal(is_centre, tagged) and int(is_centre.sum()) == 6
    assert (volume * found.sign)[is_centre].min() > 1


def test_gradients_of_volumes_are_those_of_autograd(related):
    batch, found = related
    pos = batch.pos.double().requires_grad_()
    volume, gradients = signed_volumes(pos, found)
    for atom in (found.sign != 0).nonzero().flatten().tolist():
        (expected,) = torch.autograd.grad(volume[atom], pos, retain_graph=True)
        for place, neighbour in enumerate(found.neighbours[atom].tolist()):
            if neighbour != atom:
                assert torch.allclose(gradients[atom, place], expected[neighbour])
        assert torch.allclose(-gradients[atom].sum(0), expected[atom], atol=1e-9)


def test_cis_and_trans_of_labelled_double_bonds(related):
    batch, found = related
    codes = {}
    for graph in (5, 6):
        first = int(batch.ptr[graph])
        edges = batch.batch[found.edges.index[0]] == graph
        pairs = (found.edges.index[:, edges] - first).T.tolist()
        sides = found.codes[edges, 2].tolist()
        codes[graph] = {tuple(p): side for p, side in zip(pairs, sides, strict=True) if side}
    # C0/C1(F2)=C3(Cl4)/C5: C0 and C5 are trans, as are F2 and Cl4.
    expected = {(0, 5): 2, (2, 4): 2, (0, 4): 1, (2, 5): 1}
    assert codes[5] == expected | {pair[::-1]: side for pair, side in expected.items()}
    assert codes[6] == {(0, 3): 1, (3, 0): 1}
    assert int((found.codes[:, 2] > 0).sum()) == 10


def test_double_bonds_without_positions_are_neither():
    batch = batch_of_smiles(["C/C=C\\C"])
    flat = dataclasses.replace(batch, pos=torch.zeros_like(batch.pos))
    assert (relations(flat).codes[:, 2] == 0).all()
