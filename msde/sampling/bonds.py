"""Bonds of atoms and positions: classes from the network, decoded under valences and the charge.

The network gives log p(class) of each pair of near atoms, by one evaluation at t = 1 (the
classifier) or at the end of a sampler. `decode` then chooses the likeliest molecule whose atoms
have valences of their element and formal charge, and whose charges add up to the total.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from msde.chem.conformers import add_conformers
from msde.chem.record import MoleculeRecord, molecule_uid, record_of_atoms
from msde.chem.vocabulary import ATOM_SIZES, MoleculeError
from msde.config.choices import CLASSIFIER
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.errors import MsdeError, require
from msde.model import MoleculeSDE
from msde.model.score import BondScore
from msde.model.score.bonds import HIDDEN, NearPairs, hide_types
from msde.sampling.batching import CHUNK, limited_batches
from msde.sampling.decoding import decode
from msde.sampling.noise import keyed_noise
from msde.sampling.samplers import SAMPLERS
from msde.sampling.schedule import karras_times

MAX_ATOMS = 400  # memory and time grow with the pairs of atoms
LEAST_DISTANCE = 0.2  # A, below which two atoms are on one spot; H2 has 0.74
BATCH_PAIRS = 60_000  # pairs of atoms of the molecules that are handled together


@dataclass(frozen=True)
class Geometry:
    """Atoms and positions of one molecule."""

    z: np.ndarray  # (num_atoms,) atomic numbers
    pos: np.ndarray  # (num_atoms, 3) A
    charge: int = 0  # of all atoms together


@dataclass(frozen=True)
class BondOptions:
    """How bonds are found."""

    sampler: str = CLASSIFIER  # or one of SAMPLERS
    steps: int = 20  # of the sampler
    seed: int = 0  # of the sampler's noise
    types: bool = False  # find the atom types, too, from the positions alone

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            MsdeError: the rules that are broken.
        """
        names = (CLASSIFIER, *SAMPLERS)
        require(
            {
                "steps must be at least 1": self.steps >= 1,
                f"sampler must be one of {', '.join(names)}": self.sampler in names,
            }
        )


@dataclass(frozen=True)
class Bonded:
    """A molecule with bonds, or the reason why there is none."""

    mol: Chem.Mol | None  # sanitised, its positions as a conformer, stereochemistry from them
    reason: str = ""


def find_bonds(
    model: MoleculeSDE, geometries: Sequence[Geometry], options: BondOptions
) -> Iterator[Bonded]:
    """Yield the molecule of each geometry, in order, so many at a time as CHUNK has.

    Hydrogens are taken as complete if one is on another element than N, O and S; see `decode`. With
    `options.types` the atomic numbers of the geometries are not used, but found by `find_types`.

    Raises:
        MsdeError: the model has no network for bonds, or none for atom types.
    """
    if not isinstance(model.score_3d_to_2d, BondScore):
        raise MsdeError(
            "the model finds no bonds: its model.topology.bonds is scalar, expected one_hot; "
            "train one with --preset bonds"
        )
    for first in range(0, len(geometries), CHUNK):
        yield from _find_chunk(model, geometries[first : first + CHUNK], options)


