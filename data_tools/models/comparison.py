"""Sampled conformers beside RDKit's, on the same references: one table and a JSON file.

The references are a data set whose molecules have geometry. For each of them every method makes the
same number of conformers; RMSD, coverage and stereochemistry are those of `msde.evaluation` and
`msde.chem.stereo`.

    ETKDGv3                  distance geometry with torsions of crystals
    ETKDGv3+MMFF             relaxed by MMFF94
    msde, NAME               this model from ETKDG or from noise
    msde, NAME, relaxed      the same relaxed by MMFF94, whose energies choose where it is clustered
    ..., clustered           several times as many of the same, of which `chem.clusters` keeps K

So rows of one K have the same number of conformers, but those that are clustered had more to choose
from. They should be compared with each other. Molecules of a kind that no model samples, such as
salts, are in no row; those for which a method fails are in its column `failed`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem
from tqdm import tqdm

from msde.chem.clusters import ids_of, representatives, with_conformers
from msde.chem.conformers import embed, relax
from msde.chem.parsing import remove_hydrogens, silence_rdkit
from msde.chem.stereo import StereoCount, count_stereo, stereo_of
from msde.cli import check_writable
from msde.config.choices import STARTS
from msde.evaluation.conformers import (
    Coverage,
    coverage,
    internal_coordinates,
    paired_interval,
    rmsd_matrix,
)
from msde.evaluation.plausibility import check_installed, plausible
from msde.files import markdown_table, write_json
from msde.inference.pretrained import load
from msde.model import MoleculeSDE
from msde.sampling.conformers import (
    MAX_ATOMS,
    ConformerOptions,
    check_sampled,
    sample_conformers,
    with_known_std,
)

from .pictures import draw_samples
from .references import CONFORMERS_MADE, LEFT_OUT, check_choices, references_of, remarks

SIZES = ((1, 8), (9, 12), (13, 16), (17, 21), (22, MAX_ATOMS))  # heavy atoms
ETKDG = "ETKDGv3"
BASELINE = f"{ETKDG}+MMFF"
CLUSTERED = ", clustered"
COMPARED = {"baseline": BASELINE, "clustered baseline": BASELINE + CLUSTERED}

Method = Callable[[list[Chem.Mol]], Iterator[Chem.Mol | None]]


@dataclass
class Made:
    """Conformers that one method made of all references."""

    mols: list[Chem.Mol | None]  # with hydrogens
    energies: list[list[float] | None]  # of each conformer in kcal/mol, if it was relaxed
    seconds: float


@dataclass
class Outcome:
    """What one method made of all references, measured."""

    matrices: dict[int, list[np.ndarray | None]]  # by the number of conformers K
    stereo: StereoCount  # this and all below are of the largest K
    errors: dict[str, float]  # mean differences of internal coordinates; the share `plausible`
    failed: int  # molecules without conformers
    conformers: int
    seconds: float


def compare(
    checkpoint: Path,
    references: Path,
    output: Path,
    sampling: ConformerOptions,
    limit: int | None = None,
    counts: Sequence[int] = (1, 10),
    starts: Sequence[str] = STARTS,
    pictures: Path | None = None,
    posebusters: bool = False,
) -> str:
    """Compare methods, write the JSON file and return the table in Markdown.

    Args:
        references: a folder of shards.
        sampling: its `num` and `start` are chosen here; rows `clustered` have `candidates` for each
            conformer, and are left out if it is 1.
        limit: look at this many molecules, spread evenly over the data set.
        counts: conformers K of each molecule; each method makes the most and the first K count.
        starts: where the model's samples start, `etkdg`, `noise` or both.
        pictures: a folder for the PNG files of `pictures`.
        posebusters: count the first samples that pass its checks; a molecule without one does not.

    Raises:
        MsdeError: a file cannot be read or written, or an argument is out of its range.
    """
    check_writable(output)
    check_choices(limit, counts=("at least 1", min(counts, default=0) >= 1))
    if posebusters:
        check_installed()
    silence_rdkit()
    model = load(checkpoint).model
    start = "etkdg" if "etkdg" in starts else "noise"  # from noise, `std` is not used
    sampling = with_known_std(model, replace(sampling, num=max(counts), start=start))
    found, facts = references_of(
        references, limit, lambda mol: check_sampled(remove_hydrogens(mol))
    )
    mols = list(map(remove_hydrogens, found))
    notes = remarks(facts, (*LEFT_OUT, CONFORMERS_MADE))
    if pictures is not None:
        draw_samples(model, mols, pictures, sampling)

    outcomes: dict[str, Outcome] = {}
    for name, longer, method in _methods(model, sampling, starts):
        made = _make(name, method, mols)
        notes += _shortage(name, made, sampling.samples)
        for one, conformers in ((name, made), (longer, _relax(longer, made))):
            measured = _measure(conformers, mols, counts, sampling.candidates, posebusters)
            outcomes |= {one + rest: outcome for rest, outcome in measured.items()}
    size = np.array([mol.GetNumAtoms() for mol in mols])
    result: dict[str, Any] = {
        "checkpoint": str(checkpoint.name),
        "references": {**facts, "atoms": size.tolist()},
        "remarks": notes,
        "sampling": vars(sampling),
        "rows": [row for count in counts for row in _rows(outcomes, size, count)],
        "methods": {name: _facts(outcome) for name, outcome in outcomes.items()},
    }
    write_json(output, result)
    return table(result)


def _facts(outcome: Outcome) -> dict[str, Any]:
    """Return the JSON entry of a method."""
    return {
        "failed": outcome.failed,
        "conformers": outcome.conformers,
        "conformers/s": outcome.conformers / outcome.seconds,
        "centres": [outcome.stereo.centres_right, outcome.stereo.centres],
        "bonds": [outcome.stereo.bonds_right, outcome.stereo.bonds],
        **outcome.errors,
    }


def _methods(
    model: MoleculeSDE, sampling: ConformerOptions, starts: Sequence[str]
) -> Iterator[tuple[str, str, Method]]:
    """Yield names, without and with relaxation, and what makes all samples of molecules."""
    num, seed = sampling.samples, sampling.seed
    yield ETKDG, BASELINE, lambda mols: (rdkit_conformers(m, num, seed) for m in mols)
    for start in starts:
        options = replace(sampling, num=num, candidates=1, start=start)
        name = f"msde, from {'ETKDG' if start == 'etkdg' else start}"
        yield name, f"{name}, relaxed", lambda mols, options=options: (
            found.mol for found in sample_conformers(model, mols, options)
        )  # fmt: skip


def rdkit_conformers(mol: Chem.Mol, num: int, seed: int) -> Chem.Mol | None:
    """Return a molecule with hydrogens and up to `num` conformers by ETKDGv3, or None."""
    full = Chem.Mol(mol)
    full.RemoveAllConformers()
    full = Chem.AddHs(full)
    return full if embed(full, num, seed) else None


def _make(name: str, method: Method, mols: list[Chem.Mol]) -> Made:
    """Run one method on all references."""
    begin = time.perf_counter()
    found = list(tqdm(method(mols), total=len(mols), desc=name, disable=None))
    made = [mol and with_conformers(mol, ids_of(mol)) for mol in found]  # numbered from 0
    return Made(made, [None] * len(made), time.perf_counter() - begin)


def _shortage(name: str, made: Made, num: int) -> list[str]:
    """Return lines on references with fewer than `num` conformers, and on those with none."""
    many, lines = len(made.mols), []
    count = sum(len(ids_of(mol)) for mol in made.mols if mol)
    if name == ETKDG and count < num * many:
        lines.append(f"ETKDG made {count} of {num * many} conformers.")
    if failed := sum(mol is None for mol in made.mols):
        said = "have no conformers; its MAT-R and labels leave them out"
        lines.append(f"{name}: {failed} of {many} references {said}.")
    return lines


def _relax(name: str, made: Made) -> Made:
    """Return copies that MMFF94 has relaxed where it has parameters."""
    begin = time.perf_counter()
    copies = [mol and Chem.Mol(mol) for mol in made.mols]
    shown = tqdm(copies, desc=name, disable=None)
    energies = [None if mol is None else relax(mol) for mol in shown]
    return Made(copies, energies, made.seconds + time.perf_counter() - begin)


def _measure(
    made: Made, mols: list[Chem.Mol], counts: Sequence[int], candidates: int, posebusters: bool
) -> dict[str, Outcome]:
    """Return what the first conformers of a method are worth, and those chosen of candidates.

    Args:
        candidates: for each conformer that is kept; if 1, none are chosen.
    """
    matrices = [
        None if found is None else rmsd_matrix(found, mol)
        for mol, found in zip(mols, made.mols, strict=True)
    ]
    first = {k: [mol and ids_of(mol)[:k] for mol in made.mols] for k in counts}
    seconds = made.seconds / candidates  # of those that count
    found = {"": _outcome(made.mols, mols, matrices, first, seconds, posebusters)}
    if candidates > 1:
        begin = time.perf_counter()
        chosen = {
            k: [
                mol and _choose(mol, energies, k, candidates)
                for mol, energies in zip(made.mols, made.energies, strict=True)
            ]
            for k in counts
        }
        seconds = made.seconds + time.perf_counter() - begin
        found[CLUSTERED] = _outcome(made.mols, mols, matrices, chosen, seconds, posebusters)
    return found


def _choose(mol: Chem.Mol, energies: list[float] | None, num: int, candidates: int) -> list[int]:
    """Return the ids of `num` conformers that stand for the first `candidates` times as many."""
    every = ids_of(mol)[: num * candidates]
    return representatives(with_conformers(mol, every), num, energies and energies[: len(every)])


def _outcome(
    made: list[Chem.Mol | None],
    mols: list[Chem.Mol],
    matrices: list[np.ndarray | None],
    kept: dict[int, list[list[int] | None]],
    seconds: float,
    posebusters: bool,
) -> Outcome:
    """Measure the conformers of a method that are kept.

    Args:
        matrices: RMSD of all that were made, (num_references, num_made) A.
        kept: ids of conformers by their number K, for each molecule.
    """
    stereo = StereoCount()
    differences: dict[str, list[float]] = {}
    for mol, found, ids in zip(mols, made, kept[max(kept)], strict=True):
        if found is None or ids is None:
            continue
        expected = internal_coordinates(mol, mol.GetConformer().GetId())
        heavy = Chem.RemoveHs(found)
        labels = stereo_of(heavy)
        for number in ids:
            stereo += replace(count_stereo(heavy, number, labels), differences="")
            of_sample = internal_coordinates(heavy, number)
            for kind in ("lengths", "angles"):
                error = np.abs(of_sample[kind] - expected[kind])
                differences.setdefault(kind, []).extend(error.tolist())
    errors = {f"error of {kind}": float(np.mean(e)) for kind, e in differences.items()}
    if posebusters:
        pairs = zip(made, kept[max(kept)], strict=True)
        best = [with_conformers(mol, ids[:1]) for mol, ids in pairs if mol and ids]
        errors["plausible"] = sum(plausible(best)) / len(made)
    columns = {
        k: [None if m is None else m[:, ids] for m, ids in zip(matrices, of_k, strict=True)]
        for k, of_k in kept.items()
    }
    failed = sum(mol is None for mol in made)
    conformers = sum(len(ids) for ids in kept[max(kept)] if ids)
    return Outcome(columns, stereo, errors, failed, conformers, seconds)


def _rows(outcomes: dict[str, Outcome], size: np.ndarray, count: int) -> Iterator[dict[str, Any]]:
    """Yield the row of each method for `count` conformers of each molecule."""
    found: dict[str, Coverage] = {n: coverage(o.matrices[count]) for n, o in outcomes.items()}
    others = {f"minus {key}": name for key, name in COMPARED.items() if name in found}
    for name, measured in found.items():
        classes = {}
        for least, largest in SIZES:
            chosen = (size >= least) & (size <= largest)
            if chosen.any():
                classes[f"{least}-{largest}"] = _means(found, name, others, chosen)
        yield {
            "method": name,
            "K": count,
            "COV-R": measured.coverage.mean(axis=0).tolist(),
            **_means(found, name, others, np.ones(len(size), bool)),
            "sizes": classes,
            "MAT-R of each": measured.matching.round(4).tolist(),
        }


def _means(
    found: dict[str, Coverage], name: str, others: dict[str, str], chosen: np.ndarray
) -> dict[str, Any]:
    """Return a method's MAT-R of the chosen molecules, and paired differences with the others."""
    matching = {n: measured.matching[chosen] for n, measured in found.items()}
    return {
        "molecules": int(chosen.sum()),
        "MAT-R": _mean(matching[name]),
        **{key: paired_interval(matching[name] - matching[n]) for key, n in others.items()},
    }


