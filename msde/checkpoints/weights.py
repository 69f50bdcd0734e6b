"""Weights as files for other uses: model.safetensors and config.json in one folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from msde.config import Config, from_dict, read_json, to_dict
from msde.errors import MsdeError
from msde.files import write_atomically
from msde.model import MoleculeSDE

MODEL = "model.safetensors"
CONFIG = "config.json"


def save_weights(state: dict[str, Tensor], config: Config, folder: Path) -> None:
    """Write weights and configuration to `folder`, each file as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_atomically(folder / MODEL, lambda path: save_file(state, path))
    write_atomically(folder / CONFIG, lambda path: path.write_text(text))


def read_config(folder: Path) -> Config:
    """Return the configuration of the weights in a folder.

    Raises:
        MsdeError: the file cannot be read.
    """
    return from_dict(read_json(folder / CONFIG), str(folder / CONFIG))


def read_state(folder: Path) -> dict[str, Tensor]:
    """Return the stored tensors of a folder.

    Raises:
        MsdeError: the file cannot be read.
    """
    path = folder / MODEL
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MsdeError(f"{path} cannot be read: {error}") from error


def fill(model: MoleculeSDE, folder: Path) -> None:
    """Load the weights in a folder into a model.

    Raises:
        MsdeError: the file cannot be read, or a tensor is missing, extra or of another shape; the
            first one is named.
    """
    path, found = folder / MODEL, read_state(folder)
    expected = model.state_dict()
    for name in expected:
        if name not in found:
            raise MsdeError(f"{path}: {name} is missing")
        if found[name].shape != expected[name].shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
            raise MsdeError(f"{path}: {name} has shape {shapes}")
    for name in found.keys() - expected.keys():
        raise MsdeError(f"{path}: {name} is not a tensor of this model")
    model.load_state_dict(found)


def load_weights(folder: Path | str) -> MoleculeSDE:
    """Rebuild the model of a run's `best/`, a checkpoint or a converted one, in evaluation mode.

    Raises:
        MsdeError: the weights or their configuration cannot be read.
    """
    folder = Path(folder)
    model = MoleculeSDE.from_seed(read_config(folder))  # leaves torch's generator alone
    fill(model, folder)
    return model.eval()
