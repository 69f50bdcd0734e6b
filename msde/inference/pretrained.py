"""A pretrained model in use: molecules in, arrays out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from msde.checkpoints import weights
from msde.chem.vocabulary import MoleculeError
from msde.config import Config
from msde.config.schema import Readout
from msde.data.batch import MoleculeBatch
from msde.errors import MsdeError
from msde.files import Shipped, shipped_checkpoint
from msde.inference.inputs import (
    Chunk,
    batches,
    check_is_mol,
    list_of,
    open_input,
    smiles_or_mols,
)
from msde.model import MoleculeSDE
from msde.model.encoders import GIN
from msde.sampling.bonds import Bonded, BondOptions, Geometry, find_bonds
from msde.sampling.conformer_likelihood import log_likelihoods
from msde.sampling.conformers import ConformerOptions, Sampled, sample_conformers

log = logging.getLogger("msde")

View = Literal["2d", "3d", "both"]
Level = Literal["graph", "node"]


@dataclass(frozen=True)
class Embeddings:
    """Representations of molecules in the order of the input.

    `h` maps each view to (num_molecules, width) or, at node level, (num_atoms, width) with the
    atoms of molecule m in rows ptr[m] to ptr[m + 1]. A molecule that could not be read has NaN, or
    no rows, and its reason in `reasons`. `notes` names unusual properties of others: without a
    conformer, for example, only the 3D view is NaN.
    """

    h: dict[str, np.ndarray]
    ptr: np.ndarray | None
    reasons: dict[int, str]
    notes: dict[int, str]

    def side_by_side(self) -> np.ndarray:
        """Return the views as one array, concatenated along its last dimension."""
        return np.concatenate(list(self.h.values()), axis=-1)


def trained_views(config: Config) -> list[str]:
    """Return the views whose encoders some objective with a coefficient above 0 trains."""
    loss = config.loss
    of_3d = loss.coefficient_3d_to_2d or loss.coefficient_displacements
    trains = {"2d": loss.coefficient_2d_to_3d, "3d": of_3d}
    return [view for view, own in trains.items() if loss.coefficient_contrastive or own]


def views_of(view: str) -> list[str]:
    """Return the views that `2d`, `3d` or `both` stands for."""
    return ["2d", "3d"] if view == "both" else [view]


class Pretrained:
    """Pretrained encoders for embedding molecules, and samplers of conformers and bonds."""

    def __init__(
        self,
        model: MoleculeSDE,
        conformer_model: MoleculeSDE | None = None,
        bond_model: MoleculeSDE | None = None,
        readout: Readout = "pretrained",
    ) -> None:
        """Wrap models, which stay on their device.

        Args:
            model: embeds molecules.
            conformer_model: samples conformers and gives their likelihood; default: `model`.
            bond_model: finds bonds; default: `model`.
            readout: layers of the 2D encoder that embedding returns; see `load`.
        """
        self.model = model.eval()
        self.encoder_2d = _with_readout(model, readout)
        self.conformer_model = (conformer_model or model).eval()
        self.bond_model = (bond_model or model).eval()

    def width(self, view: str) -> int:
        """Return how many numbers represent an atom or molecule in the view `2d` or `3d`."""
        return self.encoder_2d.output_dim if view == "2d" else self.config.model.hidden_dim

    @property
    def config(self) -> Config:
        """The configuration that the model was trained with."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def embed(
        self,
        molecules: Iterable[Any] | Path | str,
        view: View = "2d",
        level: Level = "graph",
        keep_hydrogens: bool = False,
    ) -> np.ndarray | list[np.ndarray | None]:
        """Return representations as arrays, in the order of the input.

        Args:
            molecules: SMILES strings, RDKit Mols or PyTorch Geometric Data (fields z, x,
                edge_index, edge_attr, for 3D pos in A, for chirality cip), in any mixture and
                also as a table of one column, or a folder of shards. Of several conformers one is
                taken.
            view: `2d` (GIN, of the topology), `3d` (of the geometry; RDKit makes a conformer
                where there is none) or `both`, side by side, of molecules that have both.
            level: a vector for each molecule, or one for each atom.
            keep_hydrogens: add hydrogens instead of removing them; published models are pretrained
                without. Data and shards are taken as they are.

        Returns:
            At graph level (num_molecules, width) float32, a row of NaN for a molecule that could
            not be read. At node level a list of (num_atoms, width) float32, with None for such a
            molecule. A warning gives the reasons.

        Raises:
            MsdeError: the folder is not one of shards, or there is no list.
            TypeError: something is not a molecule.

        Source: Liu et al. 2023; SchNet's and GIN's molecules are means over atoms, PaiNN's sums.
        """
        found = self.encode(molecules, view, level, keep_hydrogens)
        for number, reason in found.reasons.items():
            log.warning("molecule %d could not be embedded: %s", number, reason)
        for number, note in found.notes.items():
            log.warning("molecule %d: %s", number, note)
        h = found.side_by_side()
        if found.ptr is None:
            return h
        limits = enumerate(zip(found.ptr[:-1], found.ptr[1:], strict=True))
        return [None if m in found.reasons else h[a:b] for m, (a, b) in limits]

    def conformers(
        self, molecules: Iterable[Any], num: int = 10, **options: Any
    ) -> Iterator[Sampled]:
        """Yield conformers of each molecule, in order; one that cannot be sampled has its reason.

        Args:
            molecules: SMILES strings or RDKit Mols, whose own conformers are not used.
            num: conformers of each molecule.
            options: others of `msde.sampling.conformers.ConformerOptions`.

        Raises:
            MsdeError: an option has a wrong value, or there is no list.
            TypeError: something is not a molecule.
        """
        given = smiles_or_mols(molecules)
        return sample_conformers(self.conformer_model, given, ConformerOptions(num, **options))

    def log_likelihood(self, molecules: Iterable[Any], **options: Any) -> np.ndarray:
        """Return the log-likelihood of RDKit molecules' first conformers, (num_molecules,) nats.

        Args:
            options: those of `msde.sampling.conformer_likelihood.log_likelihoods`.

        Raises:
            MsdeError: there is no list.
            MoleculeError: a molecule has no conformer, or cannot be represented.
            TypeError: something is not an RDKit Mol.
        """
        mols = list_of(molecules)
        for number, mol in enumerate(mols):
            check_is_mol(mol, number, "an RDKit Mol with a conformer")
            if not mol.GetNumConformers():
                raise MoleculeError(f"molecule {number}: no conformer")
        return log_likelihoods(self.conformer_model, mols, **options)

    def bonds(self, z: Sequence[int], pos: np.ndarray, charge: int = 0, **options: Any) -> Bonded:
        """Return the molecule of atoms and positions: `.mol`, or `.reason` why there is none.

        Args:
            z: (num_atoms,) atomic numbers; with `types=True` only their number counts. Without
                hydrogens, but for those of N, O and S, the others are implied.
            pos: (num_atoms, 3) A.
            charge: of all atoms together.
            options: those of `msde.sampling.bonds.BondOptions`.

        Raises:
            MsdeError: the model has no network for bonds, `z` or `pos` holds no numbers, or an
                option has a wrong value.
        """
        numbers = _array("z", z, np.int64, 1, "atomic numbers such as [8, 1, 1]")
        positions = _array("pos", pos, np.float64, 2, "three numbers an atom")
        if not isinstance(charge, int | np.integer) or abs(charge) > 9 * len(numbers):
            raise MsdeError(f"charge is {charge!r}, expected a whole number, nine an atom at most")
        geometry = Geometry(numbers, positions, charge)
        return next(find_bonds(self.bond_model, [geometry], BondOptions(**options)))

    def encode(
        self,
        molecules: Iterable[Any] | Path | str,
        view: View = "2d",
        level: Level = "graph",
        keep_hydrogens: bool = False,
    ) -> Embeddings:
        """Like `embed`, with the views apart and the reasons for failures."""
        if view not in get_args(View) or level not in get_args(Level):
            raise MsdeError(
                f"view is {view!r} and level {level!r}, expected 2d, 3d or both and graph or node"
            )
        views = views_of(view)
        for untrained in set(views) - set(trained_views(self.config)):
            log.warning(
                "the %s encoder of this model was not trained: its objectives have the coefficient "
                "0; its vectors are those of random weights", untrained.upper(),
            )  # fmt: skip
        source = open_input(molecules, views, keep_hydrogens)
        rows: dict[str, list[np.ndarray]] = {v: [] for v in views}
        counts: list[int] = []
        reasons: dict[int, str] = {}
        notes: dict[int, str] = {}
        with tqdm(total=len(source), unit=" molecules", disable=None) as bar:
            for chunk in source.chunks():
                reasons |= chunk.reasons
                notes |= chunk.notes
                found = self._rows(chunk, views, level)
                for v in views:
                    rows[v] += found[v]
                counts += [len(part) for part in found[views[0]]]
                bar.update(chunk.size)
        h = {v: np.concatenate([np.empty((0, self.width(v)), np.float32), *rows[v]]) for v in views}
        ptr = np.concatenate([[0], np.cumsum(counts)]) if level == "node" else None
        return Embeddings(h, ptr, reasons, notes)

    @torch.inference_mode()
    def _rows(self, chunk: Chunk, views: list[str], level: str) -> dict[str, list[np.ndarray]]:
        """Return each view's rows of each molecule: one, or as many as it has atoms."""
        encoders = {"2d": self.encoder_2d, "3d": self.model.encoder_3d}
        out = {}
        for view in views:
            failed = np.full((1, self.width(view)), np.nan, np.float32)
            out[view] = [failed if level == "graph" else failed[:0]] * chunk.size
        if chunk.columns is None:
            return out
        for places in batches(chunk.columns):
            batch = MoleculeBatch.from_columns(chunk.columns.take(places)).to(self.device)
            counts = batch.atoms_per_graph.tolist() if level == "node" else [1] * len(places)
            for view in views:
                h = encoders[view](batch)  # (num_atoms, width)
                if level == "graph":
                    h = encoders[view].readout(h, batch)  # (num_graphs, width)
                for place, part in zip(places, h.float().cpu().split(counts), strict=True):
                    out[view][chunk.places[place]] = part.numpy()
        for place in chunk.flat:
            out["3d"][place] = np.full_like(out["3d"][place], np.nan)
        return out


