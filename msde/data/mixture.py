"""The data of a run: one data set, or several mixed by weight, as blocks of molecules."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from msde import philox
from msde.data import codec
from msde.data.codec import MoleculeColumns
from msde.data.masking import choose_conformers
from msde.errors import MsdeError
from msde.philox import Key, Stream

# The epochs in which a block is drawn do not depend on the seed of the run.
_PHASE_KEY = Key(seed=0, epoch=0)
BYTES_AT_ONCE = 1 << 26  # of blocks that are copied together: about 128 blocks of 1,024 molecules


class BlockSource(Protocol):
    """The interface of a data set; `shards.ShardDataset` implements it."""

    root: Any  # folder or URL, for messages
    manifest: dict[str, Any]

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""

    @property
    def digest(self) -> str:
        """The identity of the data set."""

    def __len__(self) -> int: ...

    def first_molecule(self, block: int) -> int:
        """Return the number of a block's first molecule."""

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the block of each molecule and its place there."""

    def index(self, block: int) -> np.ndarray:
        """Read a block's rows (uid, num_atoms)."""

    def read_block(self, block: int) -> MoleculeColumns:
        """Read and check one block."""

    def check_index(self, block: int, columns: MoleculeColumns) -> None:
        """Check that a block's rows of the index are those of its molecules."""


class Mixture:
    """Data sets one after another; an epoch holds a share `weight` of the blocks of each.

    Weights are relative to the largest one, whose data set is seen once an epoch; so an epoch has
    no molecule twice.

    Raises:
        MsdeError: a weight is not positive, or a data set is given twice.
    """

    def __init__(self, sources: Sequence[BlockSource], weights: Sequence[float] = ()) -> None:
        """Number the blocks and molecules of all sources."""
        weights = list(weights) or [1.0] * len(sources)
        if not all(0 < w < float("inf") for w in weights):
            raise MsdeError(f"weights of data folders must be positive numbers, found {weights}")
        if len({source.digest for source in sources}) < len(sources):
            raise MsdeError("a data folder is given twice; give it once, with its weight")
        self.sources = sources
        self.weights = [w / max(weights) for w in weights]
        self._first_block = np.append(0, np.cumsum([s.num_blocks for s in sources]))
        self._first_molecule = np.append(0, np.cumsum([len(s) for s in sources]))

    def __len__(self) -> int:
        return int(self._first_molecule[-1])

    @property
    def num_blocks(self) -> int:
        """Number of blocks of all data sets."""
        return int(self._first_block[-1])

    @property
    def molecules_per_epoch(self) -> float:
        """Number of molecules of an epoch on average, held-out ones included."""
        return sum(w * len(s) for w, s in zip(self.weights, self.sources, strict=True))

    @property
    def max_atoms(self) -> int:
        """Number of atoms of the largest molecule."""
        return max(source.manifest["max_atoms"] for source in self.sources)

    @property
    def mean_atoms(self) -> float:
        """Mean number of atoms of a molecule."""
        return sum(source.manifest["atoms"] for source in self.sources) / len(self)

    @property
    def digest(self) -> str:
        """The identity of all data sets and weights."""
        facts = [(s.digest, w) for s, w in zip(self.sources, self.weights, strict=True)]
        return hashlib.sha256(repr(facts).encode()).hexdigest() if len(facts) > 1 else facts[0][0]

    def blocks(self, epoch: int) -> np.ndarray:
        """Return the numbers of the blocks that an epoch sees, in ascending order."""
        drawn = []
        for source, weight, first in zip(
            self.sources, self.weights, self._first_block, strict=False
        ):
            blocks = np.arange(source.num_blocks)
            if weight < 1:
                phase = philox.words(_PHASE_KEY, Stream.MIXTURE, torch.from_numpy(blocks))[:, 0]
                seen = weight * np.array([[epoch], [epoch + 1]]) + phase.numpy() * 2.0**-32
                blocks = blocks[np.floor(seen[1]) > np.floor(seen[0])]
            drawn.append(first + blocks)
        return np.concatenate(drawn)

    def index(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the index of some blocks.

        Returns:
            The molecules' numbers, int64, and their rows (uid, num_atoms), block by block.
        """
        numbers, rows = [], []
        for block in blocks.tolist():
            which, local = self._source_of(block)
            rows.append(self.sources[which].index(local))
            first = self._first_molecule[which] + self.sources[which].first_molecule(local)
            numbers.append(np.arange(first, first + len(rows[-1])))
        return np.concatenate(numbers), np.concatenate(rows)

    def _locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the block of each molecule and its place there."""
        block, place = np.empty_like(numbers), np.empty_like(numbers)
        which = np.searchsorted(self._first_molecule, numbers, side="right") - 1
        for w in np.unique(which).tolist():
            own = which == w
            block[own], place[own] = self.sources[w].locate(numbers[own] - self._first_molecule[w])
            block[own] += self._first_block[w]
        return block, place

    def fetch(self, numbers: np.ndarray, key: Key | None = None) -> MoleculeColumns:
        """Read molecules, in the order asked for, without names, labels and forces.

        Args:
            numbers: (num_molecules,) int64.
            key: draws one conformer of each molecule, as a batch with this key would; None reads
                all of them.

        Raises:
            DataDamaged: a block that holds one of them is missing or damaged, or is not the one
                that the index describes.
        """
        block, place = self._locate(numbers)
        blocks, which = np.unique(block, return_inverse=True)
        parts, order, first = [], [], 0
        while first < len(blocks):
            columns = self._read_blocks(blocks[first:], key)
            last = first + len(columns)
            starts = np.append(0, np.cumsum([len(c) for c in columns]))
            asked = np.flatnonzero((which >= first) & (which < last))
            places = starts[which[asked] - first] + place[asked]
            parts.append(codec.concatenate(columns).take(places))
            order.append(asked)
            first = last
        if len(parts) == 1:
            return parts[0]
        joined = codec.concatenate(parts)
        del columns, parts  # while the molecules are copied once more
        return joined.take(np.argsort(np.concatenate(order)))

    def _read_blocks(self, blocks: np.ndarray, key: Key | None) -> list[MoleculeColumns]:
        """Read the first of some blocks, until these have BYTES_AT_ONCE."""
        columns, size = [], 0
        for block in blocks.tolist():
            columns.append(self._training_columns(block, key))
            size += columns[-1].nbytes
            if size >= BYTES_AT_ONCE:
                break
        return columns

    def _training_columns(self, block: int, key: Key | None) -> MoleculeColumns:
        which, local = self._source_of(block)
        columns = self.sources[which].read_block(local)
        self.sources[which].check_index(local, columns)
        columns = columns.bare()
        return columns if key is None else choose_conformers(columns, key)

    def _source_of(self, block: int) -> tuple[int, int]:
        """Return the data set that a block belongs to, and its number there."""
        which = int(np.searchsorted(self._first_block, block, side="right")) - 1
        return which, block - int(self._first_block[which])
