"""The tables of a suite: every run, and the comparisons of arms."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msde.downstream.baselines import FINGERPRINTS
from msde.downstream.plan import AND, CHOSEN, PRETRAINED, RANDOM, RECIPES, Design, Plan, Run
from msde.downstream.statistics import (
    Comparison,
    Pair,
    compare,
    error_of,
    holm,
    pool,
    wilcoxon,
)
from msde.downstream.suite import pairs_of, rows_of
from msde.errors import ErrorList
from msde.files import markdown_table, write_atomically, write_text
from msde.monitor.pictures import BLUE, GREY, INK, has_matplotlib, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WORSE = "#b3446c"  # colour of intervals above 0
DESIGN, GROUP = "design", "group"
VERDICTS = ("better", "equal", "open", "worse")


def compared(arms: Sequence[str], recipes: Sequence[str] = tuple(RECIPES)) -> list[tuple[str, str]]:
    """Return pairs of arms: each is compared with the pretrained one of its kind.

    The first of a pair is asked about. Kinds are fine-tuned, chosen, each recipe and each
    estimator, with a fingerprint beside or without. Fingerprints are compared with the fine-tuned
    one, the chosen one and those that have them beside, too. Pretrained weights under a recipe of
    the plan are also compared with random weights without one.
    """
    kinds = [f"{recipe} " for recipe in recipes]
    pairs = []
    for arm in arms:
        kind = next((kind for kind in (*kinds, CHOSEN) if arm.startswith(kind)), "")
        source, _, estimator = arm.partition(" + ")
        features = AND.join([PRETRAINED, *source.split(AND)[1:]])
        firsts = [f"{features} + {estimator}" if estimator else kind + PRETRAINED]
        if source in FINGERPRINTS:
            firsts += [PRETRAINED, CHOSEN + PRETRAINED]
            firsts += [first for first in arms if first.startswith(f"{PRETRAINED}{AND}{source} + ")]
        pairs += [(first, arm) for first in firsts if first in arms and first != arm]
    own = tuple(kind for kind in kinds if kind.strip() not in RECIPES)
    tuned = [arm for arm in arms if arm.startswith(own) and not arm.endswith(f" {RANDOM}")]
    return pairs + [(arm, RANDOM) for arm in tuned if RANDOM in arms]


def write_tables(
    output: Path,
    plan: Plan,
    overlaps: Mapping[str, Sequence[str]],
    draws: int,
    failed: ErrorList,
) -> str:
    """Write table.csv, comparisons.csv and table.md; return the text of the last.

    Args:
        overlaps: uids of the molecules of each design that pretraining has seen.
        failed: gets the errors of what cannot be compared, which is left out.
    """
    rows = Rows(output, plan).write()
    found = comparisons(output / "runs", plan, overlaps, draws, failed)
    _write_csv(output / "comparisons.csv", found)
    text = _markdown(plan, rows, found, overlaps)
    if not found:
        text += f"\nNothing is compared: no two arms are of one kind, one of them {PRETRAINED}.\n"
    write_text(output / "table.md", text)
    if found and has_matplotlib():
        save_figure(draw_comparisons(found), output / "table.png")
    return text


class Rows:
    """table.csv: a row for each seed of each run that is done."""

    def __init__(self, output: Path, plan: Plan) -> None:
        """Read the runs that are done."""
        self.output, self.plan = output, plan
        self._parts = {
            (design.name, split): self._read(design, split)
            for design in plan.designs
            for split in plan.splits
        }

    def _read(self, design: Design, split: tuple[str, ...]) -> list[dict[str, Any]]:
        part = replace(self.plan, designs=(design,), splits=(split,))
        return rows_of(self.output / "runs", part)

    def add(self, run: Run) -> None:
        """Read a run that is done now, and what is chosen from it."""
        self._parts[run.design.name, run.split] = self._read(run.design, run.split)

    def write(self) -> list[dict[str, Any]]:
        """Write the file and return its rows, in the plan's order."""
        rows = [row for part in self._parts.values() for row in part]
        _write_csv(self.output / "table.csv", rows)
        return rows


