"""Bonds by a model beside those by rules, from the same noised geometries: a table and a JSON file.

The references are a data set with bonds and geometry. Scores and protocol are those of
`msde.evaluation.bonds`, the rules those of `msde.evaluation.bond_rules` that are installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from tqdm import tqdm

from msde import philox
from msde.chem.parsing import silence_rdkit
from msde.cli import check_writable
from msde.config.choices import CLASSIFIER, NOISES
from msde.evaluation.bond_rules import RuleProcess, available_rules
from msde.evaluation.bonds import TIME_LIMIT, compare_graphs
from msde.evaluation.conformers import paired_interval
from msde.files import markdown_table, write_json
from msde.inference.pretrained import load
from msde.philox import Key, Stream
from msde.sampling.bonds import BondOptions, Geometry, find_bonds, record_of

from .bonds import geometry_of
from .references import BONDS_PERCEIVED, WITHOUT_HYDROGENS, check_choices, references_of, remarks

Method = Callable[[list[Geometry]], list[Chem.Mol | None]]


def compare_bonds(
    checkpoint: Path,
    references: Path,
    output: Path,
    options: BondOptions,
    limit: int | None = None,
    noises: Sequence[float] = NOISES,
) -> str:
    """Compare methods, write the JSON file and return the table in Markdown.

    Args:
        references: a folder of shards.
        options: those of the sampler; the classifier is always a row of its own. With `types`
            there is a row of atom types that are found, too; wrong ones take long to decode.
        limit: look at this many molecules, spread evenly over the data set.
        noises: standard deviations of the noise of positions, A.

    Raises:
        MsdeError: the references or the model cannot be read, the output cannot be written, or an
            argument is out of its range.
    """
    check_writable(output)
    are_right = all(0 <= noise < np.inf for noise in noises)
    check_choices(limit, noise=("finite and not negative", are_right))
    silence_rdkit()
    model = load(checkpoint).model
    mols, facts = references_of(references, limit)

    def ours(chosen: BondOptions) -> Method:
        return lambda given: [found.mol for found in find_bonds(model, given, chosen)]

    known = replace(options, types=False)
    classifier = replace(known, sampler=CLASSIFIER)
    methods: dict[str, Method] = {"msde, classifier": ours(classifier)}
    if options.types:
        methods["msde, types hidden"] = ours(replace(classifier, types=True))
    if options.sampler != CLASSIFIER:
        methods[f"msde, {options.sampler}, {options.steps} steps"] = ours(known)
    rules = {name: RuleProcess(name, TIME_LIMIT) for name in available_rules()}
    for name, rule in rules.items():
        methods[name] = lambda given, rule=rule: [  # type: ignore[misc]
            rule(g.z, g.pos, g.charge) for g in tqdm(given, desc=rule.name, disable=None)
        ]
    try:
        rows = [row for noise in noises for row in _rows(methods, rules, mols, noise, options.seed)]
    finally:
        for rule in rules.values():
            rule.close()
    result: dict[str, Any] = {
        "checkpoint": checkpoint.name,
        "references": {"folder": references.name, **facts},
        "remarks": remarks(facts, ("without geometry", BONDS_PERCEIVED, WITHOUT_HYDROGENS)),
        "options": vars(options),
        "rows": rows,
    }
    write_json(output, result)
    return table(result)


def noised(geometry: Geometry, std: float, seed: int) -> Geometry:
    """Return a geometry with isotropic noise that its atoms and the seed decide."""
    uid = philox.signed(np.array([record_of(geometry).uid], "<u8")).expand(len(geometry.z))
    atoms = torch.arange(len(geometry.z))
    normals = philox.normal(Key(seed, 0), Stream.SHIFTS, uid, atoms, 3)
    return replace(geometry, pos=geometry.pos + std * normals.double().numpy())


def _rows(
    methods: dict[str, Method],
    rules: dict[str, RuleProcess],
    mols: list[Chem.Mol],
    noise: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the row of each method at one level of noise."""
    given = [noised(geometry_of(mol), noise, seed) for mol in mols]
    rows: list[dict[str, Any]] = []
    exact: dict[str, np.ndarray] = {}
    for name, method in methods.items():
        if name in rules:
            rules[name].start()  # its imports are not timed
        killed = rules[name].num_killed if name in rules else 0
        begin = time.perf_counter()
        found = method(given)
        seconds = time.perf_counter() - begin
        scores = compare_graphs(found, mols)
        exact[name] = scores.is_exact.astype(float)
        rows.append(
            {
                "noise": noise,
                "method": name,
                "exact": scores.exact,
                "types": type_accuracy(found, mols),
                "F1": scores.f1,
                "F1 with orders": scores.f1_with_orders,
                "failed": int(scores.has_failed.sum()),
                "killed": rules[name].num_killed - killed if name in rules else 0,
                "molecules/s": len(mols) / seconds,
            }
        )
    ours = next(iter(methods))
    for row in rows:
        row["classifier minus this"] = paired_interval(exact[ours] - exact[row["method"]])
    return rows


def type_accuracy(found: list[Chem.Mol | None], mols: list[Chem.Mol]) -> float:
    """Return the share of atoms with the right element; a missing molecule has none."""
    right = total = 0
    for mol, reference in zip(found, mols, strict=True):
        total += reference.GetNumAtoms()
        if mol is not None:
            pairs = zip(mol.GetAtoms(), reference.GetAtoms(), strict=True)
            right += sum(a.GetAtomicNum() == b.GetAtomicNum() for a, b in pairs)
    return right / total


def table(result: dict[str, Any]) -> str:
    """Return the result of `compare_bonds` as a table in Markdown."""
    head = ["noise, A", "method", "exact match", "classifier minus this", "F1 of pairs"]
    head += ["F1 with orders", "atom types", "failed", "killed", "molecules/s"]
    rows = []
    for row in result["rows"]:
        mean, low, high = (100 * value for value in row["classifier minus this"])
        rows.append([
            f"{row['noise']:g}", row["method"], f"{100 * row['exact']:.1f} %",
            f"{mean:+.1f} ({low:+.1f} to {high:+.1f})", f"{100 * row['F1']:.2f}",
            f"{100 * row['F1 with orders']:.2f}", f"{100 * row['types']:.2f} %",
            row["failed"], row["killed"], f"{row['molecules/s']:.1f}",
        ])  # fmt: skip
    facts = result["references"]
    line = f"\n{facts['molecules']} references; {facts['not rebuilt']} could not be rebuilt."
    return "\n".join([markdown_table(head, rows), line, *result["remarks"]])
