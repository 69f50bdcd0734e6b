"""Sampled conformers beside RDKit's, on the same references: one table and a JSON file.

The references are a data set whose molecules have geometry. For each of them every method makes the
same number of conformers; RMSD, coverage and stereochemistry are those of `msde.evaluation`.

    ETKDGv3                  distance geometry with torsions of crystals
    ETKDGv3+MMFF             relaxed by MMFF94
    ETKDGv3+MMFF, clustered  four times as many, relaxed, and the centres of clusters by RMSD kept
                             (Zhou et al. 2023, arXiv:2302.07061)
    msde, NAME               this model from ETKDG or from noise
    msde, NAME, relaxed      the same samples relaxed by MMFF94, whose energy has the last word
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.ML.Cluster import Butina
from tqdm import tqdm

from msde.chem.conformers import embed, relax
from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import mol_from_record
from msde.chem.stereo import StereoCount, count_stereo, stereo_of
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import ShardDataset
from msde.errors import MsdeError
from msde.evaluation.conformers import (
    Coverage,
    coverage,
    internal_coordinates,
    paired_interval,
    rmsd_matrix,
)
from msde.evaluation.plausibility import plausible
from msde.files import write_json
from msde.inference.pretrained import load
from msde.model import MoleculeSDE
from msde.sampling.conformers import ConformerOptions, sample_conformers

from .pictures import draw_samples

SIZES = ((1, 8), (9, 12), (13, 16), (17, 21), (22, 200))  # heavy atoms
BASELINE = "ETKDGv3+MMFF"
CLUSTERED = 4  # times as many conformers as are kept
FIRST_CUTOFF = 1.5  # A, which is halved until there are enough clusters


@dataclass
class Outcome:
    """What one method made of all references."""

    matrices: list[np.ndarray | None]
    made: list[Chem.Mol | None]  # with hydrogens
    stereo: StereoCount
    errors: dict[str, float]  # mean differences of internal coordinates; the share `plausible`
    seconds: float


def compare(
    checkpoint: Path,
    references: Path,
    output: Path,
    sampling: ConformerOptions,
    limit: int | None = None,
    counts: Sequence[int] = (1, 10),
    pictures: Path | None = None,
    posebusters: bool = False,
) -> str:
    """Compare methods, write the JSON file and return the table in Markdown.

    Args:
        references: a folder of shards.
        sampling: its `num` and `start` are chosen here.
        limit: take this many references, spread evenly over the data set.
        counts: conformers K of each molecule; each method makes the most and the first K count.
        pictures: a folder for the PNG files of `pictures`.
        posebusters: count the first samples that pass its checks; a molecule without one does not.

    Raises:
        MsdeError: the references or the model cannot be read.
    """
    silence_rdkit()
    model = load(checkpoint).model
    mols, skipped = references_of(references, limit)
    most = max(counts)
    if pictures is not None:
        draw_samples(model, mols, pictures, replace(sampling, num=most))

    methods = _methods(model, replace(sampling, num=most))
    outcomes = {n: _outcome(n, method, mols, posebusters) for n, method in methods.items()}
    for name in [name for name in methods if name.startswith("msde")]:
        made, longer = outcomes[name].made, f"{name}, relaxed"
        found = _outcome(longer, lambda _, made=made: map(relaxed, made), mols, posebusters)
        outcomes[longer] = replace(found, seconds=found.seconds + outcomes[name].seconds)
    size = np.array([mol.GetNumHeavyAtoms() for mol in mols])
    result: dict[str, Any] = {
        "checkpoint": str(checkpoint.name),
        "references": {"molecules": len(mols), "not rebuilt": skipped},
        "sampling": vars(sampling),
        "rows": [row for count in counts for row in _rows(outcomes, size, count)],
        "methods": {
            name: {
                "failed": coverage(o.matrices).num_failed,
                "conformers/s": most * len(mols) / o.seconds,
                "centres": [o.stereo.centres_right, o.stereo.centres],
                "bonds": [o.stereo.bonds_right, o.stereo.bonds],
                **o.errors,
            }
            for name, o in outcomes.items()
        },
    }
    write_json(output, result)
    return table(result)


def _methods(
    model: MoleculeSDE, sampling: ConformerOptions
) -> dict[str, Callable[[list[Chem.Mol]], Iterator[Chem.Mol | None]]]:
    """Return what makes conformers of molecules, by the names of the table."""
    num, seed = sampling.num, sampling.seed

    def ours(start: str) -> Callable[[list[Chem.Mol]], Iterator[Chem.Mol | None]]:
        options = replace(sampling, start=start)
        return lambda mols: (found.mol for found in sample_conformers(model, mols, options))

    return {
        "ETKDGv3": lambda mols: (rdkit_conformers(m, num, seed, False) for m in mols),
        BASELINE: lambda mols: (rdkit_conformers(m, num, seed, True) for m in mols),
        f"{BASELINE}, clustered": lambda mols: (clustered_conformers(m, num, seed) for m in mols),
        "msde, from ETKDG": ours("etkdg"),
        "msde, from noise": ours("noise"),
    }


def references_of(root: Path, limit: int | None) -> tuple[list[Chem.Mol], int]:
    """Return the molecules of a data set with their conformers, and how many cannot be rebuilt."""
    mols: list[Chem.Mol] = []
    skipped = 0
    for record in ShardDataset(root).records():
        try:
            mols.append(mol_from_record(record))
        except MoleculeError:
            skipped += 1
    if not mols or not mols[0].GetNumConformers():
        raise MsdeError(f"{root} holds no molecules with geometry to compare with")
    chosen = np.linspace(0, len(mols) - 1, min(limit or len(mols), len(mols))).round().astype(int)
    return [mols[place] for place in chosen], skipped


def rdkit_conformers(mol: Chem.Mol, num: int, seed: int, is_relaxed: bool) -> Chem.Mol | None:
    """Return a molecule with hydrogens and up to `num` conformers by ETKDGv3, or None."""
    full = Chem.Mol(mol)
    full.RemoveAllConformers()
    full = Chem.AddHs(full)
    if not embed(full, num, seed):
        return None
    if is_relaxed:
        relax(full)
    return full


def relaxed(mol: Chem.Mol | None) -> Chem.Mol | None:
    """Return a copy with hydrogens whose conformers MMFF94 has relaxed, if it has parameters."""
    if mol is None:
        return None
    copy = Chem.Mol(mol)
    relax(copy)
    return copy


def clustered_conformers(mol: Chem.Mol, num: int, seed: int) -> Chem.Mol | None:
    """Return centres of clusters of relaxed conformers, the largest clusters first."""
    full = rdkit_conformers(mol, CLUSTERED * num, seed, True)
    if full is None or full.GetNumConformers() <= num:
        return full
    heavy = Chem.RemoveHs(full)
    ids = [conformer.GetId() for conformer in heavy.GetConformers()]
    square = rmsd_matrix(heavy, heavy)
    distances = square[np.tril_indices(len(ids), -1)]
    cutoff, clusters = FIRST_CUTOFF, []
    while len(clusters) < num and cutoff > 1e-3:
        clusters = Butina.ClusterData(distances, len(ids), cutoff, isDistData=True)
        cutoff /= 2
    kept = {ids[cluster[0]] for cluster in clusters[:num]}
    for number in set(ids) - kept:
        full.RemoveConformer(number)
    return full


def _outcome(
    name: str,
    method: Callable[[list[Chem.Mol]], Iterator[Chem.Mol | None]],
    mols: list[Chem.Mol],
    posebusters: bool,
) -> Outcome:
    """Run one method on all references and measure what it made."""
    begin = time.perf_counter()
    made = list(tqdm(method(mols), total=len(mols), desc=name, disable=None))
    seconds = time.perf_counter() - begin
    matrices: list[np.ndarray | None] = []
    stereo = StereoCount()
    differences: dict[str, list[float]] = {}
    for mol, found in zip(mols, made, strict=True):
        if found is None:
            matrices.append(None)
            continue
        heavy = Chem.RemoveHs(found)
        matrices.append(rmsd_matrix(heavy, mol))
        expected = internal_coordinates(mol, mol.GetConformer().GetId())
        labels = stereo_of(heavy)
        for conformer in heavy.GetConformers():
            counted = count_stereo(heavy, conformer.GetId(), labels)
            stereo += replace(counted, differences="")
            of_sample = internal_coordinates(heavy, conformer.GetId())
            for kind in ("lengths", "angles"):
                error = np.abs(of_sample[kind] - expected[kind])
                differences.setdefault(kind, []).extend(error.tolist())
    errors = {f"error of {kind}": float(np.mean(e)) for kind, e in differences.items()}
    if posebusters:
        errors["plausible"] = sum(plausible([mol for mol in made if mol is not None])) / len(made)
    return Outcome(matrices, made, stereo, errors, seconds)


def _rows(outcomes: dict[str, Outcome], size: np.ndarray, count: int) -> Iterator[dict[str, Any]]:
    """Yield the row of each method for the first `count` conformers."""
    found: dict[str, Coverage] = {n: coverage(o.matrices, count) for n, o in outcomes.items()}
    for name, measured in found.items():
        difference = measured.matching - found[BASELINE].matching
        classes = {}
        for least, largest in SIZES:
            chosen = (size >= least) & (size <= largest)
            if chosen.any():
                classes[f"{least}-{largest}"] = {
                    "molecules": int(chosen.sum()),
                    "MAT-R": float(np.nanmean(measured.matching[chosen])),
                    "minus baseline": paired_interval(difference[chosen]),
                }
        yield {
            "method": name,
            "K": count,
            "MAT-R": float(np.nanmean(measured.matching)),
            "COV-R": measured.coverage.mean(axis=0).tolist(),
            "minus baseline": paired_interval(difference),
            "sizes": classes,
        }


def table(result: dict[str, Any]) -> str:
    """Return the result of `compare` as a table in Markdown."""
    sizes = list(result["rows"][0]["sizes"])
    head = ["K", "method", "MAT-R, A", f"minus {BASELINE}", *(f"{s} atoms" for s in sizes)]
    head += ["centres", "E/Z", "bonds, A", "angles, deg", "plausible", "conformers/s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in result["rows"]:
        of_method = result["methods"][row["method"]]
        mean, low, high = row["minus baseline"]
        centres, bonds = (f"{right}/{total}" for right, total in
                          (of_method["centres"], of_method["bonds"]))  # fmt: skip
        cells = [
            str(row["K"]), row["method"], f"{row['MAT-R']:.3f}",
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})",
            *(f"{row['sizes'][s]['MAT-R']:.3f}" for s in sizes), centres, bonds,
            f"{of_method.get('error of lengths', np.nan):.4f}",
            f"{of_method.get('error of angles', np.nan):.2f}",
            f"{of_method['plausible']:.1%}" if "plausible" in of_method else "not counted",
            f"{of_method['conformers/s']:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    counts = [result["rows"][0]["sizes"][s]["molecules"] for s in sizes]
    lines.append(f"\n{sum(counts)} references; by size: {', '.join(map(str, counts))}.")
    return "\n".join(lines)
