"""Conformers of molecules: noise, or conformers by distance geometry, refined by a score network.

Molecules are sampled without hydrogens, as the network is trained, and their hydrogens are placed
by RDKit on the finished positions. Every number is a function of the seed, the molecule and the
number of its sample: neither batch-mates nor the size of a batch matter. With several candidates
for each conformer, `chem.clusters` chooses among the finished ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdDepictor
from torch import Tensor

from msde.chem.clusters import ids_of, representatives, with_conformers
from msde.chem.conformers import add_conformers, embed, relax
from msde.chem.parsing import mol_from_smiles, remove_hydrogens, removed_note, stereo_note
from msde.chem.record import MoleculeRecord, molecule_uid, record_from_mol
from msde.chem.stereo import axes
from msde.chem.vocabulary import MoleculeError
from msde.config.choices import STARTS, STD_ON_ETKDG
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.errors import MsdeError, one_line, require
from msde.model import MoleculeSDE
from msde.model.score import AllPairsScore
from msde.model.sde import perturb, score_from_noise
from msde.sampling.batching import CHUNK, limited_batches
from msde.sampling.noise import keyed_noise
from msde.sampling.samplers import SAMPLERS, denoise
from msde.sampling.schedule import karras_times, sigma_of, time_of_noise
from msde.sampling.stereo import inverts, turn_bonds, wrong_bonds

log = logging.getLogger("msde")

MAX_ATOMS = 200  # without hydrogens; memory and time grow with the pairs of atoms
LAST_STD = 0.03  # A, of the noise before the step to x_0; nothing finer is learnt
BATCH_EDGES = 60_000  # directed edges between all atoms, of the molecules sampled together
ITEMS_OF_SAMPLE = 2**16  # between the items that key the noise of a molecule's samples
REPAIRS = 2  # times that a sample with a wrong label is made again
REPAIR_STD = 0.7  # A, of the noise that is added then, or `std` where that is less
DRAWS_OF_REPAIR = 2**20  # between the draws of noise of a sample and of its next repair


@dataclass(frozen=True)
class ConformerOptions:
    """How conformers are sampled."""

    num: int = 10  # conformers of each molecule
    start: str = "etkdg"  # or `noise`
    std: float = STD_ON_ETKDG  # A, of the noise that is added to conformers of ETKDG
    steps: int = 20
    sampler: str = "dpm_solver_2m"
    seed: int = 0
    relax: bool = False  # by MMFF94, with hydrogens
    repair: bool = True  # make samples with wrong labels again
    candidates: int = 1  # samples for each conformer that is returned; centres of clusters are

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            MsdeError: the rules that are broken.
        """
        require(
            {
                "num must be at least 1": self.num >= 1,
                "candidates must be at least 1": self.candidates >= 1,
                "steps must be at least 1": self.steps >= 1,
                "std must be positive": self.std > 0,
                "start must be etkdg or noise": self.start in STARTS,
                f"sampler must be one of {', '.join(SAMPLERS)}": self.sampler in SAMPLERS,
            }
        )

    @property
    def samples(self) -> int:
        """Number of samples of each molecule."""
        return self.num * self.candidates


@dataclass
class Sampled:
    """The conformers of one molecule, or the reason why there are none."""

    mol: Chem.Mol | None  # with hydrogens and `num` conformers
    reason: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclass
class _Task:
    """A molecule to sample."""

    mol: Chem.Mol  # without hydrogens
    record: MoleculeRecord
    starts: np.ndarray | None  # (samples, num_atoms, 3) conformers of ETKDG, A; None: noise
    notes: list[str]
    remade: set[int] = dataclasses.field(default_factory=set)  # samples whose labels were wrong