def _find_chunk(
    model: MoleculeSDE, geometries: Sequence[Geometry], options: BondOptions
) -> Iterator[Bonded]:
    """Yield the molecules of geometries that are worked on together."""
    reasons = [problem(geometry, options.types) for geometry in geometries]
    good = [k for k, reason in enumerate(reasons) if not reason]
    found: dict[int, tuple[Geometry, np.ndarray, np.ndarray]] = {}
    good.sort(key=lambda k: len(geometries[k].z))  # similar sizes together
    for part in limited_batches(good, lambda k: len(geometries[k].z) ** 2 // 2, BATCH_PAIRS):
        given = [geometries[k] for k in part]
        if options.types:
            types = find_types(model, given)
            given = [replace(g, z=z) for g, z in zip(given, types, strict=True)]
        logs = class_log_probabilities(model, given, options)
        found |= {k: (g, *log) for k, g, log in zip(part, given, logs, strict=True)}
    for k, reason in enumerate(reasons):
        yield Bonded(None, reason) if reason else _finish(*found.pop(k))


@torch.inference_mode()
def find_types(model: MoleculeSDE, geometries: Sequence[Geometry]) -> list[np.ndarray]:
    """Return the likeliest atomic numbers of each geometry, (num_atoms,), from positions alone.

    Each atom's is the likeliest by itself, in one evaluation at t = 1 with hidden types.

    Raises:
        MsdeError: the model has no network for atom types.
    """
    network = model.score_3d_to_2d
    if not isinstance(network, BondScore) or network.types is None:
        raise MsdeError(
            "the model finds no atom types: its model.topology.hidden_types is 0; train one with "
            "--preset bonds model.topology.hidden_types=0.5"
        )
    device = next(model.parameters()).device
    carbons = [replace(g, z=np.full(len(g.pos), 6)) for g in geometries]  # any element will do
    batch = MoleculeBatch.from_columns(columns_from_records(list(map(record_of, carbons))))
    batch = batch.to(device)
    batch = hide_types(batch, torch.ones_like(batch.uid, dtype=torch.bool))
    near = NearPairs.of(batch)
    x = batch.pos.new_zeros(len(near.pair), network.bond_channels)
    times = batch.pos.new_ones(batch.num_graphs)
    _, logits = network(x, times, model.encoder_3d(batch), batch, near)
    found = logits[:, :HIDDEN].argmax(-1) + 1  # the code of an element is one less than its number
    return [z.cpu().numpy() for z in found.split(batch.atoms_per_graph.tolist())]


def problem(geometry: Geometry, types: bool = False) -> str:
    """Return why no bonds can be found for a geometry, or ""; with `types` any numbers will do."""
    z, pos = geometry.z, geometry.pos
    if not len(z):
        return "no atoms"
    if len(z) > MAX_ATOMS:
        return f"{len(z)} atoms, at most {MAX_ATOMS} are handled"
    if pos.shape != (len(z), 3):
        return f"positions of shape {pos.shape}, expected {(len(z), 3)}"
    unknown = np.flatnonzero((z < 1) | (z > ATOM_SIZES[0] - 1))
    if len(unknown) and not types:
        return f"atom {unknown[0]} has atomic number {z[unknown[0]]}, expected 1 to 118"
    broken = np.flatnonzero(~np.isfinite(pos).all(1))
    if len(broken):
        return f"the position of atom {broken[0]} is not finite"
    distance = np.linalg.norm(pos[:, None] - pos[None], axis=-1) + 9 * np.eye(len(z))
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    if distance[i, j] < LEAST_DISTANCE:
        return f"atoms {i} and {j} are on one spot, {distance[i, j]:.2f} A apart"
    return ""


def record_of(geometry: Geometry) -> MoleculeRecord:
    """Return a record of atoms and positions without bonds, whose uid the atoms decide."""
    uid = molecule_uid("bonds", geometry.z.astype("u1").tobytes().hex())
    return record_of_atoms(geometry.z, geometry.pos - geometry.pos.mean(0), uid)


@torch.inference_mode()
def class_log_probabilities(
    model: MoleculeSDE, geometries: Sequence[Geometry], options: BondOptions
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each geometry its near pairs, (num_near, 2), and log p, (num_near, 5)."""
    network = model.score_3d_to_2d
    assert isinstance(network, BondScore)
    device = next(model.parameters()).device
    columns = columns_from_records([record_of(geometry) for geometry in geometries])
    batch = MoleculeBatch.from_columns(columns).to(device)
    near = NearPairs.of(batch)
    graph = batch.pair_batch[near.pair]  # (num_near,)
    h_3d = model.encoder_3d(batch)

    def logits(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t.to(x).expand(batch.num_graphs), h_3d, batch, near)[0]

    def score(x: Tensor, t: Tensor) -> Tensor:
        times = t.to(x).expand(batch.num_graphs)
        return network.score(logits(x, t), x, times, near, batch)

    x, t = batch.pos.new_zeros(len(near.pair), network.bond_channels), torch.ones(())
    if options.sampler != CLASSIFIER:
        item = near.pair - batch.pair_ptr[graph]
        noise = keyed_noise(options.seed, batch.uid[graph], item, network.bond_channels)
        times = karras_times(network.sde, options.steps)
        x, t = network.sde.prior_sampling(noise(0)), times[-1]
        x = SAMPLERS[options.sampler](
            score, network.sde, x, times, noise=lambda draw: noise(draw + 1), batch=graph
        )
    log_p = logits(x, t).log_softmax(-1).double()
    index = batch.pair_index[:, near.pair] - batch.ptr[graph]
    counts = torch.bincount(graph, minlength=batch.num_graphs).tolist()
    pairs = index.t().cpu().split(counts)
    return [(p.numpy(), log.numpy()) for p, log in zip(pairs, log_p.cpu().split(counts))]  # noqa: B905


def _finish(geometry: Geometry, pairs: np.ndarray, log_p: np.ndarray) -> Bonded:
    """Return the molecule with its conformer and the stereochemistry of this."""
    try:
        mol = decode(geometry.z, pairs, log_p, geometry.charge)
    except MoleculeError as error:
        return Bonded(None, str(error))
    add_conformers(mol, geometry.pos[None])
    Chem.AssignStereochemistryFrom3D(mol, replaceExistingTags=True)
    return Bonded(mol)
