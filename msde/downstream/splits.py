"""Training, validation and test parts of a data set.

The index sets are those of the published code (Hu et al. 2020) and of DeepChem, also where that
code fails with current libraries.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from msde.downstream.labels import TaskData, listed
from msde.downstream.settings import OF_SPLITS, Settings, differences
from msde.downstream.tasks import Task
from msde.errors import DataDamaged, MsdeError
from msde.files import sealed, unsealed

log = logging.getLogger("msde")

PARTS = ("train", "valid", "test")
FALLBACK = (0.8, 0.1)  # shares where published numbers of molecules are more than there are
_WORDS = {
    "train": ("train", "training", "0", "0.0"),
    "valid": ("valid", "validation", "val", "dev", "1", "1.0"),
    "test": ("test", "testing", "2", "2.0"),
}
PART_OF_WORD = {word: part for part, words in _WORDS.items() for word in words}


@dataclass(frozen=True)
class Split:
    """The places of the molecules of each part, in order."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    sha256: str = ""  # of the file that holds it

    def parts(self) -> dict[str, np.ndarray]:
        """Return the parts by name."""
        return {name: getattr(self, name) for name in PARTS}


def scaffold_split(scaffolds: Sequence[str], train: float, valid: float) -> Split:
    """Give the largest scaffolds to training; ties go by the first molecule, the last one first.

    Source: `scaffold_split` of Hu et al. 2020 (with scaffolds that keep chirality) and DeepChem's
    ScaffoldSplitter (without).

    Args:
        scaffolds: of each molecule, "" without rings, which are one group.
        train: share of the training part if below 1, else its size, and so `valid`.
    """
    groups = _groups(scaffolds)
    groups.sort(key=lambda members: (len(members), members[0]), reverse=True)
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    unit = len(scaffolds) if train < 1 else 1
    first, second = train * unit, (train + valid) * unit
    for members in groups:
        if len(parts["train"]) + len(members) <= first:
            parts["train"] += members
        elif len(parts["train"]) + len(parts["valid"]) + len(members) <= second:
            parts["valid"] += members
        else:
            parts["test"] += members
    return _split(parts)


def random_scaffold_split(scaffolds: Sequence[str], train: float, valid: float, seed: int) -> Split:
    """Fill validation, then test, with scaffolds in random order.

    Source: `random_scaffold_split` of Hu et al. 2020, whose permutation of ragged lists current
    NumPy refuses. The arguments are those of `scaffold_split`.
    """
    groups = _groups(scaffolds)
    whole, unit = (1, len(scaffolds)) if train < 1 else (len(scaffolds), 1)
    most_valid = int(np.floor(valid * unit))
    most_test = int(np.floor((whole - train - valid) * unit + 1e-9))
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for number in np.random.RandomState(seed).permutation(len(groups)):
        members = groups[number]
        if len(parts["valid"]) + len(members) <= most_valid:
            parts["valid"] += members
        elif len(parts["test"]) + len(members) <= most_test:
            parts["test"] += members
        else:
            parts["train"] += members
    return _split(parts)


def random_split(size: int, train: int, valid: int, seed: int) -> Split:
    """Cut a permutation of NumPy's old generator, as published for QM9 and MD17 with seed 42."""
    order = np.random.RandomState(seed).permutation(size)
    return Split(order[:train], order[train : train + valid], order[train + valid :])


def column_split(parts: Sequence[str]) -> Split:
    """Take the part of each molecule from its own words, as `train`, `val` or `2`.

    Raises:
        MsdeError: a word is not known.
    """
    found = [PART_OF_WORD.get(part.strip().lower()) for part in parts]
    if None in found:
        known = ", ".join(PART_OF_WORD)
        word = parts[found.index(None)]
        raise MsdeError(f"the split column holds {word!r}, expected one of {known}")
    return _split({name: [i for i, part in enumerate(found) if part == name] for name in PARTS})


def scaffolds_of(data: TaskData, chirality: bool) -> list[str]:
    """Return the Bemis-Murcko scaffold of each molecule, "" where it has no ring.

    E and Z are no part of it: whether RDKit's scaffold keeps them depends on how a SMILES is
    written.

    Args:
        chirality: tell the hands of stereocentres apart.
    """
    scaffolds, unknown = [], 0
    for mol in data.mols():
        try:
            for bond in mol.GetBonds() if mol is not None else ():
                bond.SetStereo(Chem.BondStereo.STEREONONE)
                bond.SetBondDir(Chem.BondDir.NONE)
            found = MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=chirality)
        except Exception:  # of a molecule that is None, too
            found, unknown = "", unknown + 1
        scaffolds.append(found)
    if unknown:
        log.info("%d molecules have no scaffold for RDKit; they count as without rings", unknown)
    return scaffolds


