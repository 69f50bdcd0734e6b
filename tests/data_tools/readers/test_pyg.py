import numpy as np
import pytest
import torch
from rdkit import Chem
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import from_rdmol, from_smiles

from fixtures.pickled import graph, qm9_graphs
from fixtures.readers import (
    SMILES,
    TRUST,
    convert,
    embedded,
    numbers,
    positions,
    recognised,
    smiles_of,
)
from msde.chem.record import Origin, record_from_mol
from msde.data_tools.readers import Label, Options, get_reader
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


HEAVY = [*SMILES, "c1cc[nH]c1", "CC#N"]
FIELDS = ("x", "edge_index", "edge_attr")


def saved(tmp_path, graphs):
    torch.save(InMemoryDataset.collate(graphs), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def coded(smiles, coding, hydrogens=False):
    """A graph with the codes of OGB or of from_smiles, and positions."""
    mol = embedded(smiles)
    mol = mol if hydrogens else Chem.RemoveHs(mol)
    if coding == "from_smiles":
        one = from_rdmol(mol)
        fields = {name: one[name] for name in FIELDS}
    else:
        record = record_from_mol(mol, 1)
        pairs = record.bond_index.astype(np.int64)
        fields = {
            "x": torch.tensor(record.x.astype(np.int64)),
            "edge_index": torch.tensor(np.concatenate([pairs, pairs[:, ::-1]]).T.copy()),
            "edge_attr": torch.tensor(np.tile(record.bond_attr, (2, 1)).astype(np.int64)),
        }
    return Data(pos=torch.tensor(positions(mol)[0], dtype=torch.float32), **fields)


@pytest.mark.parametrize("coding", ["OGB", "from_smiles"])
@pytest.mark.parametrize(
    ("hydrogens", "lacking"),
    [(False, ""), (True, ""), (True, "edge_attr"), (True, "edge_attr edge_index")],
)
def test_the_codes_of_from_smiles_are_told_from_those_of_ogb(tmp_path, coding, hydrogens, lacking):
    graphs = [coded(smiles, coding, hydrogens) for smiles in HEAVY]
    for one in graphs:
        for name in lacking.split():
            del one[name]
    _, parsed, rejected = convert(saved(tmp_path, graphs), TRUST)
    assert not rejected
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in HEAVY]


@pytest.mark.parametrize("coding", ["OGB", "from_smiles"])
@pytest.mark.parametrize("evidence", ["z", "smiles"])
def test_z_and_smiles_decide(tmp_path, coding, evidence):
    one = coded("c1ccccc1", coding)
    one.x[:, 2] = 0  # numbers of neighbours that tell nothing
    if evidence == "z":
        one.z = torch.full((6,), 6)
    else:
        one.smiles = "c1ccccc1"
    _, parsed, _ = convert(saved(tmp_path, [one, one]), TRUST)
    assert [smiles_of(one) for one in parsed.values()] == ["c1ccccc1"] * 2


def test_codes_that_may_be_either_are_an_error(tmp_path):
    one = coded("c1ccccc1", "OGB")
    del one.edge_attr  # rings of carbon and of boron, three neighbours each
    with pytest.raises(MsdeError, match="OGB's .*or those of from_smiles.*give its graphs z"):
        convert(saved(tmp_path, [one, one]), TRUST)


def test_graphs_with_smiles_and_no_positions_get_conformers(tmp_path):
    graphs = [from_smiles(smiles) for smiles in SMILES]
    for place, one in enumerate(graphs):
        one.y = torch.tensor([place + 0.5])
    facts, parsed, rejected = convert(saved(tmp_path, graphs), TRUST)
    assert not rejected and facts.taken == (("SMILES", "smiles"), ("label", "y"))
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES]
    assert {one.origin for one in parsed.values()} == {Origin.CONFORMERS_MADE}
    assert parsed[2].y == (1.5,) and parsed[2].mol.GetConformer().Is3D()
    flat = convert(tmp_path / "a.pt", Options(trust_pickle=True, conformers=0))[1]
    assert {one.origin for one in flat.values()} == {Origin.NO_GEOMETRY}
    for one in graphs:
        del one.smiles
    assert convert(saved(tmp_path, graphs), TRUST)[2] == {
        "no positions (pos) and no SMILES (smiles)": 5
    }


@pytest.mark.parametrize(
    ("energy", "force"), [("energy", "force"), ("REF_energy", "REF_gradient"), ("E", "F")]
)
def test_energies_and_forces_are_read(tmp_path, energy, force):
    mol, forces = embedded("CCO"), torch.arange(27.0).reshape(9, 3)
    one = Data(
        z=torch.tensor(numbers(mol)),
        pos=torch.tensor(positions(mol)[0]),
        **{energy: torch.tensor([-1.5]), force: forces},
    )
    facts, parsed, _ = convert(saved(tmp_path, [one, one]), TRUST)
    assert (facts.labels, facts.forces_unit) == ((Label(energy),), "")
    assert parsed[2].y == (-1.5,)
    sign = -1 if "grad" in force else 1
    assert np.array_equal(parsed[2].forces[0], sign * forces.numpy()[:3])