def comparisons(
    runs: Path,
    plan: Plan,
    overlaps: Mapping[str, Sequence[str]],
    draws: int,
    failed: ErrorList,
) -> list[dict[str, Any]]:
    """Return a row for each comparison of each design, and of it without overlapping molecules.

    Rows of groups have the scope `group`: the means of their designs, see `_comparable`. Holm's
    correction is over the designs, or groups, of a comparison.

    Args:
        failed: gets the errors of what cannot be compared, which is left out.
    """
    rows: list[dict[str, Any]] = []
    for arms in compared(plan.arms, plan.recipes):
        for kind in ("all", "without overlap"):
            made: dict[str, tuple[int, Comparison]] = {}
            members: dict[str, list[tuple[int, Comparison]]] = defaultdict(list)
            for design in plan.designs:
                dropped = overlaps.get(design.name, ()) if kind != "all" else ()
                # Of forces there is one error over all frames.
                if kind != "all" and (not dropped or design.task.has_forces):
                    continue
                metric, pairs = design.task.metric, []
                with failed.collect():
                    pairs = pairs_of(runs, design, arms, plan, dropped)
                pairs = [pair for pair in pairs if _is_finite(metric, pair)]
                if pairs:
                    made[design.name] = (len(pairs), compare(metric, pairs, draws=draws))
                    if design.group:
                        members[design.group].append(made[design.name])
            pooled = {}
            for group, parts in members.items():
                counts, parts_found = zip(*_comparable(parts), strict=True)
                pooled[group] = sum(counts), pool(parts_found)
            rows += _comparison_rows(DESIGN, arms, kind, made)
            rows += _comparison_rows(GROUP, arms, kind, pooled)
    return rows


def _comparable(parts: list[tuple[int, Comparison]]) -> list[tuple[int, Comparison]]:
    """Return the designs of a group that have more than half of the splits of the others.

    So two of them have a split in common, or a seed where all have a single split. One with runs
    still missing would leave the group hardly any.
    """
    for size in (lambda found: found.splits, lambda found: len(found.ratios)):
        most = max(size(found) for _, found in parts)
        parts = [(count, found) for count, found in parts if 2 * size(found) > most]
    return parts


def _is_finite(metric: str, pair: Pair) -> bool:
    """Return whether both errors are known: with a few molecules a class may be missing."""
    return bool(np.isfinite([error_of(metric, pair.y, p) for p in (pair.one, pair.other)]).all())


def _comparison_rows(
    scope: str, arms: tuple[str, str], kind: str, made: Mapping[str, tuple[int, Comparison]]
) -> list[dict[str, Any]]:
    """Return a row for each comparison of the same arms, with p corrected over them."""
    corrected = holm([found.p for _, found in made.values()])
    return [
        {
            "scope": scope,
            "design": name,
            "arm": arms[0],
            "against": arms[1],
            "molecules": kind,
            "pairs": count,
            "log_ratio": found.log_ratio,
            "low": found.low,
            "high": found.high,
            "p_holm": p,
            "verdict": found.verdict,
        }
        for (name, (count, found)), p in zip(made.items(), corrected, strict=True)
    ]


