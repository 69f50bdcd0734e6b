"""How the rows of a packed batch belong together: pairs, directed edges, groups of rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from msde.ops import dispatch
from msde.ops.cpp import call

EDGES_OF_CHUNK = 2048  # edges that plain torch handles together on a CPU, to stay in cache


def sort_groups(key: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the offsets of each group of rows, (num_groups + 1,), and the rows in their order.

    Args:
        key: (rows,) the group of each row.
    """
    if dispatch.on_cpu(key) and dispatch.available():
        return _sort_groups(key, num_groups)
    # Not torch.bincount, for which a GPU's host waits.
    key, order = torch.sort(key, stable=True)
    return torch.searchsorted(key, torch.arange(num_groups + 1, device=key.device)), order


def _sort_groups_cpp(key: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    key = key.contiguous()
    ptr, order = key.new_empty(num_groups + 1), key.new_empty(key.shape)
    call("group", key, key.shape[0], num_groups, ptr, order)
    return ptr, order


_sort_groups = dispatch.register("sort_groups", _sort_groups_cpp)


@dataclass(frozen=True)
class Edges:
    """Directed edges within molecules, each with its reverse, sorted by target and then source.

    Gradients rely on both: the edges out of an atom are the reverses of those into it, so that a
    sum over the edges into an atom is its own transpose. `MoleculeBatch.validate` checks both.
    """

    index: Tensor  # (2, num_edges) sources and targets
    row_ptr: Tensor  # (num_atoms + 1,) offsets of the edges into each atom
    ptr: Tensor  # (num_graphs + 1,) offsets of the molecules' atoms
    num_valid: Tensor | None = None  # () the first atoms, without padding; None: all
    _made: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_atoms(self) -> int:
        """Number of atoms, those without an edge too."""
        return len(self.row_ptr) - 1

    @property
    def degree(self) -> Tensor:
        """Number of edges into each atom, which equals that of edges out of it, (num_atoms,)."""
        return self.row_ptr[1:] - self.row_ptr[:-1]

    @property
    def reverse(self) -> Tensor:
        """The reverse of each edge, (num_edges,). Alike edges, as in padding, may share one."""
        if "reverse" not in self._made:
            source, target = self.index
            if dispatch.on_cpu(source):
                found = sort_groups(source, self.num_atoms)[1]
            else:  # a GPU searches faster than it sorts
                ascending = target * self.num_atoms + source
                found = torch.searchsorted(ascending, source * self.num_atoms + target)
            self._made["reverse"] = found
        return self._made["reverse"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that operators take: index, row_ptr, ptr and reverse."""
        return self.index, self.row_ptr, self.ptr, self.reverse


@dataclass(frozen=True)
class EdgeCodes:
    """The kind of each edge, the same as that of its reverse, and the edges of each kind."""

    code: Tensor  # (num_edges,)
    ptr: Tensor  # (num_codes + 1,) offsets of each kind's edges in `order`
    order: Tensor  # (num_edges,) the edges sorted by kind


@dataclass(frozen=True)
class Pairs:
    """All unordered pairs of atoms of the same molecule, one molecule after another."""

    index: Tensor  # (2, num_pairs) as `complete_pairs` lists them, the smaller atom first
    ptr: Tensor  # (num_graphs + 1,) offsets of the molecules' atoms
    pair_ptr: Tensor  # (num_graphs + 1,) offsets of the molecules' pairs
    graph: Tensor  # (num_atoms,) the molecule of each atom
    size: int  # atoms of the largest molecule
    _made: dict[str, PaddedLayout] = field(default_factory=dict, repr=False)

    @property
    def padded(self) -> PaddedLayout:
        """The places of atoms and pairs when every molecule is padded to the largest one."""
        if not self._made:  # cached_property has a lock, which torch.compile cannot see through
            self._made["padded"] = PaddedLayout(self)
        return self._made["padded"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that operators take: index, ptr, pair_ptr and graph."""
        return self.index, self.ptr, self.pair_ptr, self.graph


class PairWeights:
    """A number for each pair and channel, packed and as symmetric matrices of padded molecules."""

    def __init__(self, packed: Tensor, pairs: Pairs) -> None:
        """Hold the weights, (num_pairs, channels)."""
        self.packed, self.pairs = packed, pairs
        self._padded: Tensor | None = None

    @property
    def padded(self) -> Tensor:
        """Symmetric weights, (channels * num_graphs, size, size), made once."""
        if self._padded is None:
            self._padded = self.pairs.padded.pad_pairs(self.packed)
        return self._padded

    def channel(self, number: int) -> PairWeights:
        """Return the weights of one channel."""
        return PairWeights(self.packed[:, number : number + 1].contiguous(), self.pairs)


class PaddedLayout:
    """The place of each atom and pair when every molecule is padded to the largest one."""

    def __init__(self, pairs: Pairs) -> None:
        """Number the places of a batch's atoms and pairs."""
        self.num_graphs, self.size = len(pairs.ptr) - 1, pairs.size
        graph = pairs.graph
        row = torch.arange(len(graph), device=graph.device) - pairs.ptr[graph]
        self.atom = graph * self.size + row  # (num_atoms,)
        i, j = pairs.index
        self.upper = self.atom[i] * self.size + row[j]  # (num_pairs,)
        self.lower = self.atom[j] * self.size + row[i]  # (num_pairs,)

    def pad_atoms(self, x: Tensor) -> Tensor:
        """Pad (channels, num_atoms, dim) to (channels * num_graphs, size, dim)."""
        channels, _, dim = x.shape
        out = x.new_zeros(channels, self.num_graphs * self.size, dim)
        return out.index_copy_(1, self.atom, x).view(-1, self.size, dim)

    def pack_atoms(self, x: Tensor) -> Tensor:
        """Undo `pad_atoms`."""
        padded = x.reshape(-1, self.num_graphs * self.size, x.shape[-1])
        return padded.index_select(1, self.atom)

    def pad_pairs(self, a: Tensor) -> Tensor:
        """Spread (num_pairs, channels) to symmetric (channels * num_graphs, size, size)."""
        out = a.new_zeros(self.num_graphs * self.size * self.size, a.shape[1])
        out = out.index_copy_(0, self.upper, a).index_copy_(0, self.lower, a)
        return out.t().reshape(-1, self.size, self.size)

    def pack_pairs(self, dense: Tensor) -> Tensor:
        """Average (channels * num_graphs, size, size) over both directions of each pair."""
        flat = dense.reshape(-1, self.num_graphs * self.size * self.size)
        return (0.5 * (flat.index_select(1, self.upper) + flat.index_select(1, self.lower))).t()


def sort_edges(index: Tensor, ptr: Tensor, num_atoms: int) -> tuple[Edges, Tensor]:
    """Return the edges in the order of `Edges`, and that order, (num_edges,).

    Args:
        index: (2, num_edges) sources and targets, each edge with its reverse.
        ptr: (num_graphs + 1,) offsets of the molecules' atoms.
    """
    if dispatch.on_cpu(index):
        _, by_source = sort_groups(index[0], num_atoms)
        row_ptr, by_target = sort_groups(index[1].index_select(0, by_source), num_atoms)
        order = by_source.index_select(0, by_target)
    else:  # a GPU takes as long for keys of 64 bits as for small ones
        number, order = torch.sort(index[1] * num_atoms + index[0], stable=True)
        atoms = torch.arange(num_atoms + 1, device=number.device)
        row_ptr = torch.searchsorted(number, atoms * num_atoms)
    return Edges(index.index_select(1, order), row_ptr, ptr), order


def group_codes(code: Tensor, num_codes: int) -> EdgeCodes:
    """Group edges by their kind: `code`, (num_edges,), below num_codes."""
    return EdgeCodes(code, *sort_groups(code, num_codes))


def edge_chunks(index: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """Cut edges, (2, num_edges), into (rows, sources, targets); a GPU takes them all at once."""
    num_edges = index.shape[1]
    rows = EDGES_OF_CHUNK if dispatch.on_cpu(index) else max(1, num_edges)
    return [
        (slice(first, first + rows), *index[:, first : first + rows])
        for first in range(0, num_edges, rows)
    ]
