"""Put the 2D encoder of one run and the 3D encoder of another into one folder of weights.

python benchmarks/join.py RUN_2D RUN_3D --output DIR

Each encoder keeps its score network. They were not trained together, so their representations must
not be compared with each other; the contrastive coefficient of the result is 0.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from msde.checkpoints.weights import MODEL, find_weights, read_config, read_state, save_weights
from msde.cli import report_errors
from msde.errors import MsdeError
from msde.files import file_sha256

OF_2D = ("encoder_2d.", "score_2d_to_3d.", "projection_2d.")


def main() -> None:
    """Join and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_2d", type=Path, metavar="RUN_2D")
    parser.add_argument("run_3d", type=Path, metavar="RUN_3D")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    given = parser.parse_args()
    folders = [find_weights(run) for run in (given.run_2d, given.run_3d)]
    of_2d, of_3d = map(read_config, folders)
    if of_2d.model != of_3d.model:
        raise MsdeError(f"{folders[0]} and {folders[1]} have different networks")
    state, other = map(read_state, folders)
    state = {name: state[name] for name in state if name.startswith(OF_2D)}
    state |= {name: other[name] for name in other if not name.startswith(OF_2D)}
    loss = dataclasses.replace(
        of_2d.loss,
        coefficient_contrastive=0.0,
        coefficient_3d_to_2d=of_3d.loss.coefficient_3d_to_2d,
        coefficient_displacements=of_3d.loss.coefficient_displacements,
    )
    one, two = (file_sha256(folder / MODEL) for folder in folders)
    origin = [
        f"The 2D encoder and its score network are of weights with SHA-256 {one}.",
        f"The 3D encoder and its score network are of weights with SHA-256 {two}.",
    ]
    save_weights(state, dataclasses.replace(of_2d, loss=loss), given.output, origin)
    print(f"{given.output}: {sum(t.numel() for t in state.values()):,} weights")


if __name__ == "__main__":
    report_errors(main)
