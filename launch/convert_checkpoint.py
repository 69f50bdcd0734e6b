"""Convert checkpoints of the published implementation to ours, and back.

python launch/convert_checkpoint.py --from-published model_complete.pth --output DIR [key=value ...]
python launch/convert_checkpoint.py --to-published DIR --output model_complete.pth
"""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

from msde.cli import OneLineParser, report_errors
from msde.errors import MsdeError

KEPT = "published.safetensors"  # tensors of the published file that we have no use for


def read_published(path: Path) -> dict[str, dict[str, Any]]:
    """Read a published checkpoint; nothing but tensors is unpickled.

    Raises:
        MsdeError: it cannot be read, or is not a dict of dicts of tensors.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MsdeError(f"{path} cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MsdeError(f"{path} is not a checkpoint of tensors alone: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise MsdeError(f"{path} holds {type(checkpoint).__name__}, expected a dict of state dicts")
    for name, state in checkpoint.items():
        if not isinstance(state, dict) or not all(
            isinstance(t, torch.Tensor) for t in state.values()
        ):
            raise MsdeError(f"{path}: {name} is not a dict of tensors")
    return checkpoint


def from_published(path: Path, output: Path, overrides: list[str]) -> None:
    """Write a published checkpoint in our format."""
    from safetensors.torch import save_file

    from msde.checkpoints import published
    from msde.checkpoints.weights import save_weights
    from msde.config import leaves
    from msde.files import write_atomically

    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise MsdeError(f"--output {output} is not an empty folder; choose another one")
    state, config, kept, notes = published.import_checkpoint(read_published(path), overrides)
    try:
        save_weights(state, config, output)
    except OSError as error:
        raise MsdeError(f"--output {output} cannot be written: {error.strerror}") from error
    kept = {name: tensor.contiguous() for name, tensor in kept.items()}
    write_atomically(output / KEPT, lambda target: save_file(kept, target, metadata=notes))
    values = leaves(config)
    model = config.model
    print(
        f"{output}: {len(state)} tensors, hidden {model.hidden_dim}, {model.encoder_3d}, "
        f"{model.conformer.edges}"
    )
    print("set by you or published defaults, since the tensors do not tell:")
    for key in published.TRACELESS:
        print(f"  {key}={values[key]}")


def to_published(folder: Path, output: Path) -> None:
    """Write weights of ours as a published checkpoint."""
    import torch
    from safetensors import safe_open

    from msde.checkpoints import published
    from msde.checkpoints.weights import read_config, read_state
    from msde.files import write_atomically

    if output.exists() or not os.access(output.parent, os.W_OK):
        raise MsdeError(f"--output {output} exists, or its folder is not there or not writable")
    kept, notes = {}, {}
    if (folder / KEPT).exists():
        with safe_open(folder / KEPT, "pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}
            notes = file.metadata() or {}
    config = read_config(folder)
    checkpoint = published.export_checkpoint(read_state(folder), config, kept, notes)
    write_atomically(output, lambda path: torch.save(checkpoint, path))
    print(f"{output}: {sum(map(len, checkpoint.values()))} tensors")


def main() -> None:
    """Parse and convert one way or the other."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from-published", type=Path, metavar="FILE")
    direction.add_argument("--to-published", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR or FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see what is printed")
    arguments = parser.parse_intermixed_args()
    if arguments.from_published is not None:
        from_published(arguments.from_published, arguments.output, arguments.overrides)
    elif arguments.overrides:
        raise MsdeError("--to-published takes no key=value")
    else:
        to_published(arguments.to_published, arguments.output)


if __name__ == "__main__":
    report_errors(main)