def by_arms(
    found: list[dict[str, Any]], scope: str = DESIGN
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the comparisons of all molecules by their two arms, a row for each design or group."""
    parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        if row["molecules"] == "all" and row["scope"] == scope:
            parts[row["arm"], row["against"]].append(row)
    return parts


def draw_comparisons(found: list[dict[str, Any]]) -> Figure:
    """Draw the log-ratios with their intervals: a panel for each two arms, a line a design.

    Where there are groups, they have the lines.
    """
    groups = by_arms(found, GROUP) or by_arms(found)
    designs = list(dict.fromkeys(row["design"] for part in groups.values() for row in part))
    figure = new_figure(2.2 + 2.0 * len(groups), 1.1 + 0.24 * len(designs))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, (arms, part) in zip(panels, groups.items(), strict=True):
        axis.axvline(0, color=GREY, linewidth=1)
        for row in part:
            place = len(designs) - designs.index(row["design"])
            colour = BLUE if row["high"] < 0 else INK if row["low"] <= 0 else WORSE
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.5)
            axis.plot(row["log_ratio"], place, "o", color=colour, markersize=3.5)
        axis.set_title(f"{arms[0]}\nagainst {arms[1]}", fontsize=7)
        axis.tick_params(labelsize=7)
    panels[0].set_yticks(range(len(designs), 0, -1), designs)
    figure.supxlabel("log-ratio of test errors; left of 0 the first is better", fontsize=8)
    return figure


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
    models = plan.seeds * len(plan.splits)
    lines = []
    for design, metric in dict.fromkeys((name, metric) for name, metric, _ in cells):
        values = (cells.get((design, metric, arm), []) for arm in plan.arms)
        lines.append((design, metric, *(_cell(v, models) for v in values)))
    parts = [
        f"Mean and standard deviation over seeds and splits, of {models} models if no other number "
        "is in brackets.",
        markdown_table(("design", "metric", *plan.arms), lines),
    ]
    for scope in (GROUP, DESIGN):
        parts += _counts(scope, by_arms(found, scope))
    parts.append(
        "Log-ratio of errors (of ROC-AUC: 1 - AUC), below 0 where the first arm is better, with "
        "the 95 % interval (Student's over splits, of a single split over its seeds, wider where "
        "these share test molecules; of a single seed on a single split there is none); p after "
        "Holm; pairs of models."
    )
    head = ("design", "arms", "molecules", "pairs", "log-ratio", "interval", "p", "verdict")
    lines = [
        (
            row["design"],
            f"{row['arm']} / {row['against']}",
            row["molecules"],
            row["pairs"],
            f"{row['log_ratio']:+.3f}",
            f"{row['low']:+.3f} to {row['high']:+.3f}" if np.isfinite(row["low"]) else "-",
            f"{row['p_holm']:.3f}",
            row["verdict"],
        )
        for row in sorted(found, key=lambda row: row["scope"] == DESIGN)
    ]
    parts.append(markdown_table(head, lines))
    if overlaps:
        has_forces = {design.name: design.task.has_forces for design in plan.designs}
        left = " (frames; forces are not compared without them)"
        counts = (
            f"{name} {len(uids)}{left if uids and has_forces[name] else ''}"
            for name, uids in overlaps.items()
        )
        title = "Molecules of a task that pretraining has seen (first block of the InChIKey):"
        parts.append("\n".join((title, *counts)))
    return "\n\n".join(parts) + "\n"


def _cell(values: Sequence[float], models: int) -> str:
    """Return mean and sample deviation of a metric, with the number of values if it is another."""
    if not values:
        return "-"
    count = "" if len(values) == models else f" ({len(values)})"
    deviation = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{deviation}{count}"


def _counts(scope: str, parts: Mapping[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Return a table of how often each verdict was given over the designs or groups."""
    if not parts:
        return []
    title = (
        f"Over all {scope}s; p of Wilcoxon's signed-rank test of the log-ratios below, which is "
        f"too small where {scope}s share molecules."
    )
    lines = []
    for arms, part in parts.items():
        ratios = [row["log_ratio"] for row in part]
        counts = [[row["verdict"] for row in part].count(verdict) for verdict in VERDICTS]
        found = f"{np.median(ratios):+.3f}", f"{wilcoxon(ratios):.4f}"
        lines.append((" / ".join(arms), len(part), *counts, *found))
    head = ("arms", f"{scope}s", *VERDICTS, "median log-ratio", "p")
    return [title, markdown_table(head, lines)]
