"""How often a suite's 95 % intervals hold the true difference: python benchmarks/intervals.py

Two arms that are equally good are compared again and again. Their errors differ by the chance of
the test molecules and by noise of splits and seeds; the true log-ratio of their errors is zero.
"""

from __future__ import annotations

import argparse

import numpy as np

from msde.downstream.statistics import Pair, compare

# Splits, seeds, molecules of the table, those of each test part, and noise of splits and seeds.
CASES = (
    (5, 1, 1000, 100, 0.0),
    (5, 2, 1000, 100, 0.1),
    (5, 5, 1000, 100, 0.3),
    (5, 1, 1000, 500, 0.1),
    (5, 1, 130, 100, 0.1),
    (5, 1, 100, 100, 0.05),
    (10, 1, 60, 60, 0.0),
)
NOISE_OF_RUNS = 0.1  # of an error of one molecule, as a logarithm


def simulate(
    splits: int, seeds: int, table: int, test: int, noise: float, rng: np.random.Generator
) -> list[Pair]:
    """Return the test errors of two equal arms, a pair for each split and seed."""
    hardness = rng.exponential(size=(2, table, 1))
    pairs = []
    for split in range(splits):
        members = rng.choice(table, test, replace=False)
        of_split = np.exp(noise * rng.normal(size=(2, 1, 1)))
        for seed in range(seeds):
            of_seed = np.exp(noise * rng.normal(size=(2, 1, 1)))
            of_run = np.exp(NOISE_OF_RUNS * rng.normal(size=(2, test, 1)))
            one, other = hardness[:, members] * of_run * of_split * of_seed
            uids = [str(member) for member in members]
            pairs.append(Pair(str(split), seed, uids, np.zeros((test, 1)), one, other))
    return pairs


def main() -> None:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=120)
    parser.add_argument("--draws", type=int, default=400)
    arguments = parser.parse_args()
    print("| splits, seeds | test molecules | noise | deviation | of intervals | hold zero |")
    print("|---|---|---|---|---|---|")
    for splits, seeds, table, test, noise in CASES:
        rng = np.random.default_rng(7)
        found = [
            compare("mae", simulate(splits, seeds, table, test, noise, rng), draws=arguments.draws)
            for _ in range(arguments.repeats)
        ]
        true = np.sqrt(np.mean([one.log_ratio**2 for one in found]))
        own = np.sqrt(np.mean([one.deviation**2 for one in found]))
        held = np.mean([one.low <= 0 <= one.high for one in found])
        print(
            f"| {splits}, {seeds} | {test} of {table} | {noise} | {true:.3f} | {own:.3f} "
            f"| {held:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
