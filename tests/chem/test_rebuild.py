from rdkit import Chem

from fixtures.molecules import NCI
from msde.chem.rebuild import mol_from_record
from msde.chem.record import record_from_mol
from msde.chem.vocabulary import MoleculeError


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
