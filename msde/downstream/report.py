"""The tables of a suite: every run, and the comparisons of arms."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msde.downstream.statistics import DRAWS, Comparison, compare, error_of, holm
from msde.downstream.suite import FROZEN, PRETRAINED, Plan, pairs_of, rows_of
from msde.files import write_atomically


def compared(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of arms: each is compared with the pretrained one of its kind.

    The first of a pair is asked about. Kinds are fine-tuned, frozen and ridge regression; forests
    are compared with the fine-tuned one, too.
    """
    pairs = []
    for arm in arms:
        if arm.startswith(FROZEN):
            first = FROZEN + PRETRAINED
        elif arm.endswith(" + ridge"):
            first = f"{PRETRAINED} + ridge"
        else:
            first = PRETRAINED
        if first in arms and arm != first:
            pairs.append((first, arm))
    return pairs


def write_tables(
    output: Path, plan: Plan, overlaps: Mapping[str, Sequence[str]], draws: int = DRAWS
) -> str:
    """Write table.csv, comparisons.csv and table.md; return the text of the last.

    Args:
        overlaps: uids of the molecules of each design that pretraining has seen.
    """
    rows = write_rows(output, plan)
    found = comparisons(output / "runs", plan, overlaps, draws)
    _write_csv(output / "comparisons.csv", found)
    text = _markdown(plan, rows, found, overlaps)
    write_atomically(output / "table.md", lambda path: path.write_text(text))
    return text


def write_rows(output: Path, plan: Plan) -> list[dict[str, Any]]:
    """Write table.csv, with a row for each seed of each run that is done; return the rows."""
    rows = rows_of(output / "runs", plan)
    _write_csv(output / "table.csv", rows)
    return rows


def comparisons(
    runs: Path, plan: Plan, overlaps: Mapping[str, Sequence[str]], draws: int
) -> list[dict[str, Any]]:
    """Return a row for each comparison of each design, and of it without overlapping molecules.

    Holm's correction is over the designs of a comparison.
    """
    rows: list[dict[str, Any]] = []
    for arms in compared(plan.arms):
        for kind in ("all", "without overlap"):
            made: list[tuple[str, int, Comparison]] = []
            for design in plan.designs:
                dropped = overlaps.get(design.name, ()) if kind != "all" else ()
                if design.task.has_forces or (kind != "all" and not dropped):
                    continue
                pairs = pairs_of(runs, design, arms, plan, dropped)
                pairs = [p for p in pairs if np.isfinite(error_of(design.task.metric, p.y, p.one))]
                if pairs:
                    result = compare(design.task.metric, pairs, draws=draws)
                    made.append((design.name, len(pairs), result))
            corrected = holm([result.p for *_, result in made])
            for (name, count, result), p in zip(made, corrected, strict=True):
                rows.append(
                    {
                        "design": name,
                        "arm": arms[0],
                        "against": arms[1],
                        "molecules": kind,
                        "pairs": count,
                        "log_ratio": result.log_ratio,
                        "low": result.low,
                        "high": result.high,
                        "p_holm": p,
                        "verdict": result.verdict,
                    }
                )
    return rows


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["design"])
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def _markdown(
    plan: Plan,
    rows: list[dict[str, Any]],
    found: list[dict[str, Any]],
    overlaps: Mapping[str, Sequence[str]],
) -> str:
    cells: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        cells[row["design"], row["metric"], row["arm"]].append(row["value"])
    lines = [
        f"Mean and standard deviation over {plan.seeds} seeds and {len(plan.splits)} splits.",
        "",
        f"| design | metric | {' | '.join(plan.arms)} |",
        f"|---|---|{'---|' * len(plan.arms)}",
    ]
    for design, metric in dict.fromkeys((name, metric) for name, metric, _ in cells):
        values = (cells.get((design, metric, arm), []) for arm in plan.arms)
        shown = (f"{np.mean(v):.4g} ± {np.std(v):.2g}" if v else "-" for v in values)
        lines.append(f"| {design} | {metric} | {' | '.join(shown)} |")
    lines += [
        "",
        "Log-ratio of errors (of ROC-AUC: 1 - AUC), below 0 where the first arm is better, with "
        "the 95 % bootstrap interval over seeds, splits and molecules; p after Holm.",
        "",
        "| design | arms | molecules | log-ratio | interval | p | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        lines.append(
            f"| {row['design']} | {row['arm']} / {row['against']} | {row['molecules']} "
            f"| {row['log_ratio']:+.3f} | {row['low']:+.3f} to {row['high']:+.3f} "
            f"| {row['p_holm']:.3f} | {row['verdict']} |"
        )
    if overlaps:
        lines += [
            "",
            "Molecules of a task that pretraining has seen (first block of the InChIKey):",
        ]
        lines += [f"{name} {len(uids)}" for name, uids in overlaps.items()]
    return "\n".join(lines) + "\n"
