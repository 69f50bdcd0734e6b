import numpy as np
import pytest
import torch
from rdkit import Chem
from torch_geometric.data import Data, InMemoryDataset

from fixtures.pickled import graph, qm9_graphs
from fixtures.readers import SMILES, TRUST, convert, embedded, positions, recognised, smiles_of
from msde.chem.record import Origin, record_from_mol
from msde.data_tools.readers import Label, get_reader
from msde.errors import MsdeError


def test_graphs_with_smiles(tmp_path):
    path = qm9_graphs(tmp_path)
    assert recognised(path) == "pyg"
    facts, parsed, rejected = convert(path, TRUST)
    assert not rejected
    assert (facts.labels[0], facts.labels[-1]) == (Label("mu", "D"), Label("C", "GHz"))
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES]
    assert parsed[3].y[:2] == (2, 3)
    assert all(one.origin == Origin.SOURCE for one in parsed.values())


@pytest.mark.parametrize("lacking", ["smiles", "smiles edge_attr", "smiles edge_attr edge_index"])
def test_graphs_with_fewer_fields(tmp_path, lacking):
    graphs = [graph(embedded(smiles), y=torch.tensor([1.5])) for smiles in SMILES[:4]]
    for one in graphs:
        for name in lacking.split()[1:]:
            del one[name]
    data, slices = InMemoryDataset.collate(graphs)
    torch.save((data, slices), tmp_path / "a.pt")
    facts, parsed, rejected = convert(tmp_path / "a.pt", TRUST)
    assert facts.labels == (Label("y"),) and not rejected
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES[:4]]
    perceived = "edge_attr" in lacking
    expected = Origin.BONDS_PERCEIVED if perceived else Origin.SOURCE
    assert {one.origin for one in parsed.values()} == {expected}


def test_graphs_with_codes_of_heavy_atoms(tmp_path):
    graphs = []
    for smiles in [*SMILES, "c1cc[nH]c1"]:
        mol = Chem.RemoveHs(embedded(smiles))
        record = record_from_mol(mol, 1)
        pairs = record.bond_index.astype(np.int64)
        one = Data(
            x=torch.tensor(record.x.astype(np.int64)),
            edge_index=torch.tensor(np.concatenate([pairs, pairs[:, ::-1]]).T.copy()),
            edge_attr=torch.tensor(np.tile(record.bond_attr, (2, 1)).astype(np.int64)),
            positions=torch.tensor(positions(mol)[0], dtype=torch.float32),
        )
        graphs.append(one)
    data, slices = InMemoryDataset.collate(graphs)
    torch.save((data, slices), tmp_path / "geometric_data_processed.pt")
    facts, parsed, rejected = convert(tmp_path / "geometric_data_processed.pt", TRUST)
    assert not rejected and facts.labels == ()
    expected = [Chem.CanonSmiles(smiles) for smiles in [*SMILES, "c1cc[nH]c1"]]
    assert [smiles_of(one) for one in parsed.values()] == expected


def test_a_file_of_torch_without_a_data_set_is_an_error(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(MsdeError, match="is not \\(data, slices\\)"):
        get_reader("pyg", TRUST).facts([tmp_path / "a.pt"])