def sample_conformers(
    model: MoleculeSDE, molecules: Sequence[str | Chem.Mol], options: ConformerOptions
) -> Iterator[Sampled]:
    """Yield the conformers of each molecule, in order, so many molecules at a time as CHUNK has.

    Args:
        molecules: SMILES or RDKit molecules, whose own conformers are not used.

    Raises:
        MsdeError: the noise of `options.std` is too small; see `with_known_std`.
    """
    options = with_known_std(model, options)
    for first in range(0, len(molecules), CHUNK):
        yield from _sample_chunk(model, molecules[first : first + CHUNK], options)


def _sample_chunk(
    model: MoleculeSDE, molecules: Sequence[str | Chem.Mol], options: ConformerOptions
) -> Iterator[Sampled]:
    """Yield the conformers of molecules that are sampled together."""
    results = [_task(molecule, options) for molecule in molecules]
    tasks = [task for task in results if isinstance(task, _Task)]
    positions: dict[tuple[int, int], np.ndarray] = {}  # of task and number of the sample
    for part in _parts(tasks, options.samples):
        pos = _sample_and_repair(model, [(tasks[k], number) for k, number in part], options)
        positions |= dict(zip(part, pos, strict=True))
    numbers = iter(range(len(tasks)))
    for result in results:
        if isinstance(result, _Task):
            k = next(numbers)
            samples = [positions.pop((k, number)) for number in range(options.samples)]
            yield _finish(result, samples, options)
        else:
            yield result


def with_known_std(model: MoleculeSDE, options: ConformerOptions) -> ConformerOptions:
    """Return options whose noise is at most the largest that the model knows; say if it was more.

    Samples that start from noise do not use `std`; theirs is the largest.

    Raises:
        MsdeError: it is not more than the noise at which sampling ends.
    """
    sde = model.score_2d_to_3d.sde
    ends = time_of_noise(sde, LAST_STD), torch.ones(())
    least, largest = (round(float(sigma_of(sde, t)), 4) for t in ends)
    if options.start == "noise":
        return dataclasses.replace(options, std=largest)
    if options.std <= least:
        raise MsdeError(
            f"std is {options.std:g} A, expected more than {least:g} A, with which sampling ends, "
            f"and at most {largest:g} A"
        )
    if options.std <= largest:
        return options
    text = "noise on ETKDG's conformers: %g A, the most that the model knows, not %g A"
    log.warning(text, largest, options.std)
    return dataclasses.replace(options, std=largest)


def _task(molecule: str | Chem.Mol, options: ConformerOptions) -> _Task | Sampled:
    """Return a molecule made ready, or the reason why it cannot be sampled."""
    notes: list[str] = []
    try:
        if isinstance(molecule, str):
            given = mol = mol_from_smiles(molecule)
        else:
            given, mol = molecule, remove_hydrogens(Chem.Mol(molecule))
        notes += filter(None, (stereo_note(given), removed_note(mol)))
        mol.RemoveAllConformers()
        check_sampled(mol)
        uid = molecule_uid("", Chem.MolToSmiles(Chem.Mol(mol)))
        record = record_from_mol(mol, uid, topology_only=True, notes=notes)
        # A drawing fulfils E and Z labels, which the network reads from positions.
        drawing = Chem.Mol(mol)
        rdDepictor.Compute2DCoords(drawing)
        flat = drawing.GetConformer().GetPositions().astype("<f4")
        record = dataclasses.replace(record, pos=flat[None])
        starts = _starts(mol, uid, options, notes) if options.start == "etkdg" else None
        if starts is None and axes(mol):
            notes.append("sampled from noise: M or P of hindered bonds is left to chance")
    except (ValueError, RuntimeError) as error:
        return Sampled(None, one_line(error))
    return _Task(mol, record, starts, notes)


def check_sampled(mol: Chem.Mol) -> None:
    """Raise a MoleculeError if a molecule, without hydrogens, is of a kind that is not sampled."""
    if mol.GetNumAtoms() > MAX_ATOMS:
        raise MoleculeError(f"{mol.GetNumAtoms()} heavy atoms, at most {MAX_ATOMS} are sampled")
    if (fragments := len(Chem.GetMolFrags(mol))) != 1:
        raise MoleculeError(f"{fragments} fragments; give each alone")


