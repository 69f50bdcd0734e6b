import pytest
import torch
from torch_geometric.data import Batch, Data

from msde.chem.vocabulary import MoleculeError
from msde.data.batch import MoleculeBatch
from msde.data.pyg import record_from_pyg


def test_round_trip_through_pytorch_geometric(batch):
    molecules = batch.to_pyg()
    packed = Batch.from_data_list(molecules)
    assert torch.equal(packed.edge_index, batch.edge_index)
    assert torch.equal(packed.batch, batch.batch)
    again = MoleculeBatch.from_pyg(molecules)
    for name, tensor in batch.tensors().items():
        assert torch.allclose(getattr(again, name).double(), tensor.double(), atol=1e-6), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": None}, "its data lack pos"),
        ({"x": torch.zeros(2, 8, dtype=torch.int64)}, r"x has shape \(2, 8\), expected \(2, 9\)"),
        ({"z": torch.tensor([6, 300])}, "z holds a value that is out of range"),
        ({"edge_index": torch.tensor([[0, 0], [1, 1]])}, "every bond once in each direction"),
    ],
)
def test_fields_that_are_missing_or_wrong_are_named(batch, change, message):
    fields = batch.to_pyg()[1].to_dict() | change
    data = Data(**{name: value for name, value in fields.items() if value is not None})
    with pytest.raises(MoleculeError, match=message):
        record_from_pyg(data)
