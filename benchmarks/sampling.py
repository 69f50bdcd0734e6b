"""How fast conformers are sampled, by the number of steps, and how good they are.

python benchmarks/sampling.py --references DIR --output FILE.json

From ETKDG and from noise, K of each molecule: conformers a second of the whole way, hydrogens
included, of the first 24 molecules of middle size; MAT-R and labels. `edges` is the network by the
ops that training uses, once before and once after the op `all_pairs`, in the same process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

import msde.model.score.all_pairs as network
from msde import shipped_checkpoint
from msde.chem.parsing import silence_rdkit
from msde.chem.stereo import StereoCount, count_stereo, stereo_of
from msde.cluster import process
from msde.data_tools.models.references import references_of
from msde.evaluation.conformers import coverage, rmsd_matrix
from msde.files import write_json
from msde.inference.pretrained import load
from msde.model import MoleculeSDE
from msde.sampling.conformers import ConformerOptions, sample_conformers


def rate(model: MoleculeSDE, mols: list[Chem.Mol], options: ConformerOptions, edges: bool) -> float:
    """Return the conformers a second, by `edge_mlp` and `edge_attention` if `edges`."""
    fits = network.all_pairs_fits
    if edges:
        network.all_pairs_fits = lambda *_: False
    try:
        begin = time.perf_counter()
        list(sample_conformers(model, mols, options))
        return len(mols) * options.num / (time.perf_counter() - begin)
    finally:
        network.all_pairs_fits = fits


def quality(
    model: MoleculeSDE, mols: list[Chem.Mol], options: ConformerOptions
) -> dict[str, float | list]:
    """Sample all molecules; return the rate, MAT-R and the labels that are right."""
    begin, spent = time.perf_counter(), time.process_time()
    found = [sampled.mol for sampled in sample_conformers(model, mols, options)]
    seconds, spent = time.perf_counter() - begin, time.process_time() - spent
    total, matrices = StereoCount(), []
    for mol, its in zip(mols, found, strict=True):
        heavy = None if its is None else Chem.RemoveHs(its)
        matrices.append(None if heavy is None else rmsd_matrix(heavy, mol))
        labels = {} if heavy is None else stereo_of(heavy)
        for conformer in [] if heavy is None else heavy.GetConformers():
            total += count_stereo(heavy, conformer.GetId(), labels)
    matching = coverage(matrices).matching
    count = len(mols) * options.num
    return {
        "conformers/s": count / seconds,
        "conformers/s of processor time": count / spent,
        "MAT-R": float(np.nanmean(matching)),
        "centres": [total.centres_right, total.centres],
        "bonds": [total.bonds_right, total.bonds],
        "matching": matching.tolist(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint("conformers"))
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--num", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 200])
    parser.add_argument("--speed", type=int, nargs=2, default=[16, 20], help="heavy atoms")
    arguments = parser.parse_args()
    process.prepare()
    silence_rdkit()
    model = load(arguments.checkpoint).model
    mols, _ = references_of(arguments.references, None)
    least, most = arguments.speed
    middle = [mol for mol in mols if least <= mol.GetNumHeavyAtoms() <= most][:24]
    atoms = np.mean([mol.GetNumHeavyAtoms() for mol in middle])
    speeds = {}
    for start in ("noise", "etkdg"):
        options = ConformerOptions(num=arguments.num, start=start)
        for turn in range(2):
            for edges in (True, False):
                name = f"{start}, {'edges' if edges else 'all_pairs'}, {turn}"
                speeds[name] = rate(model, middle, options, edges)
                print(f"{name}: {speeds[name]:.1f} conformers/s, {atoms:.1f} atoms", flush=True)
    rows = []
    some, _ = references_of(arguments.references, arguments.limit)
    for start in ("etkdg", "noise"):
        for steps in arguments.steps:
            options = ConformerOptions(num=arguments.num, start=start, steps=steps)
            rows.append({"start": start, "steps": steps, **quality(model, some, options)})
            print({k: v for k, v in rows[-1].items() if k != "matching"}, flush=True)
    result = {"threads": torch.get_num_threads(), "atoms": atoms, "speeds": speeds, "rows": rows}
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