def _starts(
    mol: Chem.Mol, uid: int, options: ConformerOptions, notes: list[str]
) -> np.ndarray | None:
    """Return conformers by ETKDGv3, (samples, num_atoms, 3) A, or None: it finds none."""
    full, num = Chem.AddHs(mol), options.samples
    ids = embed(full, num, uid ^ options.seed)
    if not ids:
        notes.append("ETKDG finds no conformer: sampled from noise")
        return None
    if len(ids) < num:
        notes.append(f"ETKDG finds {len(ids)} of {num} conformers: some start twice")
    heavy = mol.GetNumAtoms()  # AddHs appends hydrogens
    found = np.stack([full.GetConformer(i).GetPositions()[:heavy] for i in ids])
    return found[np.arange(num) % len(ids)].astype("<f4")


def _parts(tasks: list[_Task], num: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the samples, (task, number) each, into batches of one start and of limited edges."""

    def kind(k: int) -> tuple[bool, int]:
        return tasks[k].starts is None, len(tasks[k].record.z)

    order = sorted(range(len(tasks)), key=kind)
    for _, group in itertools.groupby(order, key=lambda k: kind(k)[0]):
        samples = itertools.product(group, range(num))
        yield from limited_batches(samples, lambda row: kind(row[0])[1] ** 2, BATCH_EDGES)


def _sample_and_repair(
    model: MoleculeSDE, rows: list[tuple[_Task, int]], options: ConformerOptions
) -> list[np.ndarray]:
    """Return the positions of samples, (num_atoms, 3) A each, labelled as far as it can be done.

    A sample with a wrong label is made again with less noise, REPAIR_STD: from its conformer of
    ETKDG, or, if it started from noise, from itself with wrong double bonds turned. There is no
    such start for stereocentres and axes of samples from noise.
    """
    starts = [None if task.starts is None else task.starts[number] for task, number in rows]
    found = _sample(model, rows, starts, options)
    less_noise = dataclasses.replace(options, std=min(options.std, REPAIR_STD))
    for repair in range(1, REPAIRS + 1 if options.repair else 1):
        better: dict[int, np.ndarray] = {}
        for k, ((task, number), pos) in enumerate(zip(rows, found, strict=True)):
            wrong, start = wrong_bonds(task.mol, pos), starts[k]
            if start is not None:
                if wrong or inverts(task.mol, pos, start):
                    better[k] = start
            elif not all(bond.IsInRing() for bond in wrong):
                better[k] = turn_bonds(task.mol, pos, wrong)
            if k in better and repair == 1:
                task.remade.add(number)
        if not better:
            break
        again = _sample(
            model, [rows[k] for k in better], list(better.values()), less_noise,
            first_draw=repair * DRAWS_OF_REPAIR,
        )  # fmt: skip
        for k, pos in zip(better, again, strict=True):
            found[k] = pos
    return found


def _sample(
    model: MoleculeSDE,
    rows: list[tuple[_Task, int]],
    starts: Sequence[np.ndarray | None],
    options: ConformerOptions,
    first_draw: int = 0,
) -> list[np.ndarray]:
    """Return the positions of samples from these starts, or, if all are None, from noise."""
    device = next(model.parameters()).device
    columns = columns_from_records([task.record for task, _ in rows])
    batch = MoleculeBatch.from_columns(columns).to(device)
    known = [start for start in starts if start is not None]
    begin = torch.from_numpy(np.concatenate(known)).to(device) if known else None
    numbers = torch.tensor([number for _, number in rows], device=device)
    return sample_batch(model, batch, numbers, begin, options, first_draw=first_draw)


@torch.no_grad()
def sample_batch(
    model: MoleculeSDE,
    batch: MoleculeBatch,
    numbers: Tensor,
    starts: Tensor | None,
    options: ConformerOptions,
    observe: Callable[[Tensor, Tensor], None] = lambda pos, t: None,
    first_draw: int = 0,
) -> list[np.ndarray]:
    """Return one sample of each molecule of a batch, (num_atoms, 3) A each.

    Args:
        numbers: (num_graphs,) numbers of the samples, which key their noise.
        starts: (num_atoms, 3) A, conformers to add noise to; None: samples start from noise.
        observe: called with the positions and the time whenever the network sees them.
        first_draw: number of the first draw of noise; others give other noise.
    """
    item = batch.atom_in_graph + ITEMS_OF_SAMPLE * numbers[batch.batch]  # (num_atoms,)
    draws = keyed_noise(options.seed, batch.uid[batch.batch], item, 3)
    network = model.score_2d_to_3d
    sde = network.sde

    def noise(draw: int) -> Tensor:
        return network.to_subspace(draws(first_draw + draw), batch)

    first, last = (time_of_noise(sde, std).item() for std in (options.std, LAST_STD))
    times = karras_times(sde, options.steps, first=1.0 if starts is None else first, last=last)
    if starts is None:
        pos = sde.prior_sampling(noise(0))
    else:
        pos = network.to_subspace(starts, batch)
        pos = perturb(sde, pos, times[:1].to(pos).expand(len(pos)), noise(0))
    network_score = score_function(model, batch)

    def score(pos: Tensor, t: Tensor) -> Tensor:
        observe(pos, t)
        return network_score(pos, t)

    pos = SAMPLERS[options.sampler](
        score, sde, pos, times, noise=lambda draw: noise(draw + 1), batch=batch.batch
    )
    pos = denoise(score, sde, pos, times[-1])
    return [part.cpu().numpy() for part in pos.split(batch.atoms_per_graph.tolist())]


def batch_of_conformers(model: MoleculeSDE, mols: Sequence[Chem.Mol]) -> MoleculeBatch:
    """Return molecules without hydrogens and their first conformers as a batch for a model.

    Raises:
        MoleculeError: a molecule cannot be represented.
    """
    first = [with_conformers(mol, ids_of(mol)[:1]) for mol in mols]  # a batch draws one of several
    records = [record_from_mol(m, molecule_uid("", Chem.MolToSmiles(m)), notes=[]) for m in first]
    batch = MoleculeBatch.from_columns(columns_from_records(records))
    return batch.to(next(model.parameters()).device)


def score_function(model: MoleculeSDE, batch: MoleculeBatch) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the score of positions of a batch at a time, as samplers call it."""
    network = model.score_2d_to_3d
    h_2d = model.encoder_2d(batch)
    known = {}
    if isinstance(network, AllPairsScore):
        known["condition"] = network.condition(h_2d, batch)

    def score(pos: Tensor, t: Tensor) -> Tensor:
        times = t.to(pos).expand(batch.num_graphs)
        noise_pred = network(pos, times, h_2d, batch, **known)
        std = network.sde.marginal_prob(times, times)[1]
        return score_from_noise(noise_pred, std[batch.batch])

    return score


def _finish(task: _Task, positions: list[np.ndarray], options: ConformerOptions) -> Sampled:
    """Return a molecule with conformers and hydrogens, relaxed and chosen as asked for."""
    mol = Chem.Mol(task.mol)
    add_conformers(mol, positions)
    mol = Chem.AddHs(mol, addCoords=True)
    energies = relax(mol, task.notes) if options.relax else None
    if options.relax and energies is None:
        task.notes.append("not relaxed: MMFF94 lacks parameters")
    chosen = list(range(options.num))
    if options.candidates > 1:
        chosen = representatives(mol, options.num, energies)
        mol = with_conformers(mol, chosen)
        numbers = ", ".join(str(number + 1) for number in chosen)
        task.notes.append(f"chosen of {options.samples} candidates: {numbers}")
    for place, number in enumerate(chosen, start=1):
        if number in task.remade:
            task.notes.append(f"sample {place} was made again, its stereo was wrong")
    return Sampled(mol, notes=task.notes)