def _mean(matching: np.ndarray) -> float:
    """Return the mean of those that are no NaN, which is NaN if all are."""
    known = matching[~np.isnan(matching)]
    return float(known.mean()) if len(known) else np.nan


def table(result: dict[str, Any]) -> str:
    """Return the result of `compare` as a table in Markdown."""
    sizes = list(result["rows"][0]["sizes"])
    keys = [f"minus {key}" for key in COMPARED if f"minus {key}" in result["rows"][0]]
    head = ["K", "method", "MAT-R, A", *keys, *(f"{s} atoms" for s in sizes)]
    head += ["failed", "centres", "E/Z", "bonds, A", "angles, deg", "plausible", "conformers/s"]
    rows = []
    for row in result["rows"]:
        of_method = result["methods"][row["method"]]
        intervals = ("{:+.3f} ({:+.3f} to {:+.3f})".format(*row[key]) for key in keys)
        centres, bonds = (f"{right}/{total}" for right, total in
                          (of_method["centres"], of_method["bonds"]))  # fmt: skip
        rows.append([
            row["K"], row["method"], f"{row['MAT-R']:.3f}",
            *intervals, *(f"{row['sizes'][s]['MAT-R']:.3f}" for s in sizes),
            of_method["failed"], centres, bonds,
            f"{of_method.get('error of lengths', np.nan):.4f}",
            f"{of_method.get('error of angles', np.nan):.2f}",
            f"{of_method['plausible']:.1%}" if "plausible" in of_method else "not counted",
            f"{of_method['conformers/s']:.1f}",
        ])  # fmt: skip
    counts = [result["rows"][0]["sizes"][s]["molecules"] for s in sizes]
    lines = [f"\n{sum(counts)} references; by size: {', '.join(map(str, counts))}."]
    candidates = result["sampling"]["candidates"]
    if candidates > 1:
        lines.append(f"Rows `clustered` have {candidates} candidates for a conformer, others one.")
    return "\n".join([markdown_table(head, rows), *lines, *result["remarks"]])
