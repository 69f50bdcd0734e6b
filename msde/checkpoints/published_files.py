"""Files of the published implementation, read and written; `published` translates the tensors."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from msde.checkpoints import published
from msde.checkpoints.weights import CONFIG, MODEL, read_config, read_state, save_weights, seal
from msde.checkpoints.wrapped import read_published
from msde.config import leaves
from msde.errors import MsdeError
from msde.files import check_file, write_atomically

KEPT = "published.safetensors"  # tensors of the published file that our model does not use


def from_published(path: Path, output: Path, overrides: list[str]) -> str:
    """Write a published checkpoint in our format and return a summary for the user.

    Args:
        overrides: key=value for settings that the tensors do not determine, see
            `published.UNDETERMINED`.

    Raises:
        MsdeError: the file cannot be converted, or `output` is not an empty folder.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise MsdeError(f"--output {output} is not an empty folder; choose another one")
    checkpoint, left_out = read_published(path)
    state, config, kept, notes = published.import_checkpoint(checkpoint, overrides)
    try:
        save_weights(
            state, config, output, [f"Converted from the published checkpoint `{path.name}`."]
        )
    except OSError as error:
        raise MsdeError(f"--output {output} cannot be written: {error.strerror}") from error
    kept = {name: tensor.contiguous() for name, tensor in kept.items()}
    write_atomically(output / KEPT, lambda target: save_file(kept, target, metadata=notes))
    seal(output, [MODEL, CONFIG, KEPT])
    values, model = leaves(config), config.model
    lines = [
        f"{output}: {len(state)} tensors, hidden {model.hidden_dim}, {model.encoder_3d}, "
        f"{model.conformer.edges}",
        *([f"left out of {path}: {', '.join(left_out)}"] if left_out else []),
        "set by you or published defaults, since the tensors do not tell:",
        *(f"  {key}={values[key]}" for key in published.UNDETERMINED),
    ]
    return "\n".join(lines)


def to_published(folder: Path, output: Path) -> str:
    """Write weights of ours as a published checkpoint and return a summary for the user.

    Raises:
        MsdeError: the weights have no published form, or `output` cannot be written.
    """
    if output.exists() or not os.access(output.parent, os.W_OK):
        raise MsdeError(f"--output {output} exists, or its folder is not there or not writable")
    kept: published.State = {}
    notes: dict[str, str] = {}
    if check_file(folder / KEPT) or (folder / KEPT).exists():
        with safe_open(folder / KEPT, "pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}
            notes = file.metadata() or {}
    config = read_config(folder)
    checkpoint = published.export_checkpoint(read_state(folder), config, kept, notes)
    write_atomically(output, lambda path: torch.save(checkpoint, path))
    return f"{output}: {sum(map(len, checkpoint.values()))} tensors"
