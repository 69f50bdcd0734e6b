"""The molecules and labels of a task, from a folder of shards."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import plain_mol
from msde.chem.record import Origin
from msde.chem.units import factor
from msde.data import codec
from msde.data.codec import MoleculeColumns
from msde.data.shards import ShardDataset
from msde.downstream.tasks import Task
from msde.errors import MsdeError

log = logging.getLogger("msde")
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class TaskData:
    """Molecules of a data set and the labels that are to be predicted."""

    columns: MoleculeColumns
    targets: tuple[str, ...]
    units: tuple[str, ...]  # "" where not known
    y: np.ndarray  # (num_molecules, num_targets) float64, NaN where missing
    digest: str  # of the data set
    hydrogens: bool  # whether hydrogens are atoms
    forces_unit: str | None  # None: there are no forces
    lines: Mapping[int, tuple[str, ...]]  # uid -> line, of several files (file, line), if known

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def names(self) -> list[str]:
        """The names of the molecules in their file, or ""."""
        return names_of(self.columns)

    def take(self, places: np.ndarray) -> TaskData:
        """Return some of the molecules."""
        return dataclasses.replace(self, columns=self.columns.take(places), y=self.y[places])

    def mols(self) -> Iterator[Chem.Mol | None]:
        """Yield the topologies, None where RDKit fails; all of them would take some 19 kB each."""
        silence_rdkit()
        return (plain_mol(self.columns.record(place)) for place in range(len(self)))

    @property
    def has_geometry(self) -> bool:
        """Whether every molecule has positions."""
        return not (self.columns.origin & Origin.NO_GEOMETRY).any()


def names_of(columns: MoleculeColumns) -> list[str]:
    """Return the names of molecules, "" where there is none."""
    parts = np.split(columns.name, np.cumsum(columns.name_bytes)[:-1])
    return [part.tobytes().decode() for part in parts]


def read_task_data(
    root: Path,
    task: Task,
    lines: Mapping[int, tuple[str, ...]] | None = None,
    split_column: str | None = None,
) -> TaskData:
    """Read molecules and labels, in the task's units; those without any label are left out.

    Args:
        split_column: a label that divides the molecules, and is no target.

    Raises:
        MsdeError: a label is not there, has no value, no unit or another kind than the task needs,
            or is not 0 or 1 in a classification; or only some molecules have their hydrogens.
    """
    dataset = ShardDataset(root)
    known = {label["name"]: label["unit"] for label in dataset.manifest["labels"]}
    names = tuple(name for name in known if name != split_column)
    if task.targets:
        names = labels_of(task.targets, known, root)
    if split_column in names:
        raise MsdeError(f"label {split_column} cannot be a target: it divides the molecules")
    if not names:
        raise MsdeError(f"{root} has no labels; {task.name} needs one to learn from")
    columns = codec.concatenate(list(dataset.blocks()))
    y = columns.y[:, [list(known).index(name) for name in names]].astype(np.float64)
    units = {name: unit_of(task, name, known[name]) for name in names}
    y *= [_factor(root, f"label {name}", known[name], units[name]) for name in names]
    _check_values(y, names, task)
    keep = np.flatnonzero(~np.isnan(y).all(1))
    if len(keep) < len(y):
        log.info("%d of %d molecules have no label and are left out", len(y) - len(keep), len(y))
        columns, y = columns.take(keep), y[keep]
    if task.has_forces and (columns.num_forces != 1).any():
        raise MsdeError(f"{root} lacks forces of {int((columns.num_forces != 1).sum())} molecules")
    forces_unit = None
    if task.has_forces:
        forces_unit = f"{units[names[0]]}/A"
        size = _factor(root, "forces", dataset.manifest["forces_unit"], forces_unit)
        if size != 1:
            columns = dataclasses.replace(columns, forces=size * columns.forces)
    hydrogens = has_hydrogens(dataset)
    if task.has_forces and not hydrogens:
        raise MsdeError(
            f"{root}: hydrogens are removed, but the energy depends on them, too, so it has no "
            "gradient that the other atoms decide; convert with --keep-hydrogens"
        )
    given = (dataset.digest, hydrogens, forces_unit, lines or {})
    return TaskData(columns, names, tuple(units.values()), y, *given)


def labels_of(targets: Sequence[str], known: Collection[str], where: Path) -> tuple[str, ...]:
    """Return the labels that targets name; the command line cuts a name at its commas.

    Args:
        known: labels that are there.
        where: the file or folder, for messages.

    Raises:
        MsdeError: one is not there; those that are there are named.
    """
    names = tuple(name if name in known else name.strip() for name in targets)
    missing = [name for name in names if name not in known]
    whole = ",".join(targets).strip()
    if missing and whole in known:
        return (whole,)
    if missing:
        there = listed([repr(name) for name in known]) or "none"
        raise MsdeError(f"{where} has no label {missing[0]!r}, found {there}")
    return names


def unit_of(task: Task, name: str, known: str) -> str:
    """Return the unit that a label is predicted in: the task's, or that of the data.

    Raises:
        MsdeError: it is that of an energy with forces, and is in neither, or is none of energies.
    """
    unit = task.units.get(name) or known
    if task.has_forces and not unit:
        raise MsdeError(
            f"the unit of {name} is not stated, which forces need; give --label-columns {name}=eV, "
            "or what it is, to the command that reads the file"
        )
    if task.has_forces and factor(unit, "eV") is None:
        raise MsdeError(f"the unit of {name} is {unit!r}, expected one of energies, such as eV")
    return unit


def assumed(what: str, unit: str, remedy: str) -> str:
    """Return the message that a unit is not stated, with what to do if it is another one."""
    return f"the unit of {what} is not stated: {unit} is taken; if it is another one, {remedy}"


def _factor(root: Path, what: str, known: str, wanted: str) -> float:
    """Return what values in one unit are multiplied by to be in another; say what is done."""
    if known == wanted:
        return 1.0
    if not known:
        log.warning(assumed(what, wanted, "convert the file again with --label-columns NAME=UNIT"))
        return 1.0
    size = factor(known, wanted)
    if size is None:
        raise MsdeError(f"{root}: {what} is in {known}, expected {wanted} or a unit of that kind")
    if size != 1:
        log.info("%s: %s is converted from %s to %s", root, what, known, wanted)
    return size


def has_hydrogens(dataset: ShardDataset) -> bool:
    """Return whether hydrogens are atoms of a data set, also of one that was put together.

    Raises:
        MsdeError: only in some of its parts.
    """
    found = _hydrogens(dataset.manifest.get("source", {}))
    if len(found) > 1:
        raise MsdeError(
            f"{dataset.root}: hydrogens are kept in some of the merged data sets and removed in "
            "others; convert all alike"
        )
    return found == {"kept"}


def _hydrogens(source: Mapping[str, Any]) -> set[str]:
    if "merged" in source:
        return set().union(*(_hydrogens(part) for part in source["merged"]))
    return {source.get("hydrogens", "removed")}


def listed(names: Sequence[str]) -> str:
    """Return names as text, the first ones where there are many."""
    return ", ".join(names)[:300]


def _check_values(y: np.ndarray, names: Sequence[str], task: Task) -> None:
    empty = [name for name, column in zip(names, y.T, strict=True) if np.isnan(column).all()]
    if empty:
        raise MsdeError(
            f"label {listed(empty[:SHOWN])} has no value in any of {len(y)} molecules; leave it "
            "out of --targets, or fill it"
        )
    if not task.is_classification:
        return
    for name, column in zip(names, y.T, strict=True):
        other = column[~np.isnan(column) & (column != 0) & (column != 1)]
        if len(other):
            raise MsdeError(
                f"label {name} is neither 0 nor 1 in {len(other)} of {len(y)} molecules, "
                f"{other[0]:g} in one; of numbers give --task custom --metric rmse"
            )


@dataclass(frozen=True)
class Scaling:
    """The mean and scale of each target over the training part; networks predict (y - mean) / std.

    Classes are not scaled.
    """

    mean: np.ndarray  # (num_targets,)
    scale: np.ndarray  # (num_targets,)

    @classmethod
    def of(cls, data: TaskData, train: np.ndarray, task: Task) -> Scaling:
        """Return the scaling of the training molecules `train`.

        Energies with forces are centred, and scaled by the root mean square of the forces, so that
        both keep their relation.

        Raises:
            MsdeError: a target has no value in the training part, or values that are too large.
        """
        y = data.y[train]
        if task.is_classification:
            return cls(np.zeros(y.shape[1]), np.ones(y.shape[1]))
        known = ~np.isnan(y)
        if not known.any(0).all():
            name = data.targets[int(np.argmin(known.any(0)))]
            raise MsdeError(f"label {name} has no value in the training part of {len(y)} molecules")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = np.nanmean(y, axis=0), np.nanstd(y, axis=0)
        for name, values, finite in zip(data.targets, y.T, np.isfinite(mean + std), strict=True):
            if not finite:
                largest = np.nanmax(np.abs(values))
                raise MsdeError(
                    f"label {name} has values up to {largest:g}, of which no mean and deviation "
                    "can be taken; correct them, or give it in another unit"
                )
        if task.has_forces:
            forces = data.columns.take(train).forces.astype(np.float64)  # (atoms, 3)
            std = np.full(1, np.sqrt(np.square(forces).mean()))
        return cls(mean, np.where(std > 0, std, 1.0))

    def scaled(self, y: np.ndarray) -> np.ndarray:
        """Return labels as networks predict them, (rows, num_targets)."""
        return (y - self.mean) / self.scale
