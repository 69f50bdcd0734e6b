import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdCIPLabeler

from fixtures.molecules import make_record, real_molecules, topology
from msde.chem.conformers import embed_conformer
from msde.chem.record import molecule_uid, record_from, record_from_mol
from msde.chem.vocabulary import CIP_LABELS, MoleculeError


def test_cip_labels_are_those_of_the_new_algorithm():
    seen = set()
    pseudo = ["C[C@H](O)[C@@H](O)[C@@H](C)O", "O[C@H]1CC[C@@H](C)CC1", "O[C@H]1CC[C@H](C)CC1"]
    centres = ["C[C@H](N)O", "C[C@@H](N)O"]
    for mol in [*real_molecules(), *map(Chem.MolFromSmiles, pseudo + centres)]:
        labelled = Chem.Mol(mol)
        rdCIPLabeler.AssignCIPLabels(labelled)
        props = [atom.GetPropsAsDict(autoConvertStrings=False) for atom in labelled.GetAtoms()]
        labels = [p.get("_CIPCode", "") for p in props]
        assert [CIP_LABELS[code] for code in topology(mol).cip] == labels
        seen.update(labels)
    assert seen == set(CIP_LABELS)


def test_cip_labels_do_not_depend_on_the_order_of_atoms():
    one, other = make_record("C[C@H](N)C(=O)O"), make_record("OC(=O)[C@@H](N)C")
    assert one.cip.max() > 0
    assert sorted(zip(one.z, one.cip, strict=True)) == sorted(zip(other.z, other.cip, strict=True))


def test_hydrogens_are_removed_unless_kept():
    assert len(make_record("CO").z) == 2
    assert sorted(make_record("CO", keep_hydrogens=True).z) == [1, 1, 1, 1, 6, 8]


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
    mol = embed_conformer(Chem.MolFromSmiles("CCO"), seed=1)
    block_edit(mol)
    with pytest.raises(MoleculeError, match=reason):
        record_from_mol(mol, uid=0)


def test_uid_is_stable():
    assert molecule_uid("a.smi", 1) == 0x0D52B1CAF095992D
    assert molecule_uid("a.smi", 1) != molecule_uid("a.smi", 11)


def test_isotopes_are_forgotten_with_a_note():
    notes: list[str] = []
    found = record_from("[13CH3][C@H](C)O", topology_only=True, notes=notes)
    plain = record_from("CC(C)O", topology_only=True)
    assert np.array_equal(found.x, plain.x) and np.array_equal(found.cip, plain.cip)
    assert notes == ["isotopes are not stored: 1 13C"]
