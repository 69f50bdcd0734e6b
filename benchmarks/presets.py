"""Count the parameters and the FLOPs of a training step for each molecule, for each preset.

python benchmarks/presets.py --input pcqm4mv2-2k.csv --json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from step import make_batches

from msde.cli import report_errors
from msde.cluster import process
from msde.config import make_config
from msde.config.presets import PRESETS
from msde.model import MoleculeSDE
from msde.monitor.flops import counting


def count(preset: str, path: Path, size: int) -> dict[str, Any]:
    """Run one training step of a preset and count; only matrix products are counted."""
    model = MoleculeSDE.from_seed(make_config(preset)).train()
    process.set_memory_policy(sum(p.nbytes for p in model.parameters()))
    (batch,) = make_batches(path, "cxsmiles", size, 1, keep_hydrogens=False)
    with counting() as forward:
        loss, _ = model(batch)
    with counting() as backward:
        loss.backward()
    flops = [mode.get_total_flops() / size for mode in (forward, backward)]
    return {
        "preset": preset,
        "parameters": sum(p.numel() for p in model.parameters()),
        "forward_gflop_per_molecule": flops[0] / 1e9,
        "step_gflop_per_molecule": sum(flops) / 1e9,
        "batch_size": size,
        "atoms_per_molecule": batch.num_atoms / size,
    }


def main() -> None:
    """Count and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, metavar="CSV", help="CXSMILES")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    process.prepare()
    for preset in arguments.presets:
        row = count(preset, arguments.input, arguments.batch_size)
        print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    report_errors(main)