def make_split(
    data: TaskData, settings: Settings, task: Task, words: Mapping[int, str] | None = None
) -> Split:
    """Divide a data set as the settings say.

    Args:
        task: its published numbers of molecules become shares where there are fewer molecules.
        words: for split=column: uid -> the cell of the split column.

    Raises:
        MsdeError: a part would be empty, or the sizes do not fit.
    """
    size, train, valid = len(data), settings.train, settings.valid
    if train >= 1 and train + valid >= size:
        if (train, valid) != (task.settings.get("train"), task.settings.get("valid")):
            raise MsdeError(
                f"train={train:g} and valid={valid:g} leave none of {size} molecules to test on; "
                "give smaller numbers, or shares as 0.8 and 0.1"
            )
        log.info("%d molecules are not more than %d + %d: parts are %g and %g of them",
                 size, train, valid, *FALLBACK)  # fmt: skip
        train, valid = FALLBACK
    if settings.split == "column":
        cells = words or {}
        split = column_split([cells.get(int(uid), "") for uid in data.columns.uid])
    elif settings.split == "random":
        counts = [int(n) if n >= 1 else int(n * size) for n in (train, valid)]
        split = random_split(size, counts[0], counts[1], settings.split_seed)
    else:
        scaffolds = scaffolds_of(data, chirality=settings.split != "deepchem")
        if settings.split == "random_scaffold":
            split = random_scaffold_split(scaffolds, train, valid, settings.split_seed)
        else:
            split = scaffold_split(scaffolds, train, valid)
    if settings.labels is not None:
        if settings.labels > len(split.train):
            raise MsdeError(
                f"labels={settings.labels} are more than the {len(split.train)} molecules of the "
                "training part"
            )
        order = np.random.RandomState(settings.split_seed).permutation(len(split.train))
        split = Split(split.train[order[: settings.labels]], split.valid, split.test)
    empty = [name for name, members in split.parts().items() if not len(members)]
    if empty:
        raise MsdeError(
            f"the {listed(empty)} part of {size} molecules is empty with split={settings.split}; "
            "choose another split, train= or valid="
        )
    return split


def stored_split(
    path: Path,
    data: TaskData,
    settings: Settings,
    task: Task,
    words: Mapping[int, str] | None = None,
) -> tuple[Split, str]:
    """Return the split in a file, or a new one if there is no file, and the text of the file.

    Raises:
        MsdeError: the file is of other data or settings.
        DataDamaged: it is not as it was written.
    """
    rule = {key: getattr(settings, key) for key in OF_SPLITS}
    facts = {"data": data.digest, "molecules": len(data), "rule": rule}
    if path.exists():
        text = path.read_text()
    else:
        parts = make_split(data, settings, task, words).parts()
        text = sealed({**facts, **{name: members.tolist() for name, members in parts.items()}})
    try:
        values = unsealed(text)
    except ValueError as error:
        raise DataDamaged(f"{path} is damaged ({error}); delete it") from error
    for key, value in facts.items():
        if changed := differences({key: values[key]}, {key: value}):
            raise MsdeError(
                f"{path} is of another {key} than this fine-tuning: {changed}; choose another "
                "--output"
            )
    return _split(values, values["sha256"]), text


def known_from_training(data: TaskData, split: Split) -> dict[str, int]:
    """Return how many molecules of the other parts have the 2D graph of one in training."""
    graphs = [Chem.MolToSmiles(m, isomericSmiles=False) if m else None for m in data.mols()]
    known = {graphs[place] for place in split.train} - {None}
    parts = {"validation": split.valid, "test": split.test}
    return {name: sum(graphs[place] in known for place in part) for name, part in parts.items()}


def _groups(scaffolds: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for place, scaffold in enumerate(scaffolds):
        groups[scaffold].append(place)
    return list(groups.values())


def _split(parts: Mapping[str, list[int]], sha256: str = "") -> Split:
    train, valid, test = (np.array(parts[name], np.int64) for name in PARTS)
    return Split(train, valid, test, sha256)