@pytest.mark.parametrize("smiles", ["OC(C)=O", "CC(O)=O", "CC(=O)O"])
@pytest.mark.parametrize("lacking", ["", "x", "x edge_attr"])
def test_a_smiles_gets_the_bonds_of_the_graph(tmp_path, smiles, lacking):
    one = coded("CC(=O)O", "OGB")
    one.smiles, one.z = smiles, torch.tensor([6, 6, 8, 8])
    if lacking == "x":
        one.edge_attr = torch.nn.functional.one_hot(one.edge_attr[:, 0], 4)
    for name in lacking.split():
        del one[name]
    _, parsed, _ = convert(saved(tmp_path, [one, one]), TRUST)
    assert parsed[1].mol.GetBondBetweenAtoms(1, 2).GetBondType() == Chem.BondType.DOUBLE
    assert len(parsed[1].notes) == (lacking == "x edge_attr" and smiles != "CC(=O)O")


def test_charges_of_a_smiles_go_where_the_codes_have_them(tmp_path):
    one = coded("C[NH2+]CCNC", "OGB")
    one.smiles = "CNCC[NH2+]C"
    _, parsed, _ = convert(saved(tmp_path, [one, one]), TRUST)
    assert [atom.GetFormalCharge() for atom in parsed[1].mol.GetAtoms()] == [0, 1, 0, 0, 0, 0]


def test_a_smiles_with_other_bond_orders_than_the_codes_has_a_note(tmp_path):
    one = coded("CC(=O)O", "OGB")
    one.smiles, one.z = "CC(O)O", torch.tensor([6, 6, 8, 8])
    _, parsed, _ = convert(saved(tmp_path, [one, one]), TRUST)
    assert smiles_of(parsed[1]) == "CC(O)O" and "than its edge_attr" in parsed[1].notes[0]


def test_bonds_may_be_stored_one_way(tmp_path):
    graphs = [coded(smiles, "OGB") for smiles in HEAVY]
    for one in graphs:
        half = one.num_edges // 2  # behind it are the pairs (i, j) with i > j
        one.edge_index, one.edge_attr = one.edge_index[:, half:], one.edge_attr[half:]
    _, parsed, rejected = convert(saved(tmp_path, graphs), TRUST)
    assert not rejected
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in HEAVY]


def test_edges_that_contradict_each_other_are_a_reason_to_reject(tmp_path):
    one = coded("CCO", "OGB", hydrogens=True)
    other = one.clone()
    other.edge_attr[-1, 0] = 1
    reasons = convert(saved(tmp_path, [one] * 30 + [other]), TRUST)[2]
    assert reasons == {"edge_attr gives the bond of atoms 2 and 8 two kinds": 1}


def test_fields_of_one_dimension_may_be_named_an_index(tmp_path):
    graphs = [coded(smiles, "OGB") for smiles in HEAVY]
    for one in graphs:
        one.atom_index = torch.arange(one.num_nodes)
    assert len(convert(saved(tmp_path, graphs), TRUST)[1]) == len(HEAVY)


def test_lists_of_graphs_and_single_ones_are_data_sets(tmp_path):
    graphs = [graph(embedded(smiles), smiles=smiles) for smiles in SMILES]
    torch.save(graphs, tmp_path / "a.pt")
    assert len(convert(tmp_path / "a.pt", TRUST)[1]) == len(SMILES)
    assert len(convert(saved(tmp_path, graphs[:1]), TRUST)[1]) == 1


def test_targets_can_be_chosen_and_converted(tmp_path):
    path = qm9_graphs(tmp_path)
    options = Options(trust_pickle=True, label_columns=("homo=Ha", "mu"))
    facts, parsed, _ = convert(path, options)
    assert facts.labels == (Label("homo", "Ha"), Label("mu", "D"))
    assert parsed[1].y == (pytest.approx(2 / 27.211386246), 0)
    assert facts.notes == ("homo is converted from eV to Ha",)
    assert ("lumo", "not among the labels that were chosen") in facts.left_out


def test_perceived_ions_have_the_charge_of_the_graph(tmp_path):
    mol = embedded("CC(=O)[O-]")
    one = Data(z=torch.tensor(numbers(mol)), pos=torch.tensor(positions(mol)[0]), charge=-1)
    _, parsed, _ = convert(saved(tmp_path, [one, one]), TRUST)
    assert smiles_of(parsed[1]) == "CC(=O)[O-]"


def test_targets_stay_in_their_places_where_a_graph_lacks_y_or_has_more(tmp_path):
    given = [([1.0], -5.0), (None, -6.0), ([3.0, 4.0], -7.0), ([8.0], -9.0)]
    graphs = [
        graph(embedded(smiles), y=None if y is None else torch.tensor(y), energy=energy)
        for smiles, (y, energy) in zip(SMILES, given, strict=False)
    ]
    torch.save(graphs, tmp_path / "a.pt")
    facts, parsed, rejected = convert(tmp_path / "a.pt", TRUST)
    assert facts.labels == (Label("y"), Label("energy"))
    found = np.array([parsed[line].y for line in (1, 2, 4)])
    assert np.array_equal(found, [[1, -5], [np.nan, -6], [8, -9]], equal_nan=True)
    assert rejected == {"y has 2 numbers, expected 1": 1}


def test_fields_that_the_first_graph_lacks_are_read(tmp_path):
    first, second = (graph(embedded(smiles)) for smiles in SMILES[:2])
    del first["y"]
    second.y, second.energy = torch.tensor([2.0]), -3.0
    torch.save([first, second], tmp_path / "a.pt")
    facts, parsed, _ = convert(tmp_path / "a.pt", TRUST)
    assert facts.labels == (Label("y"), Label("energy"))
    assert np.isnan(parsed[1].y).all() and parsed[2].y == (2.0, -3.0)
    second.forces = torch.ones(len(second.z), 3)
    torch.save([first, second], tmp_path / "b.pt")
    assert get_reader("pyg", TRUST).facts([tmp_path / "b.pt"]).forces_unit is not None
