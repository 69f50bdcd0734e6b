"""Molecules of PyTorch Geometric as records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from msde.chem.features import check_geometry, extended_edges
from msde.chem.record import MoleculeRecord, Origin
from msde.chem.vocabulary import ATOM_SIZES, BOND_SIZES, CIP_LABELS, MoleculeError

if TYPE_CHECKING:
    from torch_geometric.data import Data


def record_from_pyg(data: Data, number: int = 0, topology_only: bool = False) -> MoleculeRecord:
    """Turn a PyTorch Geometric molecule into a record; see `MoleculeBatch.from_pyg`.

    Args:
        number: the id, unless the molecule has a `uid`.
        topology_only: ignore `pos`; all positions are zero.

    Raises:
        MoleculeError: a field is missing, has a wrong shape or values out of range, or bonds are
            not stored in both directions.
    """
    needed = ["z", "x", "edge_index", "edge_attr", *([] if topology_only else ["pos"])]
    missing = [name for name in needed if name not in data]
    if missing:
        raise MoleculeError(f"its data lack {', '.join(missing)}")
    fields = {name: data[name].detach().cpu().numpy() for name in needed}
    num_atoms = len(fields["z"])
    fields["cip"] = data.cip.cpu().numpy() if "cip" in data else np.zeros(num_atoms, np.int64)
    if topology_only:
        fields["pos"] = np.zeros((num_atoms, 3))
    _check_fields(fields, num_atoms)
    source, target = fields["edge_index"]
    forward = source < target
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    if len(pairs) != len(source) or pairs != {(j, i) for i, j in pairs} or (source == target).any():
        raise MoleculeError("edge_index does not hold every bond once in each direction")
    bond_index = fields["edge_index"][:, forward].T.astype("<u2")
    if not topology_only:
        check_geometry(fields["pos"][None])
    pos = fields["pos"] - fields["pos"].mean(0, keepdims=True)
    extended_source, extended_degree = extended_edges(bond_index, num_atoms)
    return MoleculeRecord(
        uid=int(data.uid) & (2**64 - 1) if "uid" in data else number,
        name="",
        z=fields["z"].astype("u1"),
        x=fields["x"].astype("u1"),
        cip=fields["cip"].astype("u1"),
        bond_index=bond_index,
        bond_attr=fields["edge_attr"][forward].astype("u1"),
        extended_source=extended_source,
        extended_degree=extended_degree,
        pos=pos.astype("<f4")[None],
        forces=np.zeros((0, num_atoms, 3), "<f4"),
        y=np.zeros(0, "<f8"),
        origin=Origin.NO_GEOMETRY if topology_only else Origin.SOURCE,
    )


def _check_fields(fields: dict[str, np.ndarray], num_atoms: int) -> None:
    """Check shapes and ranges, before values are cast to small integers."""
    num_edges = fields["edge_index"].shape[-1]
    expected: dict[str, tuple[tuple[int, ...], list[int]]] = {
        "z": ((num_atoms,), [256]),
        "x": ((num_atoms, len(ATOM_SIZES)), ATOM_SIZES),
        "cip": ((num_atoms,), [len(CIP_LABELS)]),
        "edge_index": ((2, num_edges), [num_atoms]),
        "edge_attr": ((num_edges, len(BOND_SIZES)), BOND_SIZES),
        "pos": ((num_atoms, 3), []),
    }
    if num_atoms == 0:
        raise MoleculeError("no atoms")
    for name, (shape, sizes) in expected.items():
        values = fields[name]
        if values.shape != shape:
            raise MoleculeError(f"{name} has shape {values.shape}, expected {shape}")
        if sizes and ((values < 0) | (values >= np.array(sizes))).any():
            raise MoleculeError(f"{name} holds a value that is out of range")
