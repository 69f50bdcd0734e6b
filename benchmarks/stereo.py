"""Whether conformers have the stereochemistry that was asked for.

python benchmarks/stereo.py --checkpoint DIR --smiles FILE --output FILE.json

Takes the first molecules with one stereocentre, with several, and with E/Z double bonds alone of a
file of SMILES, the last word of each line. Labels that a molecule lacks are drawn, such that ETKDG
can embed it. Each is sampled, and its mirror image, from ETKDG and from noise; right labels are
counted before any filter. --no-repair counts what the network makes before samples with wrong
labels are made again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem
from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions

from msde.chem.conformers import embed
from msde.chem.parsing import silence_rdkit
from msde.chem.stereo import StereoCount, count_stereo, stereo_of
from msde.cluster import process
from msde.inference.pretrained import load
from msde.sampling.conformers import ConformerOptions, sample_conformers

SETS = {"one centre": 200, "several centres": 100, "double bonds": 100}
MAX_HEAVY = 30


def kind_of(mol: Chem.Mol) -> str:
    """Return the set that a molecule belongs to, or an empty text."""
    places = [info.type for info in Chem.FindPotentialStereo(mol)]
    centres = places.count(Chem.StereoType.Atom_Tetrahedral)
    if centres + places.count(Chem.StereoType.Bond_Double) < max(1, len(places)):
        return ""
    if centres:
        return "one centre" if centres == 1 else "several centres"
    return "double bonds"


def labelled(mol: Chem.Mol) -> Chem.Mol | None:
    """Return a stereoisomer of the molecule with CIP labels, or None.

    RDKit must find all of them again in a conformer of ETKDG: it sees no labels of some pyramidal
    nitrogens and phosphors in positions.
    """
    for isomer in EnumerateStereoisomers(mol, StereoEnumerationOptions(maxIsomers=4, rand=0)):
        full = Chem.AddHs(isomer)
        if stereo_of(isomer) and embed(full, 1, 1) and count_stereo(full, -1).is_right:
            return isomer
    return None


def choose(path: Path) -> dict[str, list[Chem.Mol]]:
    """Return the molecules of each set."""
    chosen: dict[str, list[Chem.Mol]] = {name: [] for name in SETS}
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt") as file:
        for line in file:
            mol = Chem.MolFromSmiles(line.split()[-1])
            if mol is None or "." in line or mol.GetNumAtoms() > MAX_HEAVY:
                continue
            name = kind_of(mol)
            if name and len(chosen[name]) < SETS[name] and (isomer := labelled(mol)):
                chosen[name].append(isomer)
            if all(len(chosen[name]) == SETS[name] for name in SETS):
                break
    return chosen


def mirrored(mol: Chem.Mol) -> Chem.Mol:
    """Return the mirror image: all centres inverted, double bonds as they are."""
    image = Chem.Mol(mol)
    for atom in image.GetAtoms():
        atom.InvertChirality()
    return image


def counts(mols: list[Chem.Mol], found: Iterator) -> dict[str, int]:
    """Return how many labels of the samples of `mols` are right, and how many molecules failed."""
    total, failed = StereoCount(), 0
    for sampled in found:
        if sampled.mol is None:
            failed += 1
            continue
        expected = stereo_of(sampled.mol)
        for conformer in sampled.mol.GetConformers():
            total += count_stereo(sampled.mol, conformer.GetId(), expected)
    return {
        "molecules": len(mols),
        "failed": failed,
        "centres": total.centres,
        "centres right": total.centres_right,
        "double bonds": total.bonds,
        "double bonds right": total.bonds_right,
    }


def main() -> None:
    """Sample all sets and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--smiles", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2, help="conformers of each molecule")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-repair", action="store_true", help="leave wrong labels")
    parser.add_argument("--limit", type=int, help="molecules of each set")
    arguments = parser.parse_args()
    process.prepare()
    silence_rdkit()
    model = load(arguments.checkpoint).model
    rows = []
    for name, mols in choose(arguments.smiles).items():
        for start in ("etkdg", "noise"):
            options = ConformerOptions(
                num=arguments.num,
                start=start,
                steps=arguments.steps,
                repair=not arguments.no_repair,
            )
            for image in (False, True):
                some = [mirrored(m) if image else m for m in mols[: arguments.limit]]
                begin = time.perf_counter()
                row = counts(some, sample_conformers(model, some, options))
                seconds = time.perf_counter() - begin
                rows.append(
                    {"set": name, "start": start, "mirrored": image, **row, "seconds": seconds}
                )
                print(json.dumps(rows[-1]), flush=True)
    arguments.output.write_text(json.dumps({"num": arguments.num, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