def _array(name: str, values: Any, kind: type, ndim: int, expected: str) -> np.ndarray:
    """Return values as an array of `ndim` dimensions.

    Raises:
        MsdeError: they are no such numbers.
    """
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        found: np.ndarray = np.asarray(values, kind)
        if found.ndim == ndim and np.array_equal(found, np.asarray(values), equal_nan=True):
            return found
    raise MsdeError(f"{name} is {str(values)[:60]}, expected {expected}")


def _with_readout(model: MoleculeSDE, readout: Readout) -> GIN:
    """Return the 2D encoder with another readout over its layers; the weights fit all of them."""
    config = model.config.model
    if readout == "pretrained" or readout == config.gin.readout:
        return model.encoder_2d
    if readout not in get_args(Readout):
        raise MsdeError(f"readout is {readout!r}, expected one of {', '.join(get_args(Readout))}")
    encoder = GIN(config.hidden_dim, dataclasses.replace(config.gin, readout=readout))
    encoder.load_state_dict(model.encoder_2d.state_dict())
    return encoder.to(next(model.parameters()).device).eval()


def load(
    folder: Path | str | None = None,
    device: torch.device | str | None = None,
    readout: Readout = "pretrained",
) -> Pretrained:
    """Load a pretrained model: a run's `best/`, one of its checkpoints, or a converted one.

    Args:
        folder: None: the models that come with msde.
        device: by default a GPU if there is one.
        readout: layers of the 2D encoder that `embed` returns: `concat` sets all of them side by
            side, which suits models that are fitted to the vectors; `last`, `max` and `sum` are as
            wide as one; `pretrained` is what pretraining had. Samplers do not depend on it.

    Raises:
        MsdeError: the folder holds no weights that can be read; the message names the problem.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if folder is None:
        folders = map(shipped_checkpoint, get_args(Shipped))
        base, conformers, bonds = (weights.load_weights(each).to(device) for each in folders)
        return Pretrained(base, conformers, bonds, readout)
    return Pretrained(weights.load_weights(folder).to(device), readout=readout)
