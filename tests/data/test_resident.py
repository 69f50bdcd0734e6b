import numpy as np
import pytest
import torch
from rdkit import Chem

from fixtures.molecules import topology
from msde.data.codec import columns_from_records
from msde.data.mixture import Mixture
from msde.data.packed import PackedMolecules
from msde.data.resident import ResidentMolecules
from msde.data.shards import ShardDataset, write_manifest, write_shard
from msde.errors import MsdeError


@pytest.fixture
def data(tmp_path, records, monkeypatch):
    """Small molecules and, in another block, one whose atom numbers take two bytes."""
    monkeypatch.setattr("msde.data.resident._PART", 4)
    large = topology(Chem.MolFromSmiles("C" * 300))
    parts = [columns_from_records(records), columns_from_records([large])]
    entries = [write_shard(tmp_path, number, part) for number, part in enumerate(parts)]
    write_manifest(tmp_path, entries, {})
    return Mixture([ShardDataset(tmp_path)])


@pytest.mark.parametrize("numbers", [[10, 3, 0], [1], [0, 0, 10]])
def test_taken_molecules_are_those_of_the_shards(data, numbers):
    numbers = np.array(numbers)
    expected = PackedMolecules.from_columns(data.fetch(numbers))
    taken = ResidentMolecules(data, torch.device("cpu")).take(numbers)
    for name in PackedMolecules.TENSORS:
        assert torch.equal(getattr(taken, name).long(), getattr(expected, name).long()), name
    assert torch.equal(taken.pos, expected.pos)
    for name in ("totals", "max_num_atoms", "several_conformers", "num_padding"):
        assert getattr(taken, name) == getattr(expected, name), name


def test_data_that_do_not_fit_on_the_device_are_an_error(data, monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(PackedMolecules, "to", full)
    with pytest.raises(MsdeError, match="11 molecules do not fit on cpu; train without"):
        ResidentMolecules(data, torch.device("cpu"))
