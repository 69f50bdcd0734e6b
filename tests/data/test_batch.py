import dataclasses

import numpy as np
import pytest
import torch

from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.philox import Key


def test_fields_of_a_known_molecule(records):
    batch = MoleculeBatch.from_columns(columns_from_records([records[1], records[6]]))
    batch.validate()
    assert batch.z.tolist() == [6, 8, 6, 6]
    assert batch.ptr.tolist() == [0, 2, 4]
    assert batch.edge_index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]
    assert batch.edge_attr[:, 0].tolist() == [0, 0, 2, 2]  # single, triple
    assert batch.pair_index.tolist() == [[0, 2], [1, 3]]
    assert batch.extended_edge_index.tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]
    assert batch.max_num_atoms == 2


def test_bonds_are_found_among_the_pairs(batch):
    assert torch.equal(batch.pair_index[:, batch.bond_pair], batch.edge_index[:, ::2])


def swap(t, one, other):
    """Swap two columns."""
    order = list(range(t.shape[1]))
    order[one], order[other] = other, one
    return t[:, order]


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("pos", lambda t: t.double(), "pos has dtype"),
        ("pos", lambda t: t * torch.nan, "not finite"),
        ("edge_index", lambda t: t + 1000, "edge_index range"),
        ("x", lambda t: t + 200, "x range"),
        ("z", lambda t: t[1:], "has shape"),
        ("extended_edge_index", lambda t: t.flip(1), "not sorted"),
        ("extended_edge_index", lambda t: swap(t, 2, 3), "not sorted"),  # of one target
        ("extended_edge_index", lambda t: t[:, :-1], "an edge without its reverse"),
        ("extended_ptr", lambda t: t.clamp(max=9), "extended_ptr"),
        ("edge_index", lambda t: swap(t, 1, 3), "a bond without its reverse"),
        ("edge_attr", lambda t: torch.cat([t[:1], 1 - t[1:2], t[2:]]), "edge_attr of"),
        ("bond_pair", lambda t: t + 1, "bond_pair"),
        ("max_num_atoms", lambda n: n + 1, "max_num_atoms"),
    ],
)
def test_validate_names_the_field(batch, field, change, message):
    broken = dataclasses.replace(batch, **{field: change(getattr(batch, field))})
    with pytest.raises(ValueError, match=message):
        broken.validate()


def test_one_conformer_is_drawn_by_molecule_and_epoch(records):
    def record(uid):
        pos = np.zeros((3, 1, 3), "<f4")
        pos[:, 0, 0] = [0, 1, 2]
        return dataclasses.replace(records[0], uid=uid, pos=pos)

    columns = columns_from_records([record(uid) for uid in range(300)])
    drawn = MoleculeBatch.from_columns(columns, Key(0, 0)).pos[:, 0]
    counts = torch.bincount(drawn.long(), minlength=3)
    assert counts.sum() == 300 and counts.min() > 70
    again = MoleculeBatch.from_columns(columns.take(np.array([7])), Key(0, 0)).pos[:, 0]
    assert again[0] == drawn[7]
    assert not torch.equal(MoleculeBatch.from_columns(columns, Key(0, 1)).pos[:, 0], drawn)
