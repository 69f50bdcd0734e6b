"""MoleculeBatch: the tensors that models, losses and ops work on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from msde.chem.vocabulary import ATOM_SIZES, BOND_SIZES
from msde.data import codec
from msde.data.codec import MoleculeColumns
from msde.data.masking import draw_conformers
from msde.data.packed import PackedMolecules
from msde.data.pyg import record_from_pyg
from msde.data.ragged import complete_pairs, numbers, offsets, repeat
from msde.ops import Edges, Pairs
from msde.philox import Key

if TYPE_CHECKING:
    from torch_geometric.data import Data

NO_KEY = Key(seed=0, epoch=0)


@dataclass(frozen=True)
class MoleculeBatch:
    """Molecules one after another in flat tensors; names as in PyTorch Geometric.

    It is a dataclass, not a dict or tuple, because DeepSpeed casts the tensors inside those.
    """

    uid: Tensor  # (num_graphs,) int64, the bits of the molecules' 64-bit ids
    z: Tensor  # (num_atoms,) int64, atomic numbers, H = 1
    x: Tensor  # (num_atoms, 9) int64, codes of ATOM_VOCABULARY
    cip: Tensor  # (num_atoms,) int64, codes of CIP_LABELS
    pos: Tensor  # (num_atoms, 3) float32, A, each molecule centred at its mean
    batch: Tensor  # (num_atoms,) int64, the molecule of each atom
    ptr: Tensor  # (num_graphs + 1,) int64, offsets of the molecules' atoms
    edge_index: Tensor  # (2, num_edges) int64, bonds in both directions; row 0 is the source
    edge_attr: Tensor  # (num_edges, 3) int64, codes of BOND_VOCABULARY
    bond_pair: Tensor  # (num_edges / 2,) int64, the pair in pair_index of each bond
    extended_edge_index: Tensor  # (2, num_extended) int64, up to 4 bonds apart, sorted by target
    extended_ptr: Tensor  # (num_atoms + 1,) int64, offsets of each target's extended edges
    pair_index: Tensor  # (2, num_pairs) int64, all pairs i < j of atoms of the same molecule
    pair_ptr: Tensor  # (num_graphs + 1,) int64, offsets of the molecules' pairs
    max_num_atoms: int  # atoms of the largest molecule
    key: Key = NO_KEY  # keys noise and times, together with the uid
    slot: int = 0  # number of the slot in the epoch; keys dropout
    weight: float = 1.0  # of the slot's mean loss in the mean over the step's slots
    num_padding: int = 0  # molecules at the end that are padding, see `padding.pad`

    @property
    def num_graphs(self) -> int:
        """Number of molecules."""
        return len(self.uid)

    @property
    def num_atoms(self) -> int:
        """Number of atoms of all molecules."""
        return len(self.z)

    @property
    def num_valid_atoms(self) -> Tensor | None:
        """Number of atoms before the padding, (), or None: there is no padding."""
        return self.ptr[self.num_graphs - self.num_padding] if self.num_padding else None

    def valid(self, per_graph: Tensor) -> Tensor:
        """Return the rows, one a molecule, that are not padding."""
        return per_graph[: self.num_graphs - self.num_padding]

    @property
    def atoms_per_graph(self) -> Tensor:
        """Number of atoms of each molecule, (num_graphs,) int64."""
        return self.ptr[1:] - self.ptr[:-1]

    @property
    def atom_in_graph(self) -> Tensor:
        """The index of each atom within its molecule, (num_atoms,) int64."""
        return torch.arange(self.num_atoms, device=self.ptr.device) - self.ptr[self.batch]

    @property
    def pair_batch(self) -> Tensor:
        """The molecule of each pair, (num_pairs,) int64."""
        return self.batch[self.pair_index[0]]

    @property
    def pairs(self) -> Pairs:
        """The pairs, as the ops take them."""
        return Pairs(self.pair_index, self.ptr, self.pair_ptr, self.batch, self.max_num_atoms)

    @property
    def extended_edges(self) -> Edges:
        """The extended edges, as the ops take them."""
        return Edges(self.extended_edge_index, self.extended_ptr, self.ptr, self.num_valid_atoms)

    @classmethod
    def from_columns(
        cls, columns: MoleculeColumns, key: Key = NO_KEY, slot: int = 0
    ) -> MoleculeBatch:
        """Make a batch; of several conformers, (key, uid) chooses one."""
        return cls.expand(PackedMolecules.from_columns(columns), key, slot)

    @classmethod
    def expand(
        cls, packed: PackedMolecules, key: Key = NO_KEY, slot: int = 0, weight: float = 1.0
    ) -> MoleculeBatch:
        """Make all fields of a batch, on the device of the packed columns and without a sync."""
        atoms, bonds, extended = packed.num_atoms, packed.num_bonds, packed.num_extended
        num_atoms, num_bonds, num_extended, num_pairs = packed.totals
        ptr = offsets(atoms)
        first = ptr[:-1]  # (num_graphs,)

        bond = packed.bond_index.long()  # (num_bonds, 2), smaller atom first
        bond_pair = _pair_numbers(bond, atoms, bonds, num_bonds)
        bond = bond + repeat(first, bonds, num_bonds).unsqueeze(1)
        edge_index = torch.stack([bond.flatten(), bond.flip(1).flatten()])
        edge_attr = packed.bond_attr.long().unsqueeze(1).expand(-1, 2, -1).reshape(-1, 3)

        in_degree = packed.extended_degree.long()  # (num_atoms,)
        extended_edge_index = torch.stack(
            [
                packed.extended_source.long() + repeat(first, extended, num_extended),
                numbers(in_degree, num_extended),
            ]
        )
        pairs_per_graph = atoms * (atoms - 1) // 2
        return cls(
            uid=packed.uid,
            z=packed.z.long(),
            x=packed.x.long(),
            cip=packed.cip.long(),
            pos=_choose_conformers(packed, atoms, first, key),
            batch=numbers(atoms, num_atoms),
            ptr=ptr,
            edge_index=edge_index,
            edge_attr=edge_attr,
            bond_pair=bond_pair,
            extended_edge_index=extended_edge_index,
            extended_ptr=offsets(in_degree),
            pair_index=complete_pairs(atoms, num_atoms, num_pairs),
            pair_ptr=offsets(pairs_per_graph),
            max_num_atoms=packed.max_num_atoms,
            key=key,
            slot=slot,
            weight=weight,
            num_padding=packed.num_padding,
        )

    def to(self, device: torch.device | str, non_blocking: bool = True) -> MoleculeBatch:
        """Return the batch with all tensors on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in self.tensors().items()
        }
        return dataclasses.replace(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }

    def validate(self) -> None:
        """Check shapes, dtypes, devices and index ranges of all fields.

        Raises:
            ValueError: names the first field that is wrong.
        """

        def check(truth: bool | Tensor, what: str) -> None:
            if not bool(truth):
                raise ValueError(f"MoleculeBatch: {what}")

        num_edges = self.edge_index.shape[1]
        num_pairs = self.pair_index.shape[1]
        shapes = {
            "uid": (self.num_graphs,),
            "z": (self.num_atoms,),
            "x": (self.num_atoms, len(ATOM_SIZES)),
            "cip": (self.num_atoms,),
            "pos": (self.num_atoms, 3),
            "batch": (self.num_atoms,),
            "ptr": (self.num_graphs + 1,),
            "edge_index": (2, num_edges),
            "edge_attr": (num_edges, len(BOND_SIZES)),
            "bond_pair": (num_edges // 2,),
            "extended_edge_index": (2, self.extended_edge_index.shape[1]),
            "extended_ptr": (self.num_atoms + 1,),
            "pair_index": (2, num_pairs),
            "pair_ptr": (self.num_graphs + 1,),
        }
        for name, tensor in self.tensors().items():
            dtype = torch.float32 if name == "pos" else torch.int64
            check(tensor.shape == shapes[name], f"{name} has shape {tuple(tensor.shape)}")
            check(tensor.dtype == dtype, f"{name} has dtype {tensor.dtype}, expected {dtype}")
            check(tensor.device == self.pos.device, f"{name} is on {tensor.device}")
        check(self.pos.isfinite().all(), "pos is not finite")
        check(self.ptr[0] == 0 and self.ptr[-1] == self.num_atoms, "ptr does not span the atoms")
        check((self.atoms_per_graph > 0).all(), "ptr leaves a molecule without atoms")
        check(self.max_num_atoms == int(self.atoms_per_graph.max()), "max_num_atoms is wrong")
        check((self.x >= 0).all() and (self.x < self.x.new_tensor(ATOM_SIZES)).all(), "x range")
        sizes = self.edge_attr.new_tensor(BOND_SIZES)
        check((self.edge_attr >= 0).all() and (self.edge_attr < sizes).all(), "edge_attr range")
        for name in ("edge_index", "extended_edge_index", "pair_index"):
            index = getattr(self, name)
            check((index >= 0).all() and (index < self.num_atoms).all(), f"{name} range")
            check((self.batch[index[0]] == self.batch[index[1]]).all(), f"{name} leaves molecules")
        bonded = self.edge_index[:, ::2]
        check((self.bond_pair >= 0).all() and (self.bond_pair < num_pairs).all(), "bond_pair range")
        check((self.pair_index[:, self.bond_pair] == bonded).all(), "bond_pair is not the bonds'")
        self._validate_edges(check)

    def _validate_edges(self, check: Callable[[bool | Tensor, str], None]) -> None:
        """Check the properties that gradients rely on, see `ops.Edges`."""
        check(self.edge_index.shape[1] % 2 == 0, "edge_index has a bond in one direction")
        back = self.edge_index[:, 1::2].flip(0)
        check((self.edge_index[:, ::2] == back).all(), "edge_index: a bond without its reverse")
        check((self.edge_attr[::2] == self.edge_attr[1::2]).all(), "edge_attr of a bond's reverse")
        source, target = self.extended_edge_index
        number = target * self.num_atoms + source
        ascending = (number[1:] > number[:-1]).all()
        check(ascending, "extended_edge_index is not sorted by target and source")
        back = (source * self.num_atoms + target).sort().values
        check((back == number).all(), "extended_edge_index: an edge without its reverse")
        atoms = torch.arange(self.num_atoms + 1, device=target.device)
        ptr = torch.searchsorted(target.contiguous(), atoms)
        check((ptr == self.extended_ptr).all(), "extended_ptr is not the targets'")

    @classmethod
    def from_pyg(cls, molecules: list[Data]) -> MoleculeBatch:
        """Pack PyTorch Geometric molecules that carry z, x, edge_index, edge_attr and pos.

        Bonds are stored in both directions, in any order. `uid` defaults to the position in the
        list, `cip`, codes of CIP_LABELS, to no label.

        Raises:
            MoleculeError: a field of a molecule is wrong, see `record_from_pyg`.
        """
        records = [record_from_pyg(data, number) for number, data in enumerate(molecules)]
        return cls.from_columns(codec.columns_from_records(records))

    def to_pyg(self) -> list[Data]:
        """Return the molecules as PyTorch Geometric objects, whose atoms start at 0 each."""
        from torch_geometric.data import Data  # takes seconds to import, and few need it

        molecules = []
        for g in range(self.num_graphs):
            first, last = int(self.ptr[g]), int(self.ptr[g + 1])
            atoms = slice(first, last)
            edges = self.batch[self.edge_index[0]] == g
            molecules.append(
                Data(
                    x=self.x[atoms],
                    edge_index=self.edge_index[:, edges] - first,
                    edge_attr=self.edge_attr[edges],
                    pos=self.pos[atoms],
                    z=self.z[atoms],
                    cip=self.cip[atoms],
                    uid=self.uid[g],
                )
            )
        return molecules


def _pair_numbers(bond: Tensor, atoms: Tensor, bonds: Tensor, num_bonds: int) -> Tensor:
    """Return the index in `complete_pairs` of the pair of each bond, (num_bonds,).

    Args:
        bond: (num_bonds, 2) atoms within their molecules, the smaller one first.
        atoms: (num_graphs,) number of atoms of each molecule, and so `bonds`.
        num_bonds: total of all molecules.
    """
    pairs = offsets(atoms * (atoms - 1) // 2)
    i, j = bond.unbind(1)
    n = repeat(atoms, bonds, num_bonds)
    return repeat(pairs[:-1], bonds, num_bonds) + i * (2 * n - i - 1) // 2 + (j - i - 1)


def _choose_conformers(packed: PackedMolecules, atoms: Tensor, first: Tensor, key: Key) -> Tensor:
    """Return the positions of one conformer a molecule, (num_atoms, 3) float32."""
    if not packed.several_conformers:
        return packed.pos
    conformers = packed.num_conformers
    chosen = draw_conformers(packed.uid, conformers, key)
    start = offsets(atoms * conformers)[:-1] + chosen * atoms  # (num_graphs,)
    num_atoms = packed.totals[0]
    rows = torch.arange(num_atoms, device=atoms.device)
    return packed.pos[rows + repeat(start - first, atoms, num_atoms)]
