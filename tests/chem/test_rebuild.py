import pickle

import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from fixtures.molecules import NCI
from msde.chem.parsing import mol_from_molblock
from msde.chem.rebuild import mol_from_record
from msde.chem.record import record_from_mol
from msde.chem.vocabulary import MoleculeError


def by_both_perceptions(make):
    """What is made while RDKit perceives stereochemistry in its older and in its newer way."""
    made = []
    for is_legacy in (True, False):
        Chem.SetUseLegacyStereoPerception(is_legacy)
        try:
            made.append(make())
        finally:
            Chem.SetUseLegacyStereoPerception(True)
    return made


@pytest.mark.parametrize(
    "smiles", ["C/C=C/C", "C/C(F)=C(/Cl)Br", "CC/C(C)=C(/CCO)C(C)C", "C/C=N\\O", "N[C@@H](C)C=C"]
)
def test_records_do_not_depend_on_how_rdkit_perceives_stereochemistry(smiles):
    def record():
        made = record_from_mol(Chem.MolFromSmiles(smiles), 1, topology_only=True)
        rebuilt = mol_from_record(made)
        for one in (rebuilt, Chem.RemoveHs(rebuilt)):  # the latter asks for directions of bonds
            assert Chem.MolToSmiles(one) == Chem.CanonSmiles(smiles)
        return made

    records = by_both_perceptions(record)
    assert pickle.dumps(records[0]) == pickle.dumps(records[1])


@pytest.mark.parametrize("keep_hydrogens", [True, False])
@pytest.mark.parametrize("smiles", ["CCC(/C=N\\O)CC", "CC(C)=NO", "C1CC1C=C"])
def test_mol_blocks_do_not_depend_on_how_rdkit_perceives_stereochemistry(smiles, keep_hydrogens):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    block = Chem.MolToMolBlock(mol)
    records = by_both_perceptions(
        lambda: record_from_mol(mol_from_molblock(block, keep_hydrogens), 1)
    )
    assert pickle.dumps(records[0]) == pickle.dumps(records[1])


def test_rebuilt_molecules_have_the_smiles_of_the_originals():
    wrong = []
    for line in NCI.read_text().splitlines()[:400]:
        mol = Chem.MolFromSmiles(line.split()[0])
        if mol is None:
            continue
        record = record_from_mol(mol, 1, topology_only=True)
        try:
            rebuilt = mol_from_record(record)
        except MoleculeError:
            continue
        if Chem.MolToSmiles(rebuilt) != Chem.MolToSmiles(mol):
            wrong.append(line)
    assert wrong == []
