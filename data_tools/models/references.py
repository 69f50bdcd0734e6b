"""Molecules of a data set as references of a comparison, and remarks on their origin."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem

from msde.chem.rebuild import mol_or_error
from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import ShardDataset
from msde.errors import MsdeError, require

from ..parsing.chemistry import implied_hydrogens

# What is counted, and the words after its number: of molecules that are left out.
LEFT_OUT = {
    "not rebuilt": "could not be rebuilt",
    "without geometry": "have no geometry and are left out",
    "not sampled": "are of a kind that no model samples and are left out of all rows",
}
CONFORMERS_MADE, BONDS_PERCEIVED = "conformers made", "bonds perceived"
WITHOUT_HYDROGENS = "without hydrogens"
# Of references that make a row of the comparison void or biased.
LIMITATIONS = {
    CONFORMERS_MADE: "have conformers that RDKit made: its rows are judged by their own kind",
    BONDS_PERCEIVED: "have bonds that RDKit perceived: its rule is measured against itself",
    WITHOUT_HYDROGENS: "lack hydrogens, which RDKit DetermineBonds needs: its row says nothing",
}


def check_choices(limit: int | None, **choices: tuple[str, bool]) -> None:
    """Raise an MsdeError unless `limit` and the other choices of a comparison are right.

    Args:
        choices: by the name of the option, what it must be, and whether it is.
    """
    require(
        {
            "--limit must be at least 1": limit is None or limit >= 1,
            **{f"--{name} must be {rule}": holds for name, (rule, holds) in choices.items()},
        }
    )


def references_of(
    root: Path, limit: int | None, check: Callable[[Chem.Mol], None] = lambda mol: None
) -> tuple[list[Chem.Mol], dict[str, int]]:
    """Return molecules of a data set with their conformers, and counts.

    These are the number of `molecules`, and those of LEFT_OUT and LIMITATIONS.

    Args:
        limit: look at this many molecules, spread evenly over the data set; None: at all.
        check: raises a MoleculeError for a molecule that is left out as `not sampled`.

    Raises:
        MsdeError: none of them can be compared with; it says how many are left out, and why.
    """
    dataset = ShardDataset(root)
    many = len(dataset) if limit is None else min(limit, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, many).round().astype(int)
    places = zip(*(array.tolist() for array in dataset.locate(chosen)), strict=True)
    mols: list[Chem.Mol] = []
    counts = dict.fromkeys(("molecules", *LEFT_OUT, *LIMITATIONS), 0)
    for block, group in itertools.groupby(places, key=operator.itemgetter(0)):
        columns = dataset.read_block(block)
        for record in (columns.record(place) for _, place in group):
            if record.origin & Origin.NO_GEOMETRY:
                counts["without geometry"] += 1
                continue
            mol = mol_or_error(record)
            if not isinstance(mol, Chem.Mol):
                counts["not rebuilt"] += 1
                continue
            try:
                check(mol)
            except MoleculeError:
                counts["not sampled"] += 1
                continue
            mols.append(mol)
            counts[CONFORMERS_MADE] += bool(record.origin & Origin.CONFORMERS_MADE)
            counts[BONDS_PERCEIVED] += bool(record.origin & Origin.BONDS_PERCEIVED)
            counts[WITHOUT_HYDROGENS] += implied_hydrogens(mol) > 0
    counts["molecules"] = len(mols)
    if not mols:
        left_out = " ".join(remarks(counts, tuple(LEFT_OUT)))
        raise MsdeError(f"{root} has nothing to compare with. {left_out}".rstrip(". "))
    return mols, counts


def remarks(facts: dict[str, int], kinds: Sequence[str]) -> list[str]:
    """Return a line for each of these kinds of which there are molecules.

    Args:
        facts: counts of `references_of`.
        kinds: of LEFT_OUT and LIMITATIONS.
    """
    lines = {kind: f"{facts[kind]} molecules {said}." for kind, said in LEFT_OUT.items()}
    many = facts["molecules"]
    lines |= {
        kind: f"{facts[kind]} of {many} references {said}." for kind, said in LIMITATIONS.items()
    }
    return [lines[kind] for kind in kinds if facts[kind]]
