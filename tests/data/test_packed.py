import dataclasses

import numpy as np
import pytest
import torch
from rdkit import Chem

from fixtures.molecules import real_molecules, topology
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.data.packed import PackedMolecules
from msde.philox import Key


@pytest.fixture
def packed(records):
    several = dataclasses.replace(records[2], pos=np.concatenate([records[2].pos] * 3))
    return PackedMolecules.from_columns(columns_from_records([*records, several]))


def test_a_batch_is_expanded_on_the_device_of_its_columns_without_their_values(packed):
    here = MoleculeBatch.expand(packed, Key(1, 2))
    # The meta device has shapes only: an operator that waits for values fails on it.
    there = MoleculeBatch.expand(packed.to(torch.device("meta")), Key(1, 2))
    for name, tensor in here.tensors().items():
        other = getattr(there, name)
        assert other.is_meta and (other.shape, other.dtype) == (tensor.shape, tensor.dtype), name
    assert there.max_num_atoms == here.max_num_atoms


def test_packed_molecules_take_an_eighth_of_the_bytes_of_their_batch():
    packed = PackedMolecules.from_columns(
        columns_from_records(list(map(topology, real_molecules())))
    )
    batch = MoleculeBatch.expand(packed)
    sent = sum(getattr(packed, name).nbytes for name in PackedMolecules.TENSORS)
    assert 8 * sent < sum(tensor.nbytes for tensor in batch.tensors().values())


def test_indices_of_two_bytes_become_indices_that_gpus_know():
    large = topology(Chem.MolFromSmiles("C" * 300))
    columns = columns_from_records([large, topology(Chem.MolFromSmiles("CO"))])
    assert columns.bond_index.dtype == np.uint16
    packed = PackedMolecules.from_columns(columns)
    assert torch.uint16 not in {getattr(packed, name).dtype for name in PackedMolecules.TENSORS}
    batch = MoleculeBatch.expand(packed)
    batch.validate()
    assert batch.edge_index[:, -2:].tolist() == [[300, 301], [301, 300]]
    assert batch.edge_index[0, :598:2].tolist() == list(range(299))
