"""Predictions of a fine-tuned model for the molecules of a file, as a table.

There is a row for each molecule of the input, in its order, with the columns name and line (of
shards name and uid), one for each target, of several models also NAME_std, and reason, which is
empty where there is a prediction.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from msde.chem.parsing import silence_rdkit
from msde.downstream.prediction import FineTuned, Predictions
from msde.files import write_atomically

from ..options import AUTO, Options
from ..reading import read_molecules
from .results import add_notes, check_output, ids_of_shards, open_shards, places, print_notes


def predict_file(
    model: Path,
    input: Path,
    output: Path,
    format: str = AUTO,
    options: Options = Options(),  # noqa: B008
) -> None:
    """Predict the molecules of a file or of shards, write the table and print a summary.

    Args:
        model: the folder of a fine-tuning, or of one of its models.

    Raises:
        MsdeError: the model or the input cannot be read, or the output cannot be written.
    """
    check_output(output, ".csv")
    silence_rdkit()
    tuned = FineTuned.load(model)
    dataset = open_shards(input, options)
    if dataset is not None:
        names, where, _ = ids_of_shards(dataset)
        header, ids = ["name", "uid"], list(zip(names, where, strict=True))
        found = tuned.predict(input)
    else:
        keep = tuned.facts.hydrogens if options.keep_hydrogens is None else options.keep_hydrogens
        # Labels are not needed: a file of new molecules may hold anything in their place.
        options = replace(options, keep_hydrogens=keep, label_columns=())
        read = read_molecules(input, options, format)
        header = ["name", "line"]
        ids = list(zip(read.names, map(str, read.lines), strict=True))
        where = places(read.names, read.lines)
        found = tuned.predict(read.mols)
        add_notes(found.notes, read.notes)
    write_atomically(output, lambda path: _write(path, tuned, found, header, ids))
    print_notes("predicted", where, found.reasons, found.notes)
    models = len(tuned.models)
    print(f"{output}: {len(where) - len(found.reasons)} of {len(where)} molecules, "
          f"{models} model{'s' * (models > 1)}")  # fmt: skip
    if tuned.facts.forces_unit is not None:
        print("forces are not in the table; msde.ase.MSDECalculator gives them")


def _write(
    path: Path, tuned: FineTuned, found: Predictions, header: list[str], ids: list[tuple[str, str]]
) -> None:
    targets, several = tuned.facts.targets, len(tuned.models) > 1
    columns = [n for target in targets for n in (target, *[f"{target}_std"] * several)]
    mean, std = found.mean, found.std
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *columns, "reason"])
        for row, place in enumerate(ids):
            numbers = [
                number
                for target in range(len(targets))
                for number in (mean[row, target], *[std[row, target]] * several)
            ]
            cells = ["" if np.isnan(number) else f"{number:.10g}" for number in numbers]
            writer.writerow([*place, *cells, found.reasons.get(row, "")])
